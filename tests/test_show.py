"""What people and programs are shown: JSON of results, events as lines and bars, closed pipes."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import pytest

import lora_scripts
from lora_scripts.cli import main, printing, show
from lora_scripts.errors import Faults, UserError, UserErrors, raise_all
from lora_scripts.events import Advised, Event, Measured, Note, Progress, Saved, Stepped, Table

SOURCE = Path(lora_scripts.__file__).parents[1]


class Color(Enum):
    RED = "red"


class Word(StrEnum):
    ONE = "one"


@dataclass(frozen=True)
class Part:
    path: Path
    value: float


@dataclass(frozen=True)
class Result:
    parts: tuple[Part, ...]
    by_name: dict[str, Part]
    color: Color
    word: Word
    faults: list[UserError]
    there: bool
    names: frozenset[str]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_result_as_json() -> None:
    part = Part(Path("a/b.png"), 0.5)
    bad = Part(Path("c"), math.nan)
    fault = UserError("is odd", file=Path("x.csv"), line=3, hint="mend it")
    result = Result((part, bad), {"one": part}, Color.RED, Word.ONE, [fault], True, frozenset({"b", "a"}))
    plain = {"path": "a/b.png", "value": 0.5}
    assert json.loads(show.dumps(result)) == {
        "parts": [plain, {"path": "c", "value": None}],
        "by_name": {"one": plain},
        "color": "red",
        "word": "one",
        "faults": [{"message": "is odd", "file": "x.csv", "line": 3, "hint": "mend it"}],
        "there": True,
        "names": ["a", "b"],
    }
    assert type(show.as_json(Word.ONE)) is str


def test_what_json_cannot_hold_is_our_fault() -> None:
    with pytest.raises(TypeError, match="bytes has no form in JSON"):
        show.as_json({"a": [b"x"]})


def test_events_as_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with show.JsonLines(clock) as sink:
        for done in range(11):
            sink(Progress("pictures", done, 10))
            clock.now += 0.2
        sink(Saved("LoRA", Path("a.safetensors"), 7))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["done"] for line in lines[:-1]] == [0, 3, 6, 9, 10]
    assert lines[0] == {"event": "progress", "what": "pictures", "done": 0, "total": 10}
    assert lines[-1] == {"event": "saved", "what": "LoRA", "path": "a.safetensors", "step": 7}


def test_events_as_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    def words(event: Event) -> str | None:
        match event:
            case Saved("state"):
                return ""
            case Saved(_, path):
                return str(path)
        return None

    with show.People(words) as sink:
        sink(Table("the run", (("steps", "20"), ("learning rate", "1e-4"))))
        sink(Note("looking at 3 pictures"))
        sink(Advised("rate", "lower it"))
        sink(Measured(0, "base", 0.31216, 0.0))
        sink(Measured(20, "", 0.25, 0.125))
        sink(Measured(40, "", 1.5, -0.1, 4.4817))
        sink(Saved("state", Path("state")))
        sink(Saved("LoRA", Path("x.safetensors")))
    assert capsys.readouterr().out.splitlines() == [
        "the run",
        "steps         20",
        "learning rate 1e-4",
        "looking at 3 pictures",
        "advice: lower it",
        "held-out loss at base model: 0.3122",
        "held-out loss at step 20: 0.2500, 12.5 % lower than the base's",
        "held-out loss at step 40: 1.5000 (perplexity 4.482), 10.0 % higher than the base's",
        "x.safetensors",
    ]


def test_short_work_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with show.People(clock=clock) as sink:
        for done in range(1, 10):
            sink(Progress("pictures", done, 9))
            clock.now += 1.0
    assert capsys.readouterr().out == ""


def test_long_work_has_a_line_now_and_then_and_a_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with show.People(clock=clock) as sink:
        for done in range(3601):
            sink(Progress("pictures", done, 3600))
            clock.now += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["pictures 10/3600  1.0/s  1 h 0 min left", "pictures 20/3600  1.0/s  1 h 0 min left"]
    assert lines[-1] == "pictures 3600/3600  1.0/s"
    assert 60 < len(lines) < 90  # one in ten seconds at first, then ever more rarely


def test_steps_have_a_line_for_every_twentieth(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with show.People(clock=clock) as sink:
        for step in range(101, 201):  # a run that goes on
            clock.now += 2.0
            sink(Stepped(step, 200, 1, 0.2, 0.25, 1e-4, 1.0, 0.5, 2.0))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 110/200  loss 0.2500  0.5 samples/s  3 min left"
    assert lines[-1] == "step 200/200  loss 0.2500  0.5 samples/s" and len(lines) == 10


def test_every_mistake_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    both = UserErrors([UserError("one", file="a", line=1), UserError("two", hint="mend")])
    show.say_errors(both)
    assert capsys.readouterr().err == "error: a:1: one\nerror: two; mend\n"
    show.say_errors(both, json_lines=True)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {"event": "error", "message": "one", "file": "a", "line": 1, "hint": None}
    assert second["hint"] == "mend"
    assert show.as_json(both.errors[0]) == {key: value for key, value in first.items() if key != "event"}


def test_mistakes_that_hold_others_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*errors: UserError) -> None:
        raise_all(errors)

    faults = Faults()
    assert faults.attempt(lambda: 3) == 3
    faults.attempt(lambda: fails(UserError("one", file="a", line=1), UserError("two")))
    faults.append(UserErrors([UserErrors([UserError("three", hint="mend")]), UserError("four")]))
    with pytest.raises(UserErrors) as caught:
        raise_all(faults)
    assert [one.message for one in caught.value.errors] == ["one", "two", "three", "four"]
    assert str(caught.value) == "a:1: one\ntwo\nthree; mend\nfour"
    show.say_errors(caught.value, json_lines=True)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [UserError(**{k: v for k, v in one.items() if k != "event"}).as_dict() for one in told] == [
        one.as_dict() for one in caught.value.errors
    ]
    with pytest.raises(UserError) as alone:
        raise_all([UserErrors([UserError("alone")])])
    assert type(alone.value) is UserError
    raise_all([])


CHATTER = """
import sys, time
from lora_scripts import cli
from lora_scripts.events import Note, Sink
from lora_scripts.cli import demo
def call(options, sink):
    for number in range(20000):
        sink(Note(f"line {number} of a long story"))
    open(sys.argv[2], "w").write("the work was done")
    return 1
