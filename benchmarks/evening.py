"""What an evening brings, from outside, with real processes: `python benchmarks/evening.py [PART …]`, all without one.

- `signals`: SIGINT and SIGTERM at 20 moments each, and again with a second one behind it
- `starts`: 200 times four processes that want one folder in the same instant
- `around`: 64 open files at most, another language, another time zone, a clock that is set back
- `faults`: a small disk, a limit on files, a disk that becomes read-only, folders that go, and what strace injects

In the end of each row there must be a line for a person and the right exit code, whole states, none of them lost, and
`--resume` must lead to the bits of the unbroken run. What the machine lacks (strace, mounts) is skipped, and told.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kills import ENV, ROOT, end_of, forked, prepared

KEYS = {"epochs": 3, "save_steps": 1, "targets": "['*mid_block*attn2*']", "lora_dropout": 0.2, "sample_every": 4}
SEEN: list[str] = []
"""What was not as it should be."""


def tell(good: bool, text: str) -> None:
    print(("  holds  " if good else "  FAILS  ") + text, flush=True)
    if not good:
        SEEN.append(text)


def waited(child: int, seconds: float = 600) -> int:
    """The exit code, that of a shell for a signal; -1 for a process that hangs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


class Runs:
    """A config, and what its run ends as."""

    def __init__(self, work: Path) -> None:
        import tiny

        self.work = work
        tiny.write_base(work / "base.safetensors")
        tiny.write_pictures(work / "data", 5)
        self.config = tiny.write_config(work, **KEYS)
        self.cli, begun = prepared(), time.monotonic()
        assert waited(self.start(work / "whole" / "x")) == 0, self.told(work / "whole" / "x")
        self.length, self.wanted = time.monotonic() - begun, end_of(work / "whole" / "x")
        self.last = self.steps(work / "whole" / "x")[-1]

    def argv(self, out: Path, *more: str) -> list[str]:
        return ["train", "--config", str(self.config), f"output_dir={out}", *more]

    def start(
        self, out: Path, *more: str, within: Callable[[], object] = lambda: None, into: Path | None = None
    ) -> int:
        """A process that trains into a folder, and tells beside it; `within`: what happens to it first; `into`: a
        folder elsewhere, for what it writes."""
        out.parent.mkdir(parents=True, exist_ok=True)
        (out.parent / "told.txt").unlink(missing_ok=True)

        def act() -> int:
            within()
            return self.cli(self.argv(into or out, *more))

        return forked(act, out.parent / "told.txt")

    def told(self, out: Path) -> str:
        file = out.parent / "told.txt"
        return file.read_text() if file.exists() else ""

    def steps(self, out: Path) -> list[int]:
        return [int(step) for step in re.findall(r"^step (\d+)/", self.told(out), re.M)]

    def await_step(self, out: Path, step: int, child: int) -> None:
        until = time.monotonic() + 300
        while (
            time.monotonic() < until
            and step not in self.steps(out)
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.01)

    def goes_on(self, out: Path, where: str) -> None:
        """From what is there to the end of the unbroken run."""
        again = ["--resume"] if list((out / "state").glob("step-*")) else []
        code = 0 if (out / "report.html").exists() else waited(self.start(out, *again))
        tell(
            code == 0 and end_of(out) == self.wanted,
            f"{where}: goes on to the same end" + (f" ({code})" if code else ""),
        )


def whole(out: Path) -> bool:
    from lora_scripts.formats.manifest import damage

    return not any(damage(state) for state in (out / "state").glob("step-????????"))


# --- signals ----------------------------------------------------------------------------------------------------------


