"""Qwen-Image, as facts."""

from __future__ import annotations

from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.qwen_image.check import CHECKPOINT, FILES, folder_kind, kind_of

FACTS = flow_facts(
    "qwen_image",
    FILES,
    example="qwen_image_bf16.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: ".attn." in path,
        "feed_forward": lambda path: "_mlp." in path,
        "modulation": lambda path: "_mod." in path,
    },
    lora=flow_lora(
        "qwen_image", "Qwen-Image/lora", loader="QwenImageLoraLoaderMixin", civitai="Qwen", tag="qwen-image"
    ),
    previews=(
        Setting("sample_cfg", "4", "closeness of previews to the prompt"),
        Setting("sample_steps", "28", "of previews; 50 draw finer"),
    ),
    rank="16",
    least_share=0.14,  # from 512 x 512 on, which others train, too; its own training began lower
    bucket_step=16,
)
