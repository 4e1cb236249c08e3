"""The quick ways against the plain ones: the same numbers, fewer operations, fewer bytes kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from lora_scripts.adapters import products
from lora_scripts.adapters.dora import DoraLayer
from lora_scripts.adapters.inject import assign, inject
from lora_scripts.adapters.layer import LoraLayer, alike
from lora_scripts.adapters.masters import Masters
from lora_scripts.adapters.pissa import PissaLayer
from lora_scripts.adapters.products import freeze_convolution
from lora_scripts.compute import activations, attention
from lora_scripts.compute.activations import Geglu, Normed, norm_alone, norm_silu
from lora_scripts.families.base import Batch, LoadOptions
from lora_scripts.families.sd.load import build_unet, unet_of
from lora_scripts.families.sd.network import Unet
from lora_scripts.families.sd.unet import UnetLayout, unet_config
from lora_scripts.families.sd1.model import StableDiffusion1
from lora_scripts.families.sd1.names import STANDARD_2
from lora_scripts.losses.diffusion import Objective
from lora_scripts.run.base_files import BaseFiles
from lora_scripts.run.build import maker
from lora_scripts.run.init_lora import Size
from lora_scripts.run.overview import not_dora, plain_way
from lora_scripts.run.parts import Trained
from lora_scripts.train.optim import Group, build_optimizer
from test_memory import counted

LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "without bias": lambda: nn.Linear(24, 40, bias=False),
    "conv": lambda: nn.Conv2d(24, 40, 3, padding=1),
    "strided": lambda: nn.Conv2d(24, 40, 3, stride=2, padding=1),
    "oblong": lambda: nn.Conv2d(24, 40, (1, 3), stride=(2, 1), padding=(0, 2)),
    "1 x 1": lambda: nn.Conv2d(24, 40, 1, bias=False),
}
CPU = torch.device("cpu")
KINDS = {"lora": LoraLayer, "dora": DoraLayer, "pissa": PissaLayer}


@pytest.fixture(autouse=True)
def every_weight_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is quicker of large ones is tested on small ones."""
    monkeypatch.setattr(products, "LARGE", 0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frozen(kind: str, dtype: torch.dtype, *, last: bool = True) -> Any:
    torch.manual_seed(3)
    layer = LAYERS[kind]().to(dtype).requires_grad_(False)
    return layer.to(memory_format=torch.channels_last) if last and isinstance(layer, nn.Conv2d) else layer


def given(kind: str, dtype: torch.dtype, *, last: bool = True) -> Tensor:
    if "lin" in kind or "bias" in kind:
        return normal(2, 7, 24, seed=1).to(dtype).requires_grad_()
    x = normal(2, 24, 6, 5, seed=1).to(dtype)
    return (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()


def answers(layer: Any, x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """The output and the gradients of x and of the parameters."""
    y = layer(x)
    weights = normal(*y.shape, seed=2).to(y)
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], weights)]


def close(got: list[Tensor], wanted: list[Tensor], off: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).norm() <= off * b.norm(), ((a - b).norm() / b.norm()).item()


# --- a layer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("adapter", KINDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_fused_adapter_is_the_plain_one(
    kind: str, adapter: str, dtype: torch.dtype, off: float, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if adapter == "dora" and dtype == torch.float64:
        pytest.skip("its lengths are float32")
    layer = KINDS[adapter](frozen(kind, dtype, last=last), 4, 6.0)
    layer.reset(torch.Generator().manual_seed(5))
    with torch.no_grad():
        layer.up.add_(0.1 * normal(*layer.up.shape, seed=4))
    if dtype == torch.float64:
        layer.double()
    parameters = list(layer.values().values())
    assert layer.fused
    fast = answers(layer, given(kind, dtype, last=last), *parameters)
    monkeypatch.setattr(LoraLayer, "fused", False)
    plain = answers(layer, given(kind, dtype, last=last), *parameters)
    close(fast, plain, off)
    assert all(one.abs().max() > 0.01 for one in plain)
    if dtype == torch.bfloat16 and adapter != "dora":  # no further from the truth than the plain one
        exact = KINDS[adapter](frozen(kind, dtype, last=last).double(), 4, 6.0)
        exact.load(layer.values())
        if isinstance(exact, PissaLayer) and isinstance(layer, PissaLayer):
            exact.down0, exact.up0 = layer.down0, layer.up0
        exact.double()
        true = answers(
            exact, given(kind, dtype, last=last).detach().double().requires_grad_(), *exact.values().values()
        )
        far = [sum((a.double() - t).norm() for a, t in zip(them, true, strict=True)) for them in (fast, plain)]
        assert far[0] < 1.15 * far[1]


