"""Runs that are killed again and again, while training, saving, resuming and exporting, end as one that never was:
`python benchmarks/kills.py [RUNS] [FOLDER]`. 200 take some hours on one core; `soak` in place of RUNS trains on and on
through prunes and saves for as long as it is left, and tells memory and descriptors.

A run is of a few steps of a tiny model with everything on that draws random numbers; SIGKILL comes at a random moment,
and after each the run is resumed, or begun again if there was nothing yet. In the end its LoRA and its state must be
the unbroken run's, bit for bit.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

KEYS = {
    **{"epochs": 4, "batch_size": 1, "gradient_accumulation": 2, "save_steps": 1, "keep_last": 2, "ema_decay": 0.9},
    **{"flip": "true", "random_crop": "true", "caption_dropout": 0.3, "lora_dropout": 0.2, "shuffle_tags": "true"},
    **{"sample_every": 4, "targets": "['*mid_block*attn*', '*up_blocks.3*to_q*']", "val_split": 0.2},
}
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def command(config: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "lora_scripts", "train", "--config", str(config), f"output_dir={out}", *more]


def end_of(out: Path) -> dict[str, bytes]:
    state = max((out / "state").glob("step-*"))
    return {p.name: p.read_bytes() for p in (*out.glob("*.safetensors"), *state.iterdir())}


def main(runs: int, work: Path) -> None:
    import tiny

    tiny.write_base(work / "base.safetensors")
    tiny.write_pictures(work / "data", 10)
    config = tiny.write_config(work, **KEYS)
    begun = time.monotonic()
    subprocess.run(command(config, work / "whole" / "x"), env=ENV, check=True, capture_output=True)
    length, wanted = time.monotonic() - begun, end_of(work / "whole" / "x")
    chance, kills, same = random.Random(0), 0, 0
    for number in range(1, runs + 1):
        out, ended = work / str(number) / "x", False
        while not ended:
            resume = ["--resume"] if list((out / "state").glob("step-*")) else []
            with subprocess.Popen(command(config, out, *resume), env=ENV, stdout=-3, stderr=subprocess.PIPE) as child:
                try:
                    # From the imports to the report; the last of three lives long enough.
                    wait = chance.uniform(0.2, 1.1) * length if chance.random() < 0.7 else 20 * length
                    _, told = child.communicate(timeout=wait)
                    assert child.returncode == 0, told.decode()
                    ended = True
                except subprocess.TimeoutExpired:
                    child.kill()
                    kills += 1
        litter = [p for p in out.rglob(".lora-scripts-*")]
        alike = end_of(out) == wanted and not litter
        same += alike
        print(f"{number}: {'the same' if alike else 'ANOTHER'}; {same} of {number} runs, {kills} kills", flush=True)


def soak(work: Path) -> None:
    import resource

    import tiny
    from lora_scripts.cli import main as cli
    from lora_scripts.events import Stepped
    from lora_scripts.run import story

    tiny.write_base(work / "base.safetensors")
    tiny.write_pictures(work / "data", 4)
    keys = {"epochs": 1_000_000, "save_steps": 20, "keep_last": 2, "targets": "['*mid_block*attn*']", "val_every": 50}
    config = tiny.write_config(work, **{**keys, "sample_every": 100, "lr_schedule": "constant"})
    train, pages = story.train, resource.getpagesize()

    def watched(*rest, sink, **more):  # type: ignore[no-untyped-def]
        def tell(event: object) -> None:
            if isinstance(event, Stepped) and event.step % 250 == 0:
                held = int(Path("/proc/self/statm").read_text().split()[1]) * pages / 1e6
                print(f"step {event.step}: {held:.1f} MB, {len(os.listdir('/proc/self/fd'))} descriptors", flush=True)

        return train(*rest, sink=tell, **more)

    story.train = watched  # type: ignore[assignment]
    cli(["train", "--config", str(config)])


if __name__ == "__main__":
    place = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    if sys.argv[1:2] == ["soak"]:
        soak(place)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, place)
