"""Short runs that are compared: which rate comes next by hand-made losses, and real trials on a narrow model."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import small_words
import tiny
import tiny_flux2
from conftest import offline
from lora_scripts import run
from lora_scripts.cli import main
from lora_scripts.cli import tune as cli_tune
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import Diverged
from lora_scripts.events import Event, Stepped
from lora_scripts.run.configs import load_config
from lora_scripts.train.evidence import Evaluation
from lora_scripts.tune.command import Tuned, TuneOptions, tune
from lora_scripts.tune.search import Trial, next_power, standings


@pytest.mark.parametrize(
    ("lowest", "order"),
    [(0, [0, 1, -1]), (1, [0, 1, 2]), (3, [0, 1, 2, 3, 4]), (-2, [0, 1, -1, -2, -3])],
)
def test_rates_are_tried_until_the_lowest_loss_has_a_higher_one_on_either_side(lowest: int, order: list[int]) -> None:
    """Of a valley with its lowest place at `lowest`, each rate once."""
    tried: dict[int, float] = {}
    while (power := next_power(tried)) is not None:
        tried[power] = abs(power - lowest) + 1.0
    assert list(tried) == order


def test_a_rate_without_a_loss_is_worse_than_any() -> None:
    assert next_power({0: 1.0, 1: math.inf}) == -1 and next_power({0: 1.0, 1: math.inf, -1: 2.0}) is None


def trial(value: str, *losses: float) -> Trial:
    held = Evaluation(4, losses, ())
    return Trial(value, Path(value), Evaluation(0, [1.0] * len(losses), (), "base"), held if losses else None)


def test_trials_are_compared_picture_by_picture() -> None:
    """Means lie far apart where pictures do; what counts is that each is higher. Few pictures tell nothing apart."""
    low, high, mixed = (0.1, 0.5, 0.9, 0.3), (0.12, 0.53, 0.93, 0.32), (0.0, 0.7, 0.95, 0.2)
    told = standings([trial("high", *high), trial("none"), trial("mixed", *mixed), trial("low", *low)])
    assert [one.trial.value for one in told] == ["low", "mixed", "high", "none"]
    assert [one.alike for one in told] == [True, True, False, False]
    assert told[2].higher is not None and told[2].higher.mean == pytest.approx(0.025)
    few = standings([trial("a", 0.1, 0.2, 0.3), trial("b", 0.4, 0.5, 0.6)])
    assert [one.alike for one in few] == [True, True]


def test_what_is_worse_than_the_base_is_not_to_be_written() -> None:
    def last(*losses: float) -> str:
        return cli_tune.words(Tuned("lora_rank", standings([trial("4", *losses)]), 1, 4, 4))[-1]

    assert last(0.9, 1.0, 1.0, 1.0) == "in 1 of 4 epochs the lowest: write lora_rank: 4"
    assert last(1.1, 1.0, 1.0, 1.0).startswith("none is better than the base model: more --share")


def test_what_counts_is_how_far_a_trial_is_below_its_base() -> None:
    """A run of another length may measure at other noise levels, at which all losses are lower."""
    near, far = trial("near", 0.9, 0.8, 0.9, 0.8), trial("far", 1.5, 1.6, 1.5, 1.6)
    told = standings([near, replace(far, base=Evaluation(0, [2.0] * 4, (), "base"))])
    assert [one.trial.value for one in told] == ["far", "near"]
    assert told[1].higher is not None and told[1].higher.mean == pytest.approx(0.45 - 0.15)


@pytest.fixture
def config(base: Path, data: Path, tmp_path: Path) -> Path:
    own = {"base_model": base, "train_data_dir": data, "output_dir": tmp_path / "out", "epochs": 4}
    return tiny.write_config(tmp_path, **own, val_split=0.4, targets="['*attn1.to_q']", learning_rate=1e-3)


def test_the_best_of_the_values_that_are_named(config: Path, tmp_path: Path, capsys: Any) -> None:
    """Each trial is the run that `train` would make of these keys; asked again, nothing is trained."""
    words = ["tune", "--config", str(config), "--try", "lora_rank=1,4", "--share", "0.5"]
    with offline():
        assert main(words) == 0
    told = capsys.readouterr().out
    (place,) = (tmp_path / "out" / "tune").iterdir()
    folders = sorted(path.name for path in place.iterdir())
    assert folders == ["lora_rank-1", "lora_rank-4"] and not list(place.glob("*/state/*"))
    losses = {}
    for name in folders:
        rows = json.loads((place / name / "heldout.json").read_text("utf-8"))["evaluations"]
        losses[name[-1]] = min(sum(row["held"]) / len(row["held"]) for row in rows if not row["name"])
    best = min(losses, key=lambda value: losses[value])
    assert told.splitlines()[-1] == f"in 2 of 4 epochs the lowest: write lora_rank: {best}"
    plain = [f"epochs=2 lora_rank={best} sample_every=0 report=one output_dir={tmp_path / 'plain'}".split()]
    with offline():
        assert main(["train", "--config", str(config), *plain[0]]) == 0
    rows = json.loads((tmp_path / "plain" / "heldout.json").read_text("utf-8"))["evaluations"]
    assert min(sum(row["held"]) / len(row["held"]) for row in rows if not row["name"]) == losses[best]
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train", None)  # nothing is trained
        assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == told.splitlines()[-1]


def test_the_run_itself_finds_what_trials_encoded(config: Path, tmp_path: Path) -> None:
    """And its folder is free."""
    with offline():
        tune(TuneOptions(config, key="lora_rank", values=("1",)))
        cached = {path.name for path in (tmp_path / "out" / "cache").rglob("*") if path.is_file()}
        assert cached and main(["train", "--config", str(config), "epochs=1"]) == 0
    assert cached <= {path.name for path in (tmp_path / "out" / "cache").rglob("*")}


def test_a_trial_that_was_stopped_goes_on(config: Path, tmp_path: Path) -> None:
    """To the losses that it has without a stop."""
    options = TuneOptions(config, key="lora_rank", values=("1",), share=0.5)

    def stops(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            raise KeyboardInterrupt

    with offline():
        with pytest.raises(KeyboardInterrupt):
            tune(options, stops)
        assert not list((tmp_path / "out" / "tune").glob("*/*/report.html"))
        one = tune(options).standings
        two = tune(replace(options, overrides=(f"output_dir={tmp_path / 'two'}",))).standings
    assert [row.trial.best for row in one] == [row.trial.best for row in two]


def test_a_rate_at_which_the_loss_is_no_number_is_told_and_left(config: Path, monkeypatch: Any, capsys: Any) -> None:
    train = run.train

    def breaks(asked: Any, **more: Any) -> Any:
        if asked.learning_rate > 1e-3:
            raise Diverged("step 2: the loss is not a finite number")
        return train(asked, **more)

    monkeypatch.setattr(run, "train", breaks)
    with offline():
        assert main(["tune", "--config", str(config), "--share", "0.25", "--most", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["0.002", "no", "number"] for line in lines)
    assert lines[-1] in {f"in 1 of 4 epochs the lowest: write learning_rate: {rate}" for rate in ("0.001", "0.0005")}


def test_a_language_model_is_tuned_by_the_same_command(tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {n}+{n}?", "completion": f"it is {2 * n}"} for n in range(20)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    own = {"base_model": small_words.write_model(tmp_path / "model"), "train_file": tmp_path / "sums.jsonl"}
    how = {"output_dir": tmp_path / "out", "lora_rank": 2, "epochs": 2, "batch_size": 4, "precision": "fp32"}
    config = tmp_path / "words.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in {**own, **how}.items()), "utf-8")
    with offline():
        (told,) = tune(TuneOptions(config, values=("3e-2",), share=0.5)).standings
    assert told.trial.best and told.trial.base and told.trial.best.loss < told.trial.base.loss


@pytest.fixture
def trained(monkeypatch: Any) -> list[TrainConfig]:
    """The trials that were asked for; nothing is trained."""
    asked: list[TrainConfig] = []

    def train(one: TrainConfig, **more: Any) -> None:
        asked.append(one)
        rows = [{"step": n, "held": [1.0 - n / 9] * 2, "train": [], "name": "" if n else "base"} for n in (0, 2)]
        one.output_dir.mkdir(parents=True)
        (one.output_dir / "heldout.json").write_text(json.dumps({"evaluations": rows}), "utf-8")
        (one.output_dir / "report.html").write_text("", "utf-8")

    monkeypatch.setattr(run, "train", train)
    return asked


def test_trials_of_other_files_are_others(base: Path, config: Path, tmp_path: Path, trained: list[TrainConfig]) -> None:
    """A base that was replaced, another mask: what was finished with the ones before is no part of the comparison."""
    own = Path(shutil.copyfile(base, tmp_path / "own.safetensors"))
    shutil.copytree(load_config(config).train_data_dir, tmp_path / "masks", ignore=shutil.ignore_patterns("*.csv"))
    words = ["tune", "--config", str(config), "--try", "lora_rank=1,2", f"base_model={own}"]
    words.append(f"mask_dir={tmp_path / 'masks'}")
    mask = next((tmp_path / "masks").iterdir())
    counts = []
    for changed in (config, mask.with_name(".DS_Store"), own, mask):
        changed.touch()
        os.utime(changed, ns=(changed.stat().st_mtime_ns + 1000,) * 2)
        assert main(words) == 0
        counts.append(len(trained))
    assert counts == [2, 2, 4, 6]


def test_trials_of_other_references_are_others(data: Path, tmp_path: Path, trained: list[TrainConfig]) -> None:
    base = tiny_flux2.write_base(tmp_path / "base.safetensors")
    before = Path(shutil.copytree(data, tmp_path / "before", ignore=shutil.ignore_patterns("*.csv")))
    keys = {"base_model": base, **tiny_flux2.beside(tmp_path), "train_data_dir": data, "reference_dir": before}
    words = ["tune", "--config", str(tiny.write_config(tmp_path, **keys, val_split=0.4)), "--try", "lora_rank=1,2"]
    assert main(words) == 0
    Image.effect_noise((64, 64), 9).convert("RGB").save(before / "0.png")
    assert main(words) == 0 and len(trained) == 4


def test_a_trial_draws_nothing_on_its_way_and_reaches_its_rate(config: Path, trained: list[TrainConfig]) -> None:
    config.write_text(config.read_text("utf-8").replace("sample_every: 0", "sample_every_epochs: 1"), "utf-8")
    words = ["tune", "--config", str(config), "--try", "lora_rank=1,2", "--share", "0.25"]
    assert main([*words, "sample_first=true", "warmup_steps=4"]) == 0
    for one in trained:
        assert one.preview_steps(3) == 0 and not one.sample_first
        assert one.warmup_steps == 1 and one.save_precision == "fp32"


def test_a_value_that_is_no_name_of_a_folder(tmp_path: Path, config: Path, trained: list[TrainConfig]) -> None:
    """Such as a path: each has a folder of its own."""
    assert main(["tune", "--config", str(config), "--try", "targets=['*to_q'],['*to_k']"]) == 0
    names = [one.output_dir.name for one in trained]
    assert all(re.fullmatch("targets-[0-9a-f]{8}", name) for name in names) and len(set(names)) == 2
    assert len({one.output_dir.parent for one in trained}) == 1 == len(list((tmp_path / "out" / "tune").iterdir()))


def test_keys_and_values_are_no_words_of_chinese(config: Path, trained: list[TrainConfig], capsys: Any) -> None:
    """`loss` is one, but has to be written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_SCRIPTS_LANG", "zh")
        assert main(["tune", "--config", str(config), "--try", "loss=l2,huber"]) == 0
        assert main(["tune", "--config", str(config), "--try", "seed=1,2"]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert (
        lines[0] == "试验：loss l2，训练 1 轮（配置共 4 轮）"
        and lines[-1] == "训练 1 轮（配置共 4 轮）时损失最低：请写 loss: l2"
    )
    assert lines[2].split()[0] == "loss" and [line.split()[0] for line in lines[3:5]] == ["l2", "huber"]
    assert "--try seed：它决定测的是什么" in err


def test_losses_that_are_gone_are_told(config: Path, trained: list[TrainConfig], capsys: Any) -> None:
    words = ["tune", "--config", str(config), "--try", "lora_rank=1,2"]
    assert main(words) == 0
    folder = trained[1].output_dir
    (folder / "heldout.json").unlink()
    assert main(words) == 2
    assert f"heldout.json: the losses of this trial cannot be read; remove {folder}" in capsys.readouterr().err


def test_values_of_which_none_gives_a_number_have_no_best(config: Path, monkeypatch: Any, capsys: Any) -> None:
    def breaks(*asked: Any, **more: Any) -> None:
        raise Diverged("step 2: the loss is not a finite number")

    monkeypatch.setattr(run, "train", breaks)
    assert main(["tune", "--config", str(config), "--try", "lora_rank=1,2"]) == 2
    assert "lora_rank: with none of 1, 2 the loss is a number; lower learning_rate" in capsys.readouterr().err


def test_what_cannot_be_compared_is_told_at_once(config: Path, capsys: Any) -> None:
    def told(*more: str) -> str:
        assert main(["tune", "--config", str(config), *more]) == 2
        text: str = capsys.readouterr().err
        return text

    assert "tune compares by held-out loss, and nothing is held out; write val_split: 0.1" in told("val_split=0")
    assert "prodigy finds its learning rate itself; name another key" in told("optimizer=prodigy", "learning_rate=1")
    assert "lora_rnk" in told("--try", "lora_rnk=4,8")
    assert "lora_rank" in told("--try", "lora_rank=4,many")
    assert "--try epochs: tune sets it for each trial; write --share" in told("--try", "epochs=2,4")
    assert "--try seed: it decides what is measured" in told("--try", "seed=1,2")
    assert "argument --try: must be KEY=A,B,… with two values" in told("--try", "lora_rank=4，")
