"""Whether a file or folder is a whole SDXL, and of which sort, told from headers and configs alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.kinds import Shapes, axis
from lora_scripts.families.sd.check import check_floats, read_config, scheduler_of
from lora_scripts.families.sd.unet import UNET_PREFIX
from lora_scripts.families.sd.vae import VAE_PREFIX
from lora_scripts.families.sd.vae import check_vae as check_vae_rows
from lora_scripts.families.sd.whole import VAE, check_part, check_parts, text_part, unet_part, vae_folder
from lora_scripts.families.sdxl import singlefile
from lora_scripts.families.sdxl.layout import SCALING
from lora_scripts.formats.header import Header, Kind, read_header

_BASE = "give the SDXL checkpoint that it was made from; a LoRA of that works on it, too"
CHECKPOINT = Kind("an SDXL checkpoint")
TURBO = Kind("an SDXL distilled to few steps (turbo, lightning, LCM)", _BASE)
REFINER = Kind("an SDXL refiner", "give the SDXL base, such as sd_xl_base_1.0.safetensors; the refiner needs no LoRA")
INPAINTING = Kind("an SDXL inpainting checkpoint (9 input channels)", _BASE)
EDITING = Kind("an SDXL instruct-pix2pix checkpoint (8 input channels)", _BASE)
EDM = Kind("an SDXL with the EDM noise schedule (Playground 2.5, CosXL)", "give one with epsilon or v-prediction")

PARTS = ("unet", "text_encoder", "text_encoder_2")
WORDS = "SDXL"
_PREFIXES = (UNET_PREFIX, VAE_PREFIX, "conditioner.embedders.")
_FEW_STEPS = re.compile(r"\b(turbo|lightning|lcm|hyper-?sd)\b", re.IGNORECASE)
_SCALE_APART = 0.01
"""How far a VAE's scaling factor may be off."""


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is, by its text encoders and by the width that its UNet reads."""
    if any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        return REFINER
    if any(name.startswith(("conditioner.embedders.", f"{UNET_PREFIX}label_emb.")) for name in shapes):
        return _sort_of(shapes, metadata)
    if any(name.startswith("cond_stage_model.transformer.text_model.") for name in shapes):
        return None
    context = axis(shapes, f"{UNET_PREFIX}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 1)
    return {2048: CHECKPOINT, 1280: REFINER}.get(context or 0)


def _sort_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind:
    if any(name.startswith(("edm_mean", "edm_vpred.")) for name in shapes):
        return EDM
    channels = axis(shapes, f"{UNET_PREFIX}input_blocks.0.0.weight", 1)
    if channels in (8, 9):
        return INPAINTING if channels == 9 else EDITING
    words = " ".join(metadata.get(f"modelspec.{key}", "") for key in ("architecture", "title")).replace("_", " ")
    return TURBO if _FEW_STEPS.search(words) else CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder with a second text encoder is, by the configs of its UNet and its scheduler."""
    if not (path / "unet").is_dir() or not (path / "text_encoder_2" / "config.json").is_file():
        return None
    unet = read_config(path / "unet") or {}  # `check` says what is wrong with it
    if not (path / "text_encoder").is_dir():
        return REFINER
    channels, scheduler = unet.get("in_channels"), scheduler_of(path)
    if channels in (8, 9):
        return INPAINTING if channels == 9 else EDITING
    # As sdxl-turbo and the LCMs are published; the base has EulerDiscreteScheduler with "leading" steps.
    name, spacing = str(scheduler.get("_class_name", "")), scheduler.get("timestep_spacing")
    if name == "LCMScheduler" or (name == "EulerAncestralDiscreteScheduler" and spacing == "trailing"):
        return TURBO
    return EDM if name.startswith("EDM") else CHECKPOINT


def require_file(path: Path, *, vae: bool = True) -> Header:
    """The header of a whole SDXL in the published layout; UserError for anything else.

    Every parameter that the layout calls for is there, with its shape and a floating-point type, and nothing unknown.
    `vae=False`: a separate VAE is given, so the file need not hold one.
    """
    header = read_header(path)
    singlefile.check(header.shapes, singlefile.layout_of(header.shapes, file=path, vae=vae), file=path)
    check_floats(path, header, _PREFIXES, singlefile.is_tolerated)
    return header


def check(path: Path, vae: bool) -> None:
    """As `Facts.check`."""
    if path.is_file():
        require_file(path, vae=vae)
    else:
        text, text_2 = PARTS[1:]
        parts = [unet_part(pooled=True), text_part(text, "first text encoder")]
        parts += [text_part(text_2, "second text encoder", projection=True), *([VAE] if vae else [])]
        check_parts(path, parts, WORDS)


def check_vae(path: Path) -> Header | None:
    """The header of a file with a VAE: alone, in LDM or diffusers names, or in an SDXL checkpoint; None of a folder.

    UserError for another file, and for a folder that says that its VAE is of another family. A file with no more than a
    VAE does not say: the loader compares what it does with what the base's own does.
    """
    if path.is_dir():
        config = read_config(vae_folder(path))
        scaling = config.get("scaling_factor") if config else None
        if isinstance(scaling, float) and abs(scaling / SCALING - 1) > _SCALE_APART:
            raise UserError(f"this VAE scales latents by {scaling}, SDXL's by {SCALING}", file=path, hint=OTHER_VAE)
        check_part(vae_folder(path), VAE)
        return None
    header = read_header(path)
    kind = kinds.addition(header.shapes) or kind_of(header.shapes, {}) or _other(header.shapes)
    if kind not in (kinds.VAE, CHECKPOINT):
        raise UserError(f"this is {kind.words}, not a VAE of SDXL", file=path, hint=OTHER_VAE)
    tolerated, plain = singlefile.is_tolerated, singlefile.NOT_PLAIN
    check_vae_rows(header.shapes, file=path, tolerated=tolerated, plain=plain)
    return header


OTHER_VAE = "give a VAE of SDXL, such as sdxl_vae.safetensors or the one mended for fp16, or leave vae out"


def _other(shapes: Shapes) -> Kind:
    """Of a file that is no SDXL: a whole model of another family is no VAE, though it has one."""
    whole = any(name.startswith(UNET_PREFIX) for name in shapes)
    return Kind("a checkpoint of another model") if whole else kinds.other(shapes)
