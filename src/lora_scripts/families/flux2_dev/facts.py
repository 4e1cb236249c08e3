"""FLUX.2 dev, as facts."""

from __future__ import annotations

from lora_scripts.families.black_forest.flux2_files import GROUPS
from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
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
    previews=(
        Setting("sample_cfg", "4", "guidance of previews, which dev is told"),
        Setting("sample_steps", "28", "of previews; 50 draw finer"),
    ),
    fused=True,
    negative=False,
    vae_factor=16,
    latent_channels=128,
)
