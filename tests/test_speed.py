"""Blocks that are compiled, products in 8 bits, a batch as plain tensors: the same numbers as the ways beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import tiny
import tiny_flux2
import tiny_xl
from families import ROWS, Row
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.lycoris import LycorisLayer
from lora_scripts.adapters.masters import Masters
from lora_scripts.cli import main
from lora_scripts.compute import compiled
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.compute.quantised import FEW_ROWS, MultipliedLinear, quantise_layer
from lora_scripts.errors import UserError
from lora_scripts.families.base import Batch, LoadOptions, Place
from lora_scripts.families.table import load_pictures
from lora_scripts.losses.noise import draw
from lora_scripts.train.passes import LaunchedPasses, Passes, RecordedPasses, batch_of, tensors_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    made = {"sd1": tiny.write_base, "sdxl": tiny_xl.write_base}
    found = {name: write(folder / f"{name}.safetensors") for name, write in made.items()}
    return found | {"flux2": tiny_flux2.write_folder(folder / "flux2")}


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All of torch's compiler but the last stage, which writes C++ and takes minutes."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def asked(
    base: Path, dtype: torch.dtype = torch.float64, beside: Mapping[str, Any] = MappingProxyType({}), **memory: Any
) -> tuple[float, Tensor]:
    """Loss and gradients of one fixed batch, by a LoRA that does something. `beside`: text encoder and VAE."""
    options = LoadOptions(CPU, dtype, memory=MemoryOptions(**memory))
    family = load_pictures(base, replace(options, **beside))
    batch, objective = batch_for(family), family.objective
    paths = [p for p in family.trainable() if p.startswith(f"{family.facts.image_root}.")]
    chosen = [p for p in paths if any(family.facts.groups[g](p) for g in ("attention", "feed_forward"))]
    layers = inject(family.roots, chosen, lambda _, layer: LoraLayer(layer, 2, 2.0))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in layers.values():
            assert isinstance(layer, LoraLayer)
            layer.up.copy_(0.02 * torch.randn(layer.up.shape, generator=g))
    masters = Masters(layers.values())
    total, _ = family.loss(batch, objective)
    total.backward()
    masters.gather()
    values = [p for layer in layers.values() for p in layer.values().values()]
    # A layer that takes no part has no gradient, or one of zeros.
    grads = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in values]
    return total.item(), torch.cat([grad.double().flatten() for grad in grads])


def batch_for(family: object) -> Batch:
    g = torch.Generator().manual_seed(1)
    latents = family.encode_image(torch.rand(2, 3, 64, 64, generator=g) * 2 - 1)  # type: ignore[attr-defined]
    with torch.no_grad():
        texts = family.encode_text(["a cat", "the weather in Paris is sunny"])  # type: ignore[attr-defined]
    places = Place((80, 64), (8, 0), (64, 64)).numbers().expand(2, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return Batch(latents, ["", ""], texts, ["", ""], generators, places, weights=torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("name", [pytest.param("sd1", marks=pytest.mark.slow), "flux2"])
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_blocks_give_the_same_loss_and_gradients(
    name: str, checkpointing: bool, bases: dict[str, Path], quick_compiler: None
) -> None:
    loss, grads = asked(bases[name])
    assert not counters["stats"]
    quick, others = asked(bases[name], compiled=True, checkpointing=checkpointing)
    assert counters["stats"]["unique_graphs"] >= 2  # it was compiled, and no block went on without
    assert not counters["graph_break"]
    assert quick == pytest.approx(loss, rel=1e-9)  # noise levels are float32 in either
    assert (others - grads).norm() < 1e-6 * grads.norm()


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("storage", [None, "int8", "w8a8"])
def test_the_blocks_of_every_family_compile_whole(
    row: Row, storage: str | None, tmp_path: Path, quick_compiler: None
) -> None:
    base = row.file(tmp_path / "base.safetensors")
    beside = row.beside(tmp_path)
    loss, grads = asked(base, torch.float32, beside, storage=storage)
    quick, others = asked(base, torch.float32, beside, storage=storage, compiled=True, checkpointing=True)
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]
    # Where a number lies in the middle of two codes, rounding of float32 decides, and the rest follows.
    assert quick == pytest.approx(loss, rel=1e-3 if storage == "w8a8" else 1e-5)
    assert (others - grads).norm() < (0.02 if storage == "w8a8" else 5e-3) * grads.norm()


def test_compiled_blocks_are_as_they_were_without_gradients(bases: dict[str, Path], quick_compiler: None) -> None:
    family = load_pictures(bases["sd1"], LoadOptions(CPU, torch.float32, memory=MemoryOptions(compiled=True)))
    plain = load_pictures(bases["sd1"], LoadOptions(CPU, torch.float32))
    with torch.no_grad():
        both = [one.loss(batch_for(one), one.objective)[0] for one in (family, plain)]
    assert not counters["stats"] and torch.equal(both[0], both[1])


@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 4])
@pytest.mark.parametrize("quick", [False, True])
def test_products_in_8_bits_are_those_of_rounded_numbers(
    rows: int, quick: bool, quick_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand in float64: each row of the input, and of the gradient, in 127 parts of its largest number."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 16).requires_grad_(False)
    weight, bias = layer.weight.double(), layer.bias.double()
    quantise_layer(layer, "w8a8", torch.float32)
    assert type(layer) is MultipliedLinear
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().double()
    codes = (weight / scale).round()
    x, g = torch.randn(1, rows, 24), torch.randn(1, rows, 16)

    def parts(t: Tensor) -> Tensor:
        unit = t.double().abs().amax(-1, keepdim=True) / 127
        return (t.double() / unit).round() * unit if rows > FEW_ROWS else t.double()

    given = x.clone().requires_grad_()
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(given) if quick else layer(given)
    y.backward(g)
    assert given.grad is not None
    torch.testing.assert_close(y.detach().double(), parts(x) @ (codes * scale).T + bias, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.grad.double(), parts(g * scale.T) @ codes, rtol=1e-5, atol=1e-5)


WRAPPED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "dropout": lambda layer: LoraLayer(layer, 2, 1.0, 0.5),
    "over another": lambda layer: LoraLayer(LoraLayer(layer, 2, 1.0), 2, 1.0),
    "loha": lambda layer: LycorisLayer(layer, "loha", 2, 1.0),
}


@pytest.mark.parametrize("way", WRAPPED)
@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 4])
def test_adapters_add_to_a_product_in_8_bits(rows: int, way: str) -> None:
    """In place: autograd refuses that of a view which a function of our own gave."""
    if way == "loha":
        pytest.importorskip("lycoris")
    layer = nn.Linear(24, 16).requires_grad_(False)
    quantise_layer(layer, "w8a8", torch.float32)
    adapter, x = WRAPPED[way](layer), torch.randn(1, rows, 24, requires_grad=True)
    wanted, (dx,) = layer(x), torch.autograd.grad(layer(x).sum(), x)
    y = adapter(x)  # B, or a factor, is zero
    assert torch.equal(y, wanted) and torch.equal(torch.autograd.grad(y.sum(), x)[0], dx)


def test_in_8_bits_a_loss_is_nearly_that_of_the_whole_base(bases: dict[str, Path]) -> None:
    loss, grads = asked(bases["flux2"], torch.float32)
    other, others = asked(bases["flux2"], torch.float32, storage="w8a8")
    assert 0 < abs(other - loss) < 1e-3 * loss
    assert 1e-4 < (others - grads).norm() / grads.norm() < 0.05


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux2"])
def test_a_batch_is_the_same_as_plain_tensors(name: str, bases: dict[str, Path]) -> None:
    family = load_pictures(bases[name], LoadOptions(CPU, torch.float32))
    batch, objective = batch_for(family), family.objective
    noise = replace(objective.noise, perturbation=0.1)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    shape = tuple(batch.latents["mean"].shape)
    draws = draw(shape, generators, objective.timesteps, noise, family.levels(objective))
    masks = torch.rand(2, 1, *shape[2:], generator=torch.Generator().manual_seed(2))
    batch = replace(batch, masks=masks)
    with torch.no_grad():
        whole = family.losses(batch, objective, draws)
        again = family.losses(*batch_of(tensors_of(batch, draws))[:1], objective, batch_of(tensors_of(batch, draws))[1])
    assert torch.equal(whole, again)


@pytest.mark.parametrize("before", [0, 1])
def test_a_recording_that_breaks_off_leaves_nothing_behind(
    before: int, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that were set while it was recorded were never computed. `before`: passes that came before it in the
    step, whose gradients must stay."""
    family = load_pictures(bases["sd1"], LoadOptions(CPU, torch.bfloat16))
    paths = [p for p in family.trainable() if "attn2.to_q" in p and p.startswith("unet.")]
    layers = inject(family.roots, paths, lambda _, layer: LoraLayer(layer, 2, 2.0))
    values = [p for layer in layers.values() for p in layer.values().values()]
    with torch.no_grad():
        for p in values:
            p.copy_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    masters = Masters(layers.values())
    masters.refresh()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batches = [
        replace(batch_for(family), generators=[torch.Generator().manual_seed(n + k) for k in (0, 9)]) for n in (1, 2)
    ]

    def taken(passes: Passes, count: int) -> list[Tensor]:
        masters.detach()
        for batch in batches[:count]:
            again = [torch.Generator().manual_seed(g.initial_seed()) for g in batch.generators]
            passes(replace(batch, generators=again))
        return [p.grad.clone() for p in values if p.grad is not None]

    wanted = taken(LaunchedPasses(family, family.objective, scaler, masters), before + 1)
    passes = RecordedPasses(family, family.objective, scaler, masters)
    taken(passes, before + 1)  # the first of each kind is computed as it comes

    def broken(given: Mapping[str, Tensor]) -> None:
        passes.recorded.fault = "no room"
        for layer in layers.values():
            assert isinstance(layer, LoraLayer) and layer.copies is not None
            for copy in layer.copies:
                copy.grad = torch.full_like(copy, 1e3)
        for p in values:
            p.grad = torch.full_like(p, 1e3) if p.grad is None else p.grad

    monkeypatch.setattr(passes.recorded, "_record", broken)
    got = taken(passes, before + 1)
    assert passes.fault and len(got) == len(wanted) == len(values)
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_run_with_compiled_blocks(
    data: Path,
    tmp_path: Path,
    quick_compiler: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny.write_base(tmp_path / "base.safetensors")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keys = {"compile": "true", "base_precision": "w8a8", "targets": tiny.SOME, "cache_dir": tmp_path / "cache"}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, output_dir=tmp_path / "out", **keys)
    assert main(["train", "--config", str(config)]) == 0
    assert counters["stats"]["unique_graphs"] >= 2
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "compiled")
    assert "base stored as w8a8" in capsys.readouterr().out


def test_a_block_that_cannot_be_compiled_is_one_line() -> None:
    def odd(x: Tensor) -> Tensor:
        print(x.tolist())  # of which no graph can be made
        return x

    with pytest.raises(UserError, match=r"could not be compiled: .*; leave compile out"), compiled.told_in_a_line():
        torch.compile(odd, backend="aot_eager", fullgraph=True)(torch.ones(2))
    with pytest.raises(RuntimeError, match="another"), compiled.told_in_a_line():
        raise RuntimeError("another")


@pytest.mark.parametrize("missing", ["triton", "compiler"])
def test_what_cannot_be_compiled_is_said(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda _: None)
    device = torch.device("cuda" if missing == "triton" else "cpu")
    with pytest.raises(UserError, match=missing):
        compiled.check_compiler(device)
