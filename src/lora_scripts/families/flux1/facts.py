"""FLUX.1, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, LoraFacts, Setting
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flux1.check import CHECKPOINT, FILES, KONTEXT, folder_kind, kind_of
from lora_scripts.families.flux1.layout import CHANNELS, SIDE

if TYPE_CHECKING:
    from lora_scripts.families.names import Base, Names

_MLP = (".ff.", ".ff_context.", ".proj_mlp", ".proj_out")
_MODULATION = (".norm1.", ".norm1_context.", ".norm.linear")


def _names() -> Names:
    from lora_scripts.families.flux1 import names

    return names.flux1()


def _base(path: Path | None) -> Base:
    from lora_scripts.families.flux1 import names

    return names.base(None if path is None else FILES.layout_at(path))


FACTS = Facts(
    name="flux1",
    words=FILES.words,
    example="flux1-dev.safetensors",
    checkpoint=CHECKPOINT,
    mergeable=frozenset({CHECKPOINT, KONTEXT}),
    model="lora_scripts.families.flux1.model",
    features=frozenset({"pictures", "vae", "language"}),
    native_size=(SIDE, SIDE),
    made_for=FILES.made_for,
    least_share=0.2,  # trained from 512 x 512 on
    bucket_step=32,
    vae_factor=8,
    latent_channels=CHANNELS,
    groups={
        "attention": lambda path: ".attn." in path,
        "feed_forward": lambda path: any(mark in path for mark in _MLP),
        "modulation": lambda path: any(mark in path for mark in _MODULATION),
        "double": lambda path: path.startswith("transformer.transformer_blocks."),
        "single": lambda path: path.startswith("transformer.single_transformer_blocks."),
    },
    image_root="transformer",
    text_roots=(),
    recipes=recipes(
        Setting("sample_cfg", "3.5", "guidance of previews, which dev is told; schnell knows none"),
        Setting("sample_steps", "28", "of previews; of schnell 4"),
    ),
    lora=LoraFacts(
        "flux1",
        "flux-1-dev/lora",
        "https://github.com/huggingface/diffusers",
        unread_by=frozenset({"A1111", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"}),
        loader="FluxLoraLoaderMixin",
        civitai="Flux.1 D",
        hub_tags=("flux",),
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
