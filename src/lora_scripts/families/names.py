"""What the layers of a model are called in its own files and in the LoRA formats that people exchange: the form of the
tables that every family has. Torch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Half = Literal["down", "up", "alpha", "dora"]

PEFT_PREFIX = "base_model.model."
_PAIRS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
)
_OLD_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@dataclass(frozen=True)
class Names:
    """One family's names; every table goes from our module path ("unet.…", "text_encoder.…") to a stem."""

    family: str
    words: str
    kohya: Mapping[str, str]
    original: Mapping[str, str]
    diffusers: Mapping[str, str]

    @property
    def stems(self) -> frozenset[str]:
        """Every name of a layer, in any of the namings."""
        stems = {one for path, stem in self.diffusers.items() for one in _stems(path, stem)}
        return frozenset({*self.kohya.values(), *self.original.values(), *stems})

    @property
    def diffusers_keys(self) -> dict[str, tuple[str, Half]]:
        """Every key that a diffusers LoRA of any age may have -> (our path, which part of the module it is)."""
        keys: dict[str, tuple[str, Half]] = {}
        for path, stem in self.diffusers.items():
            for one in _stems(path, stem):
                keys[f"{one}.alpha"] = path, "alpha"
                for down, up in _PAIRS:
                    keys[f"{one}.{down}"], keys[f"{one}.{up}"] = (path, "down"), (path, "up")
            for old in _old_stems(stem):
                keys[f"{old}_lora.down.weight"], keys[f"{old}_lora.up.weight"] = (path, "down"), (path, "up")
        return keys


def _stems(path: str, stem: str) -> set[str]:
    """A text encoder's layers with and without `text_model.`, which transformers 5.6 dropped."""
    return {stem, path}


def _old_stems(stem: str) -> Iterable[str]:
    """The attention processors of diffusers before 0.20, with and without the part's name in front."""
    parent, _, leaf = stem.rpartition(".self_attn.")
    if leaf in _OLD_TEXT:
        yield f"{parent}.self_attn.{_OLD_TEXT[leaf]}"
    for attention in (".attn1.", ".attn2."):
        parent, found, leaf = stem.rpartition(attention)
        if found:
            old = f"{parent}{attention}processor.{_OLD_ATTENTION[leaf]}"
            yield from (old, old.removeprefix("unet."))


@dataclass(frozen=True)
class Layer:
    """One linear or convolution layer of the base."""

    path: str
    """Ours: "unet.…", "text_encoder.…"."""
    hf: str
    """As diffusers and (published) transformers name it, without the part."""
    ldm: str
    """As the published checkpoint names it, without the part's prefix."""
    shape: tuple[int, ...]
    """Of the weight; () where no base was given."""

    @property
    def unet(self) -> bool:
        return self.path.startswith("unet.")

    @property
    def in_block(self) -> bool:
        """Inside the blocks: not conv_in, conv_out, the time embedding."""
        return not self.unet or self.hf.startswith(("down_blocks.", "mid_block.", "up_blocks."))

    @property
    def hf_flat(self) -> str:
        return self.hf.replace(".", "_")

    @property
    def ldm_flat(self) -> str:
        return self.ldm.replace(".", "_")


@dataclass(frozen=True)
class Base:
    """The layers that a LoRA could change."""

    layers: tuple[Layer, ...]
    context_width: int
    """Of the text embedding that cross-attention reads; 0 where no base was given."""