@pytest.mark.parametrize("places", [0, 10**6])
@pytest.mark.parametrize("kind", ["conv", "strided", "oblong", "1 x 1"])
def test_a_frozen_convolution_is_torchs_and_keeps_nothing(
    kind: str, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "FEW_PLACES", places)
    layer, plain = frozen(kind, torch.float64), frozen(kind, torch.float64)
    freeze_convolution(layer)
    close(answers(layer, given(kind, torch.float64)), answers(plain, given(kind, torch.float64)), 1e-14)
    x = given(kind, torch.float64)
    with counted(layer) as kept:
        layer(x * 1)
    assert kept == [0]
    layer.weight.requires_grad_()  # one that is trained gets its gradient
    assert torch.autograd.grad(layer(x).sum(), layer.weight)[0].any()


def test_a_gate_before_a_layer_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LoraLayer(frozen("linear", torch.float64), 3, 6.0).double()
    layer.reset(torch.Generator().manual_seed(5))
    with torch.no_grad():
        layer.up.copy_(normal(*layer.up.shape, seed=4))

    def plain(x: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, -1)
        monkeypatch.setattr(LoraLayer, "fused", False)
        y: Tensor = layer(hidden * F.gelu(gate))
        monkeypatch.undo()
        return y

    x = normal(2, 7, 48, seed=1).double().requires_grad_()
    wanted = answers(plain, x, layer.down, layer.up)
    close(answers(lambda x: layer(x, front=Geglu()), x, layer.down, layer.up), wanted, 1e-13)
    layer.strength = 0.0
    bare = answers(lambda x: layer(x, front=Geglu()), x)
    close(bare, answers(lambda x: layer.base(x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1])), x), 1e-13)
    layer.strength = 1.0
    with counted(layer) as kept:
        layer(x * 1, front=Geglu())
    assert kept == [x.nbytes]


