"""Runs that are killed again and again, while training, saving, resuming and exporting, end as one that never was:
`python benchmarks/kills.py [RUNS] [FOLDER]`. `python benchmarks/kills.py soak [MINUTES] [FOLDER]` trains on and on
through measurements, previews, saves and prunes, half of the time in one process, then with a SIGKILL after each save,
and tells what memory and descriptors do. Both tell their figures as they go, and can be cut off at any time.

A run is of a few steps of a tiny model with everything on that draws random numbers; SIGKILL comes at a random moment,
and after each the run is resumed, or begun again if there was nothing yet. In the end its LoRA and its state must be
the unbroken run's, bit for bit. That one is a process of its own; the others are forks of this one, which has the
libraries loaded, so that the moments fall into the run and not into the imports.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

KEYS = {
    **{"epochs": 3, "batch_size": 1, "gradient_accumulation": 2, "save_steps": 1, "keep_last": 2, "ema_decay": 0.9},
    **{"flip": "true", "random_crop": "true", "caption_dropout": 0.3, "lora_dropout": 0.2, "shuffle_tags": "true"},
    **{"sample_every": 4, "targets": "['*mid_block*attn*', '*up_blocks.3*to_q*']", "val_split": 0.2},
}
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
GROWN_UP = 500
"""Steps after which a process has all that it keeps: allocator, libraries, the first pages."""


def forked(act: Callable[[], int], told: Path) -> int:
    """The number of a process that does it and writes what it says into a file."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float) -> bool:
    """Whether it ended by itself, and well, in that time; else it is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"it ended with {os.waitstatus_to_exitcode(status)}"
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def end_of(out: Path) -> dict[str, bytes]:
    state = max((out / "state").glob("step-*"))
    return {p.name: p.read_bytes() for p in (*out.glob("*.safetensors"), *state.iterdir())}


def prepared() -> Callable[[list[str]], int]:
    """The command line, with everything loaded that a run needs."""
    for name in ("torch", "diffusers", "transformers", "lora_scripts.run.story", "lora_scripts.families.sd1.model"):
        importlib.import_module(name)
    from lora_scripts.cli import main as cli

    return cli


def main(runs: int, work: Path) -> None:
    import tiny

    tiny.write_base(work / "base.safetensors")
    tiny.write_pictures(work / "data", 6)
    config = tiny.write_config(work, **KEYS)

    def argv(out: Path, *more: str) -> list[str]:
        return ["train", "--config", str(config), f"output_dir={out}", *more]

    fresh = [sys.executable, "-m", "lora_scripts", *argv(work / "whole" / "x")]
    subprocess.run(fresh, env=ENV, check=True, capture_output=True)
    wanted, cli, begun = end_of(work / "whole" / "x"), prepared(), time.monotonic()
    assert ended(forked(lambda: cli(argv(work / "forked" / "x")), work / "told.txt"), 600)
    length = time.monotonic() - begun
    assert end_of(work / "forked" / "x") == wanted, "a fork of this process ends as another"
    print(f"an unbroken run takes {length:.1f} s", flush=True)
    chance, kills, resumed, same = random.Random(0), 0, 0, 0
    for number in range(1, runs + 1):
        out, over = work / str(number) / "x", False
        while not over:
            again = ["--resume"] if list((out / "state").glob("step-*")) else []
            # From the first line to the report; the last of three lives long enough.
            seconds = chance.uniform(0, 1.1) * length if chance.random() < 0.7 else 100 * length
            act = partial(cli, argv(out, *again))
            # Every other run keeps nothing of the cache in memory: what it is fed is read while it trains.
            over = ended(forked(partial(unkept, act) if number % 2 else act, work / "told.txt"), seconds)
            kills += not over
            resumed += bool(again) and not over
        alike = end_of(out) == wanted and not list(out.rglob(".lora-scripts-*"))
        same += alike
        said = f"{number}: {'the same' if alike else 'ANOTHER'}; {same} of {number} runs, {kills} kills"
        print(f"{said}, {resumed} of them of a run that was resumed", flush=True)


def unkept(act: Callable[[], int]) -> int:
    """Does it without a place in memory for what is encoded."""
    from lora_scripts.run import story

    with mock.patch.object(story, "KEPT", 0):
        return act()


def soak(minutes: float, work: Path) -> None:
    import tiny

    tiny.write_base(work / "base.safetensors")
    tiny.write_pictures(work / "data", 4)
    keys: dict[str, Any] = {
        "epochs": 1_000_000,
        "save_steps": 20,
        "keep_last": 2,
        "targets": "['*mid_block*attn*']",
        "val_every": 50,
    }
    config = tiny.write_config(work, **{**keys, "sample_every": 100, "lr_schedule": "constant"})
    cli, told, begun = prepared(), work / "told.txt", time.monotonic()

    def spent() -> float:
        return (time.monotonic() - begun) / 60

    def newest() -> int:
        return max((int(path.name[5:]) for path in (work / "out" / "state").glob("step-????????")), default=0)

    chance, lives = random.Random(0), 0
    told.touch()
    with told.open() as lines:
        while spent() < minutes:
            argv = ["train", "--config", str(config), *(["--resume"] if lives else [])]
            child, before, rows = forked(lambda argv=argv: watched(cli, argv), told), newest(), []
            # The first lives for half of the time; the others until they have saved, and a moment more.
            while spent() < (minutes if lives else minutes / 2) and not (lives and newest() > before):
                assert not os.waitpid(child, os.WNOHANG)[0], told.read_text()[-2000:]
                time.sleep(0.1)
                fresh = [line.split() for line in lines if line.startswith("at ")]
                rows += [(int(step), float(held), int(fds)) for _, step, held, fds in fresh]
                if fresh and not lives:
                    print(f"{spent():.0f} min: {growth(rows)}", flush=True)
            time.sleep(chance.uniform(0, 2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            lines.read()  # the rest of its last line too
            lives += 1
            words = f"; {growth(rows)}" if lives == 1 else ""
            saves, states = newest() // keys["save_steps"], len(list((work / "out" / "state").glob("step-*")))
            print(f"{spent():.0f} min, {lives} kills, {saves} saves, {states} states kept{words}", flush=True)


def watched(cli: Callable[[list[str]], int], argv: list[str]) -> int:
    """A training that says its step, its megabytes and its descriptors now and then."""
    import resource

    from lora_scripts.events import Stepped
    from lora_scripts.run import story

    train, page = story.train, resource.getpagesize()

    def telling(*rest, sink, **more):  # type: ignore[no-untyped-def]
        def tell(event: object) -> None:
            if isinstance(event, Stepped) and event.step % 250 == 0:
                held = int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6
                print(f"\nat {event.step} {held:.2f} {len(os.listdir('/proc/self/fd'))}", flush=True)

        return train(*rest, sink=tell, **more)

    story.train = telling  # type: ignore[assignment]
    return cli(argv)


def growth(rows: list[tuple[int, float, int]]) -> str:
    """Of one process: what a line through its megabytes says, the first steps left out."""
    if not rows:
        return "no figure yet"
    late = [(step, held) for step, held, _ in rows if step >= rows[0][0] + GROWN_UP]
    fds = [row[2] for row in rows]
    words = f"step {rows[-1][0]}, {rows[-1][1]:.0f} MB, {min(fds)} to {max(fds)} descriptors"
    if len(late) < 4:
        return words
    x, y = (sum(row[i] for row in late) / len(late) for i in (0, 1))
    slope = sum((a - x) * (b - y) for a, b in late) / sum((a - x) ** 2 for a, _ in late)
    return f"{words}, {1000 * slope:+.2f} MB per 1,000 steps over {late[-1][0] - late[0][0]} steps"


if __name__ == "__main__":
    soaking, rest = sys.argv[1:2] == ["soak"], sys.argv[1:]
    rest = rest[1:] if soaking else rest
    place = Path(rest[1]) if len(rest) > 1 else Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    if soaking:
        soak(float(rest[0]) if rest else 120, place)
    else:
        main(int(rest[0]) if rest else 200, place)
