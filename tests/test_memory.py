"""What saves memory: blocks computed again, weights in 8 or 4 bits, blocks in RAM, tiles; and what it changes."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.cli import main
from lora_scripts.compute import memory, pages
from lora_scripts.compute import resting as rest
from lora_scripts.compute.memory import MemoryOptions, blocks_of
from lora_scripts.compute.offload import Offloader, offload
from lora_scripts.compute.quantised import QuantisedLayer, dequantise, quantise, quantise_layer, quantise_layers
from lora_scripts.compute.resting import Resting
from lora_scripts.config.load import load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.demo import world
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.events import ignore
from lora_scripts.families.base import Batch, LoadOptions, Sampling
from lora_scripts.families.sd import latents
from lora_scripts.families.sd1 import model as sd1
from lora_scripts.families.table import by_name, load_family
from lora_scripts.losses.diffusion import Objective
from lora_scripts.plan import command, forecast
from lora_scripts.run import story
from lora_scripts.run.build import build_model, encoding
from lora_scripts.run.parts import Model
from lora_scripts.run.preflight import preflight
from movers import CopyMover
from runs import stopped

CPU = torch.device("cpu")
BUNDLED = Path(world.__file__).parent / "assets" / "base.safetensors"
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
"""Dettmers et al. 2023, appendix E."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frozen(kind: str) -> nn.Module:
    torch.manual_seed(3)
    layer = nn.Linear(12, 8) if kind == "linear" else nn.Conv2d(6, 8, 3, stride=2, padding=1)
    return layer.requires_grad_(False)


@contextmanager
def counted(*models: nn.Module) -> Iterator[list[int]]:
    """The bytes that autograd keeps for the backward pass within it, without what the models hold anyway."""
    own = {t.untyped_storage().data_ptr() for m in models for t in (*m.parameters(), *m.buffers())}
    kept, sizes = dict[int, Tensor](), list[int]()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield sizes
    sizes.append(sum(t.untyped_storage().nbytes() for t in kept.values()))


