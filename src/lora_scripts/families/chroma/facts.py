"""Chroma, as facts."""

from __future__ import annotations

from dataclasses import replace

from lora_scripts.families.black_forest.flux1_blocks import BLOCKS, LAYERS
from lora_scripts.families.chroma.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora

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
    previews=(
        Setting("timestep_sampling", "sigmoid", "more from the middle, as it was trained itself"),
        Setting("timestep_shift", "1", "and not moved towards the noise; without this line as it is drawn with"),
        Setting("sample_cfg", "4", "closeness of previews to the prompt; it takes a negative one, too"),
        Setting("sample_steps", "28", "of previews; 40 draw finer"),
    ),
    rank="16",
    rate="3e-4",
    fused=True,
)
