"""What takes another way on a CUDA card: each family and each kind of run in small, held against the CPU.

python -m pytest tests/test_cuda.py            # on a machine with a card
LORA_TEST_DEVICE=cpu … tests/test_cuda.py      # what of it knows no device, to see that the tests themselves work
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import flow_checks
import small_words
import test_lean
import test_text_run
import tiny
from families import ROWS, Row
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import LoraLayer, alike
from lora_scripts.adapters.masters import Masters
from lora_scripts.adapters.products import freeze_convolution
from lora_scripts.cli import main
from lora_scripts.compute import memory, recorded
from lora_scripts.compute.activations import Geglu, Normed, norm_silu
from lora_scripts.compute.attention import attend, quickest_attention
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.compute.meter import GB, Meter, ran_out
from lora_scripts.compute.offload import CudaMover, offload
from lora_scripts.compute.profile import Watch, speeds_of
from lora_scripts.compute.quantised import quantise_layer
from lora_scripts.config.load import load_config
from lora_scripts.events import ignore
from lora_scripts.families.base import Batch, LoadOptions, Place, Sampling
from lora_scripts.families.table import by_name, load_family
from lora_scripts.families.texts import Answering
from lora_scripts.formats import io
from lora_scripts.generate.command import draw
from lora_scripts.losses.diffusion import Objective
from lora_scripts.plan import command as planning
from lora_scripts.plan.command import PlanOptions, plan
from lora_scripts.run import story
from lora_scripts.run.build import build_model
from lora_scripts.train import state as states
from lora_scripts.train.optim import Group, build_optimizer
from runs import stopped
from test_lean import KINDS, LAYERS, close, frozen, given, gradients, normal
from test_memory import config_of

DEVICE = torch.device(os.environ.get("LORA_TEST_DEVICE", "cuda"))
CPU, CARD = torch.device("cpu"), DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(CARD and not torch.cuda.is_available(), reason="this machine has no CUDA card")
card_only = pytest.mark.skipif(not CARD, reason="only a card has what it looks at")
CLOSE = 1e-5 if CARD else 1e-6
"""Of float32: a card sums in other orders, and has other ways to compute a convolution."""


@pytest.fixture
def cleared() -> None:
    """What earlier tests left on the card is gone."""
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def whole_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of float32 are in float32, which on a card is not the usual way (TF32)."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # products of matrices are so anyway


@pytest.fixture
def same_bits() -> Iterator[None]:
    """Of the kernels that do not add in a fixed order, those that do."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def apart(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|."""
    return float((one.cpu().double() - other.cpu().double()).norm() / other.double().norm().cpu().clamp(min=1e-30))


# --- families ---------------------------------------------------------------------------------------------------------

SIZE = (96, 64)
PLACES = Place((120, 70), (0, 3), SIZE).numbers().expand(2, -1)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Row, Path]:
    """A family's narrow random model, as people have it in one file."""
    row: Row = request.param
    return row, row.file(tmp_path_factory.mktemp(row.name) / "base.safetensors")


