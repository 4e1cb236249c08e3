"""`lora-scripts combine`: against sums and decompositions by hand, against PEFT's own merging, on a real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from safetensors import safe_open
from torch import nn

from blocks import delta, mistake, random_lora, run, save, total
from lora_scripts.adapters.algebra import combine, factors, overlap
from lora_scripts.adapters.algebra.combine import Method
from lora_scripts.adapters.inject import remove
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli.options import weighted
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.sdxl import names
from lora_scripts.families.table import by_name, load_family
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.loras import file as loras
from lora_scripts.loras import kohya, metadata
from lora_scripts.loras.file import read
from lora_scripts.loras.on_model import apply

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """`a` in all layers, `b` in a few (fp32), `c` in the UNet: other ranks, other alphas."""
    folder = tmp_path_factory.mktemp("loras")
    made = {
        "a": random_lora(family, 2, 1.0, 1),
        "b": random_lora(family, 3, 6.0, 2, lambda p: ".up_blocks.1.attentions" in p or "mlp" in p),
        "c": random_lora(family, 4, 4.0, 3, lambda p: p.startswith("unet.")),
    }
    return {name: save(folder / f"{name}.safetensors", w, ss_clip_skip="2") for name, w in made.items()}


@torch.no_grad()
def test_the_sum_of_three_is_the_one_combined_file(base: Path, files: Files, tmp_path: Path) -> None:
    """In the whole model, in float64, so that only what the file holds counts."""
    output = tmp_path / "abc.safetensors"
    strengths = {"a": 0.8, "b": 0.5, "c": -0.7}
    run("combine", *(f"{files[name]}:{s}" for name, s in strengths.items()), "--output", output)
    family = load_family(by_name("sd1"), base, LoadOptions(torch.device("cpu"), torch.float64))
    family.text_encoder.double()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([500])

    def answer() -> torch.Tensor:
        return family.predict(x, t, family.encode_text(["a house"])["states"])

    plain = answer()
    layers = [apply(family, read(files[name]).weights, s) for name, s in strengths.items()]
    apart = answer()
    for on in reversed(layers):
        remove(family.roots, on)
    apply(family, read(output).weights, 1.0)
    together = answer()
    assert (apart - plain).abs().max() > 0.1 * plain.abs().max()
    assert (together - apart).abs().max() < 1e-6 * apart.abs().max()


def test_one_rank_and_one_alpha_on_every_module(files: Files, tmp_path: Path) -> None:
    output = tmp_path / "ab.safetensors"
    run("combine", f"{files['a']}:0.3", f"{files['b']}:2", "--output", output)
    made, parts = read(output).weights, [(read(files["a"]).weights, 0.3), (read(files["b"]).weights, 2.0)]
    assert {(w.rank, w.alpha) for w in made.values()} == {(5, 1.25)} and made.keys() == parts[0][0].keys()
    for path, w in made.items():
        torch.testing.assert_close(delta(w), total(parts, path), rtol=1e-6, atol=1e-8)
    with safe_open(output, "pt") as file:
        told = file.metadata()
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("5", "1.25")
    assert told["ss_base_model_version"] == "sd_v1" and told["ss_v2"] == "False" and told["ss_clip_skip"] == "2"
    assert json.loads(told[metadata.MADE_FROM]) == [
        {"name": f"{name}.safetensors", "sha256": model_hashes(files[name]).sha256, "weight": weight}
        for name, weight in (("a", 0.3), ("b", 2.0))
    ]
    assert told["sshs_model_hash"] == model_hashes(output).sshs_model_hash


def test_exact_or_rounded_is_chosen_and_told(
    files: Files, family: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fp16 stays where it holds the sum bit for bit: scales that are powers of two; else auto is fp32."""
    half = [save(tmp_path / f"{n}.safetensors", random_lora(family, 2, 1.0, n), torch.float16) for n in (1, 2)]
    output = tmp_path / "sum.safetensors"
    run("combine", half[0], f"{half[1]}:0.5", "--output", output)
    made, parts = read(output).weights, [(read(half[0]).weights, 1.0), (read(half[1]).weights, 0.5)]
    path = next(iter(made))
    assert made[path].up.dtype == torch.float16 and torch.equal(delta(made[path]), total(parts, path))
    run("combine", f"{half[0]}:2", f"{half[1]}:1.3", "--output", output, "--overwrite")
    assert {w.alpha / w.rank for w in read(output).weights.values()} == {0.5}  # a power of two, not above 1.3 / 2
    run("combine", half[0], f"{half[1]}:0.8", "--output", output, "--overwrite")
    assert read(output).weights[path].up.dtype == torch.float32
    assert "so that the sum is exact" in capsys.readouterr().out
    run("combine", half[0], f"{half[1]}:0.8", "--output", output, "--overwrite", "--precision", "fp16", "--json")
    assert read(output).weights[path].up.dtype == torch.float16
    assert 1e-5 < json.loads(capsys.readouterr().out)["rounding"] < 1e-3


