"""One A for layers that the published file keeps as one (`fused_qkv`), against a LoRA of one fused matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import flow_checks
import tiny
import tiny_flux1
import tiny_zimage
from flow_checks import OPTIONS
from lora_scripts.adapters.inject import assign, inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.masters import Masters
from lora_scripts.adapters.together import Together, share_down
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.flux1.model import ask
from lora_scripts.families.table import FAMILIES, by_name, load_family
from lora_scripts.loras import dialects
from lora_scripts.loras.file import read, save
from lora_scripts.run.build import build_model, one_a_each
from lora_scripts.run.configs import load_config
from lora_scripts.run.init_lora import read_initial
from lora_scripts.train.passes import there_and_back
from runs import faults, stopped
from test_exact import compare

FACTS = by_name("flux1")
RANK, ROWS = 5, (24, 24, 24, 56)
base, family = flow_checks.fixtures(FACTS, tiny_flux1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- layers -----------------------------------------------------------------------------------------------------------


class Native(nn.Module):
    """A matrix whose rows are q, k, v and an MLP's, with one LoRA: plain torch."""

    def __init__(self, dtype: torch.dtype, dropout: float = 0.0) -> None:
        super().__init__()
        self.whole = nn.Linear(32, sum(ROWS)).to(dtype).requires_grad_(False)
        self.a, self.b = nn.Parameter(normal(RANK, 32, seed=1)), nn.Parameter(normal(sum(ROWS), RANK, seed=2))
        self.dropout = dropout

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        change = F.dropout(x, self.dropout) @ self.a.to(x.dtype).T @ self.b.to(x.dtype).T
        return (self.whole(x) + 3 / RANK * change).split(ROWS, -1)


def parts_of(native: Native, wrap: Callable[[nn.Linear], nn.Module] = lambda layer: layer) -> list[LoraLayer]:
    """The same as four layers."""
    weights, biases = native.whole.weight.split(ROWS), native.whole.bias.split(ROWS)
    layers = []
    for weight, bias, b in zip(weights, biases, native.b.detach().split(ROWS), strict=True):
        own = nn.Linear(32, len(weight)).to(weight.dtype).requires_grad_(False)
        own.weight.copy_(weight)
        own.bias.copy_(bias)
        layers.append(LoraLayer(wrap(own), RANK, 3.0, native.dropout))
        layers[-1].load({"down": native.a, "up": b})
    Together(layers)
    return layers


def learnt(ys: Any, x: Tensor, *parameters: Tensor) -> list[Tensor]:
    ys = list(ys)
    loss = sum((y.float() * normal(*y.shape, seed=n)).sum() for n, y in enumerate(ys))
    return [torch.cat(ys, -1).detach(), *torch.autograd.grad(loss, [x, *parameters])]


def close(got: list[Tensor], wanted: list[Tensor], off: float = 1e-6) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert b.norm() > 0 and (a - b).norm() <= off * b.norm(), (a - b).norm() / b.norm()