# --- stored in fewer bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("storage", ["fp8", "int8"])
@pytest.mark.parametrize("shape", [(8, 33), (8, 5, 3, 3)])
def test_rounding_is_within_what_the_format_allows(storage: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = normal(*shape) * torch.logspace(-6, 3, 8).view(-1, *[1] * (len(shape) - 1))
    weight[3] = 0
    codes, scale = quantise(weight, storage)
    assert codes.element_size() == 1 and not codes.is_floating_point() and scale.numel() == 8
    assert torch.equal(scale.bfloat16().float(), scale)
    largest = weight.abs().flatten(1).amax(1).view_as(scale)
    if storage == "int8":  # half a step of 127 from 0 to the channel's largest
        bound = (1.004 * largest / 254).expand_as(weight)
    else:  # three digits behind the leading one; below 2^-6 of 448 steps of 2^-9
        bound = torch.maximum(weight.abs() / 16, 1.004 * largest / 448 / 1024)
    whole = dequantise(codes, scale, storage, weight.shape, dtype)
    assert whole.dtype == dtype and whole.shape == weight.shape and not whole[3].any()
    kind = torch.finfo(dtype)
    rounding = (1.07 * weight.abs()).clamp(min=kind.smallest_normal) * kind.eps / 2
    assert ((whole.float() - weight).abs() <= bound * 1.00001 + rounding).all()
    assert (whole.float() - weight).abs().max() > 0.2 * bound.max()  # it is no mere copy
    again = quantise(dequantise(codes, scale, storage, weight.shape, torch.float32), storage)
    assert torch.equal(again[0], codes) and torch.equal(again[1], scale)


@pytest.mark.parametrize("rows", [(6, 50), (8, 96), (4, 8, 3, 3)])
def test_nf4_is_the_papers_table(rows: tuple[int, ...]) -> None:
    """Blocks of 64 go over the ends of rows; the last may be shorter."""
    pytest.importorskip("bitsandbytes")
    weight = normal(*rows)
    count = weight.numel()
    codes, scale = quantise(weight, "nf4")
    assert codes.nbytes == count // 2 and scale.shape == (-(-count // 64),)
    blocks = F.pad(weight.flatten(), (0, -count % 64)).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = NF4[((blocks / largest)[..., None] - NF4).abs().argmin(-1)] * largest
    whole = dequantise(codes, scale, "nf4", weight.shape, torch.float32)
    torch.testing.assert_close(whole, nearest.flatten()[:count].view(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("storage", ["fp8", "int8", "nf4"])
def test_a_quantised_layer_is_the_layer_with_the_rounded_weight(storage: Any, kind: str) -> None:
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    plain, layer = frozen(kind), frozen(kind)
    quantise_layer(layer, storage, torch.float32)
    assert isinstance(layer, QuantisedLayer) and isinstance(layer, type(plain))
    rounded = layer.weight
    assert not torch.equal(rounded, plain.weight)
    plain.weight.data = rounded  # type: ignore[union-attr]
    x = normal(5, 12) if kind == "linear" else normal(2, 6, 7, 9)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    with counted(layer) as kept:
        y = layer(one)
    assert kept == [0]  # of the input nothing, of the weight only its codes
    wanted = plain(other)
    assert torch.equal(y, wanted)
    seen = normal(*y.shape, seed=1)
    (y * seen).sum().backward()
    (wanted * seen).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)


def test_a_cast_of_the_model_leaves_codes_and_scales() -> None:
    layer = frozen("linear")
    quantise_layer(layer, "fp8", torch.bfloat16)
    before = [layer.codes.clone(), layer.scale.clone()]
    layer.to(torch.bfloat16)
    assert torch.equal(layer.codes, before[0]) and torch.equal(layer.scale, before[1])
    assert layer.scale.dtype == torch.float32 and layer.bias.dtype == layer.weight.dtype == torch.bfloat16
    assert layer(normal(2, 12).bfloat16()).dtype == torch.bfloat16


def loaded(base: Path, **keys: Any) -> Any:
    return load_family(by_name("sd1"), base, LoadOptions(CPU, torch.float32, memory=MemoryOptions(**keys)))


def answer(family: Any, x: Tensor) -> Tensor:
    found: Tensor = family.predict(x, torch.tensor([5, 900]), normal(2, 77, 16, seed=1))
    return found


def test_a_quantised_base_is_the_base_with_rounded_weights(base: Path) -> None:
    """The layers inside the blocks, and nothing else."""
    family, plain = loaded(base, storage="int8"), loaded(base)
    rounded = {n: m for n, m in family.unet.named_modules() if isinstance(m, QuantisedLayer)}
    assert {f"unet.{n}" for n in rounded} == {n for n in plain.trainable() if n.startswith("unet.")}
    assert family.trainable().keys() == plain.trainable().keys()
    size, before = (sum(m.codes.nbytes + m.scale.nbytes for m in rounded.values()), 0)
    for name, layer in rounded.items():
        before += plain.unet.get_submodule(name).weight.nbytes
        plain.unet.get_submodule(name).weight.data = layer.weight
    assert 0.25 < size / before < 0.27
    layers = []
    for f in (family, plain):
        made = inject(f.roots, [f"unet.{n}" for n in rounded], lambda _, layer: LoraLayer(layer, 2, 2.0))
        for number, layer in enumerate(made.values()):
            layer.up.data = 0.1 * normal(*layer.up.shape, seed=number)
        layers.append(made)
    ours, theirs = answer(family, normal(2, 4, 8, 8)), answer(plain, normal(2, 4, 8, 8))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for path, layer in layers[0].items():
        wanted = layers[1][path].down.grad
        torch.testing.assert_close(layer.down.grad, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_a_broken_base_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="1: a weight is not a finite number"):
        quantise_layers(net, [net], "fp8", torch.float32)


# --- computed again ---------------------------------------------------------------------------------------------------


def config_of(base: Path, **keys: Any) -> TrainConfig:
    given = {"train_data_dir": Path("d"), "base_model": base, "output_dir": Path("o"), "lora_rank": 2}
    return TrainConfig(**{**given, **keys})


def step(base: Path, **keys: Any) -> tuple[Model, float, int]:
    """A model after one backward pass, its loss, and the bytes that were kept for it."""
    model = build_model(config_of(base, **keys), CPU, "fp32", {})
    for number, p in enumerate(model.weights().values()):
        p.data += 0.1 * normal(*p.shape, seed=number)
    model.train(True)
    torch.manual_seed(5)
    texts = None if keys.get("train_text_encoder") else {"states": normal(2, 77, 16)}
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    latents = {"mean": normal(2, 4, 8, 8), "std": torch.full((2, 4, 8, 8), 0.1)}
    batch = Batch(latents, ["a cat", "a dog"], texts, ["1", "2"], generators)
    with counted(*model.family.roots.values()) as kept:
        loss, _ = model.family.loss(batch, Objective())
    loss.backward()
    return model, loss.item(), kept[0]


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_dropout": 0.3, "targets": ("attention", "feed_forward", "conv")},
        {"train_text_encoder": True, "lora_dropout": 0.3},
        {"adapter": "dora"},
        {"base_precision": "fp8"},
    ],
    ids=["dropout", "text encoder", "dora", "fp8"],
)
def test_checkpointing_changes_no_bit_of_a_gradient(base: Path, keys: dict[str, Any]) -> None:
    plain, loss, before = step(base, **keys)
    lean, same, after = step(base, **keys, gradient_checkpointing=True)
    assert loss == same
    for name, p in plain.weights().items():
        other = lean.weights()[name]
        assert p.grad is not None and other.grad is not None and torch.equal(p.grad, other.grad), name
    assert any(p.grad is not None and p.grad.any() for p in plain.weights().values())
    assert after < 0.25 * before


