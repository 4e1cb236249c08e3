"""Qwen-Image-2.1, as facts."""

from __future__ import annotations

from lora_scripts.families.facts import Coder, Drawing, Kept
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.qwen_image21.check import CHECKPOINT, FILES, TURBO, folder_kind, kind_of

FACTS = flow_facts(
    "qwen_image21",
    FILES,
    example="qwen_image_2.1_bf16.safetensors",
    mergeable=(CHECKPOINT, TURBO),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: ".attn." in path,
        "feed_forward": lambda path: ".img_mlp." in path,
        "modulation": lambda path: path.startswith("transformer.modulation."),
        "text": lambda path: path.startswith("transformer.txt_in."),
    },
    lora=flow_lora(
        "qwen_image_21", "Qwen-Image-2.1/lora", loader="QwenImageLoraLoaderMixin", civitai="Qwen", tag="qwen-image-2.1"
    ),
    recipes=recipes(
        rank=("16", "16 to 32; alpha is the same"),
        batch="captions that have as many tokens go through together",
        fp8="0.22 GB for each of the 32 blocks",
    ),
    kept={7115: Kept(32791, 1125)},
    coder=Coder(1351, 12280),
    drawn=Drawing(28, 1.0, steps_why="40 draw finer", cfg_why="the base is made to be drawn with without guidance"),
    fused=True,
    bucket_step=32,
    vae_factor=16,
    latent_channels=64,
    size_step=32,
    transparent=True,
)
