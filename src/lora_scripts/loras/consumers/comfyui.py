"""ComfyUI 0.3.64; of diffusion transformers 0.33.0.

It walks over the layers of the base and asks the file for each of several names: kohya's with published or diffusers'
block names, `lora_te_` and `lora_te1_` (of a second text encoder `lora_te2_`), `unet.…` with the `.processor.` of old
diffusers before `to_q`, `to_k`, `to_v` and `to_out`, `text_encoder.text_model.…`, and its own generic ones. Keys that
nobody asked for are logged as not loaded. An `up` without its `down` stops the loading; a product of the wrong size
leaves the layer unchanged, with a log line. LoHa, LoKr and OFT are read under the same names; matrices may lie flat.
Bundled words are read only from its folder of embeddings.

Of a diffusion transformer it asks for diffusers' names behind `transformer.` and, flat, `lycoris_`, of some families
behind other words or none, too; kohya's `lora_unet_` only with the published layout's layers, in which q, k and v are
one. The families' tables have them (`Layer.asked`); what it did with our files is in `tests/test_consumers_flow.py`.
Lengths of a DoRA [1, in] it takes for a row's own where there is but one row. Where the published file has a layer's
halves the other way round it turns what is added to the weight; an OFT has by then turned the wrong rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from torch import Tensor

from lora_scripts.adapters import lycoris
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.names import Base, Layer
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.embedding import BUNDLE
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, LYCORIS, PAIRS, UP


def read(tensors: Mapping[str, Tensor], base: Base, kinds: Collection[str] = lycoris.KINDS) -> Reading:
    """What it would apply; `kinds` are those of LyCORIS that it knows."""
    return read_as(names, tensors, base, kinds)


def read_as(
    names: Callable[[Layer], Iterable[str]], tensors: Mapping[str, Tensor], base: Base, kinds: Collection[str]
) -> Reading:
    """What a program would apply that asks for layers in this way, under these names."""
    reading, used = Reading(), set[str]()
    for layer in base.layers:
        for name in names(layer):
            used |= {key for key in (f"{name}.{ALPHA}", f"{name}.{DORA}") if key in tensors}
            pair = next((pair for pair in PAIRS if name + pair[1] in tensors), None)
            parts = {leaf: tensors[key] for leaf in (ALPHA, DORA) if (key := f"{name}.{leaf}") in tensors}
            if pair is not None:
                first, down = name + pair[1], name + pair[0]
                if down not in tensors:
                    return reading.refuse(first, f"the loading stops: there is no {down}")
                parts |= {DOWN: tensors[down], UP: tensors[first]}
                used |= {down, first}
            else:
                own = {leaf: tensors[key] for leaf in LYCORIS if (key := f"{name}.{leaf}") in tensors}
                parts |= own
                first = f"{name}.{next(iter(own), '')}"
            change = rules.change_of(parts)
            if change is None or not (isinstance(change, LoraWeights) or lycoris.kind_of(change) in kinds):
                continue
            used |= {f"{name}.{leaf}" for leaf in parts}
            why = rules.misfit(change, layer.shape)
            if why:
                reading.faults.append(Fault(first, f"this layer is not changed: {why}"))
                continue
            if isinstance(change, LoraWeights) and change.dora is not None and layer.shape[:1] == (1,):
                reading.faults.append(Fault(f"{name}.{DORA}", "misread: taken for the length of the layer's one row"))
                continue
            if layer.swapped and not isinstance(change, LoraWeights) and lycoris.kind_of(change) == "oft":
                reading.faults.append(Fault(first, "misread: it turns each half's rows as the other's"))
                continue
            reading.changes[layer.path] = Delta(change)
    left = [key for key in tensors if key not in used]
    reading.faults += [Fault(k, "not loaded, a line in the log says so") for k in left if not k.startswith(BUNDLE)]
    reading.note = rules.unread_words(tensors)
    return reading


def names(layer: Layer) -> Iterator[str]:
    if layer.transformer:
        yield from layer.asked
    elif layer.unet:
        yield from (f"lora_unet_{layer.ldm_flat}", f"diffusion_model.{layer.ldm}")
        yield from (f"lora_unet_{layer.hf_flat}", f"lycoris_{layer.hf_flat}")
        old = layer.hf.replace(".to_", ".processor.to_")
        old = old.removesuffix(".0") if old.endswith(".to_out.0") else old
        yield from (old, f"unet.{old}")
    else:
        first = layer.encoder == 1
        yield f"text_encoders.{layer.comfy}.transformer.{layer.hf}"
        if first:
            yield f"lora_te_{layer.hf_flat}"
        yield from (f"lora_te{layer.encoder}_{layer.hf_flat}", f"text_encoder{'' if first else '_2'}.{layer.hf}")
