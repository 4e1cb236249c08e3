"""FLUX.2 dev, as facts."""

from __future__ import annotations

from lora_scripts.families.black_forest.flux2_files import GROUPS
from lora_scripts.families.facts import Drawing, Kept, Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flux2_dev.check import CHECKPOINT, FILES, folder_kind, kind_of

FACTS = flow_facts(
    "flux2_dev",
    FILES,
    example="flux2-dev.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups=GROUPS,
    lora=flow_lora("flux2_dev", "Flux.2-dev/lora", loader="Flux2LoraLoaderMixin", civitai="Flux.2 D", tag="flux2"),
    recipes=recipes(
        Setting("offload_blocks", "38", "of them in RAM, for 24 GB; 32 GB: 20; from 48 GB on without it"),
        rates="3e-5 to 1e-4",
        fp8="31 GB for all 56 blocks",
    ),
    kept={32223: Kept(75318, 3085)},
    drawn=Drawing(
        28, 4.0, steps_why="50 draw finer", cfg_why="guidance of previews, which dev is told; training has 1"
    ),
    fused=True,
    negative=False,
    vae_factor=16,
    latent_channels=128,
    references=6,
)
