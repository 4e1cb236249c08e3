"""AUTOMATIC1111 stable-diffusion-webui 1.10.1, its built-in LoRA extension.

It cuts a key at the first dot and looks the stem up among the modules of the published checkpoint: kohya's names by
rules (also conv_in, conv_out and the time embedding, which kohya's tools never train), then `lora_unet_…` as the
published block names themselves, and `lora_te1_text_model_…` as the only text encoder, or the first of two, where only
that and `lora_te2_…` are known. A stem that leads nowhere is dropped without a word; one that leads to a module with
layers in it, and a layer that is no whole LoRA, LoHa, LoKr or OFT, make the whole file fail. Matrices may lie flat.
Where the checkpoint has q, k and v in one matrix, they and what follows them change nothing unless all four are there.
`dora_scale` is taken as one number an input, and `bias` is added to the change, which fails where it is no weight's
size. `bundle_emb.WORD.string_to_param.*` are the vectors of a word, which prompts then know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from lora_scripts.families.names import Base, Layer
from lora_scripts.families.table import FAMILIES
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Fault, Reading
from lora_scripts.loras.embedding import bundled

_VERSION = "ss_base_model_version"


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    table, containers = _table(base), rules.containers(base)
    reading, groups = Reading(), rules.stems(tensors)
    partial = _partial(base, {table[stem].path for stem in groups if stem in table})
    for stem, parts in groups.items():
        first = f"{stem}.{next(iter(parts))}"
        if stem in containers:
            return reading.refuse(first, "the whole file fails to load: this is no layer, there are layers in it")
        if stem not in table:
            why = "dropped without a word: no layer has this name"
            reading.faults += [Fault(f"{stem}.{leaf}", why) for leaf in parts]
            continue
        layer, change = table[stem], rules.change_of(parts)
        if change is None:
            return reading.refuse(first, "the whole file fails to load: a matrix of this layer is missing")
        left = rules.left_over(parts, change)
        reading.faults += [Fault(f"{stem}.{leaf}", "not read: this part of a LoRA is unknown") for leaf in left]
        why_not = "q, k, v and out of this attention are not all there" if layer.path in partial else None
        if "bias" in left:
            why_not = "its bias cannot be added to the change"
        reading.take(layer, stem, parts, change, why_not)
    if words := bundled(tensors):
        reading.note = f"and its prompts know the word {', '.join(words)}"
    return reading


def hidden(metadata: Mapping[str, str], base_version: str, v2: bool = False) -> str | None:
    """Why its list does not show the file beside a model of the family with this version; None when it does. `v2`: that
    family's `ss_v2`."""
    says = _listed_for(metadata)
    if not metadata or says == _listed_for({_VERSION: base_version, "ss_v2": str(v2)}):
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
        if several or not layer.clip:  # not where open_clip's encoder is the only one
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