class Narrow(TorchDispatchMode):
    """Counts the products that give as many columns as there are ranks."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.count += name in ("mm", "addmm", "linear", "bmm") and out.shape[-1] == RANK
        return out


WAYS: dict[str, tuple[float, Callable[[nn.Linear], nn.Module]]] = {
    "quick": (0.0, lambda layer: layer),
    "dropout": (0.4, lambda layer: layer),
    "over another": (0.0, lambda layer: LoraLayer(layer, 1, 1.0)),
}


@pytest.mark.parametrize("way", WAYS)
def test_outputs_and_gradients_are_those_of_a_lora_on_the_fused_matrix(way: str) -> None:
    dropout, wrap = WAYS[way]
    torch.manual_seed(7)
    native = Native(torch.float32, dropout)
    layers, x = parts_of(native, wrap), normal(2, 9, 32, seed=4).requires_grad_()
    assert layers[0].fused == (way == "quick") and all(layer.down is layers[0].down for layer in layers)
    torch.manual_seed(3)
    wanted = learnt(native(x), x, native.a, native.b)
    torch.manual_seed(3)
    with Narrow() as narrow:
        ys = [layers[n](x) for n in (3, 0, 1, 2)]  # FLUX.1 asks the MLP's first
    assert narrow.count == 1
    got = learnt([*ys[1:], ys[0]], x, layers[0].down, *(layer.up for layer in layers))
    close([*got[:3], torch.cat(got[3:])], wanted)


def test_in_bf16_it_is_no_further_from_the_truth() -> None:
    torch.manual_seed(7)
    native = Native(torch.bfloat16)
    layers, masters = parts_of(native), None
    exact = Native(torch.float64).double()
    exact.load_state_dict({key: value.double() for key, value in native.state_dict().items()})
    x = normal(2, 9, 32, seed=4).bfloat16().requires_grad_()
    masters = Masters(layers)
    parameters = [layers[0].down, *(layer.up for layer in layers)]
    assert masters.holds(parameters) and len(masters._pieces[0].parameters) == 5
    loss = sum((y.float() * normal(*y.shape, seed=n)).sum() for n, y in enumerate([layer(x) for layer in layers]))
    loss.backward()  # type: ignore[union-attr]
    masters.gather()
    got = [x.grad, layers[0].down.grad, torch.cat([layer.up.grad for layer in layers])]  # type: ignore[misc]
    wanted = learnt(exact(z := x.detach().double().requires_grad_()), z, exact.a, exact.b)[1:]
    plain = learnt(native(x), x, native.a, native.b)[1:]
    far = [sum(((a - t).norm() / t.norm()).item() for a, t in zip(them, wanted, strict=True)) for them in (got, plain)]  # type: ignore[operator]
    assert far[0] < 1.15 * far[1] < 0.1


def test_what_waits_is_for_the_same_question_alone() -> None:
    native = Native(torch.float32)
    q, k, v, mlp = parts_of(native)
    x, y = normal(1, 3, 32, seed=4), normal(1, 3, 32, seed=5)
    (of_x, of_y) = native(x), native(y)
    got = [q(x), q(y), k(y), k(x), v(y), v(x)]
    close(got, [of_x[0], of_y[0], of_y[1], of_x[1], of_y[2], of_x[2]])
    q(x)
    with torch.no_grad():
        k.up.mul_(2)
        close([k(x)], [2 * of_x[1] - native.whole(x).split(ROWS, -1)[1]])
        v(x)
        x.add_(1)
        close([mlp(x)], [native(x)[3]])
        q.strength = k.strength = v.strength = mlp.strength = 0.0
        close([v(x)], [native.whole(x).split(ROWS, -1)[2]])
    q.strength = 1.0  # the others are off: alone
    close([q(x), k(x)], [native(x)[0], native.whole(x).split(ROWS, -1)[1]])


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_pass_that_came_to_no_end_leaves_nothing(where: str) -> None:
    """Gradients of the copies would be added to the next pass's, and what waits would keep a graph."""
    layers = parts_of(Native(torch.bfloat16))
    last = LoraLayer(nn.Linear(32, 8).bfloat16().requires_grad_(False), RANK, 3.0)
    last.load({"down": normal(RANK, 32), "up": normal(8, RANK)})
    masters, scaler = Masters([*layers, last]), torch.amp.GradScaler(enabled=False)
    x = normal(1, 3, 32).bfloat16()

    def loss_of(broken: bool) -> tuple[Tensor, int]:
        if broken and where == "forward":
            layers[0](x)
            raise RuntimeError("out of memory")
        first = layers[3](x)[..., :32]
        again = last(Fails.apply(first) if broken else first)
        return again.sum(), 1

    go = there_and_back(loss_of, scaler, masters.gather, masters.forget)
    wanted = []
    for broken in (False, True):
        if broken:
            with pytest.raises(RuntimeError, match="memory"):
                go(True)
            assert not layers[0].group._waiting and layers[0].group._x is None  # type: ignore[union-attr]
        go(False)
        wanted.append([layer.up.grad.clone() for layer in (last, layers[3])])  # type: ignore[union-attr]
        for layer in (*layers, last):
            layer.down.grad = layer.up.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*wanted, strict=True))


# --- a model ----------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self, layer: nn.Module, a: nn.Parameter, b: Tensor) -> None:
        super().__init__()
        self.layer, self.a, self.b = layer, a, nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.5 * F.linear(F.linear(x, self.a), self.b)


