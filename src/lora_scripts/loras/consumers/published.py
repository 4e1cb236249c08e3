"""The file by the published formula, ΔW = (alpha / rank) · up @ down, in whatever of the known ways its layers are
named: what every consumer is held against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights, finite
from lora_scripts.families.names import Base, Names
from lora_scripts.loras.alphas import alphas_of
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.embedding import BUNDLE
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, PEFT_PREFIX, UP
from lora_scripts.loras.reading import Module, sort


def read(tensors: Mapping[str, Tensor], base: Base, names: Names, metadata: Mapping[str, str] | None = None) -> Reading:
    """Every layer of the base that the file means. Keys that mean none are faults."""
    told = alphas_of(metadata or {}).told
    layers = {layer.path: layer for layer in base.layers}
    lora = {key: tensor for key, tensor in tensors.items() if not key.startswith(BUNDLE)}  # words change no layer
    modules, strangers = sort(lora, _stems(base, names))
    reading = Reading(faults=[Fault(key, "names no layer of this base model") for key in strangers])
    for path, module in modules.items():
        first = next(iter(module.keys.values()))
        spoilt = next((leaf for leaf, tensor in module.leaves.items() if not finite(tensor)), None)
        change = None if _halves(module) else rules.change_of(module.leaves)
        if spoilt is not None:
            reading.faults.append(Fault(module.keys[spoilt], "holds values that are not finite numbers"))
        if change is None:
            missing = _halves(module) or "a matrix"
            reading.faults.append(Fault(first, f"{missing} of this layer is missing"))
            continue
        why = rules.misfit(change, layers[path].shape)
        if why:
            reading.faults.append(Fault(first, why))
            continue
        if isinstance(change, LoraWeights) and ALPHA not in module.leaves:
            change = replace(change, alpha=told(path, change.rank) or float(change.rank))
        if isinstance(change, LoraWeights) or "dora_scale" not in module.leaves:
            reading.changes[path] = Delta(change)
        else:
            reading.faults.append(Fault(module.keys[DORA], "lengths around a LoHa, LoKr or OFT: not looked at here"))
    return reading


def _halves(module: Module) -> str | None:
    """Which of its two matrices a LoRA lacks."""
    there = [leaf for leaf in (DOWN, UP) if leaf in module.leaves]
    return {DOWN: "the up matrix", UP: "the down matrix"}[there[0]] if len(there) == 1 else None


def _stems(base: Base, names: Names) -> dict[str, str]:
    """Every stem that could mean a layer of the base -> our path; also of layers that no trainer trains."""
    paths = {layer.path for layer in base.layers}
    stems = {stem: path for stem, path in names.paths.items() if path in paths}
    for layer in base.layers:
        flat = (f"lora_unet_{layer.hf_flat}", f"lora_unet_{layer.ldm_flat}") if layer.unet else (layer.kohya,)
        inner = layer.path.partition(".")[2]
        stems |= dict.fromkeys((*flat, PEFT_PREFIX + inner, PEFT_PREFIX + layer.hf), layer.path)
    return stems
