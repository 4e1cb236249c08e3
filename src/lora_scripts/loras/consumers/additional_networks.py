"""sd-webui-additional-networks, kohya's own extension for A1111.

Every stem, cut at the first dot, must be one of kohya's names of a layer inside the blocks or of the text encoder
(`lora_te_`): any other stops the loading of the file, and so does an alpha that is no scalar. Layers are made for the
stems that have a `lora_down`; what is left over (a lone `lora_up`, `dora_scale`, LyCORIS) is printed as unexpected, a
lone `lora_down` changes nothing, and a matrix of the wrong shape is left out: a flat one of a 3 x 3 convolution, whose
layer then has a random `lora_down`. An alpha of 0 counts as the rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_scripts.families.names import Base
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, UP


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    table = {layer.kohya: layer for layer in base.layers if layer.kohya}
    reading = Reading()
    for key in tensors:
        if key.partition(".")[0] not in table:
            return reading.refuse(key, "the whole file fails to load: this name cannot be converted")
    for stem, parts in rules.stems(tensors).items():
        layer = table[stem]
        if ALPHA in parts and parts[ALPHA].dim():
            return reading.refuse(f"{stem}.{ALPHA}", "the whole file fails to load: alpha is no scalar")
        if DOWN not in parts:
            reading.faults += [Fault(f"{stem}.{leaf}", "not read: the layer has no lora_down") for leaf in parts]
            continue
        if UP not in parts:
            reading.faults.append(Fault(f"{stem}.{DOWN}", "this layer is not changed: it has no lora_up"))
            continue
        reading.faults += [Fault(f"{stem}.{leaf}", "not read") for leaf in parts if leaf not in (DOWN, UP, ALPHA)]
        change = rules.change_of({leaf: parts[leaf] for leaf in parts if leaf != DORA}, zero_means_rank=True)
        if change is None:
            return reading.refuse(f"{stem}.{ALPHA}", "the loading stops: alpha is not one number")
        why = rules.misfit(change, layer.shape)
        if why:
            reading.faults.append(Fault(f"{stem}.{UP}", f"left out: {why}"))
            continue
        if parts[DOWN].dim() == 2 and parts[DOWN].shape[1] != (layer.shape or parts[DOWN].shape)[1]:
            reading.faults.append(Fault(f"{stem}.{DOWN}", "left out: the layer keeps a random one"))
        reading.changes[layer.path] = Delta(change)
    return reading
