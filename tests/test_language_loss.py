"""Cross-entropy in chunks: the same value and gradient as the plain one, and never as wide as the vocabulary."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.losses.language import IGNORED, cross_entropy, token_losses


def shifted(labels: Tensor) -> Tensor:
    """Labels of the tokens [n, length] -> what each place should say, which is the token after it."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def material(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(1)
    head = nn.Linear(16, 301, bias=False, dtype=dtype)
    hidden = torch.randn(3, 11, 16, dtype=dtype, requires_grad=True)
    labels = torch.randint(301, (3, 11))
    labels[0, :7] = labels[2, 3] = IGNORED
    return hidden, labels, head


@pytest.mark.parametrize("rows", [1, 5, 1000, None])
@pytest.mark.parametrize("capped", [False, True])
def test_value_and_gradients_of_the_plain_one(rows: int | None, capped: bool) -> None:
    hidden, labels, head = material()
    run = (lambda h: 3 * torch.tanh(head(h) / 3)) if capped else head
    targets = shifted(labels)
    plain = F.cross_entropy(run(hidden).flatten(0, 1), targets.flatten(), reduction="sum")
    wanted = torch.autograd.grad(2.5 * plain, [hidden, head.weight])
    total, count = cross_entropy(hidden, targets, run, list(head.parameters()), rows=rows)
    assert count == int((targets != IGNORED).sum()) == 23
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)  # the sum is float32
    (2.5 * total).backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    for grad, right in zip((hidden.grad, head.weight.grad), wanted, strict=True):
        assert (grad - right).abs().max() <= 1e-6 * right.abs().max()  # logits are turned to float32, as everywhere
    each = token_losses(hidden, targets, run, rows=rows)
    assert each.shape == targets.shape
    assert each.sum().item() == pytest.approx(plain.item(), rel=1e-6)
    assert each[targets == IGNORED].abs().max() == 0


def test_as_transformers_shifts_and_averages() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    hidden, labels, head = material(torch.float32)
    total, count = cross_entropy(hidden, shifted(labels), head)
    theirs = ForCausalLMLoss(head(hidden), labels, 301)
    assert total.item() / count == pytest.approx(theirs.item(), rel=1e-6)


def test_a_frozen_head_gets_no_gradient_and_nothing_trained_is_nothing() -> None:
    hidden, labels, head = material(torch.float32)
    head.requires_grad_(False)
    total, _ = cross_entropy(hidden, shifted(labels), head, list(head.parameters()))
    total.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    total, count = cross_entropy(hidden, torch.full_like(labels, IGNORED), head)
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    with torch.no_grad():
        assert cross_entropy(hidden, shifted(labels), head)[0].requires_grad is False


def test_gradient_in_bf16_is_as_near_as_the_plain_one() -> None:
    hidden, labels, head = material(torch.float32)
    exact = torch.autograd.grad(cross_entropy(hidden, shifted(labels), head)[0], hidden)[0]
    low, small = hidden.detach().bfloat16().requires_grad_(), head.bfloat16()
    plain = F.cross_entropy(small(low).float().flatten(0, 1), shifted(labels).flatten(), reduction="sum")
    (theirs,) = torch.autograd.grad(plain, low)
    (ours,) = torch.autograd.grad(cross_entropy(low, shifted(labels), small, rows=4)[0], low)
    assert (ours.float() - exact).norm() <= 1.01 * (theirs.float() - exact).norm()


PEAK = """
import sys, torch
from pathlib import Path
from torch.nn import functional as F
from lora_scripts.losses.language import cross_entropy
head = torch.nn.Linear(32, 60_000, bias=False).requires_grad_(False)
hidden, targets = torch.randn(2000, 32, requires_grad=True), torch.randint(60_000, (2000,))
def peak():  # of this program alone: what getrusage says begins with the process that started it
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1])
start = peak()
if sys.argv[1] == "plain":
    loss = F.cross_entropy(head(hidden).float(), targets, reduction="sum")
else:
    loss = cross_entropy(hidden, targets, head)[0]
loss.backward()
print((peak() - start) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux counts it")
def test_peak() -> None:
    """2000 places and a vocabulary of 60,000: 458 MB of logits."""
    plain, chunked = (
        int(subprocess.run([sys.executable, "-c", PEAK, way], check=True, capture_output=True, text=True).stdout)
        for way in ("plain", "chunked")
    )
    assert plain > 800
    assert chunked < 500
