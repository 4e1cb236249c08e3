"""The file by the published formula, ΔW = (alpha / rank) · up @ down, in whatever of the known ways its layers are
named: what every consumer is held against.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_scripts.families.names import PEFT_PREFIX, Base, Half, Layer
from lora_scripts.families.sd1.names import sd1
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Change, Fault, Reading
from lora_scripts.loras.embedding import BUNDLE

_LEAVES: dict[str, Half] = {rules.DOWN: "down", rules.UP: "up", rules.ALPHA: "alpha", rules.DORA: "dora"}


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """Every layer of the base that the file means. Keys that mean none are faults."""
    layers = {layer.path: layer for layer in base.layers}
    known = _table(base)
    reading, parts = Reading(), dict[str, dict[Half, Tensor]]()
    first: dict[str, str] = {}
    for key, tensor in tensors.items():
        if key.startswith(BUNDLE):  # words change no layer
            continue
        if key not in known:
            reading.faults.append(Fault(key, "names no layer of this base model"))
            continue
        path, half = known[key]
        parts.setdefault(path, {})[half] = tensor
        first.setdefault(path, key)
    for path, halves in parts.items():
        missing = [half for half in ("down", "up") if half not in halves]
        if missing:
            reading.faults.append(Fault(first[path], f"the {missing[0]} matrix of this layer is missing"))
            continue
        down, up, alpha = halves["down"], halves["up"], halves.get("alpha")
        why = rules.misfit(down, up, layers[path].shape)
        if why:
            reading.faults.append(Fault(first[path], why))
            continue
        scale = 1.0 if alpha is None else float(alpha.float().item()) / down.shape[0]
        reading.changes[path] = Change(down, up, scale, halves.get("dora"))
    return reading


def _table(base: Base) -> dict[str, tuple[str, Half]]:
    """Every key that could mean a layer -> (our path, half)."""
    known: dict[str, tuple[str, Half]] = {}
    paths = {layer.path for layer in base.layers}
    known |= {key: row for key, row in sd1().diffusers_keys.items() if row[0] in paths}
    for layer in base.layers:
        for stem in _flat_stems(layer):
            known |= {f"{stem}.{leaf}": (layer.path, half) for leaf, half in _LEAVES.items()}
        inner = layer.path.partition(".")[2]
        for name in {inner, layer.hf}:
            known[f"{PEFT_PREFIX}{name}.lora_A.weight"] = layer.path, "down"
            known[f"{PEFT_PREFIX}{name}.lora_B.weight"] = layer.path, "up"
    return known


def _flat_stems(layer: Layer) -> tuple[str, ...]:
    """Also the names that only some consumers know: they are told apart by who applies what."""
    if layer.unet:
        return f"lora_unet_{layer.hf_flat}", f"lora_unet_{layer.ldm_flat}"
    short = layer.hf_flat.removeprefix("text_model_")
    return f"lora_te_{layer.hf_flat}", f"lora_te1_{layer.hf_flat}", f"lora_te_{short}"
