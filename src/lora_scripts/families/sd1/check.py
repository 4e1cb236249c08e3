"""Whether a file or folder is a whole Stable Diffusion 1.x, told from headers and configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.kinds import Shapes, axis
from lora_scripts.families.sd.check import check_floats, read_config
from lora_scripts.families.sd.whole import VAE, check_part, check_parts, text_part, unet_part
from lora_scripts.families.sd1 import singlefile
from lora_scripts.families.sd1.layout import TEXT_PREFIX, UNET_PREFIX
from lora_scripts.formats.header import Header, Kind, read_header

TEXT = text_part("text_encoder", "text encoder")
CHECKPOINT = Kind("a Stable Diffusion 1.x checkpoint")
_PLAIN = "give the plain checkpoint that it was made from"
INPAINTING = Kind("an inpainting checkpoint (9 input channels)", _PLAIN)
EDITING = Kind("an instruct-pix2pix checkpoint (8 input channels)", _PLAIN)
OLD_NAMES = Kind(
    "a Stable Diffusion 1.x checkpoint with the old names of its text encoder (NAI style)",
    "load it in the WebUI and save it again with Checkpoint Merger (one model, No interpolation, safetensors)",
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file with an LDM UNet is."""
    if not any(name.startswith(UNET_PREFIX + "input_blocks.") for name in shapes):
        return None
    has_text = any(name.startswith(TEXT_PREFIX) for name in shapes)
    context = axis(shapes, UNET_PREFIX + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 1)
    channels = axis(shapes, UNET_PREFIX + "input_blocks.0.0.weight", 1)
    if any(name.startswith("cond_stage_model.model.") for name in shapes) or (not has_text and context == 1024):
        return kinds.SD2
    if channels in (8, 9):
        return INPAINTING if channels == 9 else EDITING
    if not has_text and any(name.startswith("cond_stage_model.transformer.e") for name in shapes):
        return OLD_NAMES
    return CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder with one CLIP text encoder is, by the width that its UNet reads."""
    if not (path / "unet").is_dir() or (path / "text_encoder_2").exists():
        return None
    unet = read_config(path / "unet") or {}  # `check` says what is missing
    if unet.get("cross_attention_dim") == 1024:
        return kinds.SD2
    channels = unet.get("in_channels")
    return INPAINTING if channels == 9 else EDITING if channels == 8 else CHECKPOINT


def require_file(path: Path, *, vae: bool = True) -> Header:
    """The header of a whole Stable Diffusion 1.x checkpoint in LDM layout; UserError for anything else.

    Every parameter that the layout calls for is there, with its shape and a floating-point type, and nothing unknown.
    `vae=False`: a separate VAE is given, so the file need not hold one.
    """
    header = read_header(path)
    singlefile.check(header.shapes, singlefile.layout_of(header.shapes, file=path, vae=vae), file=path)
    prefixes = ("model.diffusion_model.", "first_stage_model.", singlefile.TEXT_PREFIX)
    check_floats(path, header, prefixes, singlefile.is_tolerated)
    return header


def check(path: Path, vae: bool) -> None:
    """As `Facts.check`."""
    if path.is_file():
        require_file(path, vae=vae)
        return
    check_parts(path, [unet_part(pooled=False), TEXT, *([VAE] if vae else [])], "Stable Diffusion 1.x")


def check_vae(path: Path) -> Header | None:
    """The header of a file with an SD 1.x VAE: alone, in LDM or diffusers names, or in a checkpoint; else UserError."""
    if path.is_dir():
        check_part(path / "vae" if (path / "vae").is_dir() else path, VAE)
        return None
    header = read_header(path)
    kind = kinds.addition(header.shapes) or kind_of(header.shapes, {}) or kinds.other(header.shapes)
    if kind not in (kinds.VAE, CHECKPOINT):
        hint = "give an SD 1.x VAE, such as vae-ft-mse-840000-ema-pruned.safetensors, or leave vae out"
        raise UserError(f"this is {kind.words}, not a VAE", file=path, hint=hint)
    singlefile.check_vae(header.shapes, file=path)
    return header
