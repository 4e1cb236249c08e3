"""kohya's sd-scripts: training on, generating and merging with `networks/lora.py`.

It makes a layer for every stem that is one of its names (inside the blocks, and `lora_te_` for the text encoder of SD
1.x) and has a `lora_down`, and passes over all other keys. A matrix of the wrong shape stops the loading; a missing
`lora_up` stops a merge. An alpha of 0 counts as the rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_scripts.families.names import Base
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.embedding import BUNDLE
from lora_scripts.loras.naming import ALPHA, DOWN, UP


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    table = {layer.kohya: layer for layer in base.layers if layer.kohya}
    reading = Reading()
    for stem, parts in rules.stems(tensors).items():
        layer = table.get(stem)
        if stem + "." == BUNDLE:
            reading.note = rules.unread_words(tensors)
            continue
        if layer is None:
            reading.faults += [Fault(f"{stem}.{leaf}", "passed over: no layer has this name") for leaf in parts]
            continue
        if DOWN not in parts:
            reading.faults += [Fault(f"{stem}.{leaf}", "passed over: the layer has no lora_down") for leaf in parts]
            continue
        if UP not in parts:
            return reading.refuse(f"{stem}.{DOWN}", "the loading stops: the layer has no lora_up")
        reading.faults += [Fault(f"{stem}.{leaf}", "passed over") for leaf in parts if leaf not in (DOWN, UP, ALPHA)]
        why = rules.misfit(parts[DOWN], parts[UP], layer.shape)
        if why:
            return reading.refuse(f"{stem}.{UP}", f"the loading stops: {why}")
        scale = rules.scale_of(parts, parts[DOWN].shape[0], zero_means_rank=True)
        reading.changes[layer.path] = Delta(parts[DOWN], parts[UP], scale)
    return reading
