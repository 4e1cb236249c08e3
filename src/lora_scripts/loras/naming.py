"""What the layers of a model are called in the LoRA formats that people exchange: a table for each family.

- kohya: `lora_unet_` and diffusers' path with `_` (see `kohya.py`);
- original: the same with the published checkpoint's block names, `lora_unet_input_blocks_1_1_…`;
- diffusers: `unet.<path>.lora_A.weight`, `text_encoder.text_model.…`; older forms of it are read, not written;
- PEFT: one adapter for each part, `base_model.model.<path>.lora_A.weight`, beside an `adapter_config.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

from lora_scripts.families.names import PEFT_PREFIX, Names
from lora_scripts.families.sd1.names import sd1


class Naming(Enum):
    """A way to name the layers; the value is its word on the command line."""

    KOHYA = "kohya"
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"
    PEFT = "peft"


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
