"""AUTOMATIC1111 stable-diffusion-webui 1.10.1, its built-in LoRA extension.

It cuts a key at the first dot and looks the stem up among the layers of the published checkpoint: kohya's names by
rules (also conv_in, conv_out and the time embedding, which kohya's tools never train), then `lora_unet_…` as the
published block names themselves, and `lora_te1_text_model_…` as the only text encoder, or the first of two, where only
that and `lora_te2_…` are known. A stem that leads nowhere is dropped without a word. A layer with one of its two
matrices only makes the whole file fail. Where the checkpoint has q, k and v in one matrix, they and what follows them
change nothing unless all four are there. `dora_scale` is taken as one number an input.
`bundle_emb.WORD.string_to_param.*` are the vectors of a word, which prompts then know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from lora_scripts.families.names import Base, Layer
from lora_scripts.families.table import FAMILIES
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.embedding import BUNDLE, bundled
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, UP

_VERSION = "ss_base_model_version"
_KNOWN = (DOWN, UP, ALPHA, DORA)


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    table = _table(base)
    reading, layers = Reading(), dict[str, Layer]()
    for key in tensors:
        stem, _, leaf = key.partition(".")
        if key.startswith(BUNDLE):
            continue
        if stem not in table:
            reading.faults.append(Fault(key, "dropped without a word: no layer has this name"))
            continue
        layers.setdefault(stem, table[stem])
        if leaf not in _KNOWN:
            reading.faults.append(Fault(key, "not read: this part of a LoRA is unknown"))
    groups = rules.stems(tensors)
    partial = _partial(base, {layer.path for layer in layers.values()})
    for stem, layer in layers.items():
        parts = groups[stem]
        if DOWN not in parts or UP not in parts:
            there = next(iter(parts))
            return reading.refuse(f"{stem}.{there}", "the whole file fails to load: a matrix of this layer is missing")
        why = rules.misfit(parts[DOWN], parts[UP], layer.shape)
        if not why and layer.path in partial:
            why = "q, k, v and out of this attention are not all there"
        if why:
            reading.faults.append(Fault(f"{stem}.{UP}", f"this layer is not changed: {why}"))
            continue
        if not rules.per_input(parts.get(DORA), layer.shape):
            reading.faults.append(Fault(f"{stem}.{DORA}", "misread: one number an input is expected"))
        rank = parts[DOWN].shape[0]
        reading.changes[layer.path] = Delta(parts[DOWN], parts[UP], rules.scale_of(parts, rank), parts.get(DORA))
    if words := bundled(tensors):
        reading.note = f"and its prompts know the word {', '.join(words)}"
    return reading


def hidden(metadata: Mapping[str, str], base_version: str) -> str | None:
    """Why its list does not show the file beside a model of the family with this version; None when it does."""
    says = _listed_for(metadata)
    if not metadata or says == _listed_for({_VERSION: base_version}):
        return None
    key = {"": "", "2": "ss_v2"}.get(says, _VERSION)
    reason = f"{key} is {metadata[key]!r}" if key else f"{_VERSION} does not begin as {base_version} does"
    return f"A1111's list hides it beside a model of this family, because {reason}"


def _listed_for(metadata: Mapping[str, str]) -> str:
    """The kind of model that it takes a file with such metadata for."""
    word = metadata.get(_VERSION, "").partition("_")[0]
    known = {facts.lora.base_version.partition("_")[0] for facts in FAMILIES} - {"sd"}  # which all others count as
    if word in known:
        return word
    return "2" if metadata.get("ss_v2") == "True" else ""


def _table(base: Base) -> dict[str, Layer]:
    table: dict[str, Layer] = {}
    several = any(layer.encoder > 1 for layer in base.layers)
    matrices = _matrices(base)
    for layer in base.layers:
        if layer.unet:
            table |= {f"lora_unet_{layer.hf_flat}": layer, f"lora_unet_{layer.ldm_flat}": layer}
            continue
        table[f"lora_te{layer.encoder}_{layer.hf_flat}"] = layer
        if matrices[layer.ldm] == 1:
            table[layer.ldm_flat] = layer
        if not several:
            table[f"lora_te_{layer.hf_flat}"] = layer
    return table


def _matrices(base: Base) -> Counter[str]:
    """How many layers have their weights in a tensor of the checkpoint."""
    return Counter(layer.ldm for layer in base.layers)


def _partial(base: Base, changed: set[str]) -> set[str]:
    """Layers of attentions with q, k and v in one matrix of the checkpoint, of whose four layers not all are there."""
    matrices = _matrices(base)
    partial: set[str] = set()
    for layer in base.layers:
        if matrices[layer.ldm] > 1:
            attention = layer.path.rpartition(".")[0] + "."
            whole = {other.path for other in base.layers if other.path.startswith(attention)}
            partial |= whole if not whole <= changed else set()
    return partial