def test_svd_is_the_best_of_its_rank_and_tells_the_energy(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "svd.safetensors"
    argv = ["combine", f"{files['a']}:0.8", f"{files['c']}:1.5", "--method", "svd", "--output", output, "--json"]
    run(*argv, "--rank", "3")
    told = json.loads(capsys.readouterr().out)
    made, parts = read(output).weights, [(read(files["a"]).weights, 0.8), (read(files["c"]).weights, 1.5)]
    kept = whole = 0.0
    shares = {}
    for path, w in made.items():
        u, s, vt = torch.linalg.svd(total(parts, path), full_matrices=False)
        torch.testing.assert_close(delta(w), (u[:, :3] * s[:3]) @ vt[:3], rtol=1e-4, atol=1e-5 * s[0].item())
        kept, whole = kept + (s[:3] ** 2).sum().item(), whole + (s**2).sum().item()
        shares[path] = ((s[:3] ** 2).sum() / (s**2).sum()).item()
    assert told["energy_kept"] == pytest.approx(kept / whole) and told["rank"] == 3
    assert told["worst_energy_kept"] == pytest.approx(min(shares.values()))
    assert told["worst_module"] == min(shares, key=lambda path: shares[path])
    run(*argv, "--energy", "0.9", "--overwrite")
    path = told["worst_module"]
    s = torch.linalg.svdvals(total(parts, path))
    wanted = int((((s**2).cumsum(0) / (s**2).sum()) < 0.9).sum()) + 1
    used = read(output).weights[path]
    assert int((torch.linalg.svdvals(delta(used)) > 1e-5 * s[0]).sum()) == wanted
    assert json.loads(capsys.readouterr().out)["worst_energy_kept"] >= 0.9


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(12, 10), nn.Conv2d(4, 6, 3)


@pytest.fixture(scope="module")
def adapters() -> tuple[PeftModel, list[combine.Lora]]:
    """Two adapters of PEFT, rank 4, alpha 8 and 2, and the same as ours."""
    torch.manual_seed(0)
    model, ours = None, []
    for name, alpha in (("one", 8), ("two", 2)):
        config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["linear", "conv"], init_lora_weights=False)
        if model is None:
            model = get_peft_model(Two(), config, name)
        else:
            model.add_adapter(name, config)
        layers = {path: getattr(model.base_model.model, path) for path in ("linear", "conv")}
        ours.append(
            {p: LoraWeights(x.lora_A[name].weight.data, x.lora_B[name].weight.data, alpha) for p, x in layers.items()}
        )
    assert model is not None
    return model, ours


@pytest.mark.parametrize("method", ["linear", "svd", "ties"])
def test_what_peft_makes_of_the_same(adapters: tuple[PeftModel, list[combine.Lora]], method: str) -> None:
    model, ours = adapters
    strengths = [0.7, 0.4] if method != "ties" else [1.0, 1.0]  # PEFT's TIES weighs after it has elected the signs
    rank = 4 if method == "linear" else 5
    kind = {"linear": "linear", "svd": "svd", "ties": "ties_svd"}[method]
    more = {} if method == "linear" else {"svd_rank": rank}
    more |= {"density": 0.5} if method == "ties" else {}
    model.add_weighted_adapter(["one", "two"], strengths, method, kind, **more)
    made = combine.combine(ours, strengths, Method(method, rank=None if method == "linear" else rank))
    for path in ("linear", "conv"):
        theirs = getattr(model.base_model.model, path).get_delta_weight(method).double().flatten(1)
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(delta(made.weights[path]), theirs, rtol=1e-3, atol=1e-5)


