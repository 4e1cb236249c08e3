"""Whether a file or folder is a Qwen-Image-2.1, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_scripts.families.flow.llm import QWEN3_VL, finder
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.qwen_image21 import layout
from lora_scripts.families.qwen_image21.layout import QwenImage21Layout
from lora_scripts.families.qwen_image21.rgba import RGBA_VAE
from lora_scripts.families.sd.check import index_of
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("a Qwen-Image-2.1 checkpoint")
TURBO = Kind("a Qwen-Image-2.1 distilled to few steps (Turbo)", "give Qwen-Image-2.1")
_TEXT = replace(QWEN3_VL, file="qwen3vl_8b_bf16.safetensors", ended=False, unread=(*QWEN3_VL.unread, "norm."))
"""What stands behind its last layer is read before the norm."""


def _complete(model: Any) -> None:
    """Of the rotation and of the noise levels: diffusers keeps these numbers outside of the state dict."""
    old, time = model.pos_embed, model.time_text_embed
    model.pos_embed = type(old)(theta=old.theta, axes_dim=old.axes_dim)
    time.time_proj = type(time.time_proj)(timestep_dim=time.time_proj.timestep_dim)


FILES = Transformer[QwenImage21Layout](
    words="Qwen-Image-2.1",
    model="QwenImage21Transformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=finder(lambda own: own.text_width, ("<|im_start|>", "<|im_end|>"), _TEXT),
    vae=RGBA_VAE,
    side=layout.SIDE,
    complete=_complete,
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the norm of its texts and the one modulation of all blocks. A Turbo has
    nothing that tells it from the base."""
    marks = {"txt_in.text_norm.weight", "modulation.1.weight", "transformer_blocks.0.img_mlp.out.weight"}
    return CHECKPOINT if marks <= {stripped(key) for key in shapes} else None


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    if class_of(path) != FILES.model:
        return None
    return TURBO if index_of(path).get("sample_sigmas") else CHECKPOINT