@pytest.mark.parametrize("adapters", ["lora lora lora", "lora pissa lora", "lora dora lora", "lora none lora"])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_layers_of_one_input_share_its_norm_and_their_first_product(
    dtype: torch.dtype, off: float, adapters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k and v behind a layer norm, against torch's norm and each layer by itself."""
    norm = nn.LayerNorm(24).to(dtype).requires_grad_(False)
    norm.weight.normal_(generator=torch.Generator().manual_seed(1))
    layers: list[Any] = []
    for n, kind in enumerate(adapters.split()):
        torch.manual_seed(n)
        layer: Any = nn.Linear(24, 16 + 8 * n).to(dtype).requires_grad_(False)
        if kind != "none":
            layer = KINDS[kind](layer, 3 + n, 5.0)
            layer.reset(torch.Generator().manual_seed(n))
            with torch.no_grad():
                layer.up.add_(0.1 * normal(*layer.up.shape, seed=n))
        layers.append(layer)
    trained = [p for layer in layers if isinstance(layer, LoraLayer) for p in layer.values().values()]
    x = given("linear", dtype)
    fast = answers(lambda x: torch.cat(alike(x, layers, Normed(norm)), -1), x, *trained)
    with monkeypatch.context() as patched:
        patched.setattr(LoraLayer, "fused", False)
        plain = answers(lambda x: torch.cat([layer(norm(x)) for layer in layers], -1), x, *trained)
    close(fast, plain, off)
    assert all(one.abs().max() > 0.01 for one in plain)
    with counted(norm, *layers) as kept:
        y = alike(x * 1, layers, Normed(norm))
    if adapters == "lora lora lora":
        copies = 0 if dtype == torch.float32 else sum(p.numel() * 2 for p in trained)
        assert kept == [x.nbytes + copies] and len({one.grad_fn for one in y}) == 1


@pytest.mark.parametrize("ours", [norm_silu, norm_alone])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])  # by plain sums, by torch's kernel
def test_a_norm_keeps_its_input_alone(layout: torch.memory_format, ours: Any) -> None:
    norm = nn.GroupNorm(4, 24).double().requires_grad_(False)
    norm.weight.normal_(generator=torch.Generator().manual_seed(1))
    norm.bias.normal_(generator=torch.Generator().manual_seed(2))
    x = (3 + normal(2, 24, 6, 5, seed=1).bfloat16().double()).contiguous(memory_format=layout).requires_grad_()

    def plain(x: Tensor) -> Tensor:
        return F.silu(norm(x)) if ours is norm_silu else norm(x)

    exact = answers(plain, x)
    close(answers(lambda x: ours(x, norm), x), exact, 1e-12)
    with counted(norm) as kept:
        ours(x * 1, norm)
    assert kept == [x.nbytes + 2 * 2 * 4 * 8]  # mean and deviation of each group
    half, norm = x.detach().bfloat16().requires_grad_(), norm.bfloat16()
    far = [
        sum((a.double() - t).norm() for a, t in zip(answers(way, half), exact, strict=True))
        for way in (lambda x: ours(x, norm), plain)
    ]
    assert far[0] < 1.05 * far[1]


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("tokens", [32, 77])
def test_plain_attention_is_no_further_from_the_truth_than_torchs(
    tokens: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if again:
        monkeypatch.setattr(attention, "KEPT", 0)

    def heads(places: int, seed: int, dtype: torch.dtype) -> Tensor:
        values = normal(2, places, 4 * 40, seed=seed).bfloat16().to(dtype)
        return (1.7 * values).view(2, places, 4, 40).transpose(1, 2).requires_grad_()

    def run(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        q, k, v = heads(32, 1, dtype), heads(tokens, 2, dtype), heads(tokens, 3, dtype)
        y = attend(q, k, v)
        return [y, *torch.autograd.grad(y, (q, k, v), normal(2, 4, 32, 40, seed=4).bfloat16().to(dtype))]

    plain = attention._Plain.apply
    exact = run(F.scaled_dot_product_attention, torch.float64)
    close(run(plain, torch.float64), exact, 1e-13)
    close(run(plain, torch.float32), run(F.scaled_dot_product_attention, torch.float32), 2e-6)
    half = run(attention.attend, torch.bfloat16)
    fused = run(F.scaled_dot_product_attention, torch.bfloat16)
    for ours, theirs, true in zip(half, fused, exact, strict=True):
        assert (ours - true).norm() < max(1.1 * (theirs - true).norm(), 3e-3 * true.norm())


def far(count: int, seed: int, dtype: torch.dtype, sharp: float = 1.0) -> Tensor:
    """[1, 2, count, 40] of a head's variance `sharp`, whose keys (seed 2) share a direction besides."""
    values = sharp**0.5 * normal(1, count, 80, seed=seed) + (3 * normal(80, seed=9) if seed == 2 else 0)
    return values.bfloat16().to(dtype).view(1, count, 2, 40).transpose(1, 2).requires_grad_()


def in_parts(attend: Any, dtype: torch.dtype, sharp: float = 1.0) -> list[Tensor]:
    q, k, v = far(160, 1, dtype, sharp), far(600, 2, dtype, sharp), far(600, 3, dtype)
    y = attend(q, k, v)
    return [y, *torch.autograd.grad(y, (q, k, v), normal(1, 2, 160, 40, seed=4).bfloat16().to(dtype))]


@pytest.mark.parametrize("units", [False, True])
def test_attention_in_parts_is_the_fused_kernels_and_is_taken_where_scores_are_flat(
    units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "ROWS", 64)  # two parts and a half
    monkeypatch.setattr(attention, "MOST", 600)
    monkeypatch.setattr(attention, "MADE_AGAIN", 0)
    monkeypatch.setattr(attention, "cpu_has_matrix_units", lambda: units)
    taken: list[int] = []
    parts = attention._InParts.apply
    monkeypatch.setattr(attention._InParts, "apply", lambda *given: (taken.append(1), parts(*given))[1])
    exact = in_parts(F.scaled_dot_product_attention, torch.float64)
    close(in_parts(parts, torch.float64), exact, 1e-12)
    close(in_parts(parts, torch.float32), in_parts(F.scaled_dot_product_attention, torch.float32), 2e-5)
    half = in_parts(attention.attend, torch.bfloat16)
    assert len(taken) == 1
    for ours, true in zip(half, exact, strict=True):
        assert (ours - true).norm() < 8e-3 * true.norm()
    in_parts(attention.attend, torch.bfloat16, sharp=6.0)  # a variance of 36: left to the fused kernel
    in_parts(attention.attend, torch.float32)
    assert len(taken) == 1


def test_scores_are_about_their_middle() -> None:
    q, k = (x.detach()[0] for x in (far(50, 1, torch.float64, 2.0), far(600, 2, torch.float64, 2.0)))
    scores = q @ k.mT / 40**0.5
    mean, variance = attention._scores(q, k)
    torch.testing.assert_close(mean, scores.mean(-1, keepdim=True))
    torch.testing.assert_close(variance, scores.var(-1, correction=0, keepdim=True))
    places, tokens = attention._about_middle(q, k)
    torch.testing.assert_close(places @ tokens.mT, scores - mean - variance)
    middle = (scores.softmax(-1) * (places @ tokens.mT)).sum(-1)
    assert middle.abs().mean() < 0.2 * variance.mean()  # those that count are about 0


# --- a whole model ----------------------------------------------------------------------------------------------------


class Named:
    def __init__(self, match: str) -> None:
        self.match = match


def model(
    *, lean: bool, dtype: torch.dtype, sites: bool = True, device: torch.device = CPU
) -> tuple[StableDiffusion1, dict[str, LoraLayer]]:
    """The true topology, narrow; with LoRA in the 192 layers of attention and feed-forward."""
    unet, vae, text = tiny.models()
    own = build_unet(tiny.LAYOUT.unet, unet.state_dict()) if lean else unet
    family = StableDiffusion1(own, vae, text, LoadOptions(device, dtype))
    rules = [Named("attention"), Named("feed_forward")]
    paths = [p for p in assign(family.trainable(), rules, family.facts.groups) if p.startswith("unet.")]
    layers: Any = inject(family.roots, paths, lambda _, layer: LoraLayer(layer, 2, 2.0)) if sites else {}
    for n, layer in enumerate(layers.values()):
        with torch.no_grad():
            layer.up.copy_(0.1 * normal(*layer.up.shape, seed=n))
        if dtype == torch.float64:
            layer.double()
    return family, layers


def batch(count: int = 2, side: int = 16) -> Batch:
    mean = normal(count, 4, side, side, seed=5)
    generators = [torch.Generator().manual_seed(n) for n in range(count)]
    texts = {"states": normal(count, 77, 16, seed=6)}
    return Batch({"mean": mean, "std": 0.1 * mean.abs()}, [""] * count, texts, [""] * count, generators)


@contextmanager
def plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(LoraLayer, "fused", False)
        yield


def gradients(family: Any, layers: dict[str, LoraLayer]) -> list[Tensor]:
    loss, _ = family.loss(batch(), Objective())
    loss.backward()
    grads = [p.grad for layer in layers.values() for p in layer.values().values()]
    assert all(grad is not None for grad in grads)
    return [loss.detach().view(1), *grads]  # type: ignore[list-item]


def test_a_lean_unet_has_the_gradients_of_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = gradients(*model(lean=True, dtype=torch.float64))
    with plainly(monkeypatch):
        plain = gradients(*model(lean=False, dtype=torch.float64))
    assert len(fast) == 1 + 2 * 192
    close(fast, plain, 1e-5)  # the latents, the noise and the loss are float32 in both
    assert len({one.norm().item() for one in plain}) > 300


NARROW = {
    "1.x": tiny.LAYOUT.unet,
    "2.x": replace(STANDARD_2.unet, widths=(64, 64, 128, 128), heads=(1, 1, 2, 2), context_width=16),
    "XL": UnetLayout((32, 64, 96), (0, 1, 2), (1, 2, 3), 16, linear=True, pooled_width=24, size_width=8),
}


@pytest.mark.parametrize("kind", NARROW)
@torch.no_grad()
def test_the_unet_is_diffusers_to_the_name_and_the_number(kind: str, tmp_path: Path) -> None:
    """Of a picture whose sides are no multiples of 64 pixels. Layers stand in the same order, as saved states do."""
    torch.manual_seed(3)
    theirs = UNet2DConditionModel(**unet_config(NARROW[kind], 64)).eval()
    theirs.save_pretrained(tmp_path)
    ours = unet_of(tmp_path)
    assert isinstance(ours, Unet) and list(ours.state_dict()) == list(theirs.state_dict())
    layers = [[n for n, m in one.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)] for one in (ours, theirs)]
    assert layers[0] == layers[1]
    x, t, states = normal(2, 4, 12, 20, seed=1), torch.tensor([3.0, 800.0]), normal(2, 77, 16, seed=2)
    told = {"text_embeds": normal(2, 24, seed=3), "time_ids": torch.arange(12.0).view(2, 6) * 90}
    added = told if kind == "XL" else None
    close([ours(x, t, states, added)], [theirs(x, t, states, added_cond_kwargs=added).sample], 1e-5)


def test_a_unet_with_a_setting_that_ours_has_not_is_diffusers_own(tmp_path: Path) -> None:
    for name, setting in {"odd": {"center_input_sample": True}, "other": {"act_fn": "gelu"}}.items():
        UNet2DConditionModel(**unet_config(tiny.LAYOUT.unet, 64), **setting).save_pretrained(tmp_path / name)
        assert isinstance(unet_of(tmp_path / name), UNet2DConditionModel)


VIEWS = {
    *("view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "as_strided"),
    *("_unsafe_view", "detach", "alias", "split", "chunk", "unbind", "reshape", "_reshape_alias", "unfold"),
    *("split_with_sizes", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}


class Counted(TorchDispatchMode):
    """Counts what is computed, views and empty tensors left out: on a card each is a launch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_takes_few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card, where convolutions and attention are one kernel each; the plain way took 4,700."""
    monkeypatch.setattr(products, "FEW_PLACES", 0)
    monkeypatch.setattr(attention, "MADE_AGAIN", 0)
    monkeypatch.setattr(activations, "SHORT", 0)
    family, layers = model(lean=True, dtype=torch.bfloat16)
    masters = Masters(layers.values())
    parameters = [p for layer in layers.values() for p in layer.values().values()]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    for _ in range(2):  # the first makes the moments
        with Counted() as counted_:
            loss, count = family.loss(batch(), Objective())
            loss.backward()
            masters.gather()
            torch._foreach_div_([p.grad for p in parameters], count)  # type: ignore[misc]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            masters.refresh()
    total = sum(counted_.names.values())
    assert 2000 < total <= 3000, counted_.names.most_common(20)
    assert counted_.names["_to_copy"] < 20  # no factor is cast by itself


def test_a_pass_keeps_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are exact; the plain way is the library's blocks with the same layers."""
    kept = {}
    for lean in (True, False):
        family, layers = model(lean=lean, dtype=torch.bfloat16)
        masters = Masters(layers.values())
        own = [*layers.values(), family.unet]
        copies = nn.ParameterList([nn.Parameter(c, requires_grad=False) for one in masters._pieces for c in one.copies])
        with monkeypatch.context() as patched:
            patched.setattr(attention, "MADE_AGAIN", 0)
            if not lean:
                patched.setattr(LoraLayer, "fused", False)
            with counted(*own, copies) as sizes:
                family.loss(batch(1, 32), Objective())
        kept[lean] = sizes[0]
    assert kept[True] < 0.6 * kept[False], kept


# --- the masters ------------------------------------------------------------------------------------------------------


def test_masters_change_no_bit_of_a_step() -> None:
    """Against the casts of autograd: gradients of two accumulated batches, and what a step makes of them."""
    left = []
    for bulk in (False, True):
        family, layers = model(lean=True, dtype=torch.bfloat16)
        masters = Masters(layers.values() if bulk else [])
        parameters = [p for layer in layers.values() for p in layer.values().values()]
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        for _ in range(2):
            for _ in range(2):
                family.loss(batch(), Objective())[0].backward()
                masters.gather()
            grads = [p.grad.clone() for p in parameters]  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()
            masters.refresh()
        assert all(p.dtype == g.dtype == torch.float32 for p, g in zip(parameters, grads, strict=True))
        left.append([*grads, *(p.detach().clone() for p in parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))


def test_a_factor_that_took_no_part_gets_no_gradient() -> None:
    one, other = (LoraLayer(frozen("linear", torch.bfloat16), 2, 2.0) for _ in range(2))
    masters = Masters([one, other])
    one(given("linear", torch.bfloat16)).sum().backward()
    masters.gather()
    assert one.up.grad is not None and other.up.grad is None and other.down.grad is None


def test_the_table_says_which_layers_are_computed_the_plain_way() -> None:
    layers = {n: LoraLayer(frozen("linear", torch.float32), 2, 2.0, dropout=0.5 * (n == "b")) for n in ("a", "b")}
    config: Any = SimpleNamespace(lora_dropout=0.5, adapter="lora", training_adapter=None)
    ((name, words),) = plain_way(SimpleNamespace(layers=layers), config)  # type: ignore[arg-type]
    assert name == "speed" and words.startswith("1 of 2 layers") and "lora_dropout" in words
    assert plain_way(SimpleNamespace(layers={"a": layers["a"]}), config) == []  # type: ignore[arg-type]
    over = LoraLayer(layers["a"], 2, 2.0)  # over a training adapter
    assert not over.fused
    config = SimpleNamespace(lora_dropout=0.0, adapter="lora", training_adapter="turbo.safetensors")
    ((_, words),) = plain_way(SimpleNamespace(layers={"a": over}), config)  # type: ignore[arg-type]
    assert words.startswith("1 of 1 layers") and "(training_adapter)" in words


def test_the_table_says_which_layers_have_no_dora() -> None:
    config: Any = SimpleNamespace(adapter="dora", lora_dropout=0.0, rank_stabilised=False)
    make = maker(config, {}, {}, Size(2, 2.0))
    layers = {"wide": make("wide", nn.Linear(24, 40)), "last": make("last", nn.Linear(24, 1))}
    one: Any = SimpleNamespace(layers=layers)
    ((name, words),) = not_dora(one, config)
    assert name == "adapter" and words.startswith("lora in place of dora for last:")
    config.adapter = "lora"
    assert not_dora(one, config) == []


@pytest.mark.parametrize(
    ("name", "package"),
    [("adamw", "torch"), ("prodigy", "prodigyopt"), ("schedule_free", "schedulefree"), ("lion", "lion_pytorch")],
)
def test_every_optimizer_leaves_the_copies_up_to_date(name: str, package: str) -> None:
    """Some write through `.data`, which no version of a tensor tells."""
    pytest.importorskip(package)
    layer = LoraLayer(frozen("linear", torch.bfloat16), 2, 2.0)
    layer.reset(torch.Generator().manual_seed(1))
    groups = [Group("all", list(layer.values().values()), 0.01)]
    model = Trained({"net": layer}, build_optimizer(name, groups, 0.0), 2, 2.0, "", BaseFiles([]))
    before = layer.up.clone()
    for _ in range(3):
        y = layer(given("linear", torch.bfloat16))
        (y * normal(*y.shape, seed=2)).sum().backward()
        model.masters.gather()
        model.optimizer.step()
        model.optimizer.zero_grad()
    assert layer.copies is not None and not torch.equal(layer.up, before)
    for copy, p in zip(layer.copies, (layer.down, layer.up), strict=True):
        assert torch.equal(copy, p.to(torch.bfloat16))
    model.load({"net.down": layer.down * 2, "net.up": layer.up * 2})
    assert torch.equal(layer.copies[1], layer.up.to(torch.bfloat16))