def load(written: tuple[Row, Path], device: torch.device, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    row, path = written
    made = LoadOptions(device, dtype, memory=MemoryOptions(**options))
    return load_family(by_name(row.name), path, replace(made, **row.beside(path.parent)))


def with_lora(family: Any) -> dict[str, LoraLayer]:
    """On a few layers of it, all over it, with a change that is not nothing."""
    root = family.facts.image_root + "."
    paths = [path for path in family.trainable() if path.startswith(root)]
    layers: Any = inject(family.roots, paths[:: max(1, len(paths) // 12)], lambda _, layer: LoraLayer(layer, 2, 2.0))
    for n, layer in enumerate(layers.values()):
        layer.place(family.device)
        with torch.no_grad():
            layer.up.copy_(0.1 * normal(*layer.up.shape, seed=n))
    return layers


def one_batch(family: Any) -> Batch:
    pixels = torch.rand(2, 3, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(5)) * 2 - 1
    return replace(flow_checks.batch_of(family, pixels, flow_checks.PROMPTS), places=PLACES)


def learnt(family: Any, batch: Batch) -> tuple[float, list[Tensor]]:
    """The loss of a batch, and the gradients of some LoRAs by it."""
    layers = with_lora(family)
    masters = Masters(layers.values())
    masters.refresh()
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    with quickest_attention(family.device):
        loss, count = family.loss(replace(batch, generators=generators), family.objective)
        loss.backward()
    masters.gather()
    grads = [p.grad for layer in layers.values() for p in layer.values().values()]
    assert count == 2 and len(grads) > 8
    return loss.item(), [g for g in grads if g is not None]


def test_a_family_computes_on_a_card_what_it_computes_on_the_cpu(
    written: tuple[Row, Path], whole_floats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents, texts, loss, gradients and a picture; texts also where the encoder comes a layer at a time."""
    here, there = load(written, CPU), load(written, DEVICE)
    batch, other = one_batch(here), one_batch(there)
    for name, latents in batch.latents.items():
        assert other.latents[name].device == CPU and apart(other.latents[name], latents) < 1e-4, name
    assert batch.texts is not None and other.texts is not None
    for name, texts in batch.texts.items():
        assert other.texts[name].device == CPU and apart(other.texts[name], texts) < 1e-4, name
    if hasattr(there.encoder, "remember"):
        bring = memory.bring
        with monkeypatch.context() as patch:
            patch.setattr(memory, "bring", lambda model, device: bring(model, device, room=0))
            there.encoder.rest()
            for name, texts in there.encode_text(flow_checks.PROMPTS).items():
                assert apart(texts, other.texts[name]) < 1e-6, name
            there.encoder.rest()
    drawn = Sampling(steps=2, size=SIZE, cfg=3.0)
    pictures = [np.asarray(family.generate("hello", 7, drawn), dtype=int) for family in (here, there)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 3 and pictures[0].std() > 1
    there.rest(text_encoder=True)
    wanted, here_grads = learnt(here, batch)
    loss, there_grads = learnt(there, batch)
    assert abs(loss - wanted) <= 1e-4 * abs(wanted), (loss, wanted)
    assert apart(*(torch.cat([g.flatten() for g in grads]).cpu() for grads in (there_grads, here_grads))) < 1e-3
    for dtype in (torch.bfloat16, torch.float16) if CARD else (torch.bfloat16,):
        half, _ = learnt(load(written, DEVICE, dtype), batch)
        assert abs(half - wanted) <= 0.05 * abs(wanted), (dtype, half, wanted)


def test_each_sampler_draws_on_a_card_what_it_draws_on_the_cpu(base: Path, whole_floats: None) -> None:
    """Those that add noise take it from the picture's seed, on the CPU."""
    from lora_scripts.families.samplers import SAMPLERS

    families = [load_family(by_name("sd1"), base, LoadOptions(on, torch.float32)) for on in (CPU, DEVICE)]
    for sampler in SAMPLERS:
        drawn = Sampling(steps=3, size=(64, 64), cfg=2.0, scheduler=sampler.name)
        one, two = (np.asarray(family.generate("(red:1.3) house", 3, drawn), dtype=int) for family in families)
        assert np.abs(one - two).max() <= 4, sampler.name


# --- the quick ways, against the plain ones ---------------------------------------------------------------------------

HALVES = (torch.bfloat16, torch.float16)


def answers(layer: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> list[Tensor]:
    return test_lean.answers(layer, x, *parameters)


def sent(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Onto the card, as a leaf."""
    return x.detach().to(DEVICE, dtype or x.dtype).requires_grad_()


def no_further(fast: list[Tensor], plain: list[Tensor], true: list[Tensor]) -> None:
    """In half precision the quick way is no further from the truth than the plain one, on the whole."""
    far = [sum(apart(a, t) for a, t in zip(them, true, strict=True)) for them in (fast, plain)]
    assert far[0] < 1.2 * far[1], far


@pytest.mark.parametrize("dtype", [torch.float32, *(HALVES if CARD else HALVES[:1])], ids=str)
@pytest.mark.parametrize("adapter", KINDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_fused_adapter_is_the_plain_one(
    kind: str, adapter: str, dtype: torch.dtype, whole_floats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions in torch's own layout, as a card has them."""
    layer = KINDS[adapter](frozen(kind, dtype, last=False).to(DEVICE), 4, 6.0)
    layer.reset(torch.Generator().manual_seed(5))
    layer.place(DEVICE)
    with torch.no_grad():
        layer.up.add_(0.1 * normal(*layer.up.shape, seed=4).to(DEVICE))
    assert layer.fused
    parameters, x = list(layer.values().values()), sent(given(kind, dtype, last=False))
    fast = answers(layer, x, *parameters)
    with monkeypatch.context() as patch:
        patch.setattr(LoraLayer, "fused", False)
        plain = answers(layer, x, *parameters)
    close(fast, plain, CLOSE if dtype == torch.float32 else 2e-2)
    assert all(one.abs().max() > 0.01 for one in plain)
    if dtype != torch.float32 and adapter == "lora":
        exact = LoraLayer(frozen(kind, dtype, last=False).to(DEVICE).double(), 4, 6.0)
        exact.place(DEVICE)
        exact.load(layer.values())
        true = answers(exact.double(), sent(x, torch.float64), *exact.values().values())
        no_further(fast, plain, true)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_of_one_input_and_what_stands_before_them(
    dtype: torch.dtype, whole_floats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = nn.LayerNorm(24).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.copy_(normal(24, seed=1))
    layers = [LoraLayer(frozen("linear", dtype).to(DEVICE), 3 + n, 5.0) for n in range(3)]
    for n, layer in enumerate(layers):
        layer.reset(torch.Generator().manual_seed(n))
        layer.place(DEVICE)
        with torch.no_grad():
            layer.up.add_(0.1 * normal(*layer.up.shape, seed=n).to(DEVICE))
    trained = [p for layer in layers for p in layer.values().values()]
    off, x = CLOSE if dtype == torch.float32 else 2e-2, sent(given("linear", dtype))
    wide = sent(normal(2, 7, 48, seed=1), dtype)
    fast = answers(lambda x: torch.cat(alike(x, layers, Normed(norm)), -1), x, *trained)
    gated = answers(lambda x: layers[0](x, front=Geglu()), wide, *trained[:2])
    with monkeypatch.context() as patch:
        patch.setattr(LoraLayer, "fused", False)
        plain = answers(lambda x: torch.cat([layer(norm(x)) for layer in layers], -1), x, *trained)
        by_hand = answers(lambda x: layers[0](x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1])), wide, *trained[:2])
    close(fast, plain, off)
    close(gated, by_hand, off)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_convolutions_and_attention(dtype: torch.dtype, last: bool, whole_floats: None) -> None:
    off, x = CLOSE if dtype == torch.float32 else 2e-2, given("conv", dtype, last=last)
    norm = nn.GroupNorm(4, 24).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.copy_(normal(24, seed=1))
    close(answers(lambda x: norm_silu(x, norm), sent(x)), answers(lambda x: F.silu(norm(x)), sent(x)), off)
    for kind in ("conv", "strided", "oblong", "1 x 1"):
        layer, plain = (frozen(kind, dtype, last=last).to(DEVICE) for _ in range(2))
        freeze_convolution(layer)
        close(answers(layer, sent(x)), answers(plain, sent(x)), off)
    q, k, v = (sent(normal(2, 4, tokens, 40, seed=tokens), dtype) for tokens in (32, 77, 77))
    y = attend(q, k, v)
    true = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert y.device == q.device and apart(y, true) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", HALVES if CARD else HALVES[:1], ids=str)
@pytest.mark.parametrize("width", [40, 64, 80, 128, 160])
def test_attention_by_the_kernel_that_leads(width: int, dtype: torch.dtype) -> None:
    """Forward and back, and no further from the truth than where torch chooses of itself."""
    q, k, v = (normal(2, 4, places, width, seed=places).to(dtype) for places in (96, 77, 77))

    def of(attend: Callable[[Tensor, Tensor, Tensor], Tensor], kind: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(DEVICE, kind).requires_grad_() for t in (q, k, v)]
        y = attend(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y) * normal(*y.shape, seed=9).to(y))]

    true = of(F.scaled_dot_product_attention, torch.float64)
    with quickest_attention(DEVICE):
        led = of(attend, dtype)
    no_further(led, of(F.scaled_dot_product_attention, dtype), true)


@pytest.mark.parametrize("dtype", HALVES if CARD else HALVES[:1], ids=str)
def test_the_gradient_of_attention_may_lie_anyhow(dtype: torch.dtype) -> None:
    """As in FLUX.1: in some blocks it is a piece of a wider one, in others whole, of q, k and v that lie alike."""
    q, k, v = (normal(2, 96, 4, 64, seed=n).to(dtype) for n in range(3))
    beside, g = normal(2, 96, 512, seed=4), normal(2, 96, 768, seed=5)

    def of(kind: torch.dtype, *, wide: bool) -> list[Tensor]:
        leaves = [t.detach().to(DEVICE, kind).requires_grad_() for t in (q, k, v)]
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in leaves)).transpose(1, 2).flatten(2)
        y = torch.cat([y, beside.to(y)], 2) if wide else y
        return list(torch.autograd.grad(y, leaves, g[:, :, : y.shape[2]].to(y).contiguous()))

    for wide in (True, False, True):
        with quickest_attention(DEVICE):
            led = of(dtype, wide=wide)
        for one, true in zip(led, of(torch.float64, wide=wide), strict=True):
            assert apart(one, true) < 1e-2


def test_a_lean_unet_has_the_gradients_of_the_librarys(monkeypatch: pytest.MonkeyPatch, whole_floats: None) -> None:
    """In float64, and in bf16 no further from that than the library's."""

    def of(dtype: torch.dtype, *, lean: bool) -> list[Tensor]:
        family, layers = test_lean.model(lean=lean, dtype=dtype, device=DEVICE)
        for layer in layers.values():
            layer.place(DEVICE)
        with monkeypatch.context() as patch:
            if not lean:
                patch.setattr(LoraLayer, "fused", False)
            return gradients(family, layers)

    exact, plain = (of(torch.float64, lean=lean) for lean in (True, False))
    close(exact, plain, 1e-5)  # the latents, the noise and the loss are float32 in both
    fast, plain = (of(torch.bfloat16, lean=lean) for lean in (True, False))
    no_further(fast, plain, exact)


# --- memory -----------------------------------------------------------------------------------------------------------


def step(base: Path, precision: str = "fp32", device: torch.device = DEVICE, **keys: Any) -> list[Tensor]:
    """The loss of one batch and the gradients by it, as a run with these keys has them."""
    model = build_model(config_of(base, **keys), device, precision, {})
    for number, p in enumerate(model.weights().values()):
        assert p.device.type == device.type
        p.data += 0.1 * normal(*p.shape, seed=number).to(p)
    model.masters.refresh()
    model.train(True)
    torch.manual_seed(5)
    texts = None if keys.get("train_text_encoder") else {"states": normal(2, 77, 16)}
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    # Not 8 x 8: the middle would have one place, whose norms divide by a spread of nothing, and where kernels sum in
    # another order gradients are off by 1.4e-4 in float32; of 16 x 16 by 1.5e-7.
    latents = {"mean": normal(2, 4, 16, 16), "std": torch.full((2, 4, 16, 16), 0.1)}
    with quickest_attention(device):
        loss, _ = model.family.loss(Batch(latents, ["a cat", "a dog"], texts, ["1", "2"], generators), Objective())
        loss.backward()
    model.masters.gather()
    grads = [p.grad for p in model.weights().values()]
    assert all(g is not None for g in grads)
    return [loss.detach().view(1).cpu(), *(g.detach().cpu().clone() for g in grads if g is not None)]


STORED = [("auto", "fp32"), ("auto", "bf16"), ("int8", "bf16"), ("fp8", "fp32"), ("nf4", "bf16")]
SAVERS: dict[str, dict[str, Any]] = {
    "computed again": {"gradient_checkpointing": True},
    "computed again, dropout": {"gradient_checkpointing": True, "lora_dropout": 0.3, "train_text_encoder": True},
    "in RAM": {"offload_blocks": 7},
    "nearly all in RAM": {"offload_blocks": 44, "gradient_checkpointing": True},
    "in RAM, dora": {"offload_blocks": 20, "adapter": "dora"},
}


@pytest.mark.parametrize(("stored", "precision"), STORED)
def test_what_saves_memory_changes_no_gradient(
    stored: str, precision: str, base: Path, whole_floats: None, same_bits: None
) -> None:
    """Of the same storage. Bits differ only where a card chooses another kernel for want of room."""
    if stored == "nf4":
        pytest.importorskip("bitsandbytes")
    plain: dict[str, list[Tensor]] = {}
    for name, keys in SAVERS.items():
        if ("offload_blocks" in keys and not CARD) or (stored != "auto" and name not in ("computed again", "in RAM")):
            continue
        more = {key: value for key, value in keys.items() if key in ("lora_dropout", "train_text_encoder", "adapter")}
        if str(more) not in plain:
            plain[str(more)] = step(base, precision, base_precision=stored, **more)
        got = step(base, precision, base_precision=stored, **keys)
        # As a whole: that of a layer alone may be little more than rounding.
        far = apart(*(torch.cat([t.double().flatten() for t in them]) for them in (got, plain[str(more)])))
        assert far <= (1e-5 if precision == "fp32" else 1e-2), (name, far)


def test_a_stored_base_answers_on_a_card_as_on_the_cpu(base: Path, whole_floats: None) -> None:
    """The codes are made in RAM, and are the same; what is made of them is as well."""
    for storage in ("int8", "fp8"):
        families = [
            load_family(by_name("sd1"), base, LoadOptions(on, torch.float32, memory=MemoryOptions(storage=storage)))
            for on in (CPU, DEVICE)
        ]
        x, t, states_ = normal(2, 4, 8, 8), torch.tensor([5, 900]), normal(2, 77, 16, seed=1)
        one, two = (f.predict(x.to(f.device), t.to(f.device), states_) for f in families)
        assert apart(two.detach(), one.detach()) < 1e-4, storage
        layers = [f.unet.mid_block.resnets[0].conv1 for f in families]
        for dtype in (torch.float32, *HALVES):
            assert torch.equal(*(layer.whole(*layer.held(), dtype).cpu() for layer in layers)), (storage, dtype)


def test_blocks_of_gguf_are_made_whole_on_a_card_as_on_the_cpu() -> None:
    pytest.importorskip("gguf")
    from lora_scripts.compute.packed import make_whole
    from lora_scripts.formats.gguf import PACKED

    for kind, block in PACKED.items():
        codes = torch.randint(
            0, 255, (4, 2 * block.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        for dtype in (torch.float32, torch.bfloat16):
            one, two = make_whole(codes, kind, dtype), make_whole(codes.to(DEVICE), kind, dtype).cpu()
            torch.testing.assert_close(two, one, rtol=1e-6, atol=0, equal_nan=True)


def blocks(count: int, width: int) -> list[nn.Module]:
    torch.manual_seed(1)
    made = [nn.Linear(width, width).requires_grad_(False) for _ in range(count)]
    return list(made)


@card_only
def test_blocks_in_ram_are_on_the_card_for_their_turn_only(cleared: None) -> None:
    """Twelve of 16 MiB, forward and back: three at most are there at once, by torch's own account of what is in use."""
    count, width = 12, 2048
    whole, away = blocks(count, width), blocks(count, width)
    one = whole[0].weight.nbytes  # type: ignore[union-attr, operator]
    x = normal(4, width).to(DEVICE)

    def run(made: list[nn.Module]) -> tuple[Tensor, Tensor, int]:
        gc.collect()
        torch.cuda.empty_cache()
        leaf, before = x.clone().requires_grad_(), torch.cuda.memory_stats()["active_bytes.all.current"]
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            y = leaf
            for block in made:
                y = y + torch.tanh(block(y))
            leaf.grad = None
            y.square().sum().backward()
        torch.cuda.synchronize()
        assert leaf.grad is not None
        return y.detach(), leaf.grad, torch.cuda.memory_stats()["active_bytes.all.peak"] - before

    for block in whole:
        block.to(DEVICE)
    run(whole)  # cuBLAS takes its workspace
    y, grad, _ = run(whole)
    for block in whole:
        block.to("cpu")
    offload(away, count, CudaMover(DEVICE))
    other, other_grad, peak = run(away)
    assert apart(other, y) < 1e-6 and apart(other_grad, grad) < 1e-6
    assert one < peak < 4 * one, peak / one
    homes = [p for block in away for p in block.parameters() if p.device.type == "cpu"]
    assert len(homes) >= 2 * (count - 3) and all(p.is_pinned() for p in homes)


@card_only
def test_a_text_encoder_with_too_little_room_comes_by_layers(cleared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bring` asks the card itself; a share that the process may take counts."""
    model = nn.Sequential(nn.ModuleList(blocks(4, 64)), nn.Linear(64, 64))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (memory.ASKED // 2, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    memory.bring(model, DEVICE)
    assert {p.device.type for p in model[0].parameters()} == {"cpu"}
    assert {p.device.type for p in model[1].parameters()} == {"cuda"}
    monkeypatch.undo()
    memory.bring(model[1], DEVICE)
    torch.cuda.set_per_process_memory_fraction(0.9 * memory.ASKED / torch.cuda.mem_get_info()[1])
    try:
        small = nn.Sequential(nn.ModuleList(blocks(4, 64)))  # type: ignore[arg-type]
        memory.bring(small, DEVICE)
        assert {p.device.type for p in small.parameters()} == {"cpu"}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@card_only
def test_the_meter_tells_the_cards_memory(cleared: None) -> None:
    meter, size = Meter(DEVICE), 64 << 20
    before, there = meter.used(), meter.there()
    meter.restart()
    held = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    assert meter.used() - before == size and meter.peak() >= before + size
    del held
    assert meter.used() == before and meter.peak() >= before + size
    meter.restart()
    assert meter.peak() == before and there > GB
    try:
        meter.limit_to(2 * GB)
        with pytest.raises(torch.OutOfMemoryError) as raised:
            torch.empty(3 * GB, dtype=torch.uint8, device=DEVICE)
        assert ran_out(raised.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@card_only
def test_a_language_model_is_never_whole_on_the_card_where_it_is_stored_in_fewer_bits(
    cleared: None, tmp_path: Path
) -> None:
    from lora_scripts.families.causal_lm.model import load as load_texts

    folder = small_words.write_model(tmp_path / "model", hidden_size=512, intermediate_size=4096, num_hidden_layers=4)
    whole = sum(value.nbytes for value in load_file(folder / "model.safetensors").values())
    meter = Meter(DEVICE)
    before = meter.used()
    meter.restart()
    model = load_texts(folder, LoadOptions(DEVICE, torch.float32, memory=MemoryOptions(storage="fp8")))
    assert meter.peak() - before < 0.5 * whole
    assert model.device == DEVICE and {p.device.type for p in model.model.parameters()} == {"cuda"}
    assert {b.device.type for b in model.model.buffers()} == {"cuda"}


# --- too little memory ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures whose step needs some hundred MiB."""
    folder = tmp_path_factory.mktemp("large")
    tiny.write_pictures(folder / "data", 8, (512, 512))
    keys = {"resolution": 512, "batch_size": 8, "epochs": 2, "sample_size": 64, "targets": tiny.SOME, "val_split": 0}
    return tiny.write_config(folder, base_model=base, **keys)


def limited(monkeypatch: pytest.MonkeyPatch, share: Callable[[], int] | None) -> list[tuple[int, int]]:
    """While steps are taken the process may have so many bytes of the card; None: all. Of each run, the most that
    torch had given out, and that it had taken."""
    peaks, real = list[tuple[int, int]](), story.train_steps

    def steps(*told: Any, **more: Any) -> bool:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if share is not None:
            torch.cuda.set_per_process_memory_fraction(share() / torch.cuda.mem_get_info()[1])
        try:
            return real(*told, **more)
        finally:
            peaks.append((torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
            torch.cuda.set_per_process_memory_fraction(1.0)

    monkeypatch.setattr(story, "train_steps", steps)
    return peaks


@card_only
def test_a_card_that_is_too_small_is_told_in_one_line_or_gets_smaller_pieces(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "--config", str(large), f"cache_dir={tmp_path / 'cache'}"]
    with monkeypatch.context() as patch:
        peaks = limited(patch, None)
        assert main([*argv, f"output_dir={tmp_path / 'one'}", "batch_size=1", "epochs=1"]) == 0
        assert main([*argv, f"output_dir={tmp_path / 'eight'}", "epochs=1"]) == 0
    (_, one), (eight, _) = peaks
    assert eight > one + (64 << 20), peaks
    limited(monkeypatch, lambda: (one + eight) // 2)
    capsys.readouterr()
    assert main([*argv, f"output_dir={tmp_path / 'stops'}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: memory ran out after step 0; write gradient_checkpointing: true or batch_size: 4")
    assert told.count("\n") == 1 and not (tmp_path / "stops" / "state").exists()
    assert main([*argv, f"output_dir={tmp_path / 'goes-on'}", "on_oom=adapt"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "memory ran out in step 1: from here on batches come in pieces of at most" in said
    assert "verified: " in said


@card_only
def test_pictures_that_do_not_fit_together_are_drawn_in_smaller_batches(
    base: Path, cleared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, count = load_family(by_name("sd1"), base, LoadOptions(DEVICE, torch.float32)), 1024
    monkeypatch.setattr(family.coder, "decode", lambda latents: None)  # they come one by one anyway
    sampling, notes = Sampling(steps=1, size=(128, 128), cfg=1.0), list[object]()
    torch.cuda.reset_peak_memory_stats()
    assert len(list(draw(family, "a house", range(count), sampling, count, notes.append))) == count and not notes
    needed = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.8 * needed / torch.cuda.mem_get_info()[1])
    try:
        drawn = list(draw(family, "a house", range(count), sampling, count, notes.append))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [seed for seed, _ in drawn] == list(range(count)) and "drawing 512" in str(notes[0])


# --- runs -------------------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, object]] = {
    "bf16": {"precision": "bf16", "ema_decay": 0.9, "flip": "true"},
    "fp16": {"precision": "fp16", "ema_decay": 0.9, "gradient_accumulation": 2, "batch_size": 1},
    "fp32": {"precision": "fp32", "sample_first": "true", "noise_offset": 0.1},
    "small": {
        "precision": "bf16",
        "base_precision": "fp8",
        "gradient_checkpointing": "true",
        "offload_blocks": 8,
        "train_text_encoder": "true",
        "lora_dropout": 0.1,
    },
    "new word": {"precision": "bf16", "new_token": "zorbl", "adapter": "dora"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_learns_draws_and_is_proved(
    name: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"targets": tiny.SOME, "val_every": 4, "val_split": 0.25, "sample_every": 3, **RUNS[name]}
    if not CARD:
        keys.pop("offload_blocks", None)
        if name == "fp16":
            pytest.skip("fp16 is for graphics cards")
    tiny.write_pictures(tmp_path / "data", 8)
    if name == "new word":
        table = tmp_path / "data" / "metadata.csv"
        table.write_text(table.read_text("utf-8").replace("picture", "zorbl picture"), "utf-8")
    config = tiny.write_config(tmp_path, base_model=base, epochs=3, device=DEVICE.type, **keys)
    assert main(["train", "--config", str(config)]) == 0
    told, out = " ".join(capsys.readouterr().out.split()), tmp_path / "out"
    assert "verified: " in told and "failed (" not in told and (out / "report.html").is_file()
    (last,) = (out / "state").iterdir()
    state = json.loads((last / "run.json").read_text("utf-8"))
    assert state["environment"]["device"].startswith(DEVICE.type) and state["step"] == state["total"] == 12
    if CARD:
        assert torch.cuda.get_device_name() in told and torch.cuda.get_device_name() in state["environment"]["device"]
    assert len(state["losses"]) == 12 and all(map(math.isfinite, state["losses"]))
    assert (state["scaler"].get("scale", 0) > 0) == (name == "fp16")
    measured = json.loads((out / "heldout.json").read_text("utf-8"))["evaluations"]
    assert sum(measured[-1]["train"]) < sum(measured[0]["train"]), measured  # at the same noise
    assert len(list((out / "samples").glob("step000003-*.png"))) == 2
    lora = load_file(out / "out.safetensors")
    assert lora and all(torch.isfinite(value).all() for value in lora.values())
    assert any(value.any() for key, value in lora.items() if "lora_up" in key)


@pytest.mark.parametrize("kernels", ["usual", "in a fixed order"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_going_on_is_as_if_it_had_never_stopped(
    precision: str, kernels: str, base: Path, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """To the bit, where a card repeats itself to the bit; else no further off than ten times what two unbroken runs
    are from one another. `pytest -rP` shows how far that is."""
    if kernels != "usual":
        request.getfixturevalue("same_bits")
    if precision == "fp16" and not CARD:
        pytest.skip("fp16 is for graphics cards")
    keys = {"precision": precision, "caption_dropout": 0.3, "flip": "true", "ema_decay": 0.9, "weight_decay": 0.1}
    keys |= {"targets": "['*attn2*', MID]", "save_steps": 2, "epochs": 2, "device": DEVICE.type, "val_split": 0}
    keys |= {"lora_dropout": 0.2 if kernels == "usual" else 0}  # with it layers are computed the plain way
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    outs = [tmp_path / name / "out" for name in ("whole", "again", "broken")]
    for out in outs[:2]:
        stopped(config, 5, f"output_dir={out}", f"cache_dir={tmp_path / 'cache'}")
    stopped(config, 3, f"output_dir={outs[2]}", f"cache_dir={tmp_path / 'cache'}")
    stopped(config, 5, f"output_dir={outs[2]}", f"cache_dir={tmp_path / 'cache'}", resume=True)
    kept = []
    for out in outs:
        folder = out / "state" / "step-00000005"
        kept.append({**load_file(folder / "lora.safetensors"), **load_file(folder / "optimizer.safetensors")})
    assert kept[0].keys() == kept[1].keys() == kept[2].keys() and len(kept[0]) > 100
    repeated, resumed = (
        max((float((kept[0][key] - one[key]).abs().max()), key) for key in kept[0]) for one in kept[1:]
    )
    print(f"largest difference of two unbroken runs {repeated}, of one that went on {resumed}")
    assert resumed[0] <= 10 * repeated[0] and (CARD or repeated[0] == 0), (repeated, resumed)
    scalers = [json.loads((out / "state" / "step-00000005" / "run.json").read_text("utf-8"))["scaler"] for out in outs]
    assert scalers[0] == scalers[2] and bool(scalers[0]) == (precision == "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_on_texts(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if precision == "fp16" and not CARD:
        pytest.skip("fp16 is for graphics cards")
    base, records = (
        small_words.write_model(tmp_path / "model"),
        test_text_run.write_records(tmp_path / "talks.jsonl", 16),
    )
    keys = {"base_model": base, "train_file": records, "output_dir": tmp_path / "talk", "sample_every": 3}
    keys |= {"precision": precision, "device": DEVICE.type, "base_precision": "fp8", "gradient_checkpointing": True}
    config = test_text_run.config_of(tmp_path, **keys)
    assert main(["train", "--config", str(config)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "verified" in told and list((tmp_path / "talk" / "samples").glob("step000003-*.txt"))
    (last,) = (tmp_path / "talk" / "state").iterdir()
    losses = json.loads((last / "run.json").read_text("utf-8"))["losses"]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]


def test_an_answer_is_the_cpus_and_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    from lora_scripts.families.causal_lm.model import open_model

    folder = small_words.write_model(tmp_path / "model")
    talk: Any = [{"role": "user", "content": "what is 2+2?"}]
    said = [open_model(folder, on, torch.float32).answer(talk, Answering(max_tokens=8)).text for on in (CPU, DEVICE)]
    assert said[0] == said[1]
    model = open_model(folder, DEVICE, torch.float32)
    torch.manual_seed(1)
    wanted = torch.rand(3, device=DEVICE)
    torch.manual_seed(1)
    model.answer(talk, Answering(max_tokens=4, temperature=1.0))
    assert torch.equal(torch.rand(3, device=DEVICE), wanted)


OPTIMIZERS = {
    "adamw": "torch",
    "adafactor": "transformers",
    "adamw8bit": "bitsandbytes",
    "lion": "lion_pytorch",
    "prodigy": "prodigyopt",
    "schedule_free": "schedulefree",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_up_its_moments_again(name: str) -> None:
    """Three steps, and two with the third in another optimizer that was given what was kept; fp16's scaler steps it."""
    pytest.importorskip(OPTIMIZERS[name])
    if name == "adamw8bit" and not CARD:
        pytest.skip("its kernels are for cards")
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=CARD)

    def build(start: Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        p = nn.Parameter(start.clone())
        return p, build_optimizer(name, [Group("all", [p], 1.0 if name == "prodigy" else 0.01)], 0.1)

    def move(p: nn.Parameter, optimizer: torch.optim.Optimizer, number: int) -> None:
        # One that is seen once: sums of many numbers need not have a fixed order on a card.
        scaler.scale((p * normal(*p.shape, seed=number).to(DEVICE)).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    p, optimizer = build(normal(64, 65).to(DEVICE))
    for number in range(2):
        move(p, optimizer, number)
    kept: Any = states.RunState(2, 3, {}, {}, {})
    files = states.pack(kept, {"p": p}, optimizer)
    middle = p.detach().clone()
    move(p, optimizer, 2)
    other, again = build(middle)
    flat = _read(b"".join(files["optimizer.safetensors"]))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, leaf = key.partition(".")
        moments.setdefault(int(index), {})[leaf] = value
    states.restore_optimizer(again, moments, json.loads(b"".join(files["run.json"]))["optimizer"])
    move(other, again, 2)
    assert not torch.equal(p, middle) and apart(other.detach(), p.detach()) < 1e-7


def _read(content: bytes) -> dict[str, Tensor]:
    import safetensors.torch

    return safetensors.torch.load(content)


@pytest.mark.parametrize("adapter", ["pissa", "loha", "lokr", "oft"])
def test_other_adapters_learn_on_a_card_as_on_the_cpu(adapter: str, base: Path, whole_floats: None) -> None:
    if adapter != "pissa":
        pytest.importorskip("lycoris")
    keys: dict[str, Any] = {"adapter": adapter, "targets": ("*attn2.to_q", "*conv1"), "lora_rank": 4}
    there, here = (step(base, device=on, **keys) for on in (DEVICE, CPU))
    assert apart(there[0], here[0]) < 1e-4
    norms = [one.norm() for one in here]
    for one, two, norm in zip(there, here, norms, strict=True):
        assert (one - two).norm() <= 1e-3 * norm + 1e-6 * max(norms)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_plan_measures_and_says_where_the_time_goes(base: Path, data: Path, tmp_path: Path) -> None:
    keys = {"device": DEVICE.type, "targets": tiny.SOME, "precision": "bf16"}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    made = plan(PlanOptions(load_config(config), config, [], profile=True), ignore)
    m = made.measured
    assert made.fits == "yes" and m.done and m.device == DEVICE.type and not m.short
    assert {"load", "encode", "step", "preview", "save"} <= set(m.peaks) and all(m.peaks.values())
    assert 0 < m.peak < made.limit and m.seconds["largest"] > 0
    told = planning.figures(made)["profile"]
    assert told["operations"] > 500 and told["arithmetic"] > 1e6 and all(told["speeds"].values())
    assert {"matrix products", "optimizer"} <= set(told["kinds"]) and all(v >= 0 for v in told["kinds"].values())
    assert 0 <= told["waiting"] <= told["seconds"]
    if CARD:
        assert m.ram > 0 and m.free_ram > 0 and m.peak < 4 * GB
        assert made.limit <= torch.cuda.get_device_properties(0).total_memory


def test_a_step_is_counted_by_kernels() -> None:
    """A linear layer of 64 -> 32 on 8 rows: forward and back by the weight."""
    layer, x = nn.Linear(64, 32, bias=False, device=DEVICE), torch.randn(8, 64, device=DEVICE)
    watch = Watch(DEVICE, torch.float32)
    while not watch.done:
        layer(x).sum().backward()
        layer.zero_grad()
        watch.ended(0.5)
    told = watch.told()
    assert told.arithmetic == 2 * (2 * 8 * 64 * 32)
    assert told.kinds["matrix products"] > 0 and told.seconds == pytest.approx(sum(told.kinds.values()) + told.waiting)


@card_only
def test_a_card_with_little_room_is_measured_by_smaller_products(cleared: None) -> None:
    torch.cuda.set_per_process_memory_fraction(0.5 * GB / torch.cuda.mem_get_info()[1])
    try:
        speeds = speeds_of(DEVICE, torch.bfloat16)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert speeds.arithmetic > 1e11 and speeds.memory > 1e10 and 0 < speeds.launch < 1e-3


def test_generate_and_check_with_a_base(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole_floats: None
) -> None:
    pictures = []
    for device in ("cpu", DEVICE.type):
        words = ["--prompt", "a (red:1.2) house", "--steps", "2", "--size", "64", "--cfg", "3", "--precision", "fp32"]
        output = tmp_path / f"{device}.png"
        argv = ["generate", "--base", str(base), *words, "--device", device, "--output", str(output)]
        assert main([*argv, "--image", str(data / "0.png"), "--denoise", "0.6"]) == 0
        pictures.append(np.asarray(Image.open(output), dtype=int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 3
    capsys.readouterr()
    noise = np.random.default_rng(0).integers(64, 192, (64, 64, 3), dtype=np.uint8)
    io.make_folder(tmp_path / "data")
    Image.fromarray(noise).save(tmp_path / "data" / "noise.png")
    (tmp_path / "data" / "metadata.csv").write_text("filename,prompt\nnoise.png,noise\n", "utf-8")
    assert main(["check", str(tmp_path / "data"), "--resolution", "64x64", "--base", str(base)]) == 0
    assert "your base cannot draw this detail" in capsys.readouterr().out


# --- speed ------------------------------------------------------------------------------------------------------------


@card_only
@pytest.mark.parametrize(
    "written", [row for row in ROWS if row.name in ("sd1", "sdxl")], indirect=True, ids=lambda r: r.name
)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_played_is_the_step(
    written: tuple[Row, Path],
    accumulation: int,
    checkpointing: bool,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run of 12 steps, of which most are played; twice as it comes, to know what a card does of itself."""
    _, base = written
    played: list[object] = []
    whole = recorded._Tape.play
    monkeypatch.setattr(recorded._Tape, "play", lambda tape, given: (played.append(tape), whole(tape, given))[1])

    def learnt(name: str, graphs: str) -> dict[str, Tensor]:
        out = tmp_path / name
        keys = {"precision": "bf16", "device": "cuda", "cuda_graphs": graphs, "epochs": 6, "resolution": 64}
        keys |= {
            "gradient_accumulation": accumulation,
            "save_precision": "fp32",
            "gradient_checkpointing": checkpointing,
        }
        config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, output_dir=out, **keys)
        assert main(["train", "--config", str(config)]) == 0
        return load_file(out / f"{name}.safetensors")

    plain, again = learnt("plain", "off"), learnt("again", "off")
    assert not played
    tape = learnt("tape", "auto")
    assert len(played) >= 4 and "not recorded" not in capsys.readouterr().out
    of_itself = max((plain[k] - again[k]).abs().max().item() for k in plain)
    far = max((plain[k] - tape[k]).abs().max().item() for k in plain)
    assert far <= 2 * of_itself, (far, of_itself)


@card_only
def test_compiled_blocks_on_a_card(
    written: tuple[Row, Path], whole_floats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if written[0].name not in ("sd1", "flux2"):
        pytest.skip("two speak for all: one with convolutions, one without")
    plain, grads = learnt(load(written, DEVICE), one_batch(load(written, CPU)))
    compiled, others = learnt(load(written, DEVICE, compiled=True), one_batch(load(written, CPU)))
    assert compiled == pytest.approx(plain, rel=1e-4)
    apart_by = sum((a - b).square().sum() for a, b in zip(grads, others, strict=True))
    assert apart_by**0.5 < 2e-3 * sum(g.square().sum() for g in grads) ** 0.5


@card_only
@pytest.mark.parametrize("compiled", [False, True])
def test_products_in_8_bits_on_a_card_are_those_of_a_cpu(compiled: bool) -> None:
    layer = nn.Linear(64, 48).requires_grad_(False)
    quantise_layer(layer, "w8a8", torch.float32)
    x, g = normal(3, 40, 64), normal(3, 40, 48)

    def both(device: torch.device) -> list[Tensor]:
        given = x.to(device).requires_grad_()
        layer.to(device)
        ask = torch.compile(layer, fullgraph=True) if compiled and device.type == "cuda" else layer
        y = ask(given)
        y.backward(g.to(device))
        assert given.grad is not None
        return [y.detach().cpu(), given.grad.cpu()]

    for one, other in zip(both(DEVICE), both(CPU), strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()  # a number that lies in the middle is rounded either way


@card_only
def test_what_cannot_be_recorded_is_computed_as_it_comes_and_the_card_goes_on() -> None:
    weight = normal(4, 4).to(DEVICE)

    def waits(given: Mapping[str, Tensor]) -> Tensor:
        return (given["x"] @ weight) * given["x"].sum().item()  # which no recording can do

    tape, x = recorded.Recorded(waits, DEVICE), normal(3, 4)
    wanted = waits({"x": x.to(DEVICE)})
    for _ in range(4):
        torch.testing.assert_close(tape({"x": x}), wanted)
    assert tape.fault and not tape._tapes
    torch.randn(3, device=DEVICE)  # of the generator that the recording had begun with

    well = recorded.Recorded(lambda given: given["x"] @ weight, DEVICE)
    for n in range(4):
        some = normal(3, 4, seed=n)
        torch.testing.assert_close(well({"x": some}).cpu(), some @ weight.cpu(), rtol=1e-3, atol=1e-3)
    assert not well.fault and len(well._tapes) == 1