def sizes(path: str) -> int:
    return 256 if path.endswith("proj_mlp") else 64


@pytest.mark.parametrize("again", [False, True])
def test_a_flux1_learns_as_diffusers_own_with_q_k_and_v_fused(again: bool, base: Path) -> None:
    """`fuse_qkv_projections` makes one matrix of them; the single blocks' MLP gets the same A by hand. `again`: blocks
    are computed again in the backward pass."""
    beside: Any = tiny_flux1.beside(base.parent)
    own: Any = load_family(FACTS, base, replace(OPTIONS, memory=MemoryOptions(checkpointing=again), **beside))
    rules = assign(own.trainable(), [SimpleNamespace(match=m) for m in ("attention", "feed_forward")], FACTS.groups)
    layers: Any = inject(own.roots, rules, lambda _, layer: LoraLayer(layer, 4, 2.0), seed=1)
    config: Any = SimpleNamespace(fused_qkv=True)
    groups = one_a_each(config, layers, rules, FACTS)  # type: ignore[arg-type]
    assert sorted(map(len, groups)) == [3, 3, 4, 4]
    made = share_down(layers, groups)
    alone = [path for path in layers if not any(path in group for group in groups)]
    for layer in [layers[path] for path in alone]:
        layer.strength = 0.0
    with torch.no_grad():
        for n, path in enumerate(path for group in groups for path in group):
            layers[path].up.copy_(normal(sizes(path), 4, seed=n))
    theirs: Any = tiny_flux1.models().transformer.requires_grad_(False)
    theirs.fuse_qkv_projections()
    wrapped = []
    for group in groups:
        a = nn.Parameter(layers[group[0]].down.detach().clone())
        where = theirs.get_submodule(group[0].removeprefix("transformer.").rpartition(".")[0])
        name = "to_added_qkv" if "add_" in group[0] else "to_qkv"
        b = torch.cat([layers[path].up.detach() for path in group])
        setattr(where, name, Plain(getattr(where, name), a, b[:192]))
        wrapped.append([getattr(where, name)])
        if len(group) == 4:
            block = theirs.get_submodule(group[3].removeprefix("transformer.").rpartition(".")[0])
            block.proj_mlp = Plain(block.proj_mlp, a, b[192:])
            wrapped[-1].append(block.proj_mlp)
    x, sigma = normal(2, 16, 8, 8), torch.tensor([0.2, 0.9])
    texts = own.encode_text(["the weather in Paris", "hello"])
    found = []
    for transformer in (own.transformer, theirs):
        loss = (ask(transformer, x, sigma, texts) - normal(2, 16, 8, 8, seed=1)).square().mean()
        loss.backward()
        found.append(loss.detach())
    close(found[:1], found[1:])
    assert not any(one._waiting for one in made)
    for group, plain in zip(groups, wrapped, strict=True):
        close([layers[group[0]].down.grad], [plain[0].a.grad], 2e-6)
        ups = torch.cat([layers[path].up.grad for path in group])
        close([ups], [torch.cat([one.b.grad for one in plain])], 2e-6)


# --- runs and files ---------------------------------------------------------------------------------------------------


