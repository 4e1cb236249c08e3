"""What the layers of a model are called in the LoRA formats that people exchange: a table for each family.

- kohya: `lora_unet_` and diffusers' path with `_` (see `kohya.py`);
- original: the same with the published checkpoint's block names, `lora_unet_input_blocks_1_1_…`;
- diffusers: `unet.<path>.lora_A.weight`, `text_encoder.text_model.…`; older forms of it are read, not written;
- PEFT: one adapter for each part, `base_model.model.<path>.lora_A.weight`, beside an `adapter_config.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Literal

from lora_scripts.families.sd1.layout import UNET_PREFIX, Sd1Layout, unet_rows
from lora_scripts.loras.kohya import sd1_table

Half = Literal["down", "up", "alpha", "dora"]

PEFT_PREFIX = "base_model.model."
_PAIRS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
)
_OLD_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


class Naming(Enum):
    """A way to name the layers; the value is its word on the command line."""

    KOHYA = "kohya"
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"
    PEFT = "peft"


@dataclass(frozen=True)
class Names:
    """One family's names; every table goes from our module path ("unet.…", "text_encoder.…") to a stem."""

    family: str
    words: str
    kohya: Mapping[str, str]
    original: Mapping[str, str]
    diffusers: Mapping[str, str]

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


@cache
def sd1() -> Names:
    """Stable Diffusion 1.x."""
    kohya = sd1_table()
    # Widths that all differ, so that every shortcut that any model of this shape could have is in the table.
    layout = Sd1Layout((32, 64, 96, 128), 16, 4, 4, (), 4, 16, 12, 32, 1, 1)
    ldm = {
        f"unet.{row.hf.removesuffix('.weight')}": row.ldm.removeprefix(UNET_PREFIX).removesuffix(".weight")
        for row in unet_rows(layout)
        if row.hf.endswith(".weight")
    }
    original = {
        path: f"lora_unet_{ldm[path].replace('.', '_')}" if path in ldm else name
        for path, name in kohya.items()
        if path in ldm or path.startswith("text_encoder.")
    }
    diffusers = {path: path.replace("text_encoder.", "text_encoder.text_model.") for path in kohya}
    return Names("sd1", "Stable Diffusion 1.x", kohya, original, diffusers)


FAMILIES: dict[str, Callable[[], Names]] = {"sd1": sd1}


def naming_of(keys: Iterable[str]) -> Naming | None:
    """How a LoRA's layers are named, told by the first key that says it; None when none does."""
    found = None
    for key in keys:
        if key.startswith(PEFT_PREFIX):
            return Naming.PEFT
        if key.startswith(("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")):
            return Naming.ORIGINAL
        if key.startswith("lora_unet_"):
            return Naming.KOHYA
        if key.startswith("lora_te"):  # the text encoder's names are the same in both; the UNet's decide
            found = Naming.KOHYA
        elif key.startswith(("unet.", "text_encoder.")) or "_lora." in key or ".lora_A." in key:
            return Naming.DIFFUSERS
    return found
