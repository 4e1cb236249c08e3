"""A run that was stopped, by Ctrl-C or by a kill, and goes on: the same to the last bit as one that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lora_scripts
import tiny
from conftest import Finished
from lora_scripts.cli import main
from lora_scripts.config.load import load_config
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Note, Progress, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.run import resume, story
from lora_scripts.run.preflight import preflight
from lora_scripts.run.resume import FREE_KEYS, as_now, other_length
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.train import state as states
from lora_scripts.train.optim import Rates
from runs import interrupting, only_the_file, stopped

STEPS = 9
"""Five batches of one picture, two to a step, in each of three epochs: the last step of an epoch has one batch."""

KILLED = """
import os, signal, sys
from lora_scripts.cli import main
replace = os.replace

def dying(source, target):
    if str(target).endswith("step-00000004"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
main(["train", "--config", sys.argv[1], f"output_dir={sys.argv[2]}"])
"""

STARTED = """
import os, sys
from lora_scripts.cli import main
replace = os.replace

def ending(source, target):
    replace(source, target)
    if str(target).endswith("step-00000001"):
        heavy = {"diffusers", "transformers", "peft", "scipy", "torch._dynamo"}
        print("imported:", *sorted(heavy & set(sys.modules)), flush=True)
        os._exit(0)

os.replace = ending
main(["train", "--config", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def config(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that draws random numbers."""
    keys = {
        **{"epochs": 3, "batch_size": 1, "gradient_accumulation": 2, "save_steps": 2, "seed": 7, "warmup_steps": 1},
        **{"flip": "true", "random_crop": "true", "caption_dropout": 0.3, "lora_dropout": 0.2, "shuffle_tags": "true"},
        **{"noise_offset": 0.05, "weight_decay": 0.1, "keep_last": 1, "sample_every": 5, "targets": tiny.SOME},
        "val_split": "null",
    }
    return tiny.write_config(tmp_path_factory.mktemp("resume"), base_model=base, train_data_dir=data, **keys)


@pytest.fixture(scope="module")
def unbroken(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "mylora"
    with mock.patch.object(story, "finish", only_the_file):
        assert main(["train", "--config", str(config), f"output_dir={out}"]) == 0
    return out


def assert_same(left: Path, right: Path) -> None:
    """The exported file to the byte; weights, moments and losses as they stand in float32."""
    assert (left / "mylora.safetensors").read_bytes() == (right / "mylora.safetensors").read_bytes()
    one, two = (out / "state" / f"step-{STEPS:08d}" for out in (left, right))
    for name in ("lora.safetensors", "optimizer.safetensors"):
        a, b = load_file(one / name), load_file(two / name)
        assert a.keys() == b.keys() and len(a) >= 2 * 11 and all(torch.equal(a[k], b[k]) for k in a)
    assert json.loads((one / "run.json").read_text()) == json.loads((two / "run.json").read_text())


def test_ctrl_c_saves_and_exits_and_resuming_is_exact(
    config: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped twice: in mid-epoch, and at the end of an epoch after a resume."""
    out = tmp_path / "mylora"
    argv = ["train", "--config", str(config), f"output_dir={out}"]
    train = story.train

    for stop_at, more in ((4, []), (6, ["--resume"])):

        def stopping(*arguments: Any, sink: Sink, at: int = stop_at, **more: Any) -> Any:
            return train(*arguments, sink=interrupting(at, sink), **more)

        monkeypatch.setattr(story, "train", stopping)
        assert main([*argv, *more]) == 130
        told = capsys.readouterr()
        assert told.err == f"stopped at step {stop_at}; everything is saved, go on with --resume\n"
        assert not (out / "mylora.safetensors").exists() and not (out / ".lock.json").exists()
        assert [p.name for p in out.glob("*.safetensors")] == [f"mylora-step00000{stop_at}.safetensors"]
        kept = [f"step-{step:08d}" for step in (stop_at - 2, stop_at)]
        assert sorted(p.name for p in (out / "state").iterdir()) == kept

    def interrupted(*arguments: Any, sink: Sink, **more: Any) -> Any:
        def tell(event: Event) -> None:
            sink(event)
            if event == Note("drawing the pictures of the report"):
                signal.raise_signal(signal.SIGINT)

        return train(*arguments, sink=tell, **more)

    monkeypatch.setattr(story, "train", interrupted)
    # What only decides what is shown and kept may change; the notes say nothing, for nothing else did.
    assert main([*argv, "--resume", "sample_every=0", "save_steps=5", "val_every=3"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert ", 6 done" in told and f"step {STEPS}/{STEPS}" in told and "note: since" not in told
    assert "the report is being made (once more: leaves it out, --resume makes it)" in told
    assert (out / "report.html").exists()
    assert_same(out, unbroken)


def test_a_killed_run_leaves_a_whole_state_and_resuming_is_exact(
    config: Path, unbroken: Path, tmp_path: Path, short: None
) -> None:
    """SIGKILL while the state of step 4 is renamed into its place, which is the worst moment."""
    out = tmp_path / "mylora"
    source = str(Path(lora_scripts.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(config), str(out)]
    died = subprocess.run(command, env=env, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    left = sorted(p.name for p in (out / "state").iterdir())
    assert left[1:] == ["step-00000002"] and left[0].startswith(".lora-scripts-") and left[0].endswith(".tmp")
    assert (out / ".lock.json").exists()
    assert main(["train", "--config", str(config), f"output_dir={out}", "--resume"]) == 0
    assert_same(out, unbroken)
    assert {p.name for p in out.rglob(".*")} <= {".lock"}  # nothing that was half written


def test_a_start_with_everything_cached_imports_nothing_that_encodes_or_draws(
    finished: Finished, tmp_path: Path
) -> None:
    """Up to the state of the first step. These libraries took 5 of the 12 CPU s of such a start."""
    where = [f"output_dir={tmp_path / 'mylora'}", f"cache_dir={finished.folder / 'cache'}"]
    env = {**os.environ, "PYTHONPATH": str(Path(lora_scripts.__file__).parents[1])}
    command = [sys.executable, "-c", STARTED, str(finished.config), *where]
    told = subprocess.run(command, env=env, capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == "imported:", told.stdout + told.stderr


@pytest.fixture
def copy(finished: Finished, data: Path, tmp_path: Path) -> list[str]:
    """The command line for a copy of the finished run, and of its pictures, which may be changed."""
    shutil.copytree(finished.folder, tmp_path / "mylora")
    shutil.copytree(data, tmp_path / "data")
    where = [f"output_dir={tmp_path / 'mylora'}", f"train_data_dir={tmp_path / 'data'}"]
    return ["train", "--config", str(finished.config), *where]


def test_resuming_with_something_else_is_refused_by_name(
    copy: list[str], finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.open(tmp_path / "data" / "3.png")
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "data" / "3.png")
    captions = tmp_path / "data" / "metadata.csv"
    captions.write_text(captions.read_text().replace("round 1", "square"))
    more = ["learning_rate=0.02", "epochs=3", f"init_lora={finished.lora}"]
    # A base that was written just before has no digest there yet.
    there = {p for p in (tmp_path / "mylora").rglob("*") if p.name != "digests.json"}
    kept = [p for p in there if p.is_file()]
    before = {p: p.read_bytes() for p in kept}
    assert main([*copy, "--resume", *more]) == 2
    told = capsys.readouterr().err
    assert "cannot resume exactly, because something changed: " in told and told.count("\n") == 1
    changed = told.partition("changed: ")[2].partition("; undo that")[0]
    assert "learning_rate: 0.01 -> 0.02" in changed and "epochs: 2 -> 3" in changed
    before_and_after = '("picture 1, a gradient, round 1" -> "picture 1, a gradient, square")'
    assert "init_lora" in changed and f"the caption of 1.png {before_and_after}" in changed
    assert ", 3.png" in changed or changed.endswith("3.png")
    assert f"with init_lora={(tmp_path / 'mylora' / 'mylora.safetensors').as_posix()}" in told
    assert not any(same in changed for same in ("0.png", "2.png", "4.png", "base_model", "vae", "seed", "output_dir"))
    assert {p for p in (tmp_path / "mylora").rglob("*") if p.name != "digests.json"} == there
    assert {p: p.read_bytes() for p in kept} == before


def test_a_finished_run_can_be_resumed_and_another_thread_count_is_told(
    copy: list[str], finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told as if: with two threads on one busy core a run takes five times as long. test_identity has them really."""
    (tmp_path / "mylora" / "report.html").unlink()
    threads = torch.get_num_threads()
    with mock.patch.object(torch, "get_num_threads", lambda: threads + 1):
        assert main([*copy, "--resume"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"note: since the run began, threads: {threads} -> {threads + 1}: the last bits may differ" in told
    assert ", 6 done" in told and "step 6/6" not in told and "verified: 192 of 192" in told
    assert (tmp_path / "mylora" / "mylora.safetensors").read_bytes() == finished.lora.read_bytes()
    assert (tmp_path / "mylora" / "report.html").exists()


def test_a_longer_run_is_what_it_would_have_been(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], short: None
) -> None:
    """Finished after two epochs, then asked for three; beside it a run that was asked for three at first."""
    even = ["lr_schedule=constant", "val_every=3", "sample_every=0"]
    first, whole = (["train", "--config", str(config), f"output_dir={tmp_path / n / 'mylora'}", *even] for n in "ab")
    assert main([*first, "epochs=2"]) == 0 and main(whole) == 0
    page, folder = tmp_path / "a" / "mylora" / "report.html", RunFolder(tmp_path / "a" / "mylora", "mylora")
    page.write_text("of an earlier length")
    (folder.path / "finished").write_text("that of an earlier length")
    for not_yet in (lambda: None, page.unlink):  # it was killed before its report
        not_yet()
        assert main([*first, "epochs=2"]) == 2
        assert "already has a run; add --resume to go on, or choose another output_dir" in capsys.readouterr().err
    page.write_text("of this one")
    folder.conclude(ignore)
    os.utime(page, (0, 0))  # as a copy may have it
    assert main([*first, "epochs=2"]) == 2
    told = capsys.readouterr().err
    assert "already has a finished run (6 steps); --resume epochs=4 trains it longer; init_lora=" in told
    assert main([*first, "epochs=1", "--resume"]) == 2
    assert "epochs: 2 -> 1 (6 steps are done, and that would be 3); undo that" in capsys.readouterr().err
    assert main([*first, "epochs=3", "--resume"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "epochs: 2 -> 3; the 6 steps that are done are those of a run of 9" in told and "step 9/9" in told
    assert_same(*(tmp_path / name / "mylora" for name in "ab"))


@pytest.mark.parametrize(
    ("schedule", "stop", "old", "new", "reason"),
    [
        (Rates("constant", warmup=3), None, 6, 9, ""),
        (Rates("constant"), None, 6, 5, "6 steps are done, and that would be 5"),
        (Rates("cosine"), None, 6, 9, "lr_schedule: cosine spans the whole run, so step 2 would have had another rate"),
        (Rates("linear", warmup=6), None, 6, 9, ""),  # its fall has not begun
        (Rates("constant"), 0.5, 6, 9, "token_stop: 0.5 is a share of the run"),
        (Rates("constant"), 4.0, 6, 9, ""),
        (Rates("constant"), 0.9, 6, 20, "token_stop: 0.9 is a share of the run"),
    ],
)
def test_which_runs_may_get_another_length(
    schedule: Rates, stop: float | None, old: int, new: int, reason: str
) -> None:
    was = states.RunState(6, old, {"token_stop": stop}, {}, {})
    found = other_length(was, states.RunState(0, new, {}, {}, {}), schedule)
    assert found.startswith(reason) if reason else found == ""


def test_another_unet_in_a_diffusers_folder_is_noticed(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in zip(("unet", "vae", "text_encoder"), tiny.models(), strict=True):
        model.save_pretrained(tmp_path / "base" / name)
    keys = [f"base_model={tmp_path / 'base'}", f"output_dir={tmp_path / 'out'}", "targets=['*.mid_block.*attn2*']"]
    run = stopped(finished.config, 1, *keys)
    assert len(run.model.layers) == 4 and run.folder.newest_state() is not None
    tiny.models(seed=1)[0].save_pretrained(tmp_path / "base" / "unet")
    assert main(["train", "--config", str(finished.config), "--resume", *keys]) == 2
    assert "because something changed: base_model; undo that" in capsys.readouterr().err


def test_ctrl_c_while_encoding_ends_there_and_keeps_the_cache(base: Path, data: Path, tmp_path: Path) -> None:
    config = load_config(tiny.write_config(tmp_path, base_model=base, train_data_dir=data))
    ready = preflight(config, resume=False)

    told = list[str]()

    def press(event: Event) -> None:
        told.extend([event.text] if isinstance(event, Note) else [])
        if isinstance(event, Progress) and event.done == 3:  # two of the pictures are alike, and encoded once
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^nothing was trained yet; start again without --resume$"):
        story.train(config, ready.folder, ready.samples, resume=False, sink=press)
    assert told[-1] == "\nstopping before the first step (once more: at once)"
    assert len(list((tmp_path / "out" / "cache").rglob("*.safetensors"))) == 2
    assert not (tmp_path / "out" / ".lock.json").exists() and not (tmp_path / "out" / "state").exists()
    preflight(config, resume=False)  # a fresh start is possible


def test_there_must_be_something_to_resume(copy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = [*copy[:3], f"output_dir={tmp_path / 'empty'}", copy[4]]
    assert main([*elsewhere, "--resume"]) == 2
    assert "there is no run to resume here; start it without --resume" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "mylora" / "state")
    assert main([*copy, "--resume"]) == 2
    assert "there is no run to resume here; choose another output_dir" in capsys.readouterr().err
    assert main(copy) == 2
    assert "this folder already has a run; choose another output_dir" in capsys.readouterr().err


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def edit_the_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 4', '"step": 3'))


DAMAGES = {
    "optimizer.safetensors": [cut, flip_a_bit, Path.unlink],
    "lora.safetensors": [flip_a_bit],
    "run.json": [edit_the_step],
    "manifest.json": [cut, Path.unlink],
}


def test_a_damaged_state_is_one_line_and_the_one_before_it_is_offered(
    config: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], short: None
) -> None:
    out = tmp_path / "mylora"
    argv = ["train", "--config", str(config), f"output_dir={out}", "--resume"]
    stopped(config, 4, f"output_dir={out}")
    last, before = (out / "state" / f"step-{step:08d}" for step in (4, 2))
    shutil.copytree(last, tmp_path / "whole")
    for name, damages in DAMAGES.items():
        for damage in damages:
            damage(last / name)
            assert main(argv) == 2
            told = capsys.readouterr().err
            assert f"{last}: the resume state is damaged ({name}" in told and told.count("\n") == 1
            assert "; remove that folder to go on from step 2, whose state is whole" in told
            shutil.rmtree(last)
            shutil.copytree(tmp_path / "whole", last)
    flip_a_bit(last / "lora.safetensors")
    flip_a_bit(before / "lora.safetensors")
    assert main(argv) == 2
    assert "the resume state is damaged (lora.safetensors" in (told := capsys.readouterr().err)
    assert told.endswith("; start again in another output_dir\n")
    flip_a_bit(before / "lora.safetensors")
    shutil.rmtree(last)
    assert main(argv) == 0
    assert_same(out, unbroken)


def test_a_state_without_one_of_the_weights_is_one_line(config: Path, tmp_path: Path) -> None:
    """Whole by its manifest, and yet not of this model."""
    run = stopped(config, 2, f"output_dir={tmp_path / 'mylora'}")
    weights = run.model.weights()
    name = next(iter(weights))
    state = tmp_path / "mylora" / "state" / "step-00000002"
    files = states.pack(run.state, {n: w for n, w in weights.items() if n != name}, run.model.optimizer)
    io.write_folder(state, files)
    with pytest.raises(UserError, match=f"has 1 of {len(weights)} weights not, or in another size: {name}; start"):
        stopped(config, 3, f"output_dir={tmp_path / 'mylora'}", resume=True)


HOLDING = """
import sys
from pathlib import Path
from typing import Any
from lora_scripts.run.run_folder import RunFolder
with RunFolder(Path(sys.argv[1]), "out").locked():
    print("held", flush=True)
    input()
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder of a run."""
    command = [sys.executable, "-c", HOLDING, str(folder)]
    env = {**os.environ, "PYTHONPATH": str(Path(lora_scripts.__file__).parents[1])}
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert other.stdout and other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.communicate()


def test_two_runs_never_write_into_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", "out")
    with held_elsewhere(tmp_path / "out") as other:
        who = rf"out: another run is writing here \(process {other.pid} on .*, since \d{{4}}-.*\); wait for it"
        with pytest.raises(UserError, match=who), folder.locked():
            pass
        # What is written about the holder is information only: without it, and with nonsense, the lock holds.
        for text in ("", "[]", "{"):
            (tmp_path / "out" / ".lock.json").write_text(text)
            with pytest.raises(UserError, match=r"another run is writing here; wait for it"), folder.locked():
                pass
        os.kill(other.pid, signal.SIGKILL)  # it cannot clean up
        other.wait()
        with folder.locked():
            assert json.loads((tmp_path / "out" / ".lock.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / "out" / ".lock.json").exists()
    for number in (str(os.getppid()), "", "x" * 1000):  # left by an earlier version: nobody holds it
        (tmp_path / "out" / ".lock").write_text(number)
        with folder.locked():
            pass


def test_a_second_run_is_refused_while_the_first_goes_on(
    copy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_elsewhere(tmp_path / "mylora"):
        assert main([*copy, "--resume"]) == 2
        told = capsys.readouterr().err
        assert f"{tmp_path / 'mylora'}: another run is writing here" in told and told.count("\n") == 1


def test_a_kill_between_state_and_lora_leaves_no_gap(config: Path, tmp_path: Path) -> None:
    """Nor one between a state and the previews of its step. And what a killed writer left in the cache goes."""
    out = tmp_path / "mylora"
    stopped(config, 4, f"output_dir={out}", "keep_last=2")
    lora = out / "mylora-step000004.safetensors"
    whole = lora.read_bytes()
    lora.unlink()
    inside = next((out / "cache").glob("??"))
    (inside / ".lora-scripts-0123456789abcdef.tmp").write_bytes(b"half")
    stopped(config, 5, f"output_dir={out}", "keep_last=2", resume=True)
    assert lora.read_bytes() == whole and not (out / "samples").exists()
    stopped(config, 6, f"output_dir={out}", "keep_last=2", resume=True)
    assert len(list((out / "samples").glob("step000005-*.png"))) == 2
    with pytest.raises(UserError, match=f"with init_lora={out.as_posix()}/mylora-step000006.safetensors$"):
        stopped(config, 7, f"output_dir={out}", "seed=8", resume=True)
    assert not list((out / "cache").rglob(".lora-scripts-*"))


def test_a_renamed_folder_keeps_what_the_run_has_saved(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its best LoRA and the old checkpoints were another's then: told as none, and never removed."""
    keys = {"base_model": base, "train_data_dir": data, "targets": tiny.SOME, "val_split": 0.4, "epochs": 3}
    config = tiny.write_config(tmp_path, **keys, val_every=1, save_steps=1, keep_last=2)
    old, out = tmp_path / "mylora", tmp_path / "other"
    stopped(config, 3, f"output_dir={old}")
    names = ["mylora-best", "mylora-step000002", "mylora-step000003"]
    assert sorted(path.stem for path in old.glob("*.safetensors")) == names
    best = load_file(old / "mylora-best.safetensors")
    for path in (old / "mine-best.safetensors", old / "embeddings" / "mylora-best" / "zorb.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    old.rename(out)
    capsys.readouterr()
    stopped(config, 4, f"output_dir={out}", "val_every=100", resume=True)
    told = capsys.readouterr().out
    assert "note: 3 LoRAs of this run, saved as mylora, got the name of its folder: other" in told
    assert "note: mine-best.safetensors: of another name than other, neither counted nor replaced" in told
    names = ["mine-best", "other-best", "other-step000003", "other-step000004"]
    assert sorted(path.stem for path in out.glob("*.safetensors")) == names
    kept = load_file(out / "other-best.safetensors")
    assert kept.keys() == best.keys() and all(torch.equal(kept[key], best[key]) for key in best)
    assert (out / "embeddings" / "other-best" / "zorb.safetensors").is_file()
    stopped(config, 5, f"output_dir={out}", "val_every=100", resume=True)
    assert "neither counted" not in capsys.readouterr().out


def test_a_key_that_an_earlier_version_did_not_know_was_as_by_default(base: Path, data: Path, tmp_path: Path) -> None:
    """And what it did otherwise is told."""
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, lora_rank=3)
    kept = load_config(config).model_dump(mode="json", exclude=FREE_KEYS)
    later = "folder_repeats", "targets", "learning_rate", "loss_weighting", "timestep_mode_scale"
    earlier = {key: value for key, value in kept.items() if key not in later}
    assert states.changes(as_now({**earlier, "learning_rate": 0.01, "save_steps": 7}), kept) == []
    changed = {"folder_repeats": True, "loss_weighting": "bell", "noise levels": "spread evenly"}
    assert states.changes(as_now(earlier), kept | changed) == [
        "loss_weighting: none -> bell",
        "learning_rate: 0.0002 -> 0.01",
        "folder_repeats: false -> true",
        "noise levels: not written -> spread evenly",
    ]


def test_captions_that_are_read_further_than_when_the_run_began_are_told(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """States of the time when they were cut off at a comma say nothing of how they are read."""
    data = tiny.write_pictures(tmp_path / "data", count=3)
    rows = ["filename,prompt", "0.png,a cat", f'1.png,"a cat{", neon" * 50}"', "2.png,a cat"]
    (data / "metadata.csv").write_text("\n".join(rows))
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, targets=tiny.SOME, sample_every=0)
    for earlier in (True, False):
        out = f"output_dir={tmp_path / str(earlier)}"
        with mock.patch.object(resume, "CUT", "" if earlier else resume.CUT):
            stopped(config, 1, out)
        stopped(config, 2, out, resume=True)
        told = " ".join(capsys.readouterr().out.split())
        assert ("off at a comma; from here more of them is read: 1.png" in told) == earlier
