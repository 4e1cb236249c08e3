"""The ways to name the layers in a LoRA file, and how a key is taken apart. What the layers are called is the family's
(`families.names`).

- kohya: `lora_unet_` and diffusers' path with `_`;
- original: the same with the published checkpoint's block names, `lora_unet_input_blocks_1_1_…`;
- diffusers: `unet.<path>.lora_A.weight`, `text_encoder.text_model.…`; older forms of it are read, not written; of a
  diffusion transformer `diffusion_model.<path>.lora_A.weight`;
- PEFT: one adapter for each part, `base_model.model.<path>.lora_A.weight`, beside an `adapter_config.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

PEFT_PREFIX = "base_model.model."
DOWN, UP, ALPHA, DORA = "lora_down.weight", "lora_up.weight", "alpha", "dora_scale"
CORE = "lora_mid.weight"
"""kohya's leaves of a module, which those of other namings are taken for."""
MAGNITUDE = "lora_magnitude_vector"
"""PEFT's name for the lengths of a DoRA, one for each output."""
_OF_OUTPUTS = (f".{MAGNITUDE}", f".{MAGNITUDE}.weight", ".magnitude")
"""How keys of such lengths end in PEFT's files, OneTrainer's and ai-toolkit's."""
LENGTHS = (f".{DORA}", *_OF_OUTPUTS)
"""How the keys of a DoRA's lengths may end."""
PAIRS = (
    (f".{DOWN}", f".{UP}"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
"""How (down, up) may end; "default" is the word of PEFT for an adapter that was given no name."""
LYCORIS = (
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "oft_blocks", "rescale",
)  # fmt: skip
"""The leaves of LoHa, LoKr and OFT, as lycoris-lora writes them."""
_DIFFUSERS = ("unet.", "text_encoder.", "text_encoder_2.", "transformer.", "diffusion_model.")
_LEAVES = {
    **{end: leaf for pair in PAIRS for end, leaf in zip(pair, (DOWN, UP), strict=True)},
    **{f".{leaf}": leaf for leaf in (ALPHA, *LYCORIS)},
    **dict.fromkeys(LENGTHS, DORA),
}


class Naming(Enum):
    """A way to name the layers; the value is its word on the command line."""

    KOHYA = "kohya"
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"
    PEFT = "peft"


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
        elif key.startswith(_DIFFUSERS) or "_lora." in key or ".lora_A." in key:
            return Naming.DIFFUSERS
    return found


def of_outputs(key: str) -> bool:
    """Whether the tensor holds the lengths of a DoRA in a form that has one for each output."""
    return key.endswith(_OF_OUTPUTS)


def split(key: str) -> tuple[str, str]:
    """(stem, leaf): what names the layer, and which part of its module the tensor is, in kohya's word; the leaf is ""
    where the key ends in none that is known, and the stem then what stands before the first dot.
    """
    for end, leaf in _LEAVES.items():
        if key.endswith(end):
            return key.removesuffix(end), leaf
    return key.partition(".")[0], ""
