"""LoRA layers against peft's, against hand-computed products, and against the untouched base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from lora_scripts.adapters.inject import assign, inject, remove
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.config.types import TargetRule
from lora_scripts.errors import UserError
from lora_scripts.families.sd.unet import UNET_PREFIX
from lora_scripts.families.sd1.facts import BLOCKS
from lora_scripts.families.sd1.layout import unet_rows
from lora_scripts.families.sd1.names import sd1_table

LAYERS = {
    "linear": lambda: nn.Linear(12, 20),
    "without bias": lambda: nn.Linear(12, 20, bias=False),
    "conv": lambda: nn.Conv2d(12, 20, 3, padding=1),
    "strided": lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1),
    "oblong": lambda: nn.Conv2d(12, 20, (1, 3), stride=(2, 1), padding=(0, 2)),
    "1 x 1": lambda: nn.Conv2d(12, 20, 1),
}


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = LAYERS[kind]()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@dataclass(frozen=True)
class Named:
    match: str


def select(paths: Iterable[str], targets: Iterable[str], groups: Mapping[str, Callable[[str], bool]]) -> list[str]:
    return list(assign(paths, map(Named, targets), groups))


def inputs(kind: str) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn((2, 7, 12) if "lin" in kind or "bias" in kind else (2, 12, 9, 10), generator=g)


def trained(kind: str, *, rank: int = 3, alpha: float = 5.0, dropout: float = 0.0) -> tuple[Net, LoraLayer]:
    """A net with a LoRA whose B is not zero."""
    net = Net(kind)
    layer = inject({"net": net}, ["net.layer"], lambda _, base: LoraLayer(base, rank, alpha, dropout))["net.layer"]
    with torch.no_grad():
        layer.up.normal_(generator=torch.Generator().manual_seed(3))
    return net, layer


@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_are_pefts(kind: str) -> None:
    net, layer = trained(kind)
    settings = peft.LoraConfig(r=3, lora_alpha=5.0, target_modules=["layer"], lora_dropout=0.0)
    other = peft.inject_adapter_in_model(settings, Net(kind))
    wrapped = other.layer
    assert isinstance(wrapped, PeftLayer) and wrapped.scaling["default"] == pytest.approx(5 / 3)
    a, b = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
    with torch.no_grad():
        a.copy_(layer.down)
        b.copy_(layer.up)
    x, y = inputs(kind).requires_grad_(), inputs(kind).requires_grad_()
    ours, theirs = net(x), other(y)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for grad, wanted in ((layer.down.grad, a.grad), (layer.up.grad, b.grad), (x.grad, y.grad)):
        assert grad is not None and grad.abs().max() > 0.1
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.delta(), wrapped.get_delta_weight("default"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_delta_added_to_the_weight_does_the_same(kind: str) -> None:
    net, layer = trained(kind)
    delta = layer.delta(torch.float64)
    by_hand = torch.zeros(layer.weight.shape, dtype=torch.float64)
    for r in range(3):  # the sum of outer products, scaled
        by_hand += 5 / 3 * torch.einsum("o,i...->oi...", layer.up[:, r].flatten().double(), layer.down[r].double())
    torch.testing.assert_close(delta, by_hand.detach(), rtol=1e-12, atol=1e-12)
    merged = Net(kind)
    with torch.no_grad():
        merged.layer.weight += delta.float()
    torch.testing.assert_close(net(inputs(kind)), merged(inputs(kind)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_at_the_start_and_at_strength_0_it_is_the_base_bit_for_bit(kind: str) -> None:
    x, plain = inputs(kind), Net(kind)
    net = Net(kind)
    (layer,) = inject({"net": net}, ["net.layer"], lambda _, base: LoraLayer(base, 4, 4.0)).values()
    assert torch.equal(net(x), plain(x))
    changed, layer = trained(kind)
    assert not torch.equal(changed(x), plain(x))
    layer.strength = 0.0
    assert torch.equal(changed(x), plain(x))
    layer.strength = 0.5
    half = changed(x) - plain(x)
    layer.strength = 1.0
    torch.testing.assert_close(2 * half, changed(x) - plain(x), rtol=1e-4, atol=1e-5)


def test_a_whole_unet_with_fresh_lora_is_the_base_and_removing_gives_the_same_modules_back(family: Any) -> None:
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([3, 800])
    states = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        before = family.predict(x, t, states)
        text = family.encode_text(["a house"])["states"]
    modules = family.trainable()
    layers = inject(family.roots, modules, lambda _, base: LoraLayer(base, 2, 1.0))
    try:
        assert len(layers) == len(modules) > 200
        with torch.no_grad():
            assert torch.equal(family.predict(x, t, states), before)
            assert torch.equal(family.encode_text(["a house"])["states"], text)
            for layer in layers.values():
                layer.up.fill_(0.01)
            assert not torch.equal(family.predict(x, t, states), before)
            assert not torch.equal(family.encode_text(["a house"])["states"], text)
    finally:
        remove(family.roots, layers)
    again = family.trainable()
    assert again.keys() == modules.keys() and all(again[path] is modules[path] for path in modules)
    with torch.no_grad():
        assert torch.equal(family.predict(x, t, states), before)


def test_the_base_stays_frozen_while_the_lora_learns() -> None:
    net, layer = trained("conv")
    frozen = [p.clone() for p in layer.base.parameters()]
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    down, up = layer.down.clone(), layer.up.clone()
    net(inputs("conv")).square().mean().backward()
    assert all(p.grad is None for p in layer.base.parameters())
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(layer.base.parameters(), frozen, strict=True))
    assert not torch.equal(layer.down, down) and not torch.equal(layer.up, up)
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(layer.down), id(layer.up)}


def test_dropout_is_on_the_loras_input_and_only_in_training() -> None:
    net, layer = trained("linear", dropout=0.5)
    x, plain = inputs("linear"), trained("linear")[0]
    net.eval()
    assert torch.equal(net(x), plain(x))
    net.train()
    torch.manual_seed(7)
    dropped = net(x)
    torch.manual_seed(7)
    by_hand = layer.base(x) + F.dropout(x, 0.5) @ layer.delta().T
    torch.testing.assert_close(dropped, by_hand, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dropped, plain(x), atol=1e-2)


def test_bf16_input_gives_bf16_output_and_float32_gradients() -> None:
    net, layer = trained("linear")
    layer.base.bfloat16()
    out = net(inputs("linear").bfloat16())
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.down.dtype == layer.down.grad.dtype == torch.float32  # type: ignore[union-attr]


def test_two_loras_lie_over_each_other_and_add_up() -> None:
    net, first = trained("strided")
    (second,) = inject({"net": net}, ["net.layer"], lambda _, base: LoraLayer(base, 2, 1.0)).values()
    with torch.no_grad():
        second.up.normal_(generator=torch.Generator().manual_seed(8))
    merged = Net("strided")
    with torch.no_grad():
        merged.layer.weight += first.delta() + second.delta()
    torch.testing.assert_close(net(inputs("strided")), merged(inputs("strided")), rtol=1e-4, atol=1e-5)
    remove({"net": net}, {"net.layer": second})
    assert net.layer is first


def starts(paths: list[str], seed: int) -> dict[str, Tensor]:
    net = nn.ModuleDict({"a": nn.Linear(64, 8), "b": nn.Linear(64, 8), "c": nn.Conv2d(16, 8, 2)})
    torch.rand(len(paths))  # the global state must not matter
    layers = inject({"n": net}, paths, lambda _, base: LoraLayer(base, 32, 8.0), seed=seed)
    return {p: layer.values()["down"].detach() for p, layer in layers.items()}


def test_the_start_is_a_function_of_seed_and_path_only() -> None:
    both, one = starts(["n.a", "n.b"], 1), starts(["n.b"], 1)
    assert torch.equal(both["n.b"], one["n.b"])
    assert not torch.equal(both["n.a"], both["n.b"])
    assert not torch.equal(starts(["n.b"], 2)["n.b"], one["n.b"])
    for down in (one["n.b"], starts(["n.c"], 1)["n.c"]):  # uniform within 1 / sqrt(fan in) = 1 / 8
        assert down.abs().max() <= 0.125 and down.std().item() == pytest.approx(0.125 / 3**0.5, rel=0.05)


def test_groups_divide_the_layers_of_the_blocks(family: Any) -> None:
    paths, groups = list(family.trainable()), family.facts.groups
    assert set(paths) <= set(sd1_table(1))  # each has a name in the exported file
    chosen = {name: select(paths, [name], groups) for name in ("attention", "feed_forward", "conv")}
    assert sorted(p for found in chosen.values() for p in found) == sorted(paths)
    unet = [p for p in paths if p.startswith("unet.")]
    inside = [p for p in unet if ".attentions." in p]
    assert len(inside) == 192  # 16 transformers: 8 projections, 2 of the feed-forward, in and out
    assert {p for p in unet if p in chosen["attention"] + chosen["feed_forward"]} == set(inside)
    assert select(paths, ["feed_forward", "attention"], groups) == [p for p in paths if p not in chosen["conv"]]
    some = select(paths, ["unet.up_blocks.?.*attn1.to_q"], groups)
    assert len(some) == 9 and all(p.startswith("unet.up_blocks.") and p.endswith("attn1.to_q") for p in some)


def test_a_target_that_matches_nothing_names_the_nearest(family: Any) -> None:
    paths, groups = list(family.trainable()), family.facts.groups
    with pytest.raises(UserError) as caught:
        select(paths, ["atention", "attention", "unet.mid_block.attentions.0.proj_inn"], groups)
    first, second = str(caught.value).splitlines()
    assert first.startswith("targets: 'atention' matches no layer; near it are attention")
    assert "proj_inn' matches no layer" in second and "unet.mid_block.attentions.0.proj_in," in second


def test_blocks_are_the_published_ones(family: Any) -> None:
    """By the numbers of the LDM layout, from the table that loads checkpoints: input_blocks.4 is IN04, and so on."""
    paths, groups = [p for p in family.trainable() if p.startswith("unet.")], family.facts.groups
    blocks = {name: select(paths, [name], groups) for name in BLOCKS if name != "IN00"}  # IN00 holds no such layer
    assert sorted(p for found in blocks.values() for p in found) == sorted(paths)
    published = {row.hf: row.ldm.removeprefix(UNET_PREFIX) for row in unet_rows(tiny.LAYOUT)}
    kinds = {"input_blocks": "IN", "output_blocks": "OUT"}
    for name, found in blocks.items():
        for path in found:
            part, number, *_ = published[path.removeprefix("unet.") + ".weight"].split(".")
            assert name == ("MID" if part == "middle_block" else f"{kinds[part]}{int(number):02}"), path
    with pytest.raises(UserError, match="'IN00' matches no layer"):
        select(paths, ["IN00"], groups)


def test_the_last_rule_that_matches_a_layer_is_its_own(family: Any) -> None:
    rules = [TargetRule(match="attention"), TargetRule(match="OUT03", rank=4), TargetRule(match="*OUT*to_q*")]
    found = assign(family.trainable(), rules[:2], family.facts.groups)
    assert found["unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"].rank == 4
    assert found["unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q"].rank is None
