"""Every form of adapter against another library or its paper's formula, as a layer, in a file and in a run."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import tiny
from lora_scripts.adapters.algebra import bake
from lora_scripts.adapters.dora import DoraLayer, RowDoraLayer
from lora_scripts.adapters.inject import inject, remove
from lora_scripts.adapters.layer import Adapter, LoraLayer
from lora_scripts.adapters.lycoris import LycorisLayer
from lora_scripts.adapters.pissa import PissaLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.config.schema import TrainConfig
from lora_scripts.families.sd1.names import sd1
from lora_scripts.loras import dialects, kohya, reading
from lora_scripts.loras.file import read
from lora_scripts.loras.on_model import apply
from lora_scripts.run.build import build_model

KINDS = ["lora", "dora", "row dora", "pissa", "loha", "lokr", "oft"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frozen(kind: str) -> nn.Module:
    torch.manual_seed(3)
    layer = nn.Linear(12, 8) if kind == "linear" else nn.Conv2d(6, 8, 3, stride=2, padding=1)
    return layer.requires_grad_(False)


def inputs(kind: str) -> Tensor:
    return normal(5, 12) if kind == "linear" else normal(2, 6, 7, 9)


def made(kind: str, base: nn.Module, *, fresh: bool = False) -> Adapter:
    """An adapter in the middle of its training, every value moved a little from its start; or at the start."""
    if kind in ("loha", "lokr", "oft"):
        pytest.importorskip("lycoris")
    layers = {"lora": LoraLayer, "dora": DoraLayer, "row dora": RowDoraLayer, "pissa": PissaLayer}
    layer = layers[kind](base, 2, 3.0) if kind in layers else LycorisLayer(base, kind, 2, 3.0)
    layer.reset(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for n, p in enumerate([] if fresh else layer.values().values()):
            p.add_(0.1 * normal(*p.shape, seed=n))
    return layer


@pytest.mark.parametrize("shape", ["linear", "conv"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_trains_every_value(kind: str, shape: str) -> None:
    base = frozen(shape)
    layer = made(kind, base, fresh=True)
    x = inputs(shape)
    torch.testing.assert_close(layer(x), base(x), rtol=0, atol=2e-6)
    moved = made(kind, base)
    moved(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in moved.values().values())


@pytest.mark.parametrize("shape", ["linear", "conv"])
@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_computes_what_delta_says(kind: str, strength: float, shape: str) -> None:
    base, x = frozen(shape), inputs(shape)
    layer = made(kind, base)
    layer.strength = strength
    merged = copy.deepcopy(base)
    merged.weight += strength * layer.delta()
    torch.testing.assert_close(layer(x), merged(x), rtol=1e-4, atol=1e-5)
    assert layer.delta().abs().max() > 1e-3
    layer.strength = 0.0
    assert torch.equal(layer(x), base(x))


def test_dora_is_pefts_seen_through_the_transpose() -> None:
    """PEFT keeps one length for each row of the weight, the WebUIs one for each column: W' here is PEFT's of W'."""
    base = nn.Linear(12, 8, bias=False).requires_grad_(False)
    ours = made("dora", base)
    assert isinstance(ours, DoraLayer)
    other = nn.Sequential(nn.Linear(8, 12, bias=False))
    other[0].weight.data = base.weight.data.T.clone()
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(other, config).base_model.model[0]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(ours.up.T)
        theirs.lora_B["default"].weight.copy_(ours.down.T)
        theirs.lora_magnitude_vector["default"].weight.copy_(ours.magnitude)
    seen = normal(12, 8, seed=9)  # the gradient of the loss by the changed weight
    mine, their = ours(torch.eye(12)), theirs(torch.eye(8)).T
    torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)
    (mine * seen).sum().backward()
    (their * seen).sum().backward()
    pairs = [
        (ours.up.grad, theirs.lora_A["default"].weight.grad.T),
        (ours.down.grad, theirs.lora_B["default"].weight.grad.T),
        (ours.magnitude.grad, theirs.lora_magnitude_vector["default"].weight.grad),
    ]
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", ["linear", "conv"])
def test_a_dora_with_lengths_of_outputs_is_pefts(shape: str) -> None:
    """Output, gradients, the tensors of a file, and the change that `bake` makes of them."""
    base = frozen(shape)
    ours = made("row dora", base)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config).base_model.model[0]
    leaves = ours.leaves()
    w = LoraWeights(leaves["lora_down.weight"], leaves["lora_up.weight"], 3.0, leaves["dora_scale"])
    assert w.by_output
    adapter = dialects.to_peft({"lm.0": w}, {})["lm"]
    assert adapter.config["use_dora"]
    named = {key.replace(".weight", ".default.weight"): value for key, value in adapter.tensors.items()}
    magnitude = theirs.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(named["base_model.model.0.lora_A.default.weight"])
        theirs.lora_B["default"].weight.copy_(named["base_model.model.0.lora_B.default.weight"])
        magnitude.copy_(adapter.tensors["base_model.model.0.lora_magnitude_vector"])
    x, y = inputs(shape).requires_grad_(), inputs(shape).requires_grad_()
    mine, their = ours(x), theirs(y)
    torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-5)
    seen = normal(*mine.shape, seed=9)
    (mine * seen).sum().backward()
    (their * seen).sum().backward()
    down, up, lengths = (ours.values()[name].grad for name in ("down", "up", "magnitude"))
    assert down is not None and up is not None and lengths is not None
    torch.testing.assert_close(down, theirs.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(up, theirs.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lengths, magnitude.grad.flatten(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    theirs.merge()
    torch.testing.assert_close(base.weight + bake.change(w, base.weight), theirs.weight.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["linear", "conv"])
def test_a_dora_with_lengths_of_outputs_adds_to_another_lora(shape: str) -> None:
    base, x = frozen(shape), inputs(shape)
    inner = made("lora", base)
    outer = made("row dora", inner)
    merged = copy.deepcopy(base)
    merged.weight += inner.delta() + outer.delta()
    torch.testing.assert_close(outer(x), merged(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["linear", "conv"])
def test_dora_is_lycoris_with_lengths_of_inputs(shape: str) -> None:
    locon = pytest.importorskip("lycoris.modules.locon")
    base = frozen(shape)
    ours = made("dora", base)
    assert isinstance(ours, DoraLayer)
    theirs = locon.LoConModule("", base, lora_dim=2, alpha=3.0, weight_decompose=True, wd_on_out=False)
    leaves = ours.leaves()
    with torch.no_grad():
        theirs.lora_down.weight.copy_(leaves["lora_down.weight"])
        theirs.lora_up.weight.copy_(leaves["lora_up.weight"])
        theirs.dora_scale.copy_(leaves["dora_scale"])
    merged = theirs.get_merged_weight()[0]
    torch.testing.assert_close(base.weight + ours.delta(), merged, rtol=1e-5, atol=1e-6)


def by_hand(kind: str, leaves: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """ΔW entry by entry, by the papers' formulas, float64: [out, in · k · k]."""
    t = {name: tensor.double() for name, tensor in leaves.items()}
    out, inner = shape[0], math.prod(shape[1:])
    total = torch.zeros(out, inner, dtype=torch.float64)
    if kind == "loha":
        for r in range(t["hada_w1_b"].shape[0]):
            for s in range(t["hada_w2_b"].shape[0]):
                up = t["hada_w1_a"][:, r] * t["hada_w2_a"][:, s]
                total += up[:, None] * (t["hada_w1_b"][r] * t["hada_w2_b"][s])[None]
        return total * t["alpha"] / t["hada_w1_b"].shape[0]
    w1, w2 = t["lokr_w1"], t["lokr_w2_a"] @ t["lokr_w2_b"]
    for i in range(out):
        for j in range(inner):
            total[i, j] = w1[i // w2.shape[0], j // w2.shape[1]] * w2[i % w2.shape[0], j % w2.shape[1]]
    return total * t["alpha"] / t["lokr_w2_b"].shape[0]


@pytest.mark.parametrize("shape", ["linear", "conv"])
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_alpha_of_loha_and_lokr_counts_once(kind: str, shape: str) -> None:
    """alpha ≠ rank; by hand, and as the library's own forward pass has it (its get_diff_weight scales twice)."""
    pytest.importorskip("lycoris")
    torch.manual_seed(3)
    base = nn.Linear(24, 32) if shape == "linear" else nn.Conv2d(24, 32, 3, padding=1)
    base.requires_grad_(False)
    layer = made(kind, base)
    leaves = layer.leaves()
    assert leaves["alpha"] == 3.0 and any(name.endswith("_b") for name in leaves)
    wanted = by_hand(kind, leaves, tuple(base.weight.shape)).view(base.weight.shape)
    torch.testing.assert_close(layer.delta(torch.float64), wanted, rtol=1e-12, atol=1e-12)
    read = LycorisLayer.of_leaves(base, leaves)
    torch.testing.assert_close(read.delta(torch.float64), wanted, rtol=1e-12, atol=1e-12)
    x = normal(5, 24) if shape == "linear" else normal(2, 24, 7, 9)
    theirs = lycoris_module(kind, base, leaves)
    torch.testing.assert_close(read(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-4, atol=1e-5)


def lycoris_module(kind: str, base: nn.Module, leaves: dict[str, Tensor]) -> nn.Module:
    """The library's own module, from the tensors of a file."""
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    own = {"loha": LohaModule, "lokr": LokrModule, "oft": DiagOFTModule}[kind]
    named = {f".{name}": tensor for name, tensor in leaves.items()}
    with torch.no_grad():
        return own.make_module_from_state_dict("", base, *own.extract_state_dict(named, ""))


@pytest.mark.parametrize("options", [{"use_tucker": True}, {"decompose_both": True}, {"full_matrix": True}, {}])
@pytest.mark.parametrize("kind", ["loha", "lokr", "oft"])
def test_every_form_that_the_library_writes_is_read(kind: str, options: dict[str, bool]) -> None:
    """A convolution in the library's hands: its forward pass against ours on what its file would hold."""
    pytest.importorskip("lycoris")
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    torch.manual_seed(4)
    base = nn.Conv2d(24, 32, 3, padding=1).requires_grad_(False)
    own = {"loha": LohaModule, "lokr": LokrModule, "oft": DiagOFTModule}[kind]
    scale = {"constraint": 0.002, "rescaled": True} if kind == "oft" else {"alpha": 3.0}
    theirs = own("", base, lora_dim=2 if kind != "oft" else 4, bypass_mode=False, **scale, **options)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    ours = LycorisLayer.of_leaves(base, theirs.state_dict())
    x = normal(2, 24, 7, 9)
    assert (theirs(x) - base(x)).abs().max() > 1e-3
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_pissa_starts_from_the_largest_singular_directions() -> None:
    """B0 A0 times the scale is the best approximation of W of that rank; peft's own start is the same."""
    base = nn.Linear(40, 30, bias=False).requires_grad_(False)
    layer = PissaLayer(base, 3, 6.0)
    layer.reset(torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(base.weight)
    best = u[:, :3] * s[:3] @ vh[:3]
    torch.testing.assert_close(layer.scale * layer.up @ layer.down, best, rtol=1e-3, atol=1e-4)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights="pissa")
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config).base_model.model[0]
    torch.testing.assert_close(theirs.get_delta_weight("default"), best, rtol=1e-3, atol=1e-4)
    leaves = layer.leaves()
    assert leaves["lora_down.weight"].shape == (6, 40) and leaves["alpha"] == 12.0


HALVES = [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)]


@pytest.mark.parametrize(("dtype", "bound"), HALVES)
@pytest.mark.parametrize("shape", ["linear", "conv"])
def test_a_pissas_file_keeps_its_change_in_half_precision(shape: str, dtype: torch.dtype, bound: float) -> None:
    """B A - B0 A0 is a small difference of large factors: rounded as they are, 3 to 20 % of it is lost."""
    torch.manual_seed(2)
    base = nn.Linear(96, 64) if shape == "linear" else nn.Conv2d(32, 64, 3)
    layer = PissaLayer(base.requires_grad_(False), 4, 3.0)
    layer.reset(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for n, p in enumerate(layer.values().values()):
            p.add_(0.002 * normal(*p.shape, seed=n))
    leaves, wanted = layer.leaves(), layer.delta(torch.float64).flatten(1)

    def off(down: Tensor, up: Tensor) -> float:
        change = leaves["alpha"].item() / down.shape[0] * up.double().flatten(1) @ down.double().flatten(1)
        return ((change - wanted).norm() / wanted.norm()).item()

    down, up = leaves["lora_down.weight"], leaves["lora_up.weight"]
    assert off(down, up) < 1e-6 and off(down.to(dtype), up.to(dtype)) < bound
    plain_down, plain_up = layer.factors()
    assert off(plain_down.to(dtype), plain_up.to(dtype)) > 5 * bound


@pytest.mark.parametrize("shape", ["linear", "conv"])
@pytest.mark.parametrize(("dtype", "bound"), HALVES)
def test_a_doras_file_keeps_its_change_and_says_alpha_as_rank(shape: str, dtype: torch.dtype, bound: float) -> None:
    """The lengths stay float32; alpha / rank is in `up`, for programs that would multiply by it twice."""
    base = frozen(shape)
    layer = DoraLayer(base, 2, 3.0)
    layer.reset(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for n, p in enumerate(layer.values().values()):
            p.add_(0.01 * normal(*p.shape, seed=n))
    leaves, path = layer.leaves(), "unet.mid_block.attentions.0.proj_in"
    w = LoraWeights(leaves["lora_down.weight"], leaves["lora_up.weight"], 3.0, leaves["dora_scale"])
    tensors = kohya.to_kohya(kohya.prepared({path: w}), sd1().kohya, dtype=dtype)
    stem = sd1().kohya[path]
    assert tensors[f"{stem}.alpha"] == 2 and tensors[f"{stem}.lora_down.weight"].shape[0] == 2
    assert tensors[f"{stem}.dora_scale"].dtype == torch.float32
    file = reading.read(tensors, sd1())[path]
    assert isinstance(file, LoraWeights)
    wanted, got = layer.delta(torch.float64), bake.change(file, base.weight)
    assert (got - wanted).norm() / wanted.norm() < bound
    old = bake.change(LoraWeights(file.down, file.up, 2.0, w.dora.to(dtype)), base.weight)  # type: ignore[union-attr]
    assert (old - wanted).norm() > 2 * (got - wanted).norm()


SOME = "['*up_blocks.3*attn2*', MID]"
"""`targets`: linear layers and convolutions."""


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_rank_stabilised_is_told_alike_in_table_metadata_and_tensors(
    kind: str, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind != "lora":
        pytest.importorskip("lycoris")
    keys = {"lora_rank": 4, "lora_alpha": 4.0, "rank_stabilised": True, "adapter": kind, "epochs": 1, "val_split": 0}
    keys |= {"targets": SOME}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, output_dir=tmp_path / "run", **keys)
    assert main(["train", "--config", str(config)]) == 0, capsys.readouterr().err
    assert "rank 4, alpha 8," in capsys.readouterr().out
    file = read(tmp_path / "run" / "run.safetensors")
    assert (file.metadata["ss_network_dim"], file.metadata["ss_network_alpha"]) == ("4", "8.0")
    alphas = {w.alpha if isinstance(w, LoraWeights) else float(w["alpha"]) for w in file.modules.values()}
    assert alphas - {4.0} == {8.0}  # a LoKr whose factors are whole has no scale: its alpha is the rank


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_rank_stabilised_is_pefts_rslora(rank: int, base: Path, tmp_path: Path) -> None:
    keys = {"train_data_dir": "d", "base_model": str(base), "output_dir": str(tmp_path / "o"), "precision": "fp32"}
    config = TrainConfig(**keys, lora_rank=rank, lora_alpha=2.0, rank_stabilised=True, targets=("*mid*attn2.to_q",))  # type: ignore[arg-type]
    model = build_model(config, torch.device("cpu"), "fp32", {})
    (layer,) = model.layers.values()
    assert isinstance(layer, LoraLayer) and layer.scale == pytest.approx(2.0 / math.sqrt(rank))
    theirs = peft.get_peft_model(
        nn.Sequential(nn.Linear(4, 4)),
        peft.LoraConfig(r=rank, lora_alpha=2, use_rslora=True, target_modules=["0"]),
    ).base_model.model[0]
    assert layer.scale == pytest.approx(theirs.scaling["default"])
    assert layer.leaves()["alpha"].item() / rank == pytest.approx(layer.scale)  # readers divide by the rank


def test_lora_plus_and_rules_give_layers_their_own_rank_and_rate(base: Path, tmp_path: Path) -> None:
    keys = {"train_data_dir": "d", "base_model": str(base), "output_dir": str(tmp_path / "o"), "precision": "fp32"}
    rules = (
        {"match": "attention"},
        {"match": "MID", "rank": 3, "lr": 1e-3},
        {"match": "OUT03", "rank": 2, "alpha": 8.0},
    )
    values = {"targets": rules, "lora_rank": 4, "lora_alpha": 2.0, "lora_plus_ratio": 16.0}
    config = TrainConfig.model_validate(keys | values)
    model = build_model(config, torch.device("cpu"), "fp32", {})
    rates = {g["name"]: g["lr"] for g in model.optimizer.param_groups}
    assert rates == pytest.approx(
        {"unet 0.0002": 2e-4, "unet 0.0002 B": 3.2e-3, "unet 0.001": 1e-3, "unet 0.001 B": 1.6e-2}
    )
    found = {(".".join(p.split(".")[1:3]), x.rank, x.alpha) for p, x in model.layers.items()}
    assert {("mid_block.attentions", 3, 1.5), ("up_blocks.1", 2, 8.0), ("up_blocks.1", 4, 2.0)} <= found
    for group in model.optimizer.param_groups:
        assert {p.ndim and p.any().item() for p in group["params"]} == {"B" not in group["name"]}  # B begins at zero


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "row dora"])
def test_a_run_with_each_adapter_is_proved_resumed_and_read_back(
    kind: str, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind in ("loha", "lokr", "oft"):
        pytest.importorskip("lycoris")
    keys = {"adapter": kind, "base_model": base, "train_data_dir": data, "targets": SOME, "epochs": 1}
    folder = tmp_path / "run"
    config = tiny.write_config(tmp_path, **keys, output_dir=folder, save_precision="fp32", learning_rate=0.003)
    assert main(["train", "--config", str(config)]) == 0, capsys.readouterr().err
    assert "verified: " in capsys.readouterr().out
    state = next((folder / "state").iterdir()) / "lora.safetensors"
    run = build_model(_config(config), torch.device("cpu"), "fp32", {})
    run.load(safetensors.torch.load_file(state))
    x, t, words = normal(1, 4, 8, 8), torch.tensor([400]), normal(1, 77, 16, seed=1)
    with torch.no_grad():
        trained = run.family.predict(x, t, words)  # type: ignore[attr-defined]
        remove(run.family.roots, run.layers)
        plain = run.family.predict(x, t, words)  # type: ignore[attr-defined]
        apply(run.family, read(folder / "run.safetensors").modules, 1.0)
        worn = run.family.predict(x, t, words)  # type: ignore[attr-defined]
    assert (trained - plain).abs().max() > 1e-4
    torch.testing.assert_close(worn, trained, rtol=1e-4, atol=2e-6)


def _config(path: Path) -> TrainConfig:
    from lora_scripts.config.load import load_config

    return load_config(path)


def test_inject_wraps_whatever_is_made() -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4)})
    layers = inject({"n": net}, ["n.a"], lambda _, layer: DoraLayer(layer, 2, 2.0))
    assert isinstance(net["a"], DoraLayer) and layers["n.a"] is net["a"]


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft"])
def test_a_start_is_the_seeds_alone_whatever_was_drawn_before(kind: str) -> None:
    pytest.importorskip("lycoris")
    starts = []
    for drawn in range(2):
        torch.manual_seed(drawn)
        layer = LycorisLayer(nn.Linear(24, 32), kind, 2, 3.0)
        after = torch.rand(1)
        torch.manual_seed(drawn)
        nn.Linear(24, 32)
        assert torch.equal(after, torch.rand(1))  # nor does it change what is drawn afterwards
        layer.reset(torch.Generator().manual_seed(5))
        starts.append(layer.leaves())
    assert all(torch.equal(starts[0][leaf], starts[1][leaf]) for leaf in starts[0])


def test_an_oft_says_nothing_of_its_blocks() -> None:
    """lycoris-lora tells their sizes on stdout, where a command with `--json` has its result."""
    pytest.importorskip("lycoris")
    LycorisLayer(nn.Linear(8, 8), "oft", 4, 1.0)
    assert not logging.getLogger("LyCORIS").isEnabledFor(logging.INFO)
