"""Every family through the whole life of a LoRA, by the commands that people type: one row each in `families.ROWS`.

identify, load (single file and folder), plan, cache, steps, save, stop, resume, export and proof, generate, grid,
merge, unmerge, combine, convert, inspect, extract.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from conftest import offline
from families import ROWS, Row
from lora_scripts.adapters.algebra import factors
from lora_scripts.cli import main
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.loras.file import read
from lora_scripts.run import base_files
from lora_scripts.run.configs import load_config
from runs import stopped


@dataclass(frozen=True)
class Life:
    """A family's base, and a run on it that was stopped after two steps and then went on to its end."""

    row: Row
    folder: Path
    base: Path
    config: Path
    cut_state: dict[str, torch.Tensor]
    """What was trained when it was stopped."""

    @property
    def lora(self) -> Path:
        return self.folder / "mylora" / "mylora.safetensors"

    @property
    def flags(self) -> list[object]:
        """For commands that draw: what lies beside the base."""
        beside = self.row.beside(self.folder).items()
        return [word for key, path in beside for word in (f"--{key.replace('_', '-')}", *_listed(path))]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


_PARAMS = [pytest.param(row, marks=[pytest.mark.slow] if row.slow else [], id=row.name) for row in ROWS]


@pytest.fixture(scope="module", params=_PARAMS)
def life(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    row: Row = request.param
    folder = tmp_path_factory.mktemp(row.name)
    base, out = row.file(folder / "base.safetensors"), folder / "mylora"
    keys = {"lora_alpha": 1, "save_precision": "fp32", "sample_every": 2, **row.keys, **row.beside(folder)}
    config = tiny.write_config(folder, base_model=base, train_data_dir=data, output_dir=out, **keys)
    with offline():
        stopped(config, 2)
        cut = load_file(out / "state" / "step-00000002" / "lora.safetensors")
        assert main(["train", "--config", str(config), "--resume"]) == 0
    return Life(row, folder, base, config, cut)


def test_its_config_with_every_key_can_be_trained_again(life: Life) -> None:
    assert load_config(life.lora.parent / "config.yaml") == load_config(life.config)


def run(*words: object) -> None:
    with offline():
        assert main([str(word) for word in words]) == 0


def changes(path: Path) -> dict[str, torch.Tensor]:
    """Our module path -> ΔW in float64."""
    return {name: factors.of(w).dense().double() for name, w in read(path).weights.items()}


def weights_in(model: Path) -> dict[str, torch.Tensor]:
    """Of a file, or of all files of a folder."""
    if model.is_file():
        return load_file(model)
    files = sorted(model.rglob("*.safetensors"))
    return {f"{file.relative_to(model)}/{key}": value for file in files for key, value in load_file(file).items()}


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], within: float) -> None:
    assert one.keys() == two.keys()
    for name, change in one.items():
        assert (change - two[name]).abs().max() <= within * max(1e-6, change.abs().max()), name


