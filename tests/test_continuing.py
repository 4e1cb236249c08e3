"""Going on from an earlier LoRA: at another rank its effect is the same, or the best of that rank; before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.config.load import dump_config, load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.types import TargetRule
from lora_scripts.run import story
from lora_scripts.run.init_lora import Size, default_size, fit_all, fitted, size_of
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
