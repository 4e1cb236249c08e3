"""Causal language models, as facts: any architecture of transformers whose weights are linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.families.causal_lm.load import CAUSAL_LM, folder_kind, has_template, layer_weights, open_folder
from lora_scripts.families.causal_lm.names import ROOT, names
from lora_scripts.families.facts import Facts, FolderWeight, LoraFacts
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.names import Base, Layer
from lora_scripts.formats.header import Header, Kind

if TYPE_CHECKING:
    from torch import nn

    from lora_scripts.families.texts import TextEncoder


def _attention(path: str) -> bool:
    return any(word in path for word in ("attn", "attention"))


def _feed_forward(path: str) -> bool:
    """All else inside of the blocks: the output layer is trained only by its name."""
    return not _attention(path) and any(part.isdigit() for part in path.split("."))


PICTURE_PROGRAMS = frozenset(
    {"diffusers", "A1111", "ComfyUI", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"}
)
"""Programs that draw, and read no LoRA of a language model."""
GROUPS = {"attention": _attention, "feed_forward": _feed_forward}
"""Names for sets of layers, for `targets`."""


def _kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    return None  # a single file has no config and no tokenizer


def _told(path: Path) -> Mapping[str, Any]:
    return {}


def _check(path: Path, vae: bool) -> None:
    open_folder(path)


def _check_vae(path: Path) -> Header | None:
    return None


def _weights(header: Header, path: Path) -> Mapping[str, Any]:
    return {}


def _folder_files(path: Path) -> Sequence[str]:
    return list(open_folder(path).files)


def _folder_weights(path: Path) -> Mapping[str, FolderWeight]:
    folder = open_folder(path)
    return {f"{ROOT}.{name}": weight for name, weight in layer_weights(folder).items()}


def _text_encoder(path: Path, template: str | None, train_on: str, max_length: int) -> TextEncoder:
    from lora_scripts.families.causal_lm.encode import encoder_of

    return encoder_of(path, template, train_on, max_length)


def _beside_merged(base: Path, loras: Sequence[Path]) -> Mapping[str, bytes]:
    from lora_scripts.families.causal_lm import merged

    return merged.beside(base, loras)


def _base(path: Path | None) -> Base:
    """The layers with their shapes; without a base none, as every model has its own."""
    if path is None:
        return Base((), 0)
    folder, layers = open_folder(path), []
    for name, weight in layer_weights(folder).items():
        shape = folder.files[weight.file].tensors[weight.key].shape
        layers.append(Layer(f"{ROOT}.{name}", name, "", "", shape[::-1] if weight.flipped else shape))
    return Base(tuple(layers), 0)


def _build(path: Path) -> dict[str, nn.Module]:
    from lora_scripts.families.causal_lm.skeleton import skeleton

    return {ROOT: skeleton(path)}


FACTS = Facts(
    name="causal_lm",
    words="a language model",
    example="the folder of Qwen3-0.6B",
    checkpoint=CAUSAL_LM,
    mergeable=frozenset({CAUSAL_LM}),
    model="lora_scripts.families.causal_lm.model",
    features=frozenset({"texts"}),
    native_size=(0, 0),
    made_for=lambda path: (0, 0),
    least_share=0.0,
    bucket_step=1,
    vae_factor=1,
    latent_channels=0,
    groups=GROUPS,
    image_root=ROOT,
    text_roots=(),
    recipes={},
    lora=LoraFacts(
        "causal_lm",
        "causal-lm/lora",
        "transformers",
        folder=True,
        unread_by=PICTURE_PROGRAMS,
        hub_tags=("text-generation", "peft"),
    ),
    names=names,
    kind_of=_kind_of,
    folder_kind=folder_kind,
    told=_told,
    check=_check,
    check_vae=_check_vae,
    weights=_weights,
    parts={},
    wrapped=lambda: {ROOT: ""},
    folder_weights=_folder_weights,
    folder_files=_folder_files,
    text_encoder=_text_encoder,
    has_template=has_template,
    beside_merged=_beside_merged,
    base=_base,
    build=_build,
)
