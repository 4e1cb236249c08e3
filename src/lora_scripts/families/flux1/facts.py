"""FLUX.1, as facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.black_forest.flux1_blocks import BLOCKS, LAYERS
from lora_scripts.families.facts import Drawing, Kept
from lora_scripts.families.flow import clip_l
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flow.transformer import PART
from lora_scripts.families.flux1.check import CHECKPOINT, FILES, folder_kind, kind_of

if TYPE_CHECKING:
    from torch import nn

_MODULATION = (".norm1.", ".norm1_context.", ".norm.linear")


def _drawn(path: Path) -> Drawing:
    """schnell, which is not told how close to keep to the prompt, was distilled to four steps."""
    if FILES.layout_at(path).guidance:
        return Drawing(28, 3.5, cfg_why="guidance of previews, which dev is told; training has 1")
    return Drawing(4, 1.0, steps_why="what schnell was distilled to", cfg_why="schnell knows no guidance")


def _wrapped() -> dict[str, str]:
    from lora_scripts.families.sd.text import library_prefix

    return {PART: "", clip_l.PART: library_prefix(projection=False)}


def _text_weights(base: Path, file: Path) -> dict[str, str]:
    return clip_l.weights(file, FILES.layout_at(base).pooled_width)


def _build(path: Path) -> dict[str, nn.Module]:
    from lora_scripts.families.sd.load import bare_text

    clip = bare_text(clip_l.of_width(FILES.layout_at(path).pooled_width))
    return {**FILES.skeleton(path), clip_l.PART: clip.to_empty(device="cpu")}


_TRANSFORMER = flow_facts(
    "flux1",
    FILES,
    example="flux1-dev.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={**LAYERS, "modulation": lambda path: any(mark in path for mark in _MODULATION), **BLOCKS},
    lora=flow_lora("flux1", "flux-1-dev/lora", loader="FluxLoraLoaderMixin", civitai="Flux.1 D", tag="flux"),
    recipes=recipes(),
    kept={11901: Kept(29860, 1596)},
    drawn=_drawn,
    fused=True,
    negative=False,
    references=1,
)
FACTS = replace(
    _TRANSFORMER,
    features=_TRANSFORMER.features | {"text_encoder"},
    text_roots=(clip_l.PART,),
    parts={PART: "", clip_l.PART: "text_model."},
    wrapped=_wrapped,
    build=_build,
    text_weights=_text_weights,
)
"""CLIP-L takes a LoRA, too; T5 does not."""
