"""Whether a file or folder is a Qwen-Image, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.families.flow.film import QWEN_VAE
from lora_scripts.families.flow.llm import QWEN25_VL, finder
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.qwen_image import layout
from lora_scripts.families.qwen_image.layout import QwenImageLayout
from lora_scripts.families.sd.check import index_of, read_config
from lora_scripts.formats.header import Kind


def _complete(model: Any) -> None:
    """Of the rotation: diffusers keeps its numbers outside of the state dict."""
    old = model.pos_embed
    model.pos_embed = type(old)(theta=old.theta, axes_dim=old.axes_dim, scale_rope=old.scale_rope)


_BASE = "give Qwen-Image or Qwen-Image-2512"
CHECKPOINT = Kind("a Qwen-Image checkpoint")
EDIT = Kind("a Qwen-Image that edits pictures (Edit)", _BASE)
LAYERED = Kind("a Qwen-Image that draws in layers (Layered)", _BASE)
PACKED = Kind("a Qwen-Image in 4 bits (SVDQuant)", "give the bf16, fp16 or fp8 version")
FILES = Transformer[QwenImageLayout](
    words="Qwen-Image",
    model="QwenImageTransformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=finder(lambda own: own.text_width, ("<|im_start|>", "<|im_end|>"), QWEN25_VL),
    vae=QWEN_VAE,
    side=layout.SIDE,
    complete=_complete,
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the norm of its texts and the two streams of a block. An Edit of before 2511
    has nothing that tells it from the base."""
    keys = {stripped(key) for key in shapes}
    if not {"txt_norm.weight", "img_in.weight", "transformer_blocks.0.txt_mod.1.bias"} <= keys:
        return None
    if any(key.endswith((".qweight", ".wscales")) for key in keys):
        return PACKED
    if "time_text_embed.addition_t_embedding.weight" in keys:
        return LAYERED
    return EDIT if "__index_timestep_zero__" in keys else CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    if class_of(path) != FILES.model:
        return None
    config, pipeline = read_config(path / "transformer") or {}, str(index_of(path).get("_class_name", ""))
    if config.get("use_layer3d_rope") or config.get("use_additional_t_cond") or "Layered" in pipeline:
        return LAYERED
    return EDIT if config.get("zero_cond_t") or "Edit" in pipeline else CHECKPOINT
