"""How a run grows with its pictures: start, time a step, memory.

    python benchmarks/growth.py feed [--counts 50,500,5000,50000] [--folder FOLDER]
    python benchmarks/growth.py run  [--counts 50,500,5000,50000] [--folder FOLDER]

`feed` writes what Stable Diffusion 1.5 makes of pictures of 512 x 448 px and of captions into a cache (random numbers
of the true size; from 1,000 pictures on some share a caption) and asks the feed for batches of four, as fast as it can:
a step that hides nothing. `run` makes pictures of 64 px and trains the tests' tiny model on them, looked at and cached
before: from the beginning of the process to the end of its first step, and 100 steps. Each count is a process of its
own. Memory is what is anonymous, so that neither the base's file nor the system's cache of files counts. 50,000
pictures take 6 GB in the folder, a temporary one if none is named, and go in the end. Files are not synced.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = 1000
STEPS = 100


def anonymous() -> int:
    """Bytes of this process that no file stands behind (Linux)."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("RssAnon"))


def bare_write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


# --- the feed alone ---------------------------------------------------------------------------------------------------


def feed(count: int, folder: Path, *, fill: bool) -> dict[str, Any]:
    import torch

    from lora_scripts.data.cache import Cache
    from lora_scripts.data.scan import Sample
    from lora_scripts.families.sd1.facts import FACTS
    from lora_scripts.train.encoded import KEPT
    from lora_scripts.train.feed import Feed, Settings
    from lora_scripts.train.planned import plan_pictures

    class Family:
        """Whose encoders gave all that they could before."""

        facts = FACTS

        def fingerprint(self, part: str) -> str:
            return part

        def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            mean = torch.randn(1, 4, 56, 64)
            return {"mean": mean, "std": 0.1 * mean.abs()}

        def encode_text(self, captions: list[str]) -> dict[str, torch.Tensor]:
            return {"states": torch.randn(len(captions), 77, 768)}

    bare = anonymous()
    samples = [
        Sample(folder / f"{n}.png", f"{n}.png", f"picture {n % CAPTIONS}", 512, 448, f"{n:064x}") for n in range(count)
    ]
    pictures = plan_pictures(samples, (512, 448), (64, 8), flip=False, random_crop=False, seed=0)
    family: Any = Family()
    made = Feed(family, pictures, Settings(4, 1, 1, 0, 0.1, False, 1), cache_text=True)
    listed = anonymous()
    if fill:
        cache, encoded = Cache(folder / "cache", bare_write), made.encoded
        encoded._vae, encoded._text = "vae", "text"
        for picture in pictures:
            cache.put(encoded._latents_key(picture, picture.views[0]), encoded._encoded(picture, torch.zeros(1)))
        made.fill(cache, lambda *told: None)
        return {}
    cache = Cache(folder / "cache", bare_write, KEPT)
    begun, used = time.perf_counter(), time.process_time()
    made.fill(cache, lambda *told: None)
    start = {"start_wall": time.perf_counter() - begun, "start_cpu": time.process_time() - used}
    walls, cpus, most = [], [], 0
    begun, used = time.perf_counter(), time.process_time()
    for n, _ in enumerate(made.steps(0, 3 * STEPS)):
        now, cpu = time.perf_counter(), time.process_time()
        walls.append(now - begun)
        cpus.append(cpu - used)
        begun, used = now, cpu
        if n % 10 == 0:
            most = max(most, anonymous())
    return {
        **start,
        "step_wall": median(walls[2:]),
        "step_cpu": sum(cpus[2:]) / len(cpus[2:]),
        "pictures_mb": (listed - bare) / 1e6,
        "rest_mb": (most - listed) / 1e6,
        "kept_mb": cache.held / 1e6,
    }


# --- a whole run of a tiny model --------------------------------------------------------------------------------------


def make(count: int, folder: Path) -> None:
    """Pictures, captions, the base, the config, and everything encoded."""
    import numpy as np
    from PIL import Image

    import tiny
    from lora_scripts.events import ignore
    from lora_scripts.formats import io
    from lora_scripts.run import story
    from lora_scripts.run.build import build_model
    from lora_scripts.run.configs import load_config
    from lora_scripts.run.preflight import preflight
    from lora_scripts.run.run_folder import cache_of

    data = folder / "data"
    data.mkdir()
    rows = ["filename,prompt"]
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(data / f"{n}.png")
        rows.append(f"{n}.png,picture {n % CAPTIONS}")
    (data / "metadata.csv").write_text("\n".join(rows) + "\n")
    base = folder / "base.safetensors"
    tiny.write_base(base)
    keys = {"targets": "['*.mid_block.*attn2*']", "epochs": 40, "val_split": 0, "batch_size": 4, "save_steps": 100_000}
    config = load_config(tiny.write_config(folder, base_model=base, train_data_dir=data, **keys))
    time.sleep(2.5)  # what was written just now is not remembered
    ready = preflight(config, resume=False)
    import torch

    model = build_model(config, torch.device("cpu"), "fp32", {})
    parts = story.assemble(config, ready.folder, ready.samples, [], model, device=torch.device("cpu"), precision="fp32")
    story.encode(parts, story.Cache(cache_of(config, ready.folder.path), bare_write, 0), ignore)
    assert ready.samples.seen is not None
    ready.samples.seen.save(io.write_text)


def run(folder: Path, begun: float) -> dict[str, Any]:
    """`begun`: when the process was started, by the clock on the wall."""
    import signal

    from lora_scripts.events import Event, Stepped, ignore
    from lora_scripts.run import story
    from lora_scripts.run.configs import load_config
    from lora_scripts.run.preflight import preflight, tell_quick

    found: dict[str, Any] = {}
    seconds: list[float] = []

    def sink(event: Event) -> None:
        if isinstance(event, Stepped):
            if event.step == 1:
                found.update(first_wall=time.time() - begun, first_cpu=time.process_time(), last=time.process_time())
            if event.step == STEPS + 1:
                found["step_cpu"] = (time.process_time() - found.pop("last")) / STEPS
                found["anonymous_mb"] = anonymous() / 1e6
                signal.raise_signal(signal.SIGINT)
            seconds.append(event.seconds)

    config = load_config(folder / "config.yaml")
    ready = preflight(config, resume=False)
    tell_quick(config, ready.scanned, [], ignore)
    found["looked_cpu"] = time.process_time()
    with suppress(KeyboardInterrupt):
        story.train(config, ready.folder, ready.samples, resume=False, sink=sink)
    return found | {"step_wall": median(seconds[1:])}


# --- both -------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["feed", "run", "one"])
    parser.add_argument("--counts", default="50,500,5000,50000")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", default="")
    args = parser.parse_args()
    counts = [int(count) for count in args.counts.split(",")]
    if args.what == "one":
        sys.path.insert(0, str(ROOT / "tests"))
        print(json.dumps(one(args.part, counts[0], args.folder)))
        return
    for count in counts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for part in (f"{args.what}-make", args.what):
                command = [sys.executable, __file__, "one", "--part", part, "--counts", str(count), "--folder", folder]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(told.splitlines()[-1])
            print(f"{count:6} pictures: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()), flush=True)


def one(part: str, count: int, folder: Path) -> dict[str, Any]:
    if part.startswith("feed"):
        return feed(count, folder, fill=part.endswith("make"))
    if part.endswith("make"):
        make(count, folder)
        return {}
    return run(folder, time.time() - time.monotonic() + _started())


def _started() -> float:
    """When this process began, on the clock of `time.monotonic` (Linux; man proc_pid_stat, field 22)."""
    import os

    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
