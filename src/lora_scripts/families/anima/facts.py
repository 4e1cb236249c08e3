"""Anima, as facts."""

from __future__ import annotations

from lora_scripts.families.anima.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora

FACTS = flow_facts(
    "anima",
    FILES,
    example="anima-base-v1.0.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: ".attn1." in path or ".attn2." in path,
        "feed_forward": lambda path: ".ff." in path,
        "modulation": lambda path: path.startswith("transformer.transformer_blocks.") and ".norm" in path,
    },
    lora=flow_lora("anima", "Anima/lora", loader="AnimaLoraLoaderMixin", civitai="Anima", tag="anima"),
    previews=(
        Setting("sample_cfg", "4", "closeness of previews to the prompt"),
        Setting("sample_steps", "30", "of previews"),
    ),
    rank="16",
)
