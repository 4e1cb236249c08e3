"""Where runs are rehearsed: in fresh processes, one after the other, and in a folder that is gone afterwards."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import Terminated, UserError, raise_all
from lora_scripts.events import Note, Progress, Sink
from lora_scripts.units import duration

SILENT = 10.0
"""Seconds without news after which what goes on is told."""


class Figures(Protocol):
    """What a rehearsal measured."""

    at: str
    """The phase under way; in the end "done"."""
    short: bool
    """Memory ran out there."""


M = TypeVar("M", bound=Figures)


class Stage(Generic[M]):
    """Where runs of one kind are rehearsed: each in a fresh process, so that its memory is its own."""

    def __init__(
        self,
        worker: str,
        read: Callable[[Mapping[str, Any]], M],
        phases: Mapping[str, str],
        scratch: Path,
        memory: int,
        sink: Sink,
        *,
        profile: bool = False,
        also: Mapping[str, object] | None = None,
    ) -> None:
        """`worker`: the module of the process, which calls `serve`; `also`: what stands in its task besides; `read`
        makes figures of what it tells; `phases`: what it goes through, in words."""
        self.worker, self.read, self.phases = worker, read, phases
        self.scratch, self.memory, self.sink, self.also = scratch, memory, sink, also or {}
        self.profile = profile
        """Whether the first one also says where a step goes."""
        self.count = 0
        self.took = 0.0
        """Seconds of the last rehearsal."""
        self.start = 0.0
        """Of them, until the model was loaded."""
        self.at = "load"
        """The phase under way."""

    def rehearse(self, config: TrainConfig, what: str) -> M:
        """Measures a run of the config. UserErrors for what the run would refuse, or where no process begins."""
        self.count += 1
        folder = self.scratch / str(self.count)
        folder.mkdir()
        task = {
            "config": config.model_dump(mode="json", exclude_unset=True),
            "scratch": str(folder),
            "memory": self.memory,
            "profile": self.profile and self.count == 1,
            **self.also,
        }
        begun, self.start, self.at = time.perf_counter(), 0.0, "load"
        self.sink(Note(f"rehearsing {what}"))
        found, spoke, errors = self.read({}), False, folder / "errors.txt"
        with errors.open("wb") as printed, process_of(self.worker, printed) as process:
            assert process.stdin and process.stdout
            with suppress(OSError), process.stdin as pipe:  # it may have ended already: its code says how
                pipe.write(json.dumps(task))
            for line in self._lines(process.stdout):
                message = json.loads(line)
                if "faults" in message:
                    raise_all([UserError(**fault) for fault in message["faults"]])
                found, spoke = self.read(message), True
                self._reached(found.at, begun)
            code = process.wait()
        self.took = time.perf_counter() - begun
        killed = code in (-getattr(signal, "SIGKILL", 9), 128 + 9)  # Linux does so when memory runs out
        if code and not killed:
            raise _ended(code, errors.read_text("utf-8", "replace"), found.at if spoke else None)
        found.short = found.short or killed
        shutil.rmtree(folder, ignore_errors=True)
        return found

    def _reached(self, at: str, begun: float) -> None:
        self.at = at
        if at != "load" and not self.start:
            self.start = time.perf_counter() - begun
        phases = [*self.phases, "done"]
        if at in phases:
            self.sink(Progress("rehearsal", phases.index(at), len(phases) - 1))

    def _lines(self, output: IO[str]) -> Iterator[str]:
        """The lines of a process; while none comes, what it does is told now and then, so that nobody wonders."""
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            with suppress(ValueError):  # the process was ended, and its output closed
                for line in output:
                    lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        begun = time.perf_counter()
        while True:
            try:
                line = lines.get(timeout=SILENT)
            except queue.Empty:
                seconds = duration(time.perf_counter() - begun)
                self.sink(Note(f"  still rehearsing ({self.phases.get(self.at, 'the start')}): {seconds}"))
                continue
            if line is None:
                return
            yield line


Tell = Callable[[Mapping[str, Any]], None]
"""Takes what was measured so far."""


def serve(rehearse: Callable[[Mapping[str, Any], Tell], None]) -> None:
    """The other side of `Stage.rehearse`, in a process of its own: does the task that its input has as JSON, and tells
    what is measured in lines of JSON: should the system end it for want of memory, the last line says where. A person's
    mistake comes as {"faults": …}."""
    with suppress(OSError):  # should Linux run out of memory, it is to end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no message

    def tell(message: Mapping[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        rehearse(json.load(sys.stdin), tell)
    except UserError as error:
        tell({"faults": [one.as_dict() for one in error.errors]})


def _ended(code: int, output: str, at: str | None) -> Exception:
    """Of a process that ended by itself: a fault of ours, or of the system if it never began."""
    if at is not None:
        return RuntimeError(f"the rehearsal ended with code {code}, while {at}:\n{output[-4000:]}")
    last = (output.strip().splitlines() or ["it said nothing"])[-1]
    hint = "mend that, or start the training without a plan"
    return UserError(f"the process that rehearses ended with code {code} before it began: {last}", hint=hint)


@contextmanager
def process_of(module: str, errors: Any) -> Iterator[subprocess.Popen[str]]:
    """A rehearsing process, which never outlives this block. Ctrl-C is for us alone: we end it then."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def place_of(output: Path) -> Path:
    """The nearest folder above `output` that is there: on its disk, and nothing of a run lies in it."""
    above = Path(os.path.abspath(output))
    if above.is_dir() and not os.access(above, os.W_OK):
        raise UserError("cannot write here", file=output, hint="choose another output_dir")
    above = above.parent
    while not above.is_dir():
        above = above.parent
    if not output.is_dir() and not os.access(above, os.W_OK):
        raise UserError(f"cannot write into {above}", file=output, hint="choose another output_dir")
    return above


@contextmanager
def scratch_in(place: Path) -> Iterator[Path]:
    """A folder for what a rehearsal writes, beside the output folder; it is gone afterwards."""
    try:
        made = tempfile.TemporaryDirectory(prefix=".lora-scripts-plan-", dir=place, ignore_cleanup_errors=True)
    except OSError:  # the output folder may be written to, the one it lies in may not
        made = tempfile.TemporaryDirectory(prefix="lora-scripts-plan-", ignore_cleanup_errors=True)
    with made as name:
        yield Path(name)


@contextmanager
def terminable() -> Iterator[None]:
    """A polite kill is as Ctrl-C, so that what was begun is cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
