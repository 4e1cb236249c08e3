"""SD.Next (commit 431bcc36), its own loader.

It cuts a key at the first dot and looks the stem up among the modules of the diffusers pipeline: kohya's names, and
`lora_unet_…` with published block names, which it turns into diffusers'. A stem that leads nowhere is counted in a line
of the log; one that leads to a module with layers in it, and an OFT, make the whole file fail; a layer that lacks a
matrix is left out. Matrices may lie flat. `dora_scale` is taken as one number an input, and the DoRA's change is
multiplied by alpha / rank once more. `bundle_emb.WORD.…` are the vectors of a word, which prompts then know.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.names import Base
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Fault, Reading
from lora_scripts.loras.embedding import bundled
from lora_scripts.loras.naming import DORA


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    table = {layer.kohya: layer for layer in base.layers if layer.kohya}
    table |= {
        f"lora_unet_{name}": layer for layer in base.layers for name in (layer.hf_flat, layer.ldm_flat) if layer.unet
    }
    reading, containers = Reading(), rules.containers(base)
    for stem, parts in rules.stems(tensors).items():
        first = f"{stem}.{next(iter(parts))}"
        if stem in containers:
            return reading.refuse(first, "the whole file fails to load: this is no layer, there are layers in it")
        if "oft_blocks" in parts:
            return reading.refuse(first, "the whole file fails to load: it cannot apply an OFT")
        if stem not in table:
            why = "left out, a line in the log says how many: no layer has this name"
            reading.faults += [Fault(f"{stem}.{leaf}", why) for leaf in parts]
            continue
        layer, change = table[stem], rules.change_of(parts)
        if change is None:
            reading.faults.append(Fault(first, "this layer is not changed: a matrix of it is missing"))
            continue
        left = rules.left_over(parts, change)
        reading.faults += [Fault(f"{stem}.{leaf}", "not read: this part of a LoRA is unknown") for leaf in left]
        if not reading.take(layer, stem, parts, change):
            continue
        if isinstance(change, LoraWeights) and change.dora is not None and change.alpha != change.rank:
            text = f"the change of this DoRA is multiplied by alpha / rank = {change.alpha / change.rank:g} once more"
            reading.faults.append(Fault(f"{stem}.{DORA}", text))
    if words := bundled(tensors):
        reading.note = f"and its prompts know the word {', '.join(words)}"
    return reading
