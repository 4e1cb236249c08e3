"""Z-Image, as facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.facts import Facts, LoraFacts, Weight
from lora_scripts.families.sd.check import refuse_scales
from lora_scripts.families.zimage import check
from lora_scripts.families.zimage.layout import CHANNELS, SIDE
from lora_scripts.families.zimage.recipes import RECIPES
from lora_scripts.formats.header import Header

if TYPE_CHECKING:
    from torch import nn

    from lora_scripts.families.names import Base, Names

_LAYERS = "transformer.layers."


def _names() -> Names:
    from lora_scripts.families.zimage import names

    return names.zimage()


def _weights(header: Header, path: Path) -> dict[str, Weight]:
    from lora_scripts.families.zimage import names

    refuse_scales(path, header)
    keys = {check.stripped(key): key for key in header.tensors}
    return {m.path: Weight(keys[f"{m.key}.weight"], m.third) for m in names.weights(check.layout_at(path))}


def _base(path: Path | None) -> Base:
    from lora_scripts.families.zimage import names

    return names.base(None if path is None else check.layout_at(path))


def _unread(key: str, vae: bool) -> bool:
    return check.is_tolerated(check.stripped(key))


def _build(path: Path) -> dict[str, nn.Module]:
    from lora_scripts.families.zimage import load

    # Memory that nothing is written to costs nothing.
    return {"transformer": load.build(check.layout_at(path)).to_empty(device="cpu")}


FACTS = Facts(
    name="zimage",
    words=check.WORDS,
    example="z_image_bf16.safetensors",
    checkpoint=check.CHECKPOINT,
    mergeable=frozenset({check.CHECKPOINT}),
    model="lora_scripts.families.zimage.model",
    features=frozenset({"pictures", "vae", "language"}),
    native_size=(SIDE, SIDE),
    made_for=check.made_for,
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
    recipes=RECIPES,
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
    kind_of=check.kind_of,
    folder_kind=check.folder_kind,
    told=check.told,
    check=check.check,
    weights=_weights,
    parts={"transformer": ""},
    check_vae=check.check_vae,
    wrapped=lambda: {"transformer": ""},
    unread=_unread,
    base=_base,
    build=_build,
    size_step=16,
    check_text=check.check_text,
)
