"""Z-Image, as facts."""

from __future__ import annotations

from pathlib import Path

from lora_scripts.families.facts import Drawing, Kept
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.zimage.check import CHECKPOINT, FILES, folder_kind, is_turbo, kind_of

_LAYERS = "transformer.layers."


def _drawn(path: Path) -> Drawing:
    if is_turbo(path):
        return Drawing(8, 1.0, steps_why="what Turbo was distilled to", cfg_why="Turbo knows no guidance")
    return Drawing(28, 5.0)


FACTS = flow_facts(
    "zimage",
    FILES,
    example="z_image_bf16.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: path.startswith(_LAYERS) and ".attention." in path,
        "feed_forward": lambda path: path.startswith(_LAYERS) and ".feed_forward." in path,
        "modulation": lambda path: path.startswith(_LAYERS) and ".adaLN_modulation." in path,
        "refiners": lambda path: path.startswith(("transformer.noise_refiner.", "transformer.context_refiner.")),
    },
    lora=flow_lora("z_image", "Z-Image/lora", loader="ZImageLoraLoaderMixin", civitai="ZImageBase", tag="z-image"),
    recipes=recipes(),
    kept={6155: Kept(32163, 962)},
    drawn=_drawn,
    fused=True,
)
