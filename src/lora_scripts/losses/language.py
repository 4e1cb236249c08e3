"""The loss of a language model: cross-entropy of the next token, without ever holding all logits.

The logits of 4096 tokens over a vocabulary of 150,000 take 2.5 GB in float32, and their gradient as much again. Here
the hidden states go through the output layer a few hundred at a time, and each time the gradient is taken at once, so
that nothing as wide as the vocabulary is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100
"""The label of a token that is not trained, as in torch and transformers."""
CHUNK_BYTES = 1 << 27
"""Of logits in float32 that are held at once; about three times as much is in use, with the gradient."""

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, width] -> logits [n, vocabulary]."""


def cross_entropy(
    hidden: Tensor, targets: Tensor, head: Head, parameters: Sequence[nn.Parameter] = (), *, rows: int | None = None
) -> tuple[Tensor, int]:
    """The sum of the losses of all places whose target is not IGNORED, float32 with gradient, and their number.

    `hidden` [..., width], `targets` [...] int64; `parameters` are those of `head` that are trained. `rows` places are
    worked out at once; None: as many as CHUNK_BYTES has room for.
    """
    chosen = targets != IGNORED
    states, wanted = hidden[chosen], targets[chosen]
    if not len(wanted):
        return hidden.sum() * 0.0, 0
    trained = [p for p in parameters if p.requires_grad]
    total: Tensor = _Chunked.apply(states, wanted, head, rows or _rows(states, head), *trained)
    return total, len(wanted)


@torch.no_grad()
def token_losses(hidden: Tensor, targets: Tensor, head: Head, *, rows: int | None = None) -> Tensor:
    """The loss of each place, float32 in the shape of `targets`; 0 where that is IGNORED. Without gradient."""
    chosen = targets != IGNORED
    out = torch.zeros(targets.shape, device=hidden.device)
    states, wanted = hidden[chosen], targets[chosen]
    if not len(wanted):
        return out
    size = rows or _rows(states, head)
    parts = zip(states.split(size), wanted.split(size), strict=True)
    out[chosen] = torch.cat([F.cross_entropy(head(h).float(), y, reduction="none") for h, y in parts])
    return out


@torch.no_grad()
def _rows(states: Tensor, head: Head) -> int:
    """How many places fit into CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * head(states[:1]).shape[-1]))


class _Chunked(torch.autograd.Function):
    """Takes the gradient while it computes the loss, which is a sum: later it is only scaled."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Head, rows: int, *parameters: Tensor) -> Tensor:
        wanted = [states.requires_grad, *(p.requires_grad for p in parameters)]
        total = torch.zeros((), device=states.device)
        grads = [torch.zeros_like(states), *(torch.zeros_like(p) for p in parameters)] if any(wanted) else []
        for first in range(0, len(states), rows):
            chunk = states[first : first + rows].detach().requires_grad_(wanted[0])
            with torch.set_grad_enabled(any(wanted)):
                loss = F.cross_entropy(head(chunk).float(), targets[first : first + rows], reduction="sum")
            total += loss.detach()
            if not grads:
                continue
            inputs = [t for t, need in zip([chunk, *parameters], wanted, strict=True) if need]
            parts = iter(torch.autograd.grad(loss, inputs))
            if wanted[0]:
                grads[0][first : first + rows] = next(parts)
            for grad, need in zip(grads[1:], wanted[1:], strict=True):
                if need:
                    grad += next(parts)
        ctx.save_for_backward(*grads)
        ctx.wanted = wanted
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        grads = [
            grad * scale.to(grad.dtype) if need else None
            for grad, need in zip(ctx.saved_tensors, ctx.wanted, strict=True)
        ]
        return grads[0], None, None, None, *grads[1:]