def signals(runs: Runs) -> None:
    chance = random.Random(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        ended, late, early = 128 + number, 0, 0
        bad: list[str] = []
        for moment in range(20):
            out = runs.work / f"signal-{number}-{moment}" / "x"
            child = runs.start(out)
            if moment:  # one in the imports and preparations, all others from the first step to the report
                runs.await_step(out, 1 + moment % runs.last, child)
            time.sleep(chance.uniform(0, 0.3))
            before = len(runs.steps(out))
            os.kill(child, number)
            code, steps = waited(child), runs.steps(out)
            states = sorted(int(path.name[5:]) for path in (out / "state").glob("step-????????"))
            late, early = late + (code == 0), early + (not steps)
            saved = not steps or (bool(states) and states[-1] == steps[-1])
            in_time = len(steps) - before <= 2  # the one under way, and one that was told while the signal was sent
            if (
                code not in (0, ended)
                or (code and not (saved and in_time and whole(out)))
                or "Traceback" in runs.told(out)
            ):
                bad.append(f"{moment}: {code}, steps {before} -> {len(steps)}, states {states}")
        words = f"{20 - len(bad)} of 20 with {signal.Signals(number).name}: {ended}, saved within a step"
        tell(not bad, f"{words} ({early} before the first step, {late} after the end) {bad or ''}")
        out = runs.work / f"two-signals-{number}" / "x"
        runs.await_step(out, 2, child := runs.start(out))
        os.kill(child, number)
        until = time.monotonic() + 60
        while "stopping after this step" not in runs.told(out) and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(child, number)
        tell(waited(child) == ended and whole(out), f"a second {signal.Signals(number).name} ends it")
        runs.goes_on(out, "after that")


# --- starts in the same instant ---------------------------------------------------------------------------------------


def starts(work: Path, times: int = 200) -> None:
    from lora_scripts.errors import UserError
    from lora_scripts.run.run_folder import RunFolder

    two, none, nameless = 0, 0, 0
    for number in range(times):
        folder, (reading, writing) = work / f"start-{number}", os.pipe()
        folder.mkdir()
        children = []
        for _ in range(4):
            if child := os.fork():
                children.append(child)
                continue
            os.close(writing)
            os.read(reading, 1)  # all begin when the pipe is closed
            code = 3
            try:
                with RunFolder(folder, "x").locked():
                    file = os.open(folder / "held", os.O_CREAT | os.O_EXCL)
                    time.sleep(0.2)
                    os.close(file)
                    os.unlink(folder / "held")
                    code = 0
            except UserError as error:
                code = 2 if "another run is writing here (process " in str(error) else 4
            except FileExistsError:
                code = 5
            os._exit(code)
        os.close(reading)
        os.close(writing)
        codes = [waited(child, 60) for child in children]
        two, none, nameless = (
            two + (5 in codes or 3 in codes),
            none + (0 not in codes),
            nameless + (4 in codes or -1 in codes),
        )
    text = (
        f"{times} times four starts at once: two holders {two}, no holder {none}, a refusal without a name {nameless}"
    )
    tell(not (two or none or nameless), text)


# --- what is around ---------------------------------------------------------------------------------------------------


def around(runs: Runs) -> None:
    def few_files() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    def set_back() -> None:
        """An hour and a year back, from the third look at the clock on."""
        import datetime

        real, real_ns, looks = time.time, time.time_ns, [0]

        def back() -> float:
            looks[0] += 1
            return 31_540_000.0 if looks[0] > 2 else 0.0

        time.time = lambda: real() - back()
        time.time_ns = lambda: real_ns() - int(back()) * 10**9

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
                return cls.fromtimestamp(time.time(), tz)

        datetime.datetime = Clock  # type: ignore[misc]

    def zone() -> None:
        os.environ["TZ"] = "Pacific/Kiritimati"
        time.tzset()

    rows: dict[str, Callable[[], object]] = {
        "64 open files": few_files,
        "a clock set back": set_back,
        "time zone": zone,
    }
    for name, act in rows.items():
        out = runs.work / name / "x"
        code = waited(runs.start(out, within=act))
        tell(
            code == 0 and end_of(out) == runs.wanted, f"{name}: the same run" + (runs.told(out)[-600:] if code else "")
        )
    known = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
    for language in ("de_DE.UTF-8", "tr_TR.UTF-8", "C", "POSIX"):
        out = runs.work / language / "x"
        env = {**ENV, "LC_ALL": language, "PYTHONUTF8": "0"}
        command = [sys.executable, "-m", "lora_scripts", *runs.argv(out)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        there = "" if language.replace("UTF-8", "utf8") in known else " (this machine has no such locale)"
        tell(done.returncode == 0 and end_of(out) == runs.wanted, f"LC_ALL={language}: the same run{there}")


# --- faults -----------------------------------------------------------------------------------------------------------


def replaced(out: Path) -> None:
    """A file in place of a folder, which its run may make again at once."""
    while not out.is_file():
        shutil.rmtree(out, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.write_text("")


def faults(runs: Runs) -> None:
    from lora_scripts.formats.manifest import damage

    work = runs.work

    def judge(name: str, out: Path, code: int, told: str) -> None:
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        good = [s for s in sorted((out / "state").glob("step-????????")) if not damage(s)]
        one_line = (code == 2 and len(errors) == 1) or (code == 0 and not errors)
        kept = code == 0 or bool(good) or not re.search(r"^step \d", told, re.M)
        text = f"{name}: {code}, {errors[0][:170] if errors else 'it went on'}; whole states: {len(good)}"
        tell(one_line and kept and whole(out) and "Traceback" not in told, text)

    def mounted(name: str, size: str, act: Callable[[Path, int], None]) -> None:
        place = work / name
        place.mkdir()
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True)
        if mount.returncode:
            print(f"  skipped  {name}: nothing can be mounted here", flush=True)
            return
        try:
            out = place / "x"
            keep = work / f"{name}-told" / "x"
            child = runs.start(keep, f"cache_dir={work / 'whole' / 'x' / 'cache'}", into=out)
            act(place, child)
            judge(name, out, waited(child), runs.told(keep))
            subprocess.run(["mount", "-o", "remount,rw,size=64m", str(place)], capture_output=True)
            copy = work / f"{name}-again" / "x"
            shutil.copytree(out, copy)
            runs.goes_on(copy, name)
        finally:
            subprocess.run(["umount", "-l", str(place)], capture_output=True)

    def filled(place: Path, child: int) -> None:
        """A file of somebody else takes what is left."""
        runs.await_step(work / f"{place.name}-told" / "x", 2, child)
        try:
            with (place / "other").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        except OSError:
            return

    def read_only(place: Path, child: int) -> None:
        runs.await_step(work / f"{place.name}-told" / "x", 2, child)
        for _ in range(200):  # busy while a file is being written
            if not subprocess.run(["mount", "-o", "remount,ro", str(place)], capture_output=True).returncode:
                return
            time.sleep(0.005)

    mounted("a full disk", "2m", filled)
    mounted("a disk that becomes read-only", "64m", read_only)

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    out = work / "a limit on files" / "x"
    code = waited(runs.start(out, f"cache_dir={work / 'whole' / 'x' / 'cache'}", within=limit))
    told = runs.told(out)
    tell(
        code in (0, 2) and "Traceback" not in told and whole(out),
        f"files of 30 kB at most: {code}, {told.splitlines()[-1][:160]}",
    )
    runs.goes_on(out, "without the limit")
    for name, act in {
        "the folder goes": lambda out: shutil.rmtree(out, ignore_errors=True),
        "the folder gets another name": lambda out: out.rename(out.parent / "other"),
        "a file in place of the folder": replaced,
    }.items():
        out = work / name / "x"
        child = runs.start(out)
        runs.await_step(out, 2, child)
        act(out)
        code, told = waited(child), runs.told(out)
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        left = out.parent / "other" if (out.parent / "other").exists() else out
        good = (
            "Traceback" not in told
            and (code == 0 or (code == 2 and len(errors) == 1))
            and (left.is_file() or whole(left))
        )
        tell(good, f"{name}: {code}, {errors[0][:150] if errors else 'it went on'}")
    if shutil.which("strace") is None:
        print("  skipped  what strace injects: it is not installed", flush=True)
        return
    injections = (
        "fsync:error=EIO:when=20",
        "fsync:error=EIO:when=20+",
        "fsync:error=ENOSPC:when=25+",
        "fsync:error=EINTR:when=20",
        "rename:error=ENOSPC:when=12",
        "rename:error=EIO:when=12+",
        "mkdir:error=ENOSPC:when=30+",
        "unlink,unlinkat,rmdir:error=EACCES:when=1+",  # no folder for temporary files is any good to Python then
        "unlink:error=EACCES:when=2+ unlinkat,rmdir:error=EACCES:when=1+",
    )
    for inject in injections:
        out = work / re.sub(r"\W", "-", inject) / "x"
        out.parent.mkdir()
        calls = ",".join(row.partition(":")[0] for row in inject.split())
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(out.parent / "trace"), "-e", f"trace={calls}"]
        strace += [word for row in inject.split() for word in ("-e", f"inject={row}")]
        argv = runs.argv(out, f"cache_dir={work / 'whole' / 'x' / 'cache'}")
        command = [*strace, sys.executable, "-m", "lora_scripts", *argv]
        done = subprocess.run(command, env=ENV, cwd=work, capture_output=True, text=True)
        injected = (out.parent / "trace").read_text().count("INJECTED")
        if not injected:
            print(f"  skipped  {inject}: no such call so late, or strace may not trace here", flush=True)
            continue
        judge(f"{inject} ({injected} times)", out, done.returncode, done.stdout + done.stderr)
        runs.goes_on(out, inject)


def main(parts: list[str], work: Path) -> int:
    chosen = parts or ["starts", "signals", "around", "faults"]
    if "starts" in chosen:
        starts(work)
    if rest := [name for name in chosen if name != "starts"]:
        runs = Runs(work)
        print(f"an unbroken run takes {runs.length:.1f} s", flush=True)
        for name in rest:
            {"signals": signals, "around": around, "faults": faults}[name](runs)
    print(json.dumps({"failed": SEEN}, indent=1) if SEEN else "all hold")
    return 1 if SEEN else 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src")]
    sys.exit(main(sys.argv[1:], Path(tempfile.mkdtemp(prefix="evening-"))))