def test_linear_is_not_the_sum_and_says_so(family: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = [save(tmp_path / f"{n}.safetensors", random_lora(family, 2, 2.0, n)) for n in (1, 2)]
    run("combine", *two, "--method", "linear", "--output", tmp_path / "x.safetensors", "--json")
    off = json.loads(capsys.readouterr().out)["off_the_sum"]
    made, parts = read(tmp_path / "x.safetensors").weights, [(read(path).weights, 1.0) for path in two]
    wrong = sum(((delta(w) - total(parts, p)) ** 2).sum().item() for p, w in made.items())
    whole = sum((total(parts, p) ** 2).sum().item() for p in made)
    assert off == pytest.approx((wrong / whole) ** 0.5, rel=1e-4) and off > 0.5


def test_ties_and_dare_on_weighted_changes_as_peft_does_them() -> None:
    g = torch.Generator().manual_seed(0)
    deltas = [torch.randn(20, 30, generator=g, dtype=torch.float64) * s for s in (0.9, -0.4, 2.0)]
    ones = torch.ones(3, dtype=torch.float64)
    assert torch.equal(combine.ties(deltas, 0.3), merge_utils.ties(deltas, ones, 0.3))
    drawn = combine.dare(deltas[0], 0.3, torch.Generator().manual_seed(7))
    torch.manual_seed(7)
    assert torch.equal(drawn, merge_utils.prune(deltas[0], 0.3, "random", rescale=True))


def test_dare_keeps_the_mean_and_depends_on_its_seed() -> None:
    lora = {"x": LoraWeights(torch.ones(1, 200), torch.ones(300, 1), 1.0)}
    one, again, other = (combine.combine([lora, lora], [1, 0.5], Method("dare", 400, seed=s)) for s in (1, 1, 2))
    made = delta(one.weights["x"])
    assert made.mean().item() == pytest.approx(1.5, rel=0.02)
    values, counts = made.round(decimals=6).abs().unique(return_counts=True)
    assert values.tolist() == pytest.approx([0, 1, 2, 3]) and (counts / made.numel() - 0.25).abs().max() < 0.01
    assert torch.equal(made, delta(again.weights["x"])) and not torch.equal(made, delta(other.weights["x"]))


def parts(kind: str) -> tuple[combine.Lora, combine.Lora]:
    """Two LoRAs of one module with a known relation."""
    e = torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(3))).Q
    one = LoraWeights(e[:, :3].T.contiguous(), 0.5 * e[:, 3:6], 3.0)
    two = {
        "identical": one,
        "negated": LoraWeights(-one.down, one.up, 3.0),
        "orthogonal": LoraWeights(e[:, 6:8].T.contiguous(), e[:, :2].contiguous(), 1.0),
    }[kind]
    path = "unet.mid_block.attentions.0.proj_in"
    return {path: one}, {path: two}


@pytest.mark.parametrize(
    ("kind", "cosine", "shared", "verdict", "suggested"),
    [
        ("identical", 1, 1, "doubles", [0.5, 0.5]),
        ("negated", -1, 1, "fights", [1, 1]),
        ("orthogonal", 0, 0, "", [1, 1]),
    ],
)
def test_known_answers_of_the_report(
    kind: str, cosine: float, shared: float, verdict: str, suggested: list[float]
) -> None:
    measured = overlap.measure(parts(kind), [1.0, 1.0])
    for pair in (*measured.pairs, *measured.whole):
        assert pair.cosine == pytest.approx(cosine, abs=1e-6) and pair.overlap == pytest.approx(shared, abs=1e-6)
        assert pair.verdict == verdict
    assert [p.block for p in measured.pairs] == ["unet.mid_block"]
    assert measured.suggested == pytest.approx(suggested, abs=1e-6)
    flipped = overlap.measure(parts(kind), [1.0, -2.0])
    assert flipped.pairs[0].cosine == pytest.approx(-cosine, abs=1e-6)
    assert flipped.norms[1] == pytest.approx(2 * measured.norms[1])


def test_the_report_is_what_the_dense_matrices_say(files: Files) -> None:
    weights = [read(files[name]).weights for name in ("a", "c")]
    measured = overlap.measure(weights, [1.0, 1.0])
    for pair in measured.pairs:
        paths = [p for p in weights[1] if overlap.block_of(p) == pair.block]
        one, two = ([delta(w[p]) for p in paths] for w in weights)
        dot = sum((x * y).sum().item() for x, y in zip(one, two, strict=True))
        norms = [sum((x**2).sum().item() for x in side) ** 0.5 for side in (one, two)]
        assert pair.cosine == pytest.approx(dot / (norms[0] * norms[1]), abs=1e-9)
        assert list(pair.norms) == pytest.approx(norms) and pair.modules == len(paths)
    whole = [total([(w, 1.0) for w in weights], p) for p in weights[0]]
    assert measured.together == pytest.approx(sum((x**2).sum().item() for x in whole) ** 0.5)
    path = next(iter(weights[1]))
    x, y = (delta(w[path]) for w in weights)
    grams = [(m @ m.T, m.T @ m) for m in (x, y)]
    shares = [(p * q).sum() / (p.norm() * q.norm()) for p, q in zip(*grams, strict=True)]
    got = overlap.overlap(factors.of(weights[0][path]), factors.of(weights[1][path]))
    assert got == pytest.approx((shares[0] * shares[1]).sqrt().item(), rel=1e-6)


