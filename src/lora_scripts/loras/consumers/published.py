"""The file by the published formula, ΔW = (alpha / rank) · up @ down, in whatever of the known ways its layers are
named: what every consumer is held against.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_scripts.families.names import Base, Names
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.embedding import BUNDLE
from lora_scripts.loras.naming import DORA, DOWN, PEFT_PREFIX, UP
from lora_scripts.loras.reading import sort


def read(tensors: Mapping[str, Tensor], base: Base, names: Names) -> Reading:
    """Every layer of the base that the file means. Keys that mean none are faults."""
    layers = {layer.path: layer for layer in base.layers}
    lora = {key: tensor for key, tensor in tensors.items() if not key.startswith(BUNDLE)}  # words change no layer
    modules, strangers = sort(lora, _stems(base, names))
    reading = Reading(faults=[Fault(key, "names no layer of this base model") for key in strangers])
    for path, module in modules.items():
        first = next(iter(module.keys.values()))
        missing = [half for half, leaf in (("down", DOWN), ("up", UP)) if leaf not in module.leaves]
        if missing:
            reading.faults.append(Fault(first, f"the {missing[0]} matrix of this layer is missing"))
            continue
        down, up = module.leaves[DOWN], module.leaves[UP]
        why = rules.misfit(down, up, layers[path].shape)
        if why:
            reading.faults.append(Fault(first, why))
            continue
        reading.changes[path] = Delta(down, up, rules.scale_of(module.leaves, down.shape[0]), module.leaves.get(DORA))
    return reading


def _stems(base: Base, names: Names) -> dict[str, str]:
    """Every stem that could mean a layer of the base -> our path; also of layers that no trainer trains."""
    paths = {layer.path for layer in base.layers}
    stems = {stem: path for stem, path in names.paths.items() if path in paths}
    for layer in base.layers:
        flat = (f"lora_unet_{layer.hf_flat}", f"lora_unet_{layer.ldm_flat}") if layer.unet else (layer.kohya,)
        inner = layer.path.partition(".")[2]
        stems |= dict.fromkeys((*flat, PEFT_PREFIX + inner, PEFT_PREFIX + layer.hf), layer.path)
    return stems
