"""Going on from an earlier LoRA: at another rank its effect is the same, or the best of that rank; before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from conftest import Finished
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.config.load import dump_config, load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.types import TargetRule
from lora_scripts.report import chinese
from lora_scripts.run import story
from lora_scripts.run.build import build_model
from lora_scripts.run.init_lora import Size, default_size, fit_all, fitted, read_initial, size_of
from lora_scripts.run.overview import lora_rows
from runs import only_the_file


def lora(rank: int, alpha: float, out: int = 10, inner: tuple[int, ...] = (12,), seed: int = 0) -> LoraWeights:
    g = torch.Generator().manual_seed(seed)
    ones = (1,) * (len(inner) - 1)
    return LoraWeights(torch.randn(rank, *inner, generator=g), torch.randn(out, rank, *ones, generator=g), alpha)


def dense(w: LoraWeights) -> Tensor:
    return w.alpha / w.rank * w.up.double().flatten(1) @ w.down.double().flatten(1)


@pytest.mark.parametrize("inner", [(12,), (4, 3, 3)])
def test_more_rank_changes_nothing_and_brings_fresh_directions(inner: tuple[int, ...]) -> None:
    before, fresh = lora(3, 6.0, inner=inner), lora(8, 1.0, inner=inner, seed=1).down
    after, _, _ = fitted(before, Size(8, 16.0), fresh)
    assert after.down.shape == fresh.shape and after.up.shape[1] == 8
    torch.testing.assert_close(dense(after), dense(before), rtol=1e-6, atol=1e-6)
    assert torch.equal(after.down[:3], before.down) and torch.equal(after.down[3:], fresh[3:])
    assert not after.up[:, 3:].any()


def test_another_alpha_is_made_up_for() -> None:
    before = lora(4, 8.0)
    after, _, _ = fitted(before, Size(4, 1.0), before.down)
    torch.testing.assert_close(dense(after), dense(before), rtol=1e-6, atol=1e-6)
    same, _, _ = fitted(before, Size(4, 8.0), before.down)
    assert same is before


@pytest.mark.parametrize("inner", [(12,), (4, 3, 3)])
def test_less_rank_is_the_best_of_that_rank(inner: tuple[int, ...]) -> None:
    before = lora(6, 3.0, inner=inner)
    after, kept, whole = fitted(before, Size(2, 1.0), before.down[:2])
    u, s, vt = torch.linalg.svd(dense(before), full_matrices=False)
    torch.testing.assert_close(dense(after), u[:, :2] * s[:2] @ vt[:2], rtol=1e-5, atol=1e-5)
    assert (kept, whole) == pytest.approx((float((s[:2] ** 2).sum()), float((s**2).sum())))
    assert after.rank == 2 and after.alpha == 1.0 and after.down.shape[1:] == inner


def test_a_rank_beyond_the_layer_is_filled_up() -> None:
    before = lora(9, 9.0, out=5)  # ΔW has rank 5 only
    after, kept, whole = fitted(before, Size(7, 7.0), lora(7, 1.0, seed=3).down)
    torch.testing.assert_close(dense(after), dense(before), rtol=1e-5, atol=1e-5)
    assert after.rank == 7 and kept == pytest.approx(whole)


def test_it_is_said_what_was_done() -> None:
    initial = {"a": lora(4, 4.0), "b": lora(4, 4.0, seed=1)}
    sizes = {"a": Size(8, 8.0), "b": Size(8, 8.0)}
    assert fit_all(initial, sizes, lambda path: torch.zeros(8, 12))[1] == (
        "rank 4 widened to 8 by fresh directions, its effect unchanged"
    )
    small = dict.fromkeys("ab", Size(1, 1.0))
    s = [torch.linalg.svdvals(dense(w)) ** 2 for w in initial.values()]
    share = sum(float(x[0]) for x in s) / sum(float(x.sum()) for x in s)
    told = fit_all(initial, small, lambda path: torch.zeros(1, 12))[1]
    assert told == f"rank 4 cut to 1 by SVD, {100 * share:.1f} % of its energy kept"
    assert fit_all(initial, dict.fromkeys("ab", Size(4, 4.0)), lambda path: torch.zeros(4, 12))[1] == ""


def test_the_rank_is_the_files_unless_it_is_written(base: Path, data: Path, tmp_path: Path) -> None:
    keys = {"train_data_dir": data, "base_model": base, "output_dir": tmp_path / "o", "init_lora": tmp_path / "l"}
    file, rule = {"a": lora(4, 2.0)}, TargetRule(match="*")
    kept = TrainConfig(**keys)
    assert default_size(kept, file) == size_of(kept, file["a"], rule) == Size(4, 2.0)
    asked = TrainConfig(**keys, lora_rank=8)
    assert default_size(asked, file) == size_of(asked, file["a"], rule) == Size(8, 4.0)
    assert size_of(asked, file["a"], None) == Size(4, 2.0)
    assert size_of(asked, file["a"], TargetRule(match="*", rank=2)) == Size(2, 1.0)
    stronger = TrainConfig(**keys, lora_rank=8, lora_alpha=16.0)
    assert size_of(stronger, file["a"], rule) == Size(8, 16.0)
    assert default_size(TrainConfig(**keys, lora_rank=8), {}) == Size(8, 8.0)
    assert "# lora_rank: 16  # taken over from init_lora" in dump_config(kept)


LAYERS = {f"unet.mid_block.attentions.0.transformer_blocks.0.{leaf}": (64, 64) for leaf in ("attn1.to_q", "attn1.to_v")}
"""Of the tiny base: one that is trained, and one that is not."""


def earlier(kind: str, path: Path) -> Path:
    """A file of such layers as other trainers write it: a LoKr of other factors than a run's own, in fp16."""
    g = torch.Generator().manual_seed(4)
    half = {"dora": {"lora_down.weight": (2, 64), "lora_up.weight": (64, 2), "dora_scale": (1, 64)},
            "loha": {"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64)},
            "lokr": {"lokr_w1": (4, 2), "lokr_w2_a": (16, 2), "lokr_w2_b": (2, 32)},
            "oft": {"oft_blocks": (16, 4, 4)}}[kind]  # fmt: skip
    tensors = {}
    for layer in LAYERS:
        stem = f"lora_unet_{layer.removeprefix('unet.').replace('.', '_')}"
        made = {leaf: torch.randn(*shape, generator=g) / 8 for leaf, shape in half.items()}
        made |= {"alpha": torch.tensor(2.0)} if kind != "oft" else {}
        if kind == "oft":
            made["oft_blocks"] -= made["oft_blocks"].mT.clone()
        tensors |= {f"{stem}.{leaf}": (t.abs() if leaf == "dora_scale" else t).half() for leaf, t in made.items()}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_other_adapters_go_on_from_a_file_of_their_kind(
    kind: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate that changes nothing the file comes out as it went in; with another, what is trained has moved."""
    monkeypatch.setattr(story, "finish", only_the_file)
    file = earlier(kind, tmp_path / "earlier.safetensors")
    keys = {"base_model": base, "train_data_dir": data, "adapter": kind, "init_lora": file, "targets": "['*mid*to_q*']"}
    keys |= {"save_precision": "fp32", "epochs": 1}
    before = load_file(file)
    for rate, still in ((1e-12, True), (1e-2, False)):
        out = tmp_path / f"out-{rate:g}"
        config = tiny.write_config(tmp_path, **keys, learning_rate=f"{rate:g}", output_dir=out)
        assert main(["train", "--config", str(config)]) == 0
        after = load_file(next(out.glob("*.safetensors")))
        for key, tensor in before.items():
            same = torch.allclose(after[key], tensor.float(), atol=1e-6, rtol=0)
            assert after[key].shape == tensor.shape and same == (still or "to_v" in key or "alpha" in key), key
        assert any("attn2_to_q" in key for key in after)  # that the file does not have


def test_an_alpha_of_whole_factors_is_no_strength_of_other_layers(tmp_path: Path) -> None:
    """LoKr files have 1e10 there; layers that the file lacks began with it."""
    paths = dict.fromkeys(("base_model", "train_data_dir", "output_dir"), tmp_path)
    config = TrainConfig(**paths, lora_rank=4, lora_alpha=2)
    leaves = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(16, 16), "alpha": torch.tensor(1e10)}
    size = default_size(config, {"unet.x": leaves})
    assert (size.rank, size.alpha) == (4, 2.0)


def test_what_does_not_go_on_is_told(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(kind: str, **more: object) -> str:
        file = earlier(kind, tmp_path / f"{kind}.safetensors")
        keys = {"base_model": base, "train_data_dir": data, "init_lora": file}
        assert main(["train", "--config", str(tiny.write_config(tmp_path, **{**keys, **more}))]) == 2
        return capsys.readouterr().err

    assert "init_lora is a LoKr (unet." in (text := told("lokr")) and "write adapter: lokr" in text
    assert "which adapter: dora does not go on from; write adapter: loha" in told("loha", adapter="dora")
    text = told("loha", adapter="loha", lora_rank=4)
    assert "lora_rank 4 cannot be with this init_lora: it has rank 2" in text and "leave lora_rank out" in text
    text = told("lokr", adapter="lokr", lora_alpha=8)
    assert "lora_alpha 8 cannot be with this init_lora: it has alpha 2" in text and "leave lora_alpha out" in text
    assert "cannot be with adapter: pissa" in told("dora", adapter="pissa")
    file = load_file(tmp_path / "dora.safetensors")
    rows = {key: torch.ones(64, 1) if key.endswith("dora_scale") else tensor for key, tensor in file.items()}
    save_file(rows, tmp_path / "rows.safetensors")
    text = told("dora", adapter="dora", init_lora=tmp_path / "rows.safetensors")
    assert "has other lengths" in text and "--bake-dora" in text


def test_layers_that_are_not_trained_are_told_with_the_rank_that_they_keep(
    base: Path, data: Path, finished: Finished, tmp_path: Path
) -> None:
    """All were counted as trained, at the rank of most of them."""
    keys = {"base_model": base, "train_data_dir": data, "init_lora": finished.lora, "lora_rank": 4}
    for targets, trained, kept in (
        (tiny.SOME, "14 layers", 178),
        ("['*up_blocks.3.attentions.0*attn1.to_q']", "1 layer", 191),
    ):
        config = load_config(tiny.write_config(tmp_path, **keys, targets=targets))
        model = build_model(config, torch.device("cpu"), "fp32", read_initial(config))
        rows = lora_rows(model)
        count = sum(p.numel() for p in model.trained) / 1e6
        assert rows == [
            ("LoRA", f"{trained}, rank 4, alpha 2, {count:.2f} M parameters"),
            ("not trained", f"{kept} layers of init_lora besides, of rank 2"),
        ]
        assert all(chinese.translated(text) for _, text in rows)


@pytest.mark.slow
def test_before_and_after_on_the_old_pictures(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run from the first one's file: at step 0 its held-out loss is what the first run ended with."""
    data = tiny.write_pictures(tmp_path / "data", 4)
    held = tiny.write_pictures(tmp_path / "held", 4, size=(72, 64))
    keys = {"base_model": base, "train_data_dir": data, "val_data_dir": held, "save_precision": "fp32", "epochs": 1}
    keys |= {"targets": tiny.SOME}
    first = tiny.write_config(tmp_path, **keys, output_dir=tmp_path / "first")
    with monkeypatch.context() as patch:  # its file is enough
        patch.setattr(story, "finish", only_the_file)
        assert main(["train", "--config", str(first)]) == 0
    lora_file = tmp_path / "first" / "first.safetensors"
    more = {**keys, "lora_rank": 4, "init_lora": lora_file, "output_dir": tmp_path / "second", "report": "full"}
    second = tiny.write_config(tmp_path, **more)
    capsys.readouterr()
    assert main(["train", "--config", str(second)]) == 0
    told = capsys.readouterr().out
    assert "rank 2 widened to 4 by fresh directions, its effect unchanged" in " ".join(told.split())
    a, b = (json.loads((tmp_path / n / "heldout.json").read_text())["evaluations"] for n in ("first", "second"))
    assert [(e["step"], e["name"]) for e in b] == [(0, "base"), (0, "init"), (1, ""), (2, "")]
    assert b[0]["held"] == pytest.approx(a[0]["held"], rel=1e-6)
    assert b[1]["held"] == pytest.approx(a[-1]["held"], rel=1e-4)
    assert "before and after: base" in told and "measuring took" in told
    page = (tmp_path / "second" / "report.html").read_text()
    assert "Held-out loss" in page and "Before and after: base" in page and "Copies?" in page
    assert load_config(tmp_path / "second" / "config.yaml").lora_rank == 4
