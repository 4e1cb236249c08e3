"""How often advice is given, rightly and wrongly: healthy and planted runs on the miniature world.

python benchmarks/advice.py run FOLDER [--set tune|report] [--only KIND]   trains them, one JSON file each, goes on
                                                                           where it stopped
python benchmarks/advice.py table FOLDER [--set tune|report]               what was advised, as a table

Each run is a training as `lora-scripts train` does it, up to its last step: pictures of 64 px, 40 to 80 steps of rank 4
to 16, which take about 15 seconds on one core. The rules were tuned on one set of seeds; the figures are of another.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.demo import world
from lora_scripts.demo.evaluate import wilson
from lora_scripts.errors import UserError
from lora_scripts.formats import io
from lora_scripts.run import advice
from lora_scripts.run.check import check
from lora_scripts.run.training import Run

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SIDE = 64
FAULTS = ("rate_high", "rate_low", "memorise", "captions", "strays")
SETS = {"tune": (1000, 8, 3), "report": (2000, 40, 8)}
"""First seed, healthy runs, planted runs of each kind."""


@dataclass(frozen=True)
class Spec:
    """One run."""

    name: str
    kind: str
    seed: int


def specs(which: str) -> list[Spec]:
    """All runs of a set, healthy and planted ones mixed, so that a part of them is a fair sample."""
    first, healthy, planted = SETS[which]
    kinds = ["healthy"] * healthy + [fault for fault in FAULTS for _ in range(planted)]
    random.Random(first).shuffle(kinds)
    return [Spec(f"{which}-{i:03d}-{kind}", kind, first + i) for i, kind in enumerate(kinds)]


def settings(spec: Spec) -> tuple[dict[str, Any], int, str]:
    """The config's keys, how many pictures, and their style."""
    rng = random.Random(f"advice/{spec.seed}")
    optimizer = rng.choice(["adamw"] * 5 + ["lion", "schedule_free", "adafactor"])
    rate = rng.choice([1e-3, 2e-3, 3e-3, 4e-3]) * {"lion": 0.2}.get(optimizer, 1.0)
    rank = rng.choice([4, 8, 16])
    keys: dict[str, Any] = {
        "lora_rank": rank,
        "lora_alpha": float(rng.choice([rank, rank, rank / 2])),
        "optimizer": optimizer,
        "learning_rate": rate,
        "lr_schedule": "constant" if optimizer == "schedule_free" else rng.choice(["cosine", "constant", "linear"]),
        "warmup_steps": rng.choice([0, 4]),
        "batch_size": rng.choice([2, 4, 4]),
        "caption_dropout": rng.choice([0.0, 0.1]),
        "min_snr_gamma": rng.choice([None, 5.0]),
        "seed": spec.seed,
    }
    count, style = rng.randint(16, 50), rng.choice(["neon", "sketch"])
    if spec.kind == "rate_high":
        keys["learning_rate"] = min(1.0, rate * rng.choice([30, 50, 100]))
    elif spec.kind == "rate_low":
        keys["learning_rate"] = rate / 100
    elif spec.kind == "memorise":
        keys |= {"lora_rank": 16, "lora_alpha": 16.0, "learning_rate": 6e-3, "batch_size": 2}
        keys |= {"optimizer": "adamw", "lr_schedule": "constant", "min_snr_gamma": None}
        count = 6
    elif spec.kind in ("captions", "strays"):
        count = rng.randint(24, 40)
    return keys, count, style


def write_data(spec: Spec, count: int, style: str, folder: Path) -> list[str]:
    """Pictures and captions, with the fault; the names of the pictures at fault."""
    rng = random.Random(f"data/{spec.seed}")
    scenes = world.style_set(style, count, seed=spec.seed)
    captions = [world.caption(scene) for scene in scenes]
    bad = sorted(rng.sample(range(count), max(2, round(count / (10 if spec.kind == "strays" else 5)))))
    if spec.kind == "captions":
        for i, j in zip(bad, bad[1:] + bad[:1], strict=True):
            captions[i] = world.caption(scenes[j])
    elif spec.kind == "strays":
        other = "sketch" if style == "neon" else "neon"
        for i in bad:
            scenes[i] = world.Scene(**{**asdict(scenes[i]), "style": other})
    else:
        bad = []
    world.write_pictures(folder, scenes, SIDE)
    rows = "".join(f"img{i:03d}.png,{caption}\n" for i, caption in enumerate(captions, 1))
    (folder / "metadata.csv").write_text("filename,prompt\n" + rows, encoding="utf-8")
    return [f"img{i + 1:03d}.png" for i in bad]


class Shortened(Run):
    """A run without its end: no file, no proof, no report."""

    def train_only(self) -> None:
        """Everything up to the last step, and the look at every training picture."""
        import torch

        self.device, self.precision = torch.device("cpu"), "fp32"
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._load({})
        self._plan()
        cache = Cache(self.folder.path / "cache", io.write_atomic)
        self.feed.fill(cache, lambda *told: None)
        self.held.fill(cache, lambda *told: None)
        self.held.keep_best = lambda: None  # type: ignore[method-assign]
        self._train()
        self.fitted = self.held.fit()

    def _save(self) -> None:
        pass


def run_one(spec: Spec, folder: Path) -> dict[str, Any]:
    """Trains; all that was measured."""
    keys, count, style = settings(spec)
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    bad = write_data(spec, count, style, scratch / "data")
    steps = 160 if spec.kind == "memorise" else 40
    trained = count if spec.kind == "memorise" else round(0.9 * count)
    keys["epochs"] = -(-steps // -(-trained // keys["batch_size"]))
    if spec.kind == "memorise":
        held = Spec(spec.name, "healthy", spec.seed + 500)
        write_data(held, 5, style, scratch / "held")
        keys["val_data_dir"] = scratch / "held"
    config = TrainConfig(
        train_data_dir=scratch / "data", base_model=BASE, output_dir=scratch / "out", resolution=SIDE,
        targets=("attention", "feed_forward") if spec.kind == "memorise" else ("attention",), val_every=steps // 5, sample_every=0, save_steps=10**6, device="cpu", precision="fp32", **keys,
    )  # fmt: skip
    run = Shortened(config, *check(config, resume=None), resume=False)
    begun = time.process_time()
    failed = ""
    try:
        run.train_only()
    except UserError as error:
        failed = str(error)
    return {
        "spec": asdict(spec), "keys": {k: v for k, v in keys.items() if k != "val_data_dir"}, "pictures": count, "style": style, "bad": bad, "failed": failed,
        "evaluations": run.state.evaluations, "fit": None if failed else run.fitted, "losses": run.state.losses, "seconds": time.process_time() - begun,
        "measuring": run.held.seconds,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=SETS, default="report")
    parser.add_argument("--only", help="one kind of runs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for spec in specs(args.set):
        path = args.folder / f"{spec.name}.json"
        if path.exists() or args.only not in (None, spec.kind):
            continue
        path.write_text(json.dumps(run_one(spec, args.folder)), encoding="utf-8")
        print(path.name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
