"""Qwen-Image, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, LoraFacts, Setting
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.qwen_image.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.qwen_image.layout import CHANNELS, SIDE

if TYPE_CHECKING:
    from lora_scripts.families.names import Base, Names


def _names() -> Names:
    from lora_scripts.families.qwen_image import names

    return names.qwen_image()


def _base(path: Path | None) -> Base:
    from lora_scripts.families.qwen_image import names

    return names.base(None if path is None else FILES.layout_at(path))


FACTS = Facts(
    name="qwen_image",
    words=FILES.words,
    example="qwen_image_bf16.safetensors",
    checkpoint=CHECKPOINT,
    mergeable=frozenset({CHECKPOINT}),
    model="lora_scripts.families.qwen_image.model",
    features=frozenset({"pictures", "vae", "language"}),
    native_size=(SIDE, SIDE),
    made_for=FILES.made_for,
    least_share=0.14,  # from 512 x 512 on, which others train, too; its own training began lower
    bucket_step=16,
    vae_factor=8,
    latent_channels=CHANNELS,
    groups={
        "attention": lambda path: ".attn." in path,
        "feed_forward": lambda path: "_mlp." in path,
        "modulation": lambda path: "_mod." in path,
    },
    image_root="transformer",
    text_roots=(),
    recipes=recipes(
        Setting("sample_cfg", "4", "closeness of previews to the prompt"),
        Setting("sample_steps", "28", "of previews; 50 draw finer"),
        rank="16",
    ),
    lora=LoraFacts(
        "qwen_image",
        "Qwen-Image/lora",
        "https://github.com/huggingface/diffusers",
        unread_by=frozenset({"A1111", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"}),
        loader="QwenImageLoraLoaderMixin",
        civitai="Qwen",
        hub_tags=("qwen-image",),
    ),
    names=_names,
    kind_of=kind_of,
    folder_kind=folder_kind,
    told=FILES.told,
    check=FILES.check,
    weights=FILES.weights,
    parts={"transformer": ""},
    check_vae=FILES.check_vae,
    wrapped=lambda: {"transformer": ""},
    unread=FILES.unread,
    base=_base,
    build=FILES.skeleton,
    size_step=16,
    check_text=FILES.check_text,
)