def test_a_base_is_known_by_its_header_and_its_folder(life: Life, tmp_path: Path) -> None:
    facts = by_name(life.row.name)
    assert identify(life.base) is facts.checkpoint and find(life.base) is facts
    beside: Any = life.row.beside(life.folder)
    facts.check(life.base, "vae" not in beside)
    options = LoadOptions(torch.device("cpu"), torch.float32)
    family: Any = load_family(facts, life.base, replace(options, **beside))
    names = facts.names()
    assert set(family.trainable()) <= names.written.keys() and set(family.roots) == {
        facts.image_root,
        *facts.text_roots,
    }
    if life.row.folder is not None:
        place = life.row.folder(tmp_path / "base")
        assert find(place) is facts
        facts.check(place, True)
        other: Any = load_family(facts, place, options)
        for root in family.roots:
            one, two = (f.roots[root].state_dict() for f in (family, other))
            assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_stopped_run_goes_on_exactly(life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = tmp_path / "mylora"
    monkeypatch.setattr(base_files, "_SETTLED", -1)  # they were written just now
    run("train", "--config", life.config, f"output_dir={again}", f"cache_dir={life.folder / 'mylora' / 'cache'}")
    assert (again / "mylora.safetensors").read_bytes() == life.lora.read_bytes()
    last = load_file(life.folder / "mylora" / "state" / "step-00000006" / "lora.safetensors")
    assert last.keys() == life.cut_state.keys() and any(not torch.equal(last[k], life.cut_state[k]) for k in last)
    assert "How strong" not in (life.folder / "mylora" / "report.html").read_text("utf-8")  # report: short
    cache = life.folder / "mylora" / "cache"
    assert len(list(cache.rglob("*.safetensors"))) > 0
    beside: Any = life.row.beside(life.folder)
    large = [life.base, *(path for path in beside.get("text_encoder", ()) if path.is_file())]
    assert {str(path) for path in large} <= json.loads((cache / "digests.json").read_text()).keys()


def test_every_trained_layer_is_in_the_file(life: Life) -> None:
    written, facts = read(life.lora), by_name(life.row.name)
    assert written.family is facts
    parts = {path.partition(".")[0] for path in written.weights}
    assert parts == {facts.image_root, *facts.text_roots}
    assert written.metadata["ss_base_model_version"] == facts.lora.base_version
    assert written.metadata["modelspec.architecture"] == facts.lora.architecture


@pytest.mark.slow  # test_plan does it for one family
def test_plan_forecasts_the_run(life: Life, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("plan", "--config", life.config, f"output_dir={tmp_path / 'new'}", "sample_steps=1", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert figures["steps"] == 6 and figures["memory"]["peak"] > 0 and not (tmp_path / "new").exists()


def test_generate_draws_with_it(life: Life, tmp_path: Path) -> None:
    ask = ["--base", life.base, "--size", "64", "--steps", "2", "--seed", "3", "--precision", "fp32", *life.flags]
    where = ["--lora-dir", life.folder / "mylora"]
    run("generate", *ask, *where, "--prompt", "picture 3 <lora:mylora:1>", "--output", tmp_path / "with.png")
    run("generate", *ask, "--prompt", "picture 3", "--output", tmp_path / "without.png")
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("with", "without")]
    assert pictures[0].shape[:2] == (64, 64) and not np.array_equal(*pictures)


def test_a_negative_prompt_counts_or_is_refused(life: Life, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The devs are told their guidance, so that nothing is left for a negative prompt to do."""
    ask = ["--base", life.base, "--size", "64", "--steps", "1", "--cfg", "3", "--precision", "fp32", *life.flags]
    words = [str(word) for word in ("generate", *ask, "--prompt", "picture 3", "--negative-prompt", "hello")]
    if life.row.name in ("flux1", "flux2_dev"):
        assert main([*words, "--output", str(tmp_path / "a.png")]) == 2
        assert f"{by_name(life.row.name).words} reads no negative prompt" in capsys.readouterr().err
        return
    run(*words, "--output", tmp_path / "a.png")
    run("generate", *ask, "--prompt", "picture 3", "--output", tmp_path / "b.png")
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert not np.array_equal(one, two)


@pytest.mark.slow  # every cell is drawn as generate draws
def test_a_grid_of_it(life: Life, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("picture 3\n")
    keys = ["--prompts", tmp_path / "prompts.txt", "--strengths", "0", "1", "--steps", "1", "--size", "64"]
    run("grid", "--base", life.base, "--loras", life.lora, *keys, "--seeds", "1", "--output", tmp_path / "grid")  # the
    # run's own config names what lies beside its base
    assert len(list((tmp_path / "grid").rglob("*.png"))) >= 2 and list((tmp_path / "grid").glob("*.html"))


def test_merged_it_is_the_base_plus_its_change_and_unmerged_the_base(life: Life, tmp_path: Path) -> None:
    base, end = life.base, ".safetensors"
    if by_name(life.row.name).text_roots and life.row.beside(life.folder):  # its text encoder is a file of its own
        assert life.row.folder is not None
        base, end = life.row.folder(tmp_path / "base"), ""
    merged, back = tmp_path / f"merged{end}", tmp_path / f"back{end}"
    run("merge", "--base", base, "--output", merged, f"{life.lora}:0.5")
    before, after = weights_in(base), weights_in(merged)
    assert before.keys() == after.keys() and sum(not torch.equal(before[k], after[k]) for k in before) > 0
    run("unmerge", "--model", merged, "--output", back, f"{life.lora}:0.5")
    again = weights_in(back)
    assert all((before[k].float() - again[k].float()).abs().max() < 1e-6 for k in before if before[k].numel())
    # Extracted from the merged model, it is half of itself.
    found = tmp_path / "found.safetensors"
    rank = read(life.lora).rank
    words = ["--rank", rank, "--precision", "fp32"]
    run("extract", "--base", base, "--tuned", merged, "--output", found, *words)
    whole, half = changes(life.lora), changes(found)
    for name, change in half.items():
        assert (change - whole[name] / 2).abs().max() <= 2e-3 * whole[name].abs().max() + 1e-7, name
    assert len(half) > 0


def test_combined_with_itself_it_is_twice_itself(life: Life, tmp_path: Path) -> None:
    twin = tmp_path / "twin.safetensors"
    shutil.copy(life.lora, twin)
    run("combine", f"{life.lora}:1", f"{twin}:1", "--output", tmp_path / "two.safetensors", "--precision", "fp32")
    double = {name: 2 * change for name, change in changes(life.lora).items()}
    assert_close(double, changes(tmp_path / "two.safetensors"), 1e-5)


def test_it_goes_through_every_naming_and_back(life: Life, tmp_path: Path) -> None:
    source = life.lora
    for naming in life.row.namings:
        target = tmp_path / f"{naming}.safetensors"
        run("convert", source, "--to", naming, "--output", target)
        assert_close(changes(life.lora), changes(target), 1e-6)
        source = target


def test_inspect_and_verify_say_what_it_is(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    facts = by_name(life.row.name)
    run("inspect", life.lora, "--json")
    assert json.loads(capsys.readouterr().out)["family"] == facts.words
    run("inspect", life.base, "--json")
    assert json.loads(capsys.readouterr().out)["problems"] == []
    run("verify", life.lora, "--base", life.base)
    count, lines = len(read(life.lora).weights), capsys.readouterr().out.splitlines()
    least = 2 + ("ComfyUI" not in facts.lora.unread_by)
    assert len(lines) >= least and all(f"{count} of {count} modules, ΔW equal" in line for line in lines)


def test_it_can_be_trained_further(life: Life, tmp_path: Path) -> None:
    more = [f"init_lora={life.lora}", "lora_alpha=null", f"output_dir={tmp_path / 'more'}"]
    stopped(life.config, 1, *more, "learning_rate=1e-12", "weight_decay=0", "sample_every=0")
    assert_close(changes(life.lora), changes(tmp_path / "more" / "more-step000001.safetensors"), 1e-5)
