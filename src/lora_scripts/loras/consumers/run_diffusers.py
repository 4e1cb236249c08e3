"""diffusers, by running it: its loader puts the file onto a UNet and the text encoders, and PEFT tells the ΔW of each
layer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.loras.consumers.rules import Delta, Reading
from lora_scripts.loras.reading import by_output

# What the two libraries raise for a file that they cannot take; anything else is a fault of ours.
REFUSALS = (ValueError, KeyError, RuntimeError, TypeError, AttributeError, IndexError, AssertionError)


def read(path: Path, roots: Mapping[str, nn.Module], loader: str) -> Reading:
    """What it applies; `roots` are fresh parts of the base, whose weights do not matter: the UNet or the transformer
    and, as its pipelines name them, the text encoders. `loader`: a class of diffusers.loaders.
    """
    import diffusers.loaders

    Loader = getattr(diffusers.loaders, loader)
    asked: dict[str, Any] = {"local_files_only": True, "return_lora_metadata": True}
    texts = {part: root for part, root in roots.items() if part.startswith("text_encoder")}
    try:
        with quiet():
            if "transformer" in roots:
                if "network_alphas" in signature(Loader.load_lora_into_transformer).parameters:
                    asked["return_alphas"] = True
                main, load = {"transformer": roots["transformer"]}, Loader.load_lora_into_transformer
            else:
                asked["unet_config"] = roots["unet"].config
                main, load = {"unet": roots["unet"]}, Loader.load_lora_into_unet
            tensors, *alphas, metadata = Loader.lora_state_dict(str(path), **asked)
            told = {"adapter_name": "proof", "metadata": metadata}
            load(tensors, *alphas, **main, **told)
            for part, text in texts.items():
                Loader.load_lora_into_text_encoder(tensors, *alphas, text_encoder=text, prefix=part, **told)
    except REFUSALS as error:
        return Reading().refuse("", f"the loading stops: {in_a_line(error)}")
    return Reading(dict(applied(roots, "proof")))


def applied(roots: Mapping[str, nn.Module], adapter: str) -> Iterator[tuple[str, Delta]]:
    """(our path, change) of every layer that PEFT has wrapped."""
    from peft.tuners.lora import LoraLayer

    for root, model in roots.items():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and adapter in module.lora_A:
                lengths = module.lora_magnitude_vector
                inner = name.removeprefix("base_model.model.").removeprefix("text_model.")
                weights = LoraWeights(
                    module.lora_A[adapter].weight.detach(),
                    module.lora_B[adapter].weight.detach(),
                    float(module.scaling[adapter]) * module.lora_A[adapter].weight.shape[0],
                    by_output(lengths[adapter].weight.detach()) if adapter in lengths else None,
                )
                yield f"{root}.{inner}", Delta(weights, compute=partial(_delta, module, adapter))


def in_a_line(error: Exception) -> str:
    """An exception of a library in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:160]}" + ("…" if len(text) > 160 else "")


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries' warnings and log lines are about a pipeline that is not there."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    loggers = {name: logging.getLogger(name) for name in ("diffusers", "transformers")}
    before = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(before[name])


def _delta(module: Any, adapter: str, rows: slice) -> Tensor:
    """Some rows of what PEFT says that it adds to a layer: it is asked with these rows of B in the place of all."""
    weight = module.lora_B[adapter].weight
    whole = weight.data
    weight.data = whole[rows]
    try:
        delta: Tensor = module.get_delta_weight(adapter).detach()
    finally:
        weight.data = whole
    return delta
