"""Where a step goes: counted against sums by hand, and told in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_scripts.cli.plan import profile_rows
from lora_scripts.compute.profile import LIMITS, Watch, kind_of


def test_arithmetic_and_bytes_are_those_by_hand() -> None:
    """A linear layer of 64 -> 32 on 8 rows: forward and back by the weight, no gradient by the input."""
    layer, x = nn.Linear(64, 32, bias=False), torch.randn(8, 64)
    watch = Watch(torch.device("cpu"), torch.float32)
    while not watch.done:
        layer(x).sum().backward()
        layer.zero_grad()
        watch.ended(0.5)
    told = watch.told()
    assert told.arithmetic == 2 * (2 * 8 * 64 * 32)
    forward, back = 8 * 64 + 64 * 32 + 8 * 32, 8 * 64 + 8 * 32 + 64 * 32
    assert told.bytes >= 4 * (forward + back) and told.bytes < 4 * (forward + back) + 4 * 8 * 32 * 8
    assert told.seconds == 0.5 == pytest.approx(sum(told.kinds.values()) + told.waiting)
    assert set(told.least) == set(LIMITS) and told.least["launches"] > 0
    assert {"matrix products", "element by element"} <= set(told.kinds)


def test_attention_on_a_cpu_is_counted_as_on_a_card() -> None:
    """Two products of 16 x 16 places and 8 channels, 2 heads; back five of them."""
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    watch = Watch(torch.device("cpu"), torch.float32)
    while not watch.done:
        nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
        watch.ended(0.5)
    product = 2 * 2 * 16 * 16 * 8
    assert watch.told().arithmetic == (2 + 5) * product


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("addmm", "matrix products"),
        ("_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("mkldnn_convolution", "convolutions"),
        ("native_group_norm_backward", "norms"),
        ("_fused_adamw_", "optimizer"),
        ("_to_copy", "copies and casts"),
        ("mul", "element by element"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_in_words() -> None:
    speeds = {"arithmetic": 2e11, "memory": 2**34, "launch": 5e-6}
    profile = {
        **{"seconds": 2.0, "operations": 2683, "arithmetic": 2 * 10**11, "bytes": 2**32, "speeds": speeds},
        **{"least": {"arithmetic": 1.0, "memory": 0.2, "launches": 0.013}},
        **{"kinds": {"convolutions": 1.2, "matrix products": 0.6, "norms": 0.001}, "waiting": 0.199},
    }
    assert profile_rows(profile) == [
        ("a step", "2.0 s; at the speeds of this machine at least 1.2 s, 61 % of it"),
        ("  arithmetic", "1.0 s: 0.2 TFLOP at 0.2 a second"),
        ("  memory", "200 ms: 4.0 GB to and fro at 16.0 GB a second"),
        ("  launches", "13 ms: 2,683 operations, 5.0 µs of nothing each"),
        ("it goes to", "convolutions 60 %, matrix products 30 %, waiting 10 %"),
        ("so", "arithmetic decides: fewer pixels or a quicker device; larger batches take as much longer"),
    ]
    assert "waits for the program" in profile_rows({**profile, "waiting": 1.5})[-1][1]