def test_checkpointing_reaches_the_text_encoder(base: Path) -> None:
    """Its layers are computed twice when it is trained, and once when it only encodes."""
    family, calls = loaded(base, checkpointing=True), list[bool]()
    inner = getattr(family.text_encoder, "text_model", family.text_encoder)
    layer = inner.encoder.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    family.encode_text(["a cat"])
    assert calls == [False]
    (made,) = inject(family.roots, [p for p in family.trainable() if p.endswith("0.mlp.fc1")], plain_lora).values()
    family._captions(["a cat"])["states"].sum().backward()
    assert calls == [False, True, True] and made.up.grad.any()  # type: ignore[union-attr]


def plain_lora(_: str, layer: nn.Module) -> LoraLayer:
    return LoraLayer(layer, 2, 2.0)


# --- blocks in RAM ----------------------------------------------------------------------------------------------------


def offloaded(base: Path, count: int, **keys: Any) -> tuple[Any, list[LoraLayer], CopyMover | None]:
    family, mover = loaded(base, **keys), CopyMover()
    if count:
        offload(blocks_of(family.unet), count, mover)
    paths = [p for p in family.trainable() if p.endswith(("attn2.to_q", "attn1.to_v", "conv2"))]
    layers = inject(family.roots, paths, plain_lora)
    for number, layer in enumerate(layers.values()):
        layer.up.data = 0.1 * normal(*layer.up.shape, seed=number)  # type: ignore[union-attr]
    return family, list(layers.values()), mover if count else None  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", [None, "int8"])
def test_blocks_come_one_ahead_and_the_numbers_stay(base: Path, storage: Any) -> None:
    count, steps = 7, 3
    plain, layers, _ = offloaded(base, 0, storage=storage)
    family, others, mover = offloaded(base, count, storage=storage)
    assert mover is not None
    for number in range(steps):
        x = normal(2, 4, 8, 8, seed=number)
        one, other = answer(plain, x), answer(family, x)
        assert torch.equal(one, other)
        one.square().sum().backward()
        other.square().sum().backward()
    assert all(torch.equal(a.up.grad, b.up.grad) for a, b in zip(layers, others, strict=True))  # type: ignore[arg-type]
    # Each way through, all but the two that are there from the way before.
    assert mover.begun == count + (2 * steps - 1) * (count - 2)
    assert mover.most <= 3  # the one whose turn was, this one and the next
    # A preview goes forward only: again and again from the first to the last.
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(answer(plain, x), answer(family, x))
    assert mover.most <= 3


