"""Qwen-Image, as facts."""

from __future__ import annotations

from dataclasses import replace

from lora_scripts.families.facts import Drawing, Kept, Setting
from lora_scripts.families.flow.facts import QWEN, flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.qwen_image.check import CHECKPOINT, FILES, check_sight, folder_kind, kind_of

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
    lora=replace(
        flow_lora("qwen_image", "Qwen-Image/lora", loader="QwenImageLoraLoaderMixin", civitai="Qwen", tag="qwen-image"),
        edit_node="TextEncodeQwenImageEditPlus",
    ),
    recipes=recipes(
        Setting("offload_blocks", "20", "for 24 GB: so many blocks in RAM; 16 GB: 44; from 32 GB on without"),
        rank=("16", "of 60 blocks: a file of 212 MB, and 1.7 GB while it is trained"),
        fp8="0.34 GB for each of the 60 blocks",
    ),
    kept={20430: Kept(32744, 1514)},
    coder=QWEN,
    references=3,
    check_sight=check_sight,
    drawn=Drawing(28, 4.0, steps_why="50 draw finer"),
    least_share=0.14,  # from 512 x 512 on, which others train, too; its own training began lower
    bucket_step=16,
)
