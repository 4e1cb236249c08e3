"""From the hidden states of a language model to its logits, so that those of all places need not be there at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def head_of(model: Any, hidden: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What makes logits of hidden states; None where the model does more there than we know. `hidden` and `logits`:
    what the model itself gives of some tokens."""
    config, layer = model.config.get_text_config(), model.get_output_embeddings()

    def run(hidden: Tensor) -> Tensor:
        logits: Tensor = layer(hidden)
        if getattr(config, "logit_scale", None) is not None:  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None) is not None:  # Granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else cap * torch.tanh(logits / cap)

    whole = logits.float()
    with torch.no_grad():
        parts = run(hidden).float()
    fits = whole.shape == parts.shape and bool(torch.isfinite(whole).all())
    return run if fits and float((whole - parts).abs().max()) <= 1e-3 * float(whole.abs().max()) else None
