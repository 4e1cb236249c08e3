"""The output folder of a run: its names, and that two runs never share it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lora_scripts.errors import UserError
from lora_scripts.events import Note, Sink
from lora_scripts.formats import io
from lora_scripts.formats.manifest import NAME as MANIFEST
from lora_scripts.formats.manifest import damage
from lora_scripts.loras.words import embedding_file
from lora_scripts.units import listed, number_of

STATES = 2
"""Resume states that are kept while a run goes on: should the last one be damaged, the one before it is there."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path
    name: str
    """Of the LoRA"""
    suffix: str = ".safetensors"
    """Of a LoRA; "" where it is a folder."""
    _kept: set[Path] = field(default_factory=set, repr=False, compare=False)
    """What could not be removed, and was told."""

    @property
    def final(self) -> Path:
        return self.path / f"{self.name}{self.suffix}"

    @property
    def best(self) -> Path:
        """The file of the checkpoint with the lowest held-out loss."""
        return self.path / f"{self.name}-best{self.suffix}"

    @property
    def measured(self) -> Path:
        """The record of all measurements."""
        return self.path / "heldout.json"

    @property
    def report(self) -> Path:
        """The page that is written last of all."""
        return self.path / "report.html"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def states(self) -> Path:
        return self.path / "state"

    @property
    def _finished(self) -> Path:
        """The manifest of the state that the report is of: times of files tell nothing of a copy."""
        return self.path / "finished"

    def state(self, step: int) -> Path:
        return self.states / f"step-{step:08d}"

    def resume_states(self) -> list[Path]:
        """The folders of resume states, oldest first."""
        return sorted(self.states.glob("step-????????"))

    def newest_state(self) -> Path | None:
        """The newest resume state, whole or not."""
        return next(reversed(self.resume_states()), None)

    def prune_states(self, keep: int, sink: Sink) -> None:
        """Removes the oldest resume states beyond `keep`; what cannot be removed is told once, and ends no run."""
        for old in self.resume_states()[:-keep]:
            self._remove(old, sink)

    def conclude(self, sink: Sink) -> None:
        """After the report: the run is finished."""
        if (found := self.newest_state()) is not None:
            io.write_text(self._finished, (found / MANIFEST).read_text("utf-8"))
        self.prune_states(1, sink)

    def checkpoint(self, step: int) -> Path:
        return self.path / f"{self.name}-step{step:06d}{self.suffix}"

    def checkpoints(self) -> list[Path]:
        """LoRAs saved on the way, oldest first."""
        pattern = re.compile(re.escape(self.name) + r"-step\d{6,}" + re.escape(self.suffix))
        found = (p for p in self.path.glob(f"*{self.suffix}") if pattern.fullmatch(p.name))
        return sorted(found, key=lambda p: int(p.name.removesuffix(self.suffix).rpartition("-step")[2]))

    def newest_lora(self, step: int, *, finished: bool) -> Path | None:
        """What another run can begin with after `step` steps of this one, or as near to them as there is."""
        there = [self.checkpoint(step), *reversed(self.checkpoints()), self.final]
        return next((path for path in ([self.final] if finished else []) + there if path.exists()), None)

    def sample(self, step: int, number: int, suffix: str = ".png") -> Path:
        return self.samples / f"step{step:06d}-{number}{suffix}"

    def has_samples(self, step: int, count: int) -> bool:
        """Whether so many previews of a step are there."""
        suffix = ".png" if self.suffix else ".txt"
        return all(self.sample(step, number, suffix).exists() for number in range(1, count + 1))

    def sampled(self, suffix: str = ".png") -> list[int]:
        """Steps of which something lies in samples/, in their order; an earlier, interrupted start's, too."""
        name = re.compile(r"step(\d{6,})-\d+" + re.escape(suffix))
        return sorted({int(found[1]) for p in self.samples.glob("step*") if (found := name.fullmatch(p.name))})

    def check(self, *, resume: bool) -> Path | None:
        """The state to go on from, or None for a fresh start. UserError if the folder and `resume` do not fit, or if
        the newest state is not as it was written: then it names the one before, if that is whole."""
        found = self.newest_state()
        there = found is not None or self.final.exists() or bool(self.checkpoints())
        if resume and found is None:
            hint = "choose another output_dir" if there else "start it without --resume"
            raise UserError("there is no run to resume here", file=self.path, hint=hint)
        if there and not resume:
            what, how = self.there(found)
            raise UserError(f"this folder already has a {what}", file=self.path, hint=how)
        if found is not None and (fault := damage(found)):
            earlier = next((s for s in reversed(self.resume_states()[:-1]) if not damage(s)), None)
            hint = "start again in another output_dir"
            if earlier is not None:
                hint = f"remove that folder to go on from step {step_of(earlier)}, whose state is whole"
            raise UserError(f"the resume state is damaged ({fault})", file=found, hint=hint)
        return found

    def there(self, found: Path | None) -> tuple[str, str]:
        """What is here, and what can be done: (what, how). `found`: the newest state."""
        if found is None:
            return "run", "choose another output_dir"
        try:
            told = json.loads((found / "run.json").read_text("utf-8"))
            total, epochs, keys = int(told["total"]), int(told["config"]["epochs"]), dict(told["config"])
            # The page of another state is of the run before it was lengthened: this one has not been reported yet.
            known = self._finished
            reported = not known.exists() or known.read_text("utf-8") == (found / MANIFEST).read_text("utf-8")
            finished = self.final.exists() and told["step"] == total and self.report.exists() and reported
        except (OSError, ValueError, TypeError, KeyError):  # damaged: told by whoever resumes it
            finished = False
        if not finished:
            return "run", "add --resume to go on, or choose another output_dir"
        even = keys.get("lr_schedule") == "constant" or keys.get("optimizer") == "schedule_free"
        longer = f"--resume epochs={2 * epochs} trains it longer; " if even else ""
        data = "other pictures" if self.suffix else "other records"
        other = f"with more epochs or {data}" if not longer else f"with {data}"
        start = f"{beginning_with(self.final, keys)} and another output_dir go on from it {other}"
        return f"finished run ({number_of(total, 'step')})", f"{longer}{start}; another output_dir alone starts anew"

    def prune(self, keep: int | None, sink: Sink) -> None:
        """Removes the oldest checkpoints beyond `keep`, with their words; what cannot be removed is told as above."""
        for old in self.checkpoints()[:-keep] if keep is not None else []:
            self._remove_lora(old, sink)

    def adopt(self, former: str, sink: Sink) -> None:
        """Gives the LoRAs that the run has saved as `former` the name that it has now, where the folder was renamed
        since; which others lie here is told. `former`: "" in states of an earlier version, which do not say it."""
        if former == self.name:
            return
        form = re.compile(rf"(.+?)(-best|-step\d{{6,}}|){re.escape(self.suffix)}")
        own, moved, beside = {self.final, self.best, *self.checkpoints()}, 0, []
        for path in sorted(self.path.glob(f"*{self.suffix}")):
            found = None if path in own else form.fullmatch(path.name)
            if found is None or not (found[2] or found[1] == former):
                continue
            if found[1] == former and self._renamed(path, self.path / f"{self.name}{found[2]}{self.suffix}"):
                moved += 1
            else:
                beside.append(path.name)
        if moved:
            told = f"{number_of(moved, 'LoRA')} of this run, saved as {former}, got the name of its folder"
            sink(Note(f"note: {told}: {self.name}"))
        if beside:
            sink(Note(f"note: {listed(beside, 4)}: of another name than {self.name}, neither counted nor replaced"))

    def _renamed(self, lora: Path, target: Path) -> bool:
        """Whether it got the name, with its words."""
        if target.exists():
            return False
        words, theirs = (embedding_file(path, "").parent for path in (lora, target))
        with suppress(UserError):  # on Windows another program has it open
            if words.is_dir() and not theirs.exists():
                io.move(words, theirs)
            io.move(lora, target)
        return target.exists()

    def forget_measured(self, sink: Sink) -> None:
        """Removes what a start that ended before its first state has measured: of this run it would be told as its
        own."""
        self._remove_lora(self.best, sink)
        self._remove(self.measured, sink)

    def _remove_lora(self, lora: Path, sink: Sink) -> None:
        """With its words."""
        for path in (lora, embedding_file(lora, "").parent):
            self._remove(path, sink)

    def _remove(self, path: Path, sink: Sink) -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # on Windows another program has it open
                path.unlink(missing_ok=True)
        if path.exists() and path not in self._kept:
            self._kept.add(path)
            sink(Note(f"note: {path} is needed no more, but cannot be removed"))

    def require_free(self) -> None:
        """UserError while another run writes here, or where no folder can be made; what comes after this is told by
        `locked`."""
        above = next(p for p in (self.path, *self.path.absolute().parents) if os.path.lexists(p))
        if not above.is_dir():
            raise UserError(
                "is no folder, so nothing can be written into it", file=above, hint="choose another output_dir"
            )
        if not os.access(above, os.W_OK):
            raise UserError("the system does not allow to write here", file=above, hint="choose another output_dir")
        if self._lock.exists():
            self._acquired().release()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it: a second run into it is a UserError. The lock is the system's, so it is gone
        with the process that held it, however that ended."""
        lock, holder = self._acquired(), self._holder
        try:
            about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            io.write_text(holder, json.dumps(about) + "\n")
            words = embedding_file(self.final, "").parent.parent
            for folder in (self.path, self.states, self.samples, *words.glob("*/")):
                io.remove_stale_temps(folder)
            yield
        finally:
            with suppress(OSError):  # it is information only
                holder.unlink()
            lock.release()

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    @property
    def _holder(self) -> Path:
        """Says who holds the lock, for messages."""
        return self.path / ".lock.json"

    def _acquired(self) -> FileLock:
        lock, hint = FileLock(self._lock, timeout=0), "choose another output_dir"
        try:
            io.synced_mkdir(self.path)
            lock.acquire()
        except Timeout:
            until = time.monotonic() + 10  # of two that start at once, one is still writing down who it is
            while not self._holder.exists() and time.monotonic() < until:
                time.sleep(0.01)
            text = f"another run is writing here{_told(self._holder)}"
            raise UserError(text, file=self.path, hint=f"wait for it, or {hint}") from None
        except OSError as e:
            if self._lock.is_symlink() or (self._lock.exists() and not self._lock.is_file()):
                raise UserError("is no plain file, so it cannot be locked", file=self._lock, hint="remove it") from None
            raise UserError(f"cannot write here: {e.strerror or e}", file=self.path, hint=hint) from None
        return lock


def beginning_with(lora: Path, keys: Mapping[str, Any]) -> str:
    """What is written for another run that begins with a LoRA of a run with these keys, beside the keys as they are."""
    return f"init_lora={lora.as_posix()}{' adapter=lora' if keys.get('adapter') == 'pissa' else ''}"


def _told(holder: Path) -> str:
    """Who holds a lock, for a message: it is information, the system alone decides."""
    try:
        about = json.loads(holder.read_text("utf-8")) if holder.is_file() else {}  # a pipe would block for ever
        return f" (process {about['process']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def step_of(state: Path) -> int:
    """The step of a resume state, by its folder's name."""
    return int(state.name.rpartition("-")[2])
