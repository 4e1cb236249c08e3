"""Whether a file or folder is a whole Z-Image, told from headers and configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families.flow import qwen3
from lora_scripts.families.flow.autoencoder import VAE16
from lora_scripts.families.flow.pieces import Pieces, require_floats, transformer_class
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import native_size, read_config
from lora_scripts.families.sd.rows import check_rows, is_spare
from lora_scripts.families.sd.whole import Part, check_parts
from lora_scripts.families.zimage.layout import (
    CONFIG,
    PREFIXES,
    SAMPLER_SHIFT,
    SIDE,
    ZImageLayout,
    layout_from,
    layout_of,
    rows,
)
from lora_scripts.formats.header import Header, Kind, read_header

WORDS = "Z-Image"
CHECKPOINT = Kind("a Z-Image checkpoint")
OMNI = Kind("a Z-Image that reads pictures, too (Omni)", "give Z-Image or Z-Image-Turbo")
TRANSFORMER = Part(
    "transformer", "transformer", "diffusion_pytorch_model", CONFIG, lambda config: rows(layout_from(config))
)
_PLAIN = "this is not a plain Z-Image; get the original file"
_OTHERS = ("vae.", "text_encoders.", "first_stage_model.", "cond_stage_model.")
"""Of a file with everything in it, what is read from files of its own."""


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the tokens that fill up pictures and texts."""
    keys = {stripped(key) for key in shapes}
    if not {"x_pad_token", "cap_pad_token", "x_embedder.weight"} <= keys:
        return None
    return OMNI if any(key.startswith("siglip_") for key in keys) else CHECKPOINT


def stripped(key: str) -> str:
    """A key without the prefix that some files have."""
    prefix = next((start for start in PREFIXES if key.startswith(start)), "")
    return key.removeprefix(prefix)


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config."""
    if transformer_class(path) != "ZImageTransformer2DModel":
        return None
    return OMNI if (read_config(path / "transformer") or {}).get("siglip_feat_dim") else CHECKPOINT


def told(path: Path) -> dict[str, Any]:
    """As `Facts.told`."""
    return {"prediction": "flow", "zero_terminal_snr": False}


def sampler_shift(path: Path) -> float:
    """Of the noise levels that a base is drawn with, as its folder says."""
    config = read_config(path / "scheduler", "scheduler_config.json") if path.is_dir() else None
    given = (config or {}).get("shift")
    return float(given) if isinstance(given, int | float) else SAMPLER_SHIFT


def made_for(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, as the file's metadata or the folder's VAE says."""
    if path.is_file():
        return native_size(read_header(path).metadata, (SIDE, SIDE))
    side = (read_config(path / "vae") or {}).get("sample_size")
    return (side, side) if isinstance(side, int) else (SIDE, SIDE)


def require_file(path: Path) -> Pieces:
    """A whole transformer in the published layout; UserErrors for anything else, all faults at once."""
    pieces = Pieces([path], PREFIXES)
    layout = layout_of(pieces.shapes, path)
    table = rows(layout)
    unknown = [key for key in pieces.keys() if not is_tolerated(key)]  # noqa: SIM118  it is no mapping
    check_rows(pieces.shapes, {"transformer": table}, unknown, file=path, plain=_PLAIN)
    require_floats(pieces, {pieces.key_in_file(row.ldm) for row in table})
    return pieces


def is_tolerated(key: str) -> bool:
    """Whether a file may hold this key unused."""
    return is_spare(key) or key.startswith(_OTHERS) or key == "norm_final.weight"


def layout_at(path: Path) -> ZImageLayout:
    """The widths of a base, file or folder. UserErrors when it is broken."""
    if path.is_file():
        return layout_of(require_file(path).shapes, path)
    check_parts(path, [TRANSFORMER], WORDS)
    return layout_from(read_config(path / "transformer") or {})


def check(path: Path, vae: bool) -> None:
    """As `Facts.check`."""
    if path.is_dir():
        check_parts(path, [TRANSFORMER, *([VAE16.part()] if vae else [])], WORDS)
        return
    require_file(path)
    if vae:
        hint = "add vae: the file ae.safetensors, or a folder with a VAE"
        raise UserError("this file holds no VAE that is read", file=path, hint=hint)


def check_vae(path: Path) -> Header | None:
    """As `Facts.check_vae`."""
    return VAE16.check(path, WORDS)


def check_text(path: Path, text_encoder: Path | None) -> None:
    """As `Facts.check_text`."""
    source = qwen3.find(path, text_encoder, layout_at(path).text_width)
    qwen3.added_tokens(source.tokenizer, SIGNS)


SIGNS = ("<|im_start|>", "<|im_end|>")
"""What the template is made of."""
