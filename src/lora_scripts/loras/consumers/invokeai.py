"""InvokeAI 6.14.2.

On installing, it tells the base from the width of the first `attn2_to_k`, `attn2_to_v`, text encoder attention or time
embedding matrix in the file. On loading, it groups the keys at the first dot, and a group that is no LoRA, LoHa or LoKr
(an OFT is none), or that lacks a matrix, fails the whole file. `lora_unet_…` and `lora_te_…` are looked up as the
module names of diffusers and transformers with `_` for `.`; one that is not there is logged and left out, and other
prefixes are passed over. Matrices may lie flat. Keys that begin with `bundle_emb` are taken out before all that.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_scripts.families.names import Base
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Fault, Reading
from lora_scripts.loras.naming import DORA, DOWN, LYCORIS, UP

_UNTOLD = "it cannot tell on installing what base this is for (no attn2_to_k, attn2_to_v or text encoder in it)"


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    table = {layer.kohya or f"lora_unet_{layer.hf_flat}": layer for layer in base.layers}
    reading = Reading(note=rules.unread_words(tensors))
    for stem, parts in rules.stems(tensors).items():
        first = f"{stem}.{next(iter(parts))}"
        change = rules.change_of(parts)
        if "oft_blocks" in parts or not (UP in parts or DORA in parts or any(leaf in LYCORIS for leaf in parts)):
            return reading.refuse(first, "the whole file fails to load: this is no layer that it knows")
        if change is None:
            return reading.refuse(first, "the whole file fails to load: a matrix of this layer is missing")
        left = rules.left_over(parts, change)
        reading.faults += [Fault(f"{stem}.{leaf}", "not read, a line in the log says so") for leaf in left]
        layer = table.get(stem)
        if layer is None:
            known = stem.startswith(("lora_unet_", "lora_te_"))
            why = "left out, a line in the log says so" if known else "passed over without a word"
            reading.faults += [Fault(f"{stem}.{leaf}", f"{why}: no layer has this name") for leaf in parts]
            continue
        reading.take(layer, stem, parts, change)
    width = _token_width(tensors)
    if base.context_width and width != base.context_width:
        reading.note = _UNTOLD if width is None else f"it takes the file, by its width of {width}, for another base"
    return reading


def _token_width(tensors: Mapping[str, Tensor]) -> int | None:
    """What it takes for the width of the text embedding."""
    for key, tensor in tensors.items():
        unet = key.startswith("lora_unet_") and any(
            mark in key for mark in ("_attn2_to_k.", "_attn2_to_v.", "time_emb_proj.lora_down")
        )
        text = key.startswith("lora_te_") and "_self_attn_" in key
        if (unet or text) and key.endswith("." + DOWN):
            return tensor.shape[1]
    return None
