"""kohya's sd-scripts: training on, generating and merging with `networks/lora.py`.

It makes a layer for every stem that is one of its names (inside the blocks, and of the text encoders) and has a
`lora_down`, and passes over all other keys, LyCORIS among them. A matrix that has not the very shape of the layer's
own, flat ones too, stops the loading; a missing `lora_up` stops a merge. An alpha of 0 counts as the rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.names import Base
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, UP


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    table = {layer.kohya: layer for layer in base.layers if layer.kohya}
    reading = Reading(note=rules.unread_words(tensors))
    for stem, parts in rules.stems(tensors).items():
        layer = table.get(stem)
        if layer is None:
            reading.faults += [Fault(f"{stem}.{leaf}", "passed over: no layer has this name") for leaf in parts]
            continue
        if DOWN not in parts:
            reading.faults += [Fault(f"{stem}.{leaf}", "passed over: the layer has no lora_down") for leaf in parts]
            continue
        if UP not in parts:
            return reading.refuse(f"{stem}.{DOWN}", "the loading stops: the layer has no lora_up")
        reading.faults += [Fault(f"{stem}.{leaf}", "passed over") for leaf in parts if leaf not in (DOWN, UP, ALPHA)]
        change = rules.change_of({leaf: parts[leaf] for leaf in parts if leaf != DORA}, zero_means_rank=True)
        if not isinstance(change, LoraWeights):
            return reading.refuse(f"{stem}.{ALPHA}", "the loading stops: alpha is not one number")
        why = rules.misfit(change, layer.shape) or rules.unlike(change, layer.shape)
        if why:
            return reading.refuse(f"{stem}.{UP}", f"the loading stops: {why}")
        reading.changes[layer.path] = Delta(change)
    return reading
