"""Stable Diffusion 3.5, as facts."""

from __future__ import annotations

from pathlib import Path

from lora_scripts.families.facts import Drawing, Kept
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flow.transformer import named_turbo
from lora_scripts.families.sd3.check import CHECKPOINT, FILES, folder_kind, kind_of

_ATTENTION, _MLP, _MODULATION = (".attn.", ".attn2."), (".ff.", ".ff_context."), (".norm1.", ".norm1_context.")


def _drawn(path: Path) -> Drawing:
    """Of Medium, of Large and, by its name, of a Turbo."""
    if named_turbo(path):
        return Drawing(4, 1.0, steps_why="what Turbo was distilled to", cfg_why="Turbo knows no guidance")
    own = FILES.layout_at(path)
    if own.normed and not own.dual:
        return Drawing(28, 3.5, steps_why="40 draw finer", cfg_why="closeness of previews to the prompt; of Medium 4.5")
    return Drawing(28, 4.5, steps_why="40 draw finer", cfg_why="closeness of previews to the prompt; of Large 3.5")


FACTS = flow_facts(
    "sd3",
    FILES,
    example="sd3.5_medium.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: any(mark in path for mark in _ATTENTION),
        "feed_forward": lambda path: any(mark in path for mark in _MLP),
        "modulation": lambda path: any(mark in path for mark in _MODULATION),
    },
    lora=flow_lora(
        "sd3", "stable-diffusion-3-5/lora", loader="SD3LoraLoaderMixin", civitai="SD 3.5", tag="stable-diffusion-3.5"
    ),
    recipes=recipes(rank=("16", "16 to 32; alpha is the same")),
    kept={2243: Kept(8915, 324), 8057: Kept(18017, 801)},
    drawn=_drawn,
    fused=True,
)
