"""Chroma, as facts."""

from __future__ import annotations

from dataclasses import replace

from lora_scripts.families.black_forest.flux1_blocks import BLOCKS, LAYERS
from lora_scripts.families.chroma.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.facts import Drawing, Kept, Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes

_LORA = flow_lora("chroma", "chroma/lora", loader="FluxLoraLoaderMixin", civitai="Chroma", tag="chroma")
FACTS = flow_facts(
    "chroma",
    FILES,
    example="Chroma1-HD.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={**LAYERS, **BLOCKS},
    lora=replace(_LORA, architectures=frozenset({"Chroma1/lora"})),
    recipes=recipes(
        Setting("timestep_sampling", "sigmoid", "noise levels from the middle more often: so it was trained itself"),
        Setting("timestep_shift", "1", "and not moved towards the noise, as those are that it draws with"),
        rank=("16", "16 to 32; alpha is the same"),
        rate="3e-4",
        seen=500,
        rates="1e-4 to 3e-4",
    ),
    kept={8900: Kept(27375, 1468)},
    drawn=Drawing(28, 4.0, "low quality, blurry", "40 draw finer", "of previews; a negative prompt counts, too"),
    fused=True,
)