def test_a_run_goes_on_exactly_and_its_file_is_one_lora_in_the_published_names(
    base: Path, data: Path, tmp_path: Path
) -> None:
    keys: dict[str, object] = {**tiny_flux1.beside(base.parent), "targets": "[attention, feed_forward]"}
    keys |= {"fused_qkv": "true", "lora_plus_ratio": 2, "precision": "bf16", "lora_alpha": 1, "ema_decay": 0.5}
    keys |= {"save_precision": "fp32", "gradient_accumulation": 2, "learning_rate": 0.003, "val_split": 0, "epochs": 1}
    compare(keys, base, data, tmp_path, [1], 2)
    config, out = tmp_path / "config.yaml", tmp_path / "broken-1"
    assert main(["train", "--config", str(config), f"output_dir={out}", "--resume"]) == 0
    state = max((out / "state").glob("step-*"))
    held = load_file(state / "lora.safetensors")
    at = "transformer.transformer_blocks.0.attn."
    assert f"ema.{at}to_q.down" in held and f"ema.{at}to_k.down" not in held  # once
    own = load_file(out / "broken-1.safetensors")
    downs = [own[f"{at}{leaf}.lora_A.weight"] for leaf in ("to_q", "to_k", "to_v")]
    assert all(torch.equal(down, held[f"ema.{at}to_q.down"]) for down in downs)
    kohya = tmp_path / "kohya.safetensors"
    assert main(["convert", str(out / "broken-1.safetensors"), "--to", "kohya", "--output", str(kohya)]) == 0
    native, stem = load_file(kohya), "lora_unet_single_blocks_1_linear1"
    assert {len(t) for key, t in native.items() if key.endswith("lora_down.weight")} == {2}
    inside = "ema.transformer.single_transformer_blocks.1."
    (a,) = (held[f"{inside}{leaf}.down"] for leaf in LINEAR1 if f"{inside}{leaf}.down" in held)
    change = torch.cat([held[f"{inside}{leaf}.up"] for leaf in LINEAR1]) @ a
    got = native[f"{stem}.lora_up.weight"] @ native[f"{stem}.lora_down.weight"] * native[f"{stem}.alpha"] / 2
    assert change.shape == (448, 64) and (got - change / 2).abs().max() <= 1e-6 * change.abs().max()
    begun = read_initial(load_config(config, [f"init_lora={kohya}"]))  # so is a file of theirs where a run goes on
    assert torch.equal(begun[f"{at}to_k"].down, downs[0]) and len(begun) == 22
    back = tmp_path / "back.safetensors"
    assert main(["convert", str(kohya), "--to", "diffusers", "--output", str(back)]) == 0
    again = load_file(back)
    assert again.keys() == own.keys() and all(torch.equal(again[key], own[key]) for key in own)


@pytest.mark.parametrize(
    ("name", "to"),
    [("flux1", "kohya"), ("flux2", "kohya"), ("flux2_dev", "kohya"), ("zimage", "original"), ("zimage", "kohya")],
)
def test_equal_as_are_one_lora_in_the_published_names_whoever_wrote_them(name: str, to: str, tmp_path: Path) -> None:
    names = by_name(name).names()
    a, rows = normal(3, 32), [128 if "mlp" in path else 32 for path in names.together[-1]]
    ups = [normal(n, 3, seed=n + i) for i, n in enumerate(rows)]
    weights = {path: LoraWeights(a, up, 1.5) for path, up in zip(names.together[-1], ups, strict=True)}
    own = dialects.own_form(weights, names, torch.float32)
    save(tmp_path / "own.safetensors", own.tensors, own.metadata)
    file = tmp_path / "published.safetensors"
    assert main(["convert", str(tmp_path / "own.safetensors"), "--to", to, "--output", str(file)]) == 0
    down, up, alpha = (next(t for k, t in load_file(file).items() if k.endswith(end)) for end in ENDS)
    assert len(load_file(file)) == 3 and torch.equal(down, a) and torch.equal(up, torch.cat(ups)) and alpha == 1.5
    for path, w in read(file).weights.items():
        assert torch.equal(w.down, a) and torch.equal(w.up, weights[path].up) and w.alpha == 1.5


ENDS = ("lora_down.weight", "lora_up.weight", "alpha")
LINEAR1 = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")


def with_one_a(tmp_path: Path, *, alike: bool, rank: int = 3) -> Path:
    """A LoRA of q and k of the double block, and of a layer that has no neighbour."""
    weights = {}
    for n, leaf in enumerate(("to_q", "to_k", "to_out.0")):
        path = f"transformer.transformer_blocks.0.attn.{leaf}"
        weights[path] = LoraWeights(normal(rank, 64, seed=0 if alike else n), normal(64, rank, seed=9 + n), 1.5)
    tensors = dialects.own_form(weights, FACTS.names(), torch.float32)
    save(tmp_path / "begin.safetensors", tensors.tensors, tensors.metadata)
    return tmp_path / "begin.safetensors"


