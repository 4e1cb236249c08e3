"""Stable Diffusion 3.5, as facts."""

from __future__ import annotations

from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.sd3.check import CHECKPOINT, FILES, folder_kind, kind_of

_ATTENTION, _MLP, _MODULATION = (".attn.", ".attn2."), (".ff.", ".ff_context."), (".norm1.", ".norm1_context.")
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
    previews=(
        Setting("sample_cfg", "4.5", "closeness of previews to the prompt; of Large 3.5"),
        Setting("sample_steps", "28", "of previews; 40 draw finer"),
    ),
    rank="16",
    fused=True,
)