def test_the_largest_blocks_go_and_there_are_44(base: Path) -> None:
    unet = loaded(base).unet
    blocks = blocks_of(unet)
    assert len(blocks) == len({id(b) for b in blocks}) == 44
    inside = sum(p.numel() for b in blocks for p in b.parameters())
    ends = ("conv_in", "conv_out", "time_embedding", "conv_norm_out")
    assert inside == sum(p.numel() for n, p in unet.named_parameters() if not n.startswith(ends))
    called: list[nn.Module] = []
    hooks = [b.register_forward_pre_hook(lambda m, _: called.append(m)) for b in blocks]
    with torch.no_grad():
        unet(normal(1, 4, 8, 8), torch.tensor([5]), normal(1, 77, 16))
    for hook in hooks:
        hook.remove()
    assert called == blocks
    chosen = offload(blocks, 5, CopyMover()).blocks
    sizes = sorted((sum(p.numel() for p in b.parameters()) for b in blocks), reverse=True)
    assert sorted((sum(p.numel() for p in b.parameters()) for b in chosen), reverse=True) == sizes[:5]
    with pytest.raises(UserError, match="45: this model has 44 blocks"):
        offload(blocks, 45, CopyMover())


def test_one_block_alone_can_be_away() -> None:
    block, mover = nn.Linear(3, 3).requires_grad_(False), CopyMover()
    x, wanted = normal(2, 3).requires_grad_(), None
    wanted = F.linear(x, block.weight.clone(), block.bias.clone())
    Offloader([block], mover)
    assert torch.equal(block(x), wanted)
    block(x).sum().backward()
    assert mover.begun == 1


# --- the text encoder and the VAE -------------------------------------------------------------------------------------


