"""PEFT, by running it: an adapter of each part is put onto a fresh model. A file with other names is converted
first.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lora_scripts.loras.consumers.rules import Fault, Reading
from lora_scripts.loras.consumers.run_diffusers import REFUSALS, applied, in_a_line, quiet
from lora_scripts.loras.dialects import Adapter


def read(adapters: Mapping[str, Adapter], roots: Mapping[str, nn.Module]) -> Reading:
    """What it applies; `adapters` and `roots` by part."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    reading, models = Reading(), {}
    for part, adapter in adapters.items():
        try:
            with quiet():
                config = {key: value for key, value in adapter.config.items() if key != "peft_type"}
                models[part] = get_peft_model(roots[part], LoraConfig(**config))
                loaded = set_peft_model_state_dict(models[part], adapter.tensors)
        except REFUSALS as error:
            return Reading().refuse("", f"the loading stops: {in_a_line(error)}")
        # Every parameter of the base is missing from an adapter; those of LoRA layers must not be.
        reading.faults += [Fault(key, "not loaded: no layer has this name") for key in loaded.unexpected_keys]
        reading.faults += [Fault(key, "is missing") for key in loaded.missing_keys if ".lora_" in key]
    reading.changes |= dict(applied(models, "default"))
    return reading
