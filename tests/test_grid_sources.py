"""What a grid is drawn from, without a model: names of checkpoints, and what a run's config says of its base."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_flux1
from conftest import Finished
from lora_scripts.cli import main
from lora_scripts.config.load import dump_config, load_config
from lora_scripts.grid.cells import load_painter
from lora_scripts.grid.sources import GridOptions, _labelled, find_sources
from runs import faults


def test_checkpoints_of_several_runs_are_told_apart(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs, also of one name; two files of one name in folders of one name."""
    files = (
        "neon/neon.safetensors",
        "neon/neon-step000010.safetensors",
        "ink/ink.safetensors",
        "old/neon/neon.safetensors",
    )
    for number, name in enumerate(files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes([number]))
    (tmp_path / "p.txt").write_text("a house\n")
    monkeypatch.chdir(tmp_path)

    def labels(*words: str) -> list[str]:
        options = GridOptions(output=Path("g"), base=base, prompts=Path("p.txt"), checkpoints=words)
        return [one.label for one in find_sources(options).checkpoints if one]

    assert labels("neon") == labels("neon/*-step*.safetensors", "neon") == ["step 10", "final"]
    assert labels("neon", "ink") == ["neon-step000010", "neon", "ink"]
    assert labels("old/neon", "neon") == ["old/neon/neon", "neon-step000010", f"{tmp_path.name}/neon/neon"]
    assert [one.label for one in _labelled([Path(files[0]), Path(files[3])])] == [
        f"{tmp_path.name}/neon/neon",
        "old/neon/neon",
    ]


def test_what_a_base_predicts_is_said_by_its_own_run_alone(base: Path, finished: Finished, tmp_path: Path) -> None:
    folder, other = tmp_path / "neon", tmp_path / "other.safetensors"
    folder.mkdir()
    for file, path in ((finished.lora, folder / "neon.safetensors"), (base, other)):
        shutil.copyfile(file, path)
    keys = ["prediction=v", "zero_terminal_snr=true"]
    (folder / "config.yaml").write_text(dump_config(load_config(finished.folder / "config.yaml", keys)))
    options = GridOptions(output=tmp_path / "g", checkpoints=(str(folder),))
    near = Path(os.path.relpath(base))  # the same, by another way
    for given, told in ((None, ("v", True)), (near, ("v", True)), (other, (None, None))):
        found = find_sources(replace(options, base=given))
        assert (found.prediction, found.zero_terminal_snr) == told


def test_a_flow_models_sizes_and_clip_skip_are_told_before_it_is_loaded(
    tmp_path: Path, never_loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora, prompts = tiny_flux1.write_folder(tmp_path / "flux"), tmp_path / "a.safetensors", tmp_path / "p.txt"
    lora.write_bytes(b"")
    prompts.write_text("a house\na tree --w 72\n")
    more = ["--base", str(base), "--size", "64", "--clip-skip", "2", "--device", "cpu"]
    told = ("size 72x64: sides must be multiples of 16 for FLUX.1", "--clip-skip does nothing with FLUX.1")
    assert main(["generate", *more, "--from-file", str(prompts)]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in told), err
    options = GridOptions(
        output=tmp_path / "g", base=base, loras=(lora,), prompts=prompts, size=(64, 64), clip_skip=2, measures=False
    )
    err = faults(lambda: load_painter(options, find_sources(options)))
    assert all(word in err for word in told), err


def test_a_schedule_that_the_base_does_not_have_is_told_before_it_is_loaded(
    base: Path, finished: Finished, tmp_path: Path, never_loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a config: such pictures were drawn, and wrong."""
    lora, prompts = finished.lora, tmp_path / "p.txt"
    prompts.write_text("a house\n")
    told = "--zero-terminal-snr cannot be with a base that predicts "
    flux = tiny_flux1.write_folder(tmp_path / "flux")
    for path, more, kind in (
        (base, [], "epsilon; leave it out, or add --prediction v"),
        (base, ["--prediction", "flow"], "flow; leave it out"),
        (flux, [], "flow; leave it out"),
    ):
        words = ["--base", str(path), "--zero-terminal-snr", "--size", "64", "--device", "cpu", *more]
        assert main(["generate", *words, "--prompt", "a house"]) == 2
        assert capsys.readouterr().err == f"error: {told}{kind}\n"
        assert main(["grid", *words, "--prompts", str(prompts), "--loras", str(lora)]) == 2
        assert capsys.readouterr().err == f"error: {told}{kind}\n"
