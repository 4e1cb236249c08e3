"""FLUX.2 klein, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, LoraFacts, Setting
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flux2.check import CHECKPOINT, DISTILLED, FILES, folder_kind, kind_of
from lora_scripts.families.flux2.layout import SIDE

if TYPE_CHECKING:
    from lora_scripts.families.names import Base, Names

_MLP = (".ff.", ".ff_context.")


def _names() -> Names:
    from lora_scripts.families.flux2 import names

    return names.flux2()


def _base(path: Path | None) -> Base:
    from lora_scripts.families.flux2 import names

    return names.base(None if path is None else FILES.layout_at(path))


FACTS = Facts(
    name="flux2",
    words=FILES.words,
    example="flux-2-klein-base-4b.safetensors",
    checkpoint=CHECKPOINT,
    mergeable=frozenset({CHECKPOINT, DISTILLED}),
    model="lora_scripts.families.flux2.model",
    features=frozenset({"pictures", "vae", "negative", "language"}),
    native_size=(SIDE, SIDE),
    made_for=FILES.made_for,
    least_share=0.2,  # trained from 512 x 512 on
    bucket_step=32,
    vae_factor=16,
    latent_channels=128,
    groups={
        "attention": lambda path: ".attn." in path,
        "feed_forward": lambda path: any(mark in path for mark in _MLP),
        "double": lambda path: path.startswith("transformer.transformer_blocks."),
        "single": lambda path: path.startswith("transformer.single_transformer_blocks."),
    },
    image_root="transformer",
    text_roots=(),
    recipes=recipes(
        Setting("sample_cfg", "4", "closeness of previews to the prompt"),
        Setting("sample_steps", "28", "of previews"),
    ),
    lora=LoraFacts(
        "flux2_klein",
        "Flux.2/lora",
        "https://github.com/huggingface/diffusers",
        unread_by=frozenset({"A1111", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"}),
        loader="Flux2LoraLoaderMixin",
        civitai="Flux.2 Klein",
        hub_tags=("flux2",),
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