demo.call = call
demo.words = lambda result: ["a result"] * 20000
sys.exit(cli.main(["demo"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_a_closed_pipe_ends_the_telling_and_not_the_work(tmp_path: Path) -> None:
    script = tmp_path / "chatter.py"
    script.write_text(CHATTER)
    done = tmp_path / "done.txt"
    command = f"'{sys.executable}' '{script}' x '{done}' | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert ended.stdout.splitlines() == ["line 0 of a long story", "0"] and ended.stderr == ""
    assert done.read_text() == "the work was done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_under_what_is_told_ends_no_work_but_a_result_is_missed(tmp_path: Path) -> None:
    script, done, full = tmp_path / "chatter.py", tmp_path / "done.txt", Path("/dev/full")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    script.write_text(CHATTER)
    with full.open("w") as nowhere:
        command = [sys.executable, str(script), "x", str(done)]
        ended = subprocess.run(command, stdout=nowhere, stderr=subprocess.PIPE, text=True, env=environment)
        command = [sys.executable, "-m", "lora_scripts", "completion", "bash"]
        alone = subprocess.run(command, stdout=nowhere, stderr=subprocess.PIPE, text=True, env=environment)
    reason = "what stdout goes to cannot be written (No space left on device)"
    assert (ended.returncode, ended.stderr) == (0, f"note: {reason}; the work goes on without being told\n")
    assert done.read_text() == "the work was done"
    assert (alone.returncode, alone.stderr) == (2, f"error: {reason}; send it to a disk with room\n")


def test_streams_that_are_not_there_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where whoever started it closed them, and with pythonw.exe."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["completion", "bash"]) == 0
    assert main(["completions"]) == 2
    assert sys.stdin.read() == ""


def test_a_pipe_of_another_process_is_not_taken_for_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a command did not do its work, and must not end as if it had."""

    def call(options: Any, sink: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("lora_scripts.cli.demo.call", call)
    with pytest.raises(BrokenPipeError):
        main(["demo"])


def test_which_error_is_a_closed_pipe() -> None:
    assert printing.is_closed_pipe(BrokenPipeError(errno.EPIPE, ""))
    assert not printing.is_closed_pipe(OSError(errno.ENOSPC, "the disk is full"))


ON_TERMINAL = """
import time
from lora_scripts.cli.show import People
from lora_scripts.events import Note, Progress, Stepped
with People() as sink:
    for done in range(1, 4):
        sink(Progress("pictures", done, 3))
        time.sleep(0.15)
    sink(Note("all are drawn"))
    for step in range(1, 4):
        sink(Stepped(step, 3, 1, 0.2, 0.25, 1e-4, 1.0, 0.5, 2.0))
print("the end")
"""


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_bar_on_a_terminal() -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL],
        stdout=theirs,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "pictures" in text and "1/3" in text and "all are drawn" in text
    last = text[text.index("all are drawn") :]
    assert "step" in last and "3/3" in last and "loss 0.2500" in last and last.rstrip().endswith("the end")
