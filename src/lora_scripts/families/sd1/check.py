"""Whether a file or folder is a whole Stable Diffusion 1.x or 2.x, told from headers and configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.kinds import Shapes, axis
from lora_scripts.families.sd.check import check_floats, read_config, said, size_made_for, told
from lora_scripts.families.sd.unet import UNET_PREFIX
from lora_scripts.families.sd.whole import VAE, check_part, check_parts, text_part, unet_part, vae_folder
from lora_scripts.families.sd1 import singlefile
from lora_scripts.families.sd1.layout import TEXT_2_PREFIX, TEXT_PREFIX
from lora_scripts.formats.header import Header, Kind, read_header
from lora_scripts.formats.numbers import read_floats

TEXT = text_part("text_encoder", "text encoder")
CHECKPOINT = Kind("a Stable Diffusion 1.x checkpoint")
CHECKPOINT_2 = Kind("a Stable Diffusion 2.x checkpoint")
_PLAIN = "give the plain checkpoint that it was made from"
INPAINTING = Kind("an inpainting checkpoint (9 input channels)", _PLAIN)
EDITING = Kind("an instruct-pix2pix checkpoint (8 input channels)", _PLAIN)
OTHER_2 = Kind("a Stable Diffusion 2.x for inpainting, depth or enlarging (more than 4 input channels)", _PLAIN)
OLD_NAMES = Kind(
    "a Stable Diffusion 1.x checkpoint with the old names of its text encoder (NAI style)",
    "load it in the WebUI and save it again with Checkpoint Merger (one model, No interpolation, safetensors)",
)
SIZES_2 = {"epsilon": (512, 512), "v": (768, 768)}
"""(width, height) in pixels of the pictures that a 2.x was made for, by what it answers with, where it does not say."""
_TELLING = UNET_PREFIX + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD = 0.09
"""Of the numbers in `_TELLING`: above it a 2.x answers with v (ComfyUI, `supported_models.SD20.model_type`)."""


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file with an LDM UNet is."""
    if not any(name.startswith(UNET_PREFIX + "input_blocks.") for name in shapes):
        return None
    has_text = any(name.startswith(TEXT_PREFIX) for name in shapes)
    context = axis(shapes, UNET_PREFIX + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 1)
    channels = axis(shapes, UNET_PREFIX + "input_blocks.0.0.weight", 1)
    if any(name.startswith(TEXT_2_PREFIX) for name in shapes) or (not has_text and context == 1024):
        return OTHER_2 if channels not in (None, 4) else CHECKPOINT_2
    if channels in (8, 9):
        return INPAINTING if channels == 9 else EDITING
    if not has_text and any(name.startswith("cond_stage_model.transformer.e") for name in shapes):
        return OLD_NAMES
    return CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder with one CLIP text encoder is, by the config of its UNet."""
    if not (path / "unet").is_dir() or (path / "text_encoder_2").exists():
        return None
    unet = read_config(path / "unet") or {}  # `check` says what is missing
    channels = unet.get("in_channels")
    if unet.get("use_linear_projection"):
        return OTHER_2 if channels not in (None, 4) else CHECKPOINT_2
    return INPAINTING if channels == 9 else EDITING if channels == 8 else CHECKPOINT


def told_2(path: Path) -> dict[str, Any]:
    """As `Facts.told`, of a 2.x."""
    if said(path)[0]:
        return told(path)
    return {"prediction": "v" if _spread(path) > _SPREAD else "epsilon", "zero_terminal_snr": False}


def guessed_2(path: Path) -> str:
    """As `Facts.guessed`, of a 2.x."""
    if said(path)[0]:
        return ""
    return f"the file does not say: one bias spreads by {_spread(path):.3f}, above {_SPREAD} it is v, as in ComfyUI"


def _spread(path: Path) -> float:
    """Standard deviation of the numbers by which ComfyUI tells what a 2.x answers with; 0 of a folder."""
    if path.is_dir() or _TELLING not in (header := read_header(path)).tensors:
        return 0.0
    return float(read_floats(path, header, _TELLING).std())


def made_for_2(path: Path) -> tuple[int, int]:
    """As `Facts.made_for`, of a 2.x."""
    usual = SIZES_2[told_2(path)["prediction"]]
    return size_made_for(path, usual)


def require_file(path: Path, *, vae: bool = True) -> Header:
    """The header of a whole Stable Diffusion 1.x or 2.x checkpoint in LDM layout; UserError for anything else.

    Every parameter that the layout calls for is there, with its shape and a floating-point type, and nothing unknown.
    `vae=False`: a separate VAE is given, so the file need not hold one.
    """
    header = read_header(path)
    singlefile.check(header.shapes, singlefile.layout_of(header.shapes, file=path, vae=vae), file=path)
    prefixes = (UNET_PREFIX, "first_stage_model.", TEXT_PREFIX, TEXT_2_PREFIX)
    check_floats(path, header, prefixes, singlefile.is_tolerated)
    return header


def check(path: Path, vae: bool) -> None:
    """As `Facts.check`."""
    if path.is_file():
        require_file(path, vae=vae)
        return
    check_parts(path, [unet_part(pooled=False), TEXT, *([VAE] if vae else [])], "Stable Diffusion")


def check_vae(path: Path) -> Header | None:
    """The header of a file with a VAE of SD 1.x or 2.x: alone, in LDM or diffusers names, or in a checkpoint; else
    UserError."""
    if path.is_dir():
        check_part(vae_folder(path), VAE)
        return None
    header = read_header(path)
    kind = kinds.addition(header.shapes) or kind_of(header.shapes, {}) or kinds.other(header.shapes)
    if kind not in (kinds.VAE, CHECKPOINT, CHECKPOINT_2):
        hint = "give an SD 1.x VAE, such as vae-ft-mse-840000-ema-pruned.safetensors, or leave vae out"
        raise UserError(f"this is {kind.words}, not a VAE", file=path, hint=hint)
    singlefile.check_vae(header.shapes, file=path)
    return header