def test_report_only_writes_nothing(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(files["a"].parent.iterdir())
    run("combine", files["a"], f"{files['a']}:0.5", files["c"], "--report-only", "--json")
    told = json.loads(capsys.readouterr().out)
    assert sorted(files["a"].parent.iterdir()) == before
    assert [f["suggested"] for f in told["files"]] == pytest.approx([0.375, 0.375, 1], abs=0.02)
    run("combine", files["a"], f"{files['a']}:-0.5", "--report-only")
    out = capsys.readouterr().out
    assert "fights: a.safetensors x 1 and a.safetensors x -0.5 in text_encoder, unet.down_blocks.0" in out


def test_the_words_that_call_them_go_along(files: Files, tmp_path: Path) -> None:
    called = {}
    for name, phrase in (("a", "mira"), ("b", "neonpunk"), ("c", "gone")):
        called[name] = tmp_path / f"{name}.safetensors"
        run("metadata", files[name], "--set", f"modelspec.trigger_phrase={phrase}", "--output", called[name])
    output = tmp_path / "all.safetensors"
    run("combine", called["a"], called["b"], files["b"], f"{called['c']}:-0.5", "--output", output)
    with safe_open(output, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "mira, neonpunk"  # what is taken away is not called


def test_a_weak_lora_is_not_suggested_away(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("combine", f"{files['a']}:0.05", f"{files['b']}:0.05", "--output", weak := tmp_path / "weak.safetensors")
    run("combine", files["a"], weak, "--report-only")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("suggested weights, ")]
    assert "weak.safetensors:0" not in line and "none for weak.safetensors: so weak that the others do more" in line


def test_weights_on_the_command_line() -> None:
    assert weighted("a.safetensors:0.8") == (Path("a.safetensors"), 0.8)
    assert weighted("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert weighted(r"C:\loras\a.safetensors:-0.8") == (Path(r"C:\loras\a.safetensors"), -0.8)
    assert weighted(r"C:\loras\a.safetensors") == (Path(r"C:\loras\a.safetensors"), 1.0)
    for bad in ("a.safetensors:0,8", "a.safetensors:", "a.safetensors:nan", "0.8", ":0.8"):
        with pytest.raises(ValueError, match="must"):
            weighted(bad)


def test_mistakes(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = files["a"], files["b"]
    out = tmp_path / "x.safetensors"
    told = mistake(capsys, "combine", f"{a}:0", tmp_path / "none.safetensors", "--output", out, "--density", "0.5")
    assert "--density does nothing with --method concat" in told and "weight 0 changes nothing" in told
    assert "none.safetensors: no such file" in told and len(told.splitlines()) == 3
    assert "two LoRAs or more" in mistake(capsys, "combine", a, "--output", out)
    assert "where to?" in mistake(capsys, "combine", a, b)
    assert "writes nothing" in mistake(capsys, "combine", a, b, "--output", out, "--report-only")
    assert "linear adds matrices of one rank, these have [2, 3]" in mistake(
        capsys, "combine", a, b, "--method", "linear", "--output", out
    )
    assert "over what is read" in mistake(capsys, "combine", a, b, "--output", a, "--overwrite")
    out.write_bytes(b"mine")
    assert "already exists; give --output another name, or add --overwrite" in mistake(
        capsys, "combine", a, b, "--output", out
    )
    assert out.read_bytes() == b"mine"
    assert "nowhere does not exist" in mistake(
        capsys, "combine", a, b, "--output", tmp_path / "nowhere" / "x.safetensors"
    )


def test_files_of_other_models_are_refused_by_name(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    wide = save(tmp_path / "wide.safetensors", {path: LoraWeights(torch.ones(2, 1280), torch.ones(1280, 2), 2.0)})
    told = mistake(capsys, "combine", files["a"], wide, "--report-only")
    assert f"{wide}: {path} is [1280, 1280] here and [64, 64] in {files['a']}" in told
    name = names.modules()[100]
    tensors = kohya.to_kohya(
        {name.path: LoraWeights(torch.ones(2, 8), torch.ones(8, 2), 2.0)}, names.sdxl().kohya, dtype=torch.float32
    )
    loras.io.save_safetensors(tmp_path / "xl.safetensors", tensors)
    told = mistake(capsys, "combine", files["a"], tmp_path / "xl.safetensors", "--report-only")
    assert "a.safetensors is for Stable Diffusion 1.x, xl.safetensors is for SDXL" in told
    run("combine", tmp_path / "xl.safetensors", tmp_path / "xl.safetensors", "--output", tmp_path / "two.safetensors")
    both = loras.read(tmp_path / "two.safetensors")
    assert both.family is by_name("sdxl") and both.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert torch.equal(delta(both.weights[name.path]), torch.full((8, 8), 4.0, dtype=torch.float64))
