"""What an evening brings: signals, odd locks, a second start beside a living run."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_scripts
import tiny
from lora_scripts import run
from lora_scripts.cli import main
from lora_scripts.errors import Terminated, UserError
from lora_scripts.events import Event, Note, Stepped, ignore
from lora_scripts.loras.words import embedding_file
from lora_scripts.run import stopping, story
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.train.progress import Board
from runs import interrupting

FEW = "['*mid_block*attn2*']"
"""Targets of four layers: quick."""


@pytest.fixture
def config(base: Path, data: Path, tmp_path: Path) -> Path:
    return tiny.write_config(tmp_path, base_model=base, train_data_dir=data, targets=FEW)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_ends_with_143(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = story.train

    def stopping(*arguments: Any, sink: Any, **more: Any) -> Any:
        return train(*arguments, sink=interrupting(3, sink, signal.SIGTERM), **more)

    monkeypatch.setattr(story, "train", stopping)
    assert main(["train", "--config", str(config)]) == 143
    told = capsys.readouterr()
    assert told.err == "stopped at step 3; everything is saved, go on with --resume\n" and "at step 3;" not in told.out
    assert (tmp_path / "out" / "state" / "step-00000003").is_dir()


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_second_signal_ends_at_once(number: signal.Signals, kind: type[BaseException]) -> None:
    notes: list[str] = []

    def sink(event: Any) -> None:
        assert isinstance(event, Note)
        notes.append(event.text)

    with stopping.signals(sink) as stopped:
        signal.raise_signal(number)
        assert stopped() == number and len(notes) == 1
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(number)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("again", "resume", "phases", "told"),
    [
        ("--resume", False, [], ["before the first step", "nothing was trained yet; start again without --resume"]),
        ("--resume", True, [], ["before the next step", "no step was added; go on with --resume"]),
        ("the same command", False, [], ["before the first step", "nothing was trained yet; start again"]),
        ("--resume", False, ["steps"], ["after this step"]),
        ("the same command", False, ["steps", "report"], ["leaves it out, the same command", "the same command makes"]),
    ],
)
def test_what_a_stop_says_is_true_of_where_it_comes(
    again: str, resume: bool, phases: list[stopping.Phase], told: list[str]
) -> None:
    notes: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        stopping.signals(lambda event: notes.append(event.text), resume=resume, again=again) as stopped,  # type: ignore[union-attr]
    ):
        for phase in phases:
            stopped.begin(phase)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    notes += caught.value.args  # told in the end, and once
    assert len(notes) == len(told) and all(words in note for words, note in zip(told, notes, strict=True))


def test_a_stop_while_loading_takes_no_step_and_one_in_the_last_step_is_told_again() -> None:
    notes: list[str] = []
    with stopping.signals(lambda event: notes.append(event.text)) as stopped:  # type: ignore[union-attr]
        stopped.begin("steps")
        signal.raise_signal(signal.SIGINT)
        stopped.begin("report")
    assert "after this step" in notes[0] and "the report is being made" in notes[1]
    with pytest.raises(KeyboardInterrupt), stopping.signals(lambda event: None) as stopped:
        signal.raise_signal(signal.SIGINT)
        stopped.begin("steps")


# --- the lock ---------------------------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # an absolute path may be too long for one


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
@pytest.mark.parametrize(
    "make",
    [lambda path: path.mkdir(), lambda path: path.symlink_to(path.parent / "x"), _socket],
    ids=["a folder", "a link", "a socket"],
)
def test_what_cannot_be_locked_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".lock")
    told = "is no plain file, so it cannot be locked; remove it"
    with pytest.raises(UserError, match=told) as caught, RunFolder(tmp_path, "x").locked():
        pass
    assert caught.value.file == tmp_path / ".lock"


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes")
def test_a_pipe_in_place_of_the_lock_or_of_what_is_told_of_its_holder_blocks_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    os.mkfifo(tmp_path / ".lock")
    with folder.locked():
        (tmp_path / ".lock.json").unlink()
        os.mkfifo(tmp_path / ".lock.json")
        with pytest.raises(UserError, match="another run is writing here; wait for it"), folder.locked():
            pass
    (tmp_path / ".lock.json").mkdir()
    with pytest.raises(UserError, match="a file and a folder want the same name"), folder.locked():
        pass


def test_resuming_beside_a_run_that_has_just_begun_is_told_as_that(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no state yet: "there is no run to resume here; start it without --resume" was wrong."""
    code = (
        "import sys; from pathlib import Path; from lora_scripts.run.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), 'out').locked(): print('held', flush=True); input()"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(lora_scripts.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        assert main(["train", "--config", str(config), "--resume"]) == 2
        told = capsys.readouterr().err
        other.kill()
    assert f"another run is writing here (process {other.pid} on " in told and told.count("\n") == 1
    assert main(["train", "--config", str(config), "--resume"]) == 2
    assert "there is no run to resume here; start it without --resume" in capsys.readouterr().err


# --- what cannot be removed, and where nothing can be written ---------------------------------------------------------


def test_what_cannot_be_removed_is_told_once_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a folder's permissions let nobody remove a file, or on Windows another program has it open."""
    folder, told = RunFolder(tmp_path, "x"), list[Event]()
    loras, states = [folder.checkpoint(step) for step in (1, 2, 3)], [folder.state(step) for step in (1, 2, 3)]
    word = embedding_file(loras[0], "neon")
    for path in (*loras, word, *(state / "run.json" for state in states)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def refused(*_: Any, **more: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def prune() -> list[Event]:
        told.clear()
        folder.prune_states(2, told.append)
        folder.prune(2, told.append)
        return told

    with monkeypatch.context() as patch:
        for name in ("unlink", "remove", "rmdir"):
            patch.setattr(os, name, refused)
        kept = (states[0], loras[0], word.parent)
        assert prune() == [Note(f"note: {path} is needed no more, but cannot be removed") for path in kept]
        assert prune() == [] and (states[0] / "run.json").is_file() and word.is_file()
    assert prune() == [] and not any(path.exists() for path in kept)


def test_dots_in_the_name_of_a_run_of_texts(tmp_path: Path) -> None:
    """Its LoRAs are folders: what stands behind the last dot is no suffix."""
    folder = RunFolder(tmp_path, "qwen2.5-style", "")
    loras = [folder.checkpoint(step) for step in (9, 100, 1_000_000)]
    words = [embedding_file(lora, "neon") for lora in (*loras, tmp_path / "qwen2.safetensors")]
    for path in (*loras, *(word.parent for word in words)):
        path.mkdir(parents=True)
    assert folder.checkpoints() == loras
    folder.prune(1, ignore)
    assert folder.checkpoints() == loras[-1:]
    assert [word.parent.exists() for word in words] == [False, False, True, True]


@pytest.mark.parametrize(
    ("adapter", "hint"),
    [
        ("lora", "init_lora={lora} and another output_dir go on from it with more epochs or other pictures; "),
        ("pissa", "init_lora={lora} adapter=lora and another output_dir go on from it with more epochs or "),
        ("dora", "init_lora={lora} and another output_dir go on from it with more epochs or other pictures; "),
    ],
)
def test_a_finished_run_names_what_its_lora_can_begin(tmp_path: Path, adapter: str, hint: str) -> None:
    """With the keys of the run, but for PiSSA's adapter, which takes no earlier LoRA."""
    folder = RunFolder(tmp_path, "mine")
    folder.state(2).mkdir(parents=True)
    keys = {"epochs": 2, "adapter": adapter}
    (folder.state(2) / "run.json").write_text(json.dumps({"step": 2, "total": 2, "config": keys}))
    for path in (folder.final, folder.report):
        path.write_text("")
    with pytest.raises(UserError) as told:
        folder.check(resume=False)
    assert (
        str(told.value).partition("a finished run (2 steps); ")[2].startswith(hint.format(lora=folder.final.as_posix()))
    )


def test_no_folder_for_temporary_files_is_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch asks for one while it is imported, which is over here: the run asks in its place."""

    def full(*_: Any, **more: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(run, "train", lambda *_, **more: tempfile.gettempdir())
    monkeypatch.setattr(os, "open", full)
    assert main(["train", "--config", str(config)]) == 2
    hint = "free some space on the system's disk, or set TMPDIR to a folder elsewhere"
    assert capsys.readouterr().err == f"error: no folder for temporary files can be written to; {hint}\n"


# --- TensorBoard ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_curves_that_cannot_be_written_are_told_once_and_end_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a full disk, from the first byte or in the middle; with a file in their place; with logs/ taken away."""
    real, train = Path.open, story.train

    def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return real(Path("/dev/full") if "tfevents" in path.name else path, mode.replace("x", "w"), *rest, **more)

    def vanish(out: Path) -> None:
        (out / "logs").rename(out / "elsewhere")

    few = ["epochs=1", "val_split=0"]
    cases: dict[str, tuple[str, Callable[[Path], None] | None]] = {
        "full": ("No space left on device", None),
        "file": ("File exists", None),
        "gone": ("", vanish),
    }
    for name, (reason, after_two) in cases.items():
        out = tmp_path / name
        out.mkdir()
        if name == "file":
            (out / "logs").write_text("")
        with monkeypatch.context() as patch:
            if name == "full":
                if not Path("/dev/full").exists():
                    continue
                patch.setattr(Path, "open", full)
            if after_two is not None:

                def watched(*rest: Any, sink: Any, out: Path = out, act: Any = after_two, **more: Any) -> Any:
                    def tell(event: Any) -> None:
                        sink(event)
                        if isinstance(event, Stepped) and event.step == 2:
                            act(out)

                    return train(*rest, sink=tell, **more)

                patch.setattr(story, "train", watched)
            assert main(["train", "--config", str(config), f"output_dir={out}", *few]) == 0
        told = capsys.readouterr()
        assert told.err == ""
        assert " ".join(told.out.split()).count("TensorBoard's curves cannot be written") == bool(reason)
        assert f"cannot be written ({reason})" in " ".join(told.out.split()) or not reason
        assert (out / f"{name}.safetensors").is_file() and (out / "report.html").is_file()


def test_curves_of_a_resumed_run_hide_what_lay_beyond_its_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last, begun in ((1, 5, 0), (3, 6, 2)):
        board = Board(tmp_path, begun, ignore)
        for step in range(first, last + 1):
            board.scalars(step, {"x": 10.0 * first + step})
        # Not closed: a killed run closes nothing, and all of it is there.
        seen = EventAccumulator(str(tmp_path))
        seen.Reload()
    wanted = [(1, 11.0), (2, 12.0), (3, 33.0), (4, 34.0), (5, 35.0), (6, 36.0)]
    assert [(e.step, e.value) for e in seen.Scalars("x")] == wanted


def test_curves_of_a_run_that_began_anew_hide_those_of_the_start_before_it(tmp_path: Path) -> None:
    """Which ended before its first state."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last in (7, 3):
        board = Board(tmp_path, 0, ignore)
        for step in range(last + 1):
            board.scalars(step, {"x": float(last)})
    seen = EventAccumulator(str(tmp_path))
    seen.Reload()
    assert [(e.step, e.value) for e in seen.Scalars("x")] == [(step, 3.0) for step in range(4)]
