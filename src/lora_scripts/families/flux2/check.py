"""Whether a file or folder is a whole FLUX.2 klein, told from headers and configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families.flow import qwen3
from lora_scripts.families.flow.autoencoder import VAE32
from lora_scripts.families.flow.pieces import Pieces, require_floats, transformer_class
from lora_scripts.families.flux2.layout import CONFIG, PREFIXES, SIDE, Flux2Layout, layout_from, layout_of, rows
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import native_size, read_config
from lora_scripts.families.sd.rows import check_rows, is_spare
from lora_scripts.families.sd.whole import Part, check_parts
from lora_scripts.formats.header import Header, Kind, read_header

WORDS = "FLUX.2 klein"
_BASE = "give FLUX.2 klein base, 4B or 9B"
CHECKPOINT = Kind("a FLUX.2 klein checkpoint")
DEV = Kind("a FLUX.2 dev checkpoint", _BASE)
DISTILLED = Kind("a FLUX.2 klein distilled to few steps", f"{_BASE}; a LoRA of that works on it, too")
TRANSFORMER = Part(
    "transformer", "transformer", "diffusion_pytorch_model", CONFIG, lambda config: rows(layout_from(config))
)
TAPPED = 3
"""Layers of the text encoder whose states stand side by side."""
SIGNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>")
"""What the template is made of, and what fills it up."""
_PLAIN = "this is not a plain FLUX.2 klein; get the original file"
_OTHERS = ("vae.", "text_encoders.", "first_stage_model.", "cond_stage_model.")
"""Of a file with everything in it, what is read from files of its own."""


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the modulations that all blocks share."""
    keys = {stripped(key) for key in shapes}
    if not {"double_stream_modulation_img.lin.weight", "img_in.weight"} <= keys:
        return None
    return DEV if any(key.startswith("guidance_in.") for key in keys) else CHECKPOINT


def stripped(key: str) -> str:
    """A key without the prefix that some files have."""
    prefix = next((start for start in PREFIXES if key.startswith(start)), "")
    return key.removeprefix(prefix)


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    if transformer_class(path) != "Flux2Transformer2DModel":
        return None
    config = read_config(path / "transformer")
    if config is not None and config.get("guidance_embeds", True):
        return DEV
    return DISTILLED if (read_config(path, "model_index.json") or {}).get("is_distilled") is True else CHECKPOINT


def told(path: Path) -> dict[str, Any]:
    """As `Facts.told`."""
    return {"prediction": "flow", "zero_terminal_snr": False}


def made_for(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, as the file's metadata or the folder's VAE says."""
    if path.is_file():
        return native_size(read_header(path).metadata, (SIDE, SIDE))
    side = (read_config(path / "vae") or {}).get("sample_size")
    return (side, side) if isinstance(side, int) else (SIDE, SIDE)


def require_file(path: Path) -> Pieces:
    """A whole transformer in the published layout; UserErrors for anything else, all faults at once."""
    pieces = Pieces([path], PREFIXES)
    table = rows(layout_of(pieces.shapes, path))
    unknown = [key for key in pieces.keys() if not is_tolerated(key)]  # noqa: SIM118  it is no mapping
    check_rows(pieces.shapes, {"transformer": table}, unknown, file=path, plain=_PLAIN)
    require_floats(pieces, {pieces.key_in_file(row.ldm) for row in table})
    return pieces


def is_tolerated(key: str) -> bool:
    """Whether a file may hold this key unused."""
    return is_spare(key) or key.startswith(_OTHERS)


def layout_at(path: Path) -> Flux2Layout:
    """The widths of a base, file or folder. UserErrors when it is broken."""
    if path.is_file():
        return layout_of(require_file(path).shapes, path)
    check_parts(path, [TRANSFORMER], WORDS)
    return layout_from(read_config(path / "transformer") or {})


def check(path: Path, vae: bool) -> None:
    """As `Facts.check`."""
    if path.is_dir():
        check_parts(path, [TRANSFORMER, *([VAE32.part()] if vae else [])], WORDS)
        return
    require_file(path)
    if vae:
        hint = f"add vae: the file {VAE32.file}, or a folder with a VAE"
        raise UserError("this file holds no VAE that is read", file=path, hint=hint)


def check_vae(path: Path) -> Header | None:
    """As `Facts.check_vae`."""
    return VAE32.check(path, WORDS)


def check_text(path: Path, text_encoder: Path | None) -> None:
    """As `Facts.check_text`."""
    source = qwen3.find(path, text_encoder, layout_at(path).text_width // TAPPED)
    qwen3.added_tokens(source.tokenizer, SIGNS)
