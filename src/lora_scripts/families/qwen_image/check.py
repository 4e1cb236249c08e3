"""Whether a file or folder is a Qwen-Image, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_scripts.families.flow.film import QWEN_VAE
from lora_scripts.families.flow.llm import QWEN25_VL, finder
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.qwen_image import layout, tower
from lora_scripts.families.qwen_image.layout import QwenImageLayout
from lora_scripts.families.sd.check import index_of, read_config
from lora_scripts.formats.header import Kind


def _complete(model: Any) -> None:
    """Of the rotation: diffusers keeps its numbers outside of the state dict."""
    old = model.pos_embed
    model.pos_embed = type(old)(theta=old.theta, axes_dim=old.axes_dim, scale_rope=old.scale_rope)


_BASE = "give Qwen-Image or Qwen-Image-2512"
CHECKPOINT = Kind("a Qwen-Image checkpoint")
FIRST_EDIT = Kind("the first Qwen-Image-Edit", "give Qwen-Image-Edit-2511 or -2509, which are shown pictures otherwise")
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
    unused=(layout.APART,),
    complete=_complete,
)


def check_sight(path: Path, text_encoder: Sequence[Path]) -> None:
    """As `Facts.check_sight`."""
    tower.require(FILES.find_text(path, text_encoder))


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the norm of its texts and the two streams of a block. An Edit is a
    Qwen-Image: before 2511 nothing in a file tells one from the other."""
    keys = {stripped(key) for key in shapes}
    if not {"txt_norm.weight", "img_in.weight", "transformer_blocks.0.txt_mod.1.bias"} <= keys:
        return None
    if any(key.endswith((".qweight", ".wscales")) for key in keys):
        return PACKED
    if "time_text_embed.addition_t_embedding.weight" in keys:
        return LAYERED
    return CHECKPOINT


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    if class_of(path) != FILES.model:
        return None
    config, pipeline = read_config(path / "transformer") or {}, str(index_of(path).get("_class_name", ""))
    if config.get("use_layer3d_rope") or config.get("use_additional_t_cond") or "Layered" in pipeline:
        return LAYERED
    return FIRST_EDIT if pipeline.startswith("QwenImageEdit") and "Plus" not in pipeline else CHECKPOINT
