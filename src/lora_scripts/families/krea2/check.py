"""Whether a file or folder is a Krea 2, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families.flow import llm
from lora_scripts.families.flow.film import QWEN_VAE
from lora_scripts.families.flow.llm import QWEN3_VL, Source
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.krea2 import layout
from lora_scripts.families.krea2.layout import Krea2Layout
from lora_scripts.families.sd.check import index_of
from lora_scripts.families.sd.component import PLAIN
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("a Krea 2 checkpoint")
BARE = Kind(
    "only a Krea 2 transformer, in diffusers' layout",
    "give the whole diffusers folder, or krea2_raw_bf16.safetensors",
)
_SIGNS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Texts:
    """What reads texts, on the disk, whole."""

    model: Source
    taps: tuple[int, ...]
    """Behind which of its layers the states are taken."""


def _texts(own: Krea2Layout, base: Path, given: Sequence[Path]) -> Texts:
    """As `Transformer.text` asks. A file says only how many states are taken: it is taken for the published one, whose
    taps lie evenly, behind layers 2, 5, … 35 of 36."""
    source = llm.find(QWEN3_VL, base, given, own.text_width, _SIGNS)
    layers, told = source.layout.layers, index_of(base).get("text_encoder_select_layers")
    if told is not None and not (isinstance(told, list) and len(told) == own.taps and all(map(_is_place, told))):
        text = f"text_encoder_select_layers does not name {own.taps} layers, as many as the transformer reads"
        raise UserError(text, file=base / "model_index.json", hint=PLAIN)
    taps = tuple(told) if told else tuple((n + 1) * layers // own.taps - 1 for n in range(own.taps))
    if max(taps) > layers or layers < own.taps:
        text = f"this text encoder has {layers} layers, the base reads the states behind {max(max(taps), own.taps)}"
        raise UserError(text, file=source.path, hint="give the one that the base was made with")
    return Texts(source, taps)


def _is_place(value: object) -> bool:
    return isinstance(value, int) and value >= 0


FILES = Transformer[Krea2Layout](
    words="Krea 2",
    model="Krea2Transformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=_texts,
    vae=QWEN_VAE,
    side=layout.SIDE,
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its mark is what makes one of a token's states."""
    keys = {stripped(key) for key in shapes}
    if {"text_fusion.projector.weight", "img_in.weight"} <= keys:
        return BARE
    return CHECKPOINT if {"txtfusion.projector.weight", "first.weight"} <= keys else None


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config."""
    return CHECKPOINT if class_of(path) == FILES.model else None
