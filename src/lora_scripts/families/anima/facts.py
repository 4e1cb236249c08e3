"""Anima, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.anima.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.anima.layout import CHANNELS, SIDE
from lora_scripts.families.facts import Facts, LoraFacts, Setting
from lora_scripts.families.flow.recipes import recipes

if TYPE_CHECKING:
    from lora_scripts.families.names import Base, Names


def _names() -> Names:
    from lora_scripts.families.anima import names

    return names.anima()


def _base(path: Path | None) -> Base:
    from lora_scripts.families.anima import names

    return names.base(None if path is None else FILES.layout_at(path))


FACTS = Facts(
    name="anima",
    words=FILES.words,
    example="anima-base-v1.0.safetensors",
    checkpoint=CHECKPOINT,
    mergeable=frozenset({CHECKPOINT}),
    model="lora_scripts.families.anima.model",
    features=frozenset({"pictures", "vae", "language"}),
    native_size=(SIDE, SIDE),
    made_for=FILES.made_for,
    least_share=0.2,  # trained from 512 x 512 on
    bucket_step=32,
    vae_factor=8,
    latent_channels=CHANNELS,
    groups={
        "attention": lambda path: ".attn1." in path or ".attn2." in path,
        "feed_forward": lambda path: ".ff." in path,
        "modulation": lambda path: path.startswith("transformer.transformer_blocks.") and ".norm" in path,
    },
    image_root="transformer",
    text_roots=(),
    recipes=recipes(
        Setting("sample_cfg", "4", "closeness of previews to the prompt"),
        Setting("sample_steps", "30", "of previews"),
        rank="16",
    ),
    lora=LoraFacts(
        "anima",
        "Anima/lora",
        "https://github.com/huggingface/diffusers",
        unread_by=frozenset({"A1111", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"}),
        loader="AnimaLoraLoaderMixin",
        civitai="Anima",
        hub_tags=("anima",),
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