def config_of(base: Path, data: Path, folder: Path, **keys: object) -> Path:
    beside = tiny_flux1.beside(base.parent)
    return tiny.write_config(folder, base_model=base, train_data_dir=data, fused_qkv="true", **{**beside, **keys})


def test_an_earlier_lora_with_one_a_goes_on_and_another_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    file = with_one_a(tmp_path, alike=True)
    config = load_config(config_of(base, data, tmp_path, init_lora=file, lora_rank=4))
    model = build_model(config, torch.device("cpu"), "fp32", read_initial(config))
    for path, w in read(file).weights.items():  # widened by the same fresh rows
        change = model.layers[path].delta()
        assert (change - w.alpha / w.rank * w.up @ w.down).abs().max() < 1e-5
    at = "transformer.transformer_blocks.0.attn."
    q, k, v = (model.layers[f"{at}{leaf}"].values() for leaf in ("to_q", "to_k", "to_v"))
    assert q["down"] is k["down"] is v["down"] and torch.equal(q["down"][:3], normal(3, 64)) and not v["up"].any()
    assert len({id(p) for p in model.trained}) == len(model.trained) == len(model.weights())
    other = with_one_a(tmp_path, alike=False)
    told = faults(lambda: read_initial(config))
    assert other.name in told and "to_q and for" in told and "leave fused_qkv out" in told and "\n" not in told
    with_one_a(tmp_path, alike=True)
    cut = load_config(config_of(base, data, tmp_path, init_lora=file, lora_rank=2))
    assert "smaller lora_rank" in faults(lambda: read_initial(cut))
    with_one_a(tmp_path, alike=False)
    alone = load_config(config_of(base, data, tmp_path, init_lora=file, targets="['*to_q', '*to_v']"))
    assert read_initial(alone)  # to_k is not trained: it stays as it is


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"adapter": "dora"}, "fused_qkv: cannot be with adapter: dora"),
        ({"adapter": "pissa"}, "fused_qkv: cannot be with adapter: pissa"),
        ({"targets": "['*.proj_out', '*.to_k']"}, "fused_qkv: has no effect"),
        ({"targets": "[attention, {match: '*to_k', rank: 8}]"}, "targets: gives layers that have one A (fused_qkv)"),
        ({"targets": "[attention, {match: '*to_v', lr: 1e-5}]"}, "two ranks, alphas or rates: attention and *to_v"),
    ],
)
def test_what_cannot_have_one_a_is_refused_in_a_line(
    keys: dict[str, object], words: str, base: Path, data: Path, tmp_path: Path
) -> None:
    told = faults(lambda: load_config(config_of(base, data, tmp_path, **keys)))
    assert words in told and "config.yaml:" in told and "\n" not in told


def test_bases_that_fuse_nothing_are_named(data: Path, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "sd.safetensors")
    path = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, fused_qkv="true")
    assert "fused_qkv: is for models whose published file keeps q, k and v as one layer" in faults(
        lambda: load_config(path)
    )


@pytest.mark.parametrize("facts", FAMILIES, ids=lambda facts: facts.name)
def test_the_table_of_names_is_where_it_stands_which_families_fuse(facts: Any) -> None:
    assert ("fused" in facts.features) == bool(facts.names().fused)
    for group in facts.names().together:
        # q, k and v, in single blocks with the MLP's first layer; or gate and up of an MLP
        assert len(group) in (2, 3, 4) and len({path.rpartition("blocks.")[2].partition(".")[0] for path in group}) == 1


def test_a_zimage_has_one_a_in_every_attention(data: Path, tmp_path: Path) -> None:
    base = tiny_zimage.write_base(tmp_path / "base.safetensors")
    keys: dict[str, object] = {"base_model": base, "train_data_dir": data, **tiny_zimage.beside(tmp_path)}
    parts = stopped(tiny.write_config(tmp_path, fused_qkv="true", targets="['*']", **keys), 1)
    names = [name for name in parts.model.weights() if ".attention.to_" in name and "to_out" not in name]
    blocks = {name.partition(".attention.")[0] for name in names}
    assert {name for name in names if name.endswith(".down")} == {f"{b}.attention.to_q.down" for b in blocks}
    assert len(blocks) > 3 and len(names) == 4 * len(blocks)
