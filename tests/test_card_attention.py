"""Attention on a card, as far as none is needed: what is handed to its kernels, and in which order they are asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from lora_scripts.compute import attention
from lora_scripts.compute.attention import quickest_attention
from lora_scripts.families.base import Batch
from lora_scripts.train.passes import LaunchedPasses, RecordedPasses

CARD = torch.device("cuda")
"""Named alone: nothing is put there."""


@pytest.fixture(autouse=True)
def no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that is not here is of no known kind."""
    monkeypatch.setattr(attention, "cudnn_first", lambda device: False)


class Planned(torch.autograd.Function):
    """Attention with torch 2.11's fault: the backward pass is planned for the layout of the first gradient that comes
    for q, k and v of a layout, and the next ones are read as if they lay so."""

    plans: dict[Any, tuple[int, ...]]

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return plain(q, k, v).transpose(1, 2).contiguous().transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        given = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        key = tuple((t.shape, t.stride()) for t in given)
        strides = Planned.plans.setdefault(key, grads[0].stride())
        read = grads[0].as_strided(grads[0].shape, strides)
        with torch.enable_grad():
            return torch.autograd.grad(plain(*given), given, read)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[3] ** -0.5).softmax(-1) @ v


def gradients(*, wide: bool) -> list[Tensor]:
    """Of q, k and v, by a function of attention alone or of it and what lies beside it, as in FLUX.1's two kinds of
    blocks."""
    g = torch.Generator().manual_seed(5)
    leaves = [torch.randn(2, 6, 3, 8, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    beside, by = torch.randn(2, 6, 40, generator=g).double(), torch.randn(2, 6, 64, generator=g).double()
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in leaves)).transpose(1, 2).flatten(2)
    y = torch.cat([y, beside], 2) if wide else y
    return list(torch.autograd.grad(y, leaves, by[:, :, : y.shape[2]].contiguous()))


def test_a_gradient_may_lie_otherwise_than_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    true = {wide: gradients(wide=wide) for wide in (False, True)}
    monkeypatch.setattr(attention, "_torchs", Planned.apply)
    monkeypatch.setattr(F, "scaled_dot_product_attention", Planned.apply)
    for order in ((False, True), (True, False)):
        Planned.plans = {}
        gradients(wide=order[0])
        try:
            wrong = not torch.allclose(gradients(wide=order[1])[0], true[order[1]][0])
        except RuntimeError:  # beyond the end
            wrong = True
        assert wrong, "the fault is not there, and nothing was shown"
        Planned.plans = {}
        with quickest_attention(CARD):
            for wide in (*order, order[0]):
                for got, wanted in zip(gradients(wide=wide), true[wide], strict=True):
                    torch.testing.assert_close(got, wanted)


def order() -> list[SDPBackend]:
    return [SDPBackend(n) for n in torch._C._get_sdp_priority_order()]


def test_cudnn_is_asked_first_where_it_is_quicker_and_all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, torchs = order(), F.scaled_dot_product_attention
    with quickest_attention(torch.device("cpu")):
        assert F.scaled_dot_product_attention is torchs and order() == usual
    with quickest_attention(CARD):
        assert F.scaled_dot_product_attention is attention.laid and order() == usual and not attention._cudnn_leads
    monkeypatch.setattr(attention, "cudnn_first", lambda device: True)
    with pytest.raises(ZeroDivisionError), quickest_attention(CARD):
        assert order()[:2] == [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION] and attention._cudnn_leads
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is torchs and order() == usual and not attention._cudnn_leads


@pytest.mark.parametrize("kind", [LaunchedPasses, RecordedPasses])
def test_a_pass_is_within_it_forward_and_back(kind: Any) -> None:
    seen, weight = list[bool](), torch.ones(2, requires_grad=True)

    def looked(*_: object) -> None:
        seen.append(F.scaled_dot_product_attention is attention.laid)

    def loss(*_: object) -> Tensor:
        looked()
        y = (3 * weight).sum()
        y.register_hook(looked)
        return y

    family: Any = SimpleNamespace(device=CARD, loss=lambda *given: (loss(), 2), losses=loss)
    masters: Any = SimpleNamespace(gather=looked, forget=lambda: None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    passes = kind(family, None, scaler, masters)
    if kind is LaunchedPasses:
        passes(Batch({}, ["", ""], None, ["", ""], []))
    else:
        passes._compute({"u": torch.zeros(2), "noise": torch.zeros(2), "posterior": torch.zeros(2)})
    assert seen[:2] == [True, True] and torch.equal(weight.grad, torch.full((2,), 3.0))  # type: ignore[arg-type]
