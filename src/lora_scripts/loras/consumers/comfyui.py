"""ComfyUI 0.3.64.

It walks over the layers of the base and asks the file for each of several names: kohya's with published or diffusers'
block names, `lora_te_` and `lora_te1_` (of a second text encoder `lora_te2_`), `unet.…` with the `.processor.` of old
diffusers before `to_q`, `to_k`, `to_v` and `to_out`, `text_encoder.text_model.…`, and its own generic ones. Keys that
nobody asked for are logged as not loaded. An `up` without its `down` stops the loading; a product of the wrong size
leaves the layer unchanged, with a log line. Bundled words are read only from its folder of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from lora_scripts.families.names import Base, Layer
from lora_scripts.loras.consumers import rules
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.embedding import BUNDLE
from lora_scripts.loras.naming import ALPHA, DORA

# (down, up) of the forms that it tries, in its order.
_PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    reading, used = Reading(), set[str]()
    for layer in base.layers:
        for name in _names(layer):
            used |= {key for key in (f"{name}.{ALPHA}", f"{name}.{DORA}") if key in tensors}
            pair = next((pair for pair in _PAIRS if name + pair[1] in tensors), None)
            if pair is None:
                continue
            down, up = name + pair[0], name + pair[1]
            if down not in tensors:
                return reading.refuse(up, f"the loading stops: there is no {down}")
            used |= {down, up}
            why = rules.misfit(tensors[down], tensors[up], layer.shape)
            if why:
                reading.faults.append(Fault(up, f"this layer is not changed: {why}"))
                continue
            parts = {leaf: tensors[k] for leaf in (ALPHA, DORA) if (k := f"{name}.{leaf}") in tensors}
            rank = tensors[down].shape[0]
            reading.changes[layer.path] = Delta(
                tensors[down], tensors[up], rules.scale_of(parts, rank), parts.get(DORA)
            )
    left = [key for key in tensors if key not in used]
    reading.faults += [Fault(k, "not loaded, a line in the log says so") for k in left if not k.startswith(BUNDLE)]
    reading.note = rules.unread_words(tensors)
    return reading


def _names(layer: Layer) -> Iterator[str]:
    if layer.unet:
        yield from (f"lora_unet_{layer.ldm_flat}", f"diffusion_model.{layer.ldm}")
        yield from (f"lora_unet_{layer.hf_flat}", f"lycoris_{layer.hf_flat}")
        old = layer.hf.replace(".to_", ".processor.to_")
        old = old.removesuffix(".0") if old.endswith(".to_out.0") else old
        yield from (old, f"unet.{old}")
    else:
        first = layer.encoder == 1
        yield f"text_encoders.{'clip_l' if first else 'clip_g'}.transformer.{layer.hf}"
        if first:
            yield f"lora_te_{layer.hf_flat}"
        yield from (f"lora_te{layer.encoder}_{layer.hf_flat}", f"text_encoder{'' if first else '_2'}.{layer.hf}")