def test_the_encoders_leave_and_come_back_for_a_preview(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each is told to go, in order; the device is one that only bears another name than where they rest."""
    family = loaded(base)
    for part in (family, family.coder, family.encoder):
        part.device = torch.device("cpu:0")
    where, moved = {}, list[tuple[str, str]]()
    for name in ("vae", "text_encoder"):
        model = getattr(family, name)

        def to(device: Any, name: str = name, model: nn.Module = model, inner: Callable[..., Any] = model.to) -> Any:
            if where.get(name) != str(device):
                moved.append((name, str(device)))
            where[name] = str(device)
            return inner(device)

        monkeypatch.setattr(model, "to", to)
    family.encode_image(normal(1, 3, 64, 64))
    family.encode_text(["a cat"])
    family.rest(text_encoder=True)
    assert where == {"vae": "cpu", "text_encoder": "cpu"}
    assert moved == [(n, d) for d in ("cpu:0", "cpu") for n in (("vae", "text_encoder"))]
    moved.clear()
    family.generate("a cat", 1, Sampling(steps=1, size=(64, 64)))
    family.rest(text_encoder=True)
    assert moved == [("text_encoder", "cpu:0"), ("vae", "cpu:0"), ("vae", "cpu"), ("text_encoder", "cpu")]
    moved.clear()
    family.encode_text(["a cat"])
    family.rest(text_encoder=False)  # one that is trained stays
    assert moved == [("text_encoder", "cpu:0")]


def test_tiles_change_only_what_is_larger_and_are_cached_apart(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TILE", 64)
    plain, tiled = loaded(base), loaded(base, vae_tiling=True)
    assert plain.fingerprint("vae") != tiled.fingerprint("vae")
    assert plain.fingerprint("text") == tiled.fingerprint("text")
    small, wide = normal(1, 3, 64, 64), normal(1, 3, 64, 128)
    assert torch.equal(plain.encode_image(small)["mean"], tiled.encode_image(small)["mean"])
    whole, parts = plain.encode_image(wide)["mean"], tiled.encode_image(wide)["mean"]
    assert whole.shape == parts.shape == (1, 4, 8, 16) and not torch.equal(whole, parts)
    latents = normal(1, 4, 8, 16)
    sizes: list[int] = []
    tiled.vae.decoder.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    assert tiled.coder.decode(latents[0]).size == (128, 64)
    assert max(sizes) == 64 and len(sizes) > 1


# --- runs -------------------------------------------------------------------------------------------------------------


RUNS: dict[str, dict[str, object]] = {
    "fp8": {"base_precision": "fp8", "lora_dropout": 0.2, "train_text_encoder": "true"},
    "int8, tiles": {"base_precision": "int8", "adapter": "pissa", "vae_tiling": "true"},
    "nf4": {"base_precision": "nf4"},
}


# How int8 and fp8 are stored differs, how a run goes on does not.
@pytest.mark.parametrize("name", ["int8, tiles", "nf4", pytest.param("fp8", marks=pytest.mark.slow)])
def test_a_run_with_each_is_proved_and_resumes_exactly(
    name: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Checkpointing may even come in the middle of a run: the LoRA is the same to the last bit."""
    if name == "nf4":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(memory, "TILE", 32)
    monkeypatch.setattr("lora_scripts.run.build.TILE", 32)
    keys = {"targets": "['*up_blocks.3*attn2*', MID]", "learning_rate": 0.003}
    keys |= {"base_model": base, "train_data_dir": data}
    config = tiny.write_config(tmp_path, **{**keys, **RUNS[name], "epochs": 1, "save_steps": 2})
    one, two = (tmp_path / name / "mylora" for name in ("one", "two"))
    assert main(["train", "--config", str(config), f"output_dir={one}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "verified: " in told and f" memory base stored as {name.partition(',')[0]}" in told
    stopped(config, 2, f"output_dir={two}")
    again = [f"output_dir={two}", "gradient_checkpointing=true", "--resume"]
    assert main(["train", "--config", str(config), *again]) == 0
    for file in ("mylora.safetensors", "state/step-00000003/lora.safetensors"):
        left, right = load_file(one / file), load_file(two / file)
        assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# --- what does nothing, or cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"base_precision": "fp8", "adapter": "dora"}, "rounds the weights that adapter: dora scales"),
        ({"offload_blocks": 3, "device": "cpu"}, "offload_blocks has no effect with device: cpu"),
        ({"base_precision": "fp4"}, "base_precision"),
    ],
)
def test_what_cannot_be_is_refused_in_the_config(base: Path, keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_of(base, **keys)


def test_nf4_names_its_package(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_scripts.config.keys.memory.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package bitsandbytes; install it: pip install bitsandbytes"):
        config_of(base, base_precision="nf4")


def test_what_does_nothing_here_is_refused_before_a_step(base: Path, data: Path, tmp_path: Path) -> None:
    keys = {"base_model": base, "train_data_dir": data, "output_dir": tmp_path / "mylora"}
    for line, words in (
        ("offload_blocks=4", "offload_blocks has no effect on the CPU"),
        ("vae_tiling=true", "no picture that is trained or drawn has a side over 512 pixels"),
    ):
        config = load_config(tiny.write_config(tmp_path, **keys), [line])
        ready = preflight(config, resume=False)
        with pytest.raises((UserError, UserErrors), match=words):
            story.train(config, ready.folder, ready.samples, resume=False, sink=ignore)
        assert not list((tmp_path / "mylora" / "cache").glob("[0-9a-f]*/"))  # digests of files, and nothing encoded


def test_checkpointing_is_proposed_last() -> None:
    config = config_of(Path("b"), batch_size=2, lora_rank=4)
    rungs = [command.as_words(changes) for changes in forecast.ladder(config, {"step"}, 100)]
    assert rungs[0] == ["batch_size=1", "gradient_accumulation=2"]
    assert rungs[-2] == [*rungs[-3], "gradient_checkpointing=true"]
    assert rungs[-1] == [*rungs[-2], "base_precision=int8"]
    assert not any("gradient_checkpointing=true" in rung for rung in rungs[:-2])
    on = config_of(Path("b"), batch_size=2, gradient_checkpointing=True)
    words = {word for changes in forecast.ladder(on, {"step"}, 100) for word in command.as_words(changes)}
    assert "gradient_checkpointing=true" not in words


# --- what is mapped ---------------------------------------------------------------------------------------------------


def test_pages_of_a_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("Linux tells what of a file is in RAM")
    path, values = tmp_path / "weights.safetensors", normal(1 << 20)
    save_file({"a": values}, path)
    with safe_open(path, "pt") as handle:
        mapped = handle.get_tensor("a")

    def held() -> int:
        rows = iter(maps.read_text().splitlines())
        inside = [next(rows, "") for row in rows if row.endswith(str(path)) for _ in range(4)]
        return sum(int(row.split()[1]) for row in inside if row.startswith("Rss:"))

    assert torch.equal(mapped, values) and held() >= 4096
    pages.give_back([path])
    if held() >= 4096:
        pytest.skip("this system keeps them")
    assert held() < 400 and torch.equal(mapped, values)
    mapped[0] = 7  # a page that no file has any more
    pages.give_back([path])
    assert mapped[0] == 7 and torch.equal(mapped[1:], values[1:])


# --- what rests -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems keep it by rules of their own")
def test_on_a_cpu_what_is_freed_is_kept_for_what_comes_next() -> None:
    """Pages that the system clears anew for 80 MB that are freed and asked for again, in a process of its own: as glibc
    begins, with 128 KiB from which something is mapped by itself (how far it raises that depends on where things lie).
    """
    code = """if True:
        import ctypes, resource, torch
        from lora_scripts.compute.device import choose_device
        def cleared():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            blocks = [torch.ones(2**20) for _ in range(20)]
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert ctypes.CDLL(None).mallopt(-3, 2**17)
        by_itself = [cleared() for _ in range(4)]
        choose_device("cpu")
        kept = [cleared() for _ in range(4)]
        print(by_itself[-1], kept[-1])
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_itself, kept = map(int, found.stdout.split())
    assert by_itself > 1000 and kept < 100


def test_what_rests_is_its_file_again_and_what_wakes_is_float32(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 7, bias=False))
    save_file({"odd": torch.zeros(1, dtype=torch.uint8), **model.half().state_dict()}, tmp_path / "half.safetensors")
    save_file(model.float().state_dict(), tmp_path / "whole.safetensors")
    for name in ("half", "whole"):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            mapped = {key: file.get_tensor(key) for key in file.keys() if key != "odd"}  # noqa: SIM118
        model.load_state_dict(mapped, assign=True)
        resting, places = Resting(model), [p.data_ptr() for p in model.parameters()]
        x, truth = normal(3, 24), {key: one.double() for key, one in mapped.items()}
        expected = (x.double() @ truth["0.weight"].T + truth["0.bias"]) @ truth["1.weight"].T
        for _ in range(2):
            resting.wake(CPU)
            assert all(p.dtype == torch.float32 and p.data_ptr() % 64 == 0 for p in model.parameters())
            assert (model(x).double() - expected).abs().max() < 1e-6
            resting.rest()
            assert [p.data_ptr() for p in model.parameters()] == places
        resting.wake(CPU)
        model[1] = nn.Sequential(model[1])  # a layer put in, which may have changed what it lies on
        model[1][0].weight.data += 1
        changed = model(x)
        resting.rest()
        resting.wake(CPU)
        assert torch.equal(model(x), changed)
        model[1] = model[1][0]


def test_a_base_that_rests_gives_what_one_does_that_is_awake(base: Path) -> None:
    options = [LoadOptions(CPU, torch.float32, memory=MemoryOptions(resting=resting)) for resting in (False, True)]
    awake, rests = (sd1.load(base, one) for one in options)
    assert not rests.coder._resting.awake and not rests.encoder._resting.awake
    assert [awake.fingerprint(part) for part in ("vae", "text")] == [rests.fingerprint(p) for p in ("vae", "text")]
    assert torch.equal(awake.vectors_of(""), rests.vectors_of(""))
    for _ in range(2):
        rests.rest(text_encoder=True)
        assert torch.equal(*(one.encode_text(["a house, red"])["states"] for one in (awake, rests)))
        pixels = normal(1, 3, 64, 64).clamp(-1, 1)
        assert torch.equal(*(one.encode_image(pixels)["mean"] for one in (awake, rests)))


def test_a_start_that_finds_everything_cached_wakes_neither(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.write_config(
        tmp_path, base_model=base, train_data_dir=tiny.write_pictures(tmp_path / "data", 3), targets=tiny.SOME
    )
    stopped(config, 1)
    woken, wake = [], Resting.wake
    monkeypatch.setattr(Resting, "wake", lambda self, device: (woken.append(self.model), wake(self, device)))
    making, make = [], rest.built
    monkeypatch.setattr(rest, "built", lambda model: (making.append(model), make(model))[1])
    stopped(config, 2, resume=True)
    assert woken == [] and making == []  # nor where it saves: a text encoder is half a GB, its libraries a second


def test_what_is_remembered_of_an_encoder_is_not_asked_once_a_lora_lies_on_it(base: Path) -> None:
    asked: list[str] = []

    def remembered(what: str, make: Callable[[], str]) -> str:
        asked.append(what)
        return "remembered"

    resting, settings = MemoryOptions(resting=True), {"clip_skip": 2}
    family = sd1.load(base, LoadOptions(CPU, torch.float32, memory=resting, remembered=remembered, settings=settings))
    assert {family.fingerprint(part) for part in ("vae", "text", "text")} == {"remembered"}
    assert sorted(set(asked)) == ["text encoder clip skip 2, 75 tokens, the last chunk is filled", "vae  "]
    (path,) = (path for path in family.trainable() if path.endswith("0.mlp.fc1"))
    made = inject(family.roots, [path], lambda _, layer: LoraLayer(layer, 2, 2.0))
    one = family.fingerprint("text")
    made[path].up.data.add_(1)
    assert len({"remembered", one, family.fingerprint("text")}) == 3


def test_latents_are_made_in_bf16_where_they_agree_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against diffusers' own VAE in float32; the limit is the bound, and what is beyond it is not taken."""

    def encoded(dtype: torch.dtype) -> tuple[Tensor, str, str]:
        options = LoadOptions(CPU, torch.bfloat16, memory=MemoryOptions(encoding=dtype))
        family = sd1.load(BUNDLED, options)
        assert family.told_of_latents() == ""  # nothing is measured before it is needed
        return family.encode_image(pixels)["mean"], family.fingerprint("vae"), family.told_of_latents()

    pixels = normal(2, 3, 64, 64).clamp(-1, 1)
    (whole, of_whole, nothing), (quick, of_quick, told) = encoded(torch.float32), encoded(torch.bfloat16)
    vae = sd1.load(BUNDLED, LoadOptions(CPU, torch.float32)).vae
    assert torch.equal(whole, vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor)
    off = (quick - whole).square().mean().sqrt() / whole.std()
    assert 0 < off < latents.AGREES and of_quick != of_whole
    share = re.search(r"latents in bf16: of a test picture (\d\.\d) % off those in fp32 \(limit 1\.5 %\)", told)
    assert share and 0.5 < float(share[1]) / (float(off) * 100) < 2 and nothing == ""  # as far off as these pictures
    monkeypatch.setattr(latents, "AGREES", float(off) / 100)
    taken_back, _, told = encoded(torch.bfloat16)
    assert torch.equal(taken_back, whole) and f"in fp32: in bf16 those of a test picture would be {share[1]} %" in told
    monkeypatch.setattr(latents, "AGREES", float("nan"))
    assert torch.equal(encoded(torch.bfloat16)[0], whole)
    taken = {("bf16", "cpu"): True, ("bf16", "cuda"): True, ("bf16", "mps"): False, ("fp16", "cuda"): False}
    for (precision, device), is_quick in taken.items():
        assert (encoding(precision, torch.device(device)) == torch.bfloat16) == is_quick


def test_in_bf16_a_vae_has_its_channels_innermost() -> None:
    """Half of the time; in float32 nothing, and latents stay what diffusers makes of them."""
    seen: list[bool] = []
    for dtype in (torch.bfloat16, torch.float32):
        family = sd1.load(BUNDLED, LoadOptions(CPU, torch.bfloat16, memory=MemoryOptions(encoding=dtype)))
        last = family.vae.encoder.down_blocks[-1].resnets[-1].norm2  # behind many layers: none brings another layout
        last.register_forward_pre_hook(lambda _, x: seen.append(x[0].is_contiguous(memory_format=torch.channels_last)))
        family.encode_image(normal(1, 3, 64, 64).clamp(-1, 1))
    # the test picture in float32 and in bf16, the picture in bf16; then it alone, in float32
    assert seen == [False, True, True, False]


def test_a_cast_has_the_numbers_of_torchs_own() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)  # all there are
    for t in (every, every.view(64, 1024), every.view(16, 64, 8, 8), every[:0], every[:1].view(())):
        for layout in (torch.contiguous_format, torch.channels_last):
            got, expected = memory.cast(t, torch.bfloat16, layout), t.to(torch.bfloat16)
            assert got.shape == t.shape and torch.equal(got.isnan(), expected.isnan())
            assert torch.equal(got.nan_to_num(), expected.nan_to_num())
            assert t.ndim != 4 or got.is_contiguous(memory_format=layout)
    assert memory.cast(every, torch.float16) is every
