"""Z-Image, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, LoraFacts, Setting
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.zimage.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.zimage.layout import CHANNELS, SIDE

if TYPE_CHECKING:
    from lora_scripts.families.names import Base, Names

_LAYERS = "transformer.layers."


def _names() -> Names:
    from lora_scripts.families.zimage import names

    return names.zimage()


def _base(path: Path | None) -> Base:
    from lora_scripts.families.zimage import names

    return names.base(None if path is None else FILES.layout_at(path))


FACTS = Facts(
    name="zimage",
    words=FILES.words,
    example="z_image_bf16.safetensors",
    checkpoint=CHECKPOINT,
    mergeable=frozenset({CHECKPOINT}),
    model="lora_scripts.families.zimage.model",
    features=frozenset({"pictures", "vae", "negative", "language"}),
    native_size=(SIDE, SIDE),
    made_for=FILES.made_for,
    least_share=0.2,  # trained from 512 x 512 on
    bucket_step=32,
    vae_factor=8,
    latent_channels=CHANNELS,
    groups={
        "attention": lambda path: path.startswith(_LAYERS) and ".attention." in path,
        "feed_forward": lambda path: path.startswith(_LAYERS) and ".feed_forward." in path,
        "modulation": lambda path: path.startswith(_LAYERS) and ".adaLN_modulation." in path,
        "refiners": lambda path: path.startswith(("transformer.noise_refiner.", "transformer.context_refiner.")),
    },
    image_root="transformer",
    text_roots=(),
    recipes=recipes(
        Setting("sample_cfg", "5", "closeness of previews to the prompt; of Turbo 1"),
        Setting("sample_steps", "28", "of previews; of Turbo 8"),
    ),
    lora=LoraFacts(
        "z_image",
        "Z-Image/lora",
        "https://github.com/huggingface/diffusers",
        unread_by=frozenset({"A1111", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"}),
        loader="ZImageLoraLoaderMixin",
        civitai="ZImageBase",
        hub_tags=("z-image",),
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
