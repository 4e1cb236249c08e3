"""Blocks that keep nothing but their input, and are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_scripts.compute.compiled import forward_of


def around(block: nn.Module, before: Callable[[], None] | None = None) -> None:
    """From now on a pass with gradients keeps only the block's input and computes the rest again in the backward pass.

    `before` is called ahead of each computation, the repeated one too. Random numbers are drawn as the first time, so
    dropout has the same masks (Chen et al. 2016).
    """
    # In the instance, not as a module around it: paths, and with them the names of everything inside, stay.
    block.forward = partial(_call, block, before)


def _call(block: nn.Module, before: Callable[[], None] | None, *args: Any, **kwargs: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before()
        return forward_of(block, *args, **kwargs)

    if torch.is_grad_enabled():
        # What is recorded draws nothing, and a card's generator cannot be asked for its state meanwhile.
        draws = not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)
    return run(*args, **kwargs)
