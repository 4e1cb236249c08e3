"""How often advice is given, rightly and wrongly: healthy and planted runs on the miniature world.

python benchmarks/advice.py run FOLDER [--set tune|report] [--only KIND …] trains them, one JSON file each, goes on
                                                                           where it stopped
python benchmarks/advice.py table FOLDER [--set tune|report]               what was advised, as a table

Each run is a training as `lora-scripts train` does it, up to its last step: 16 to 36 pictures of 64 px, 24 steps (200
for memorising) of rank 4 to 16, measured at half of the usual noise levels. It takes 10 to 40 seconds on one core. The
rules were tuned on one set of seeds; the figures are of another.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lora_scripts.adapters.inject import remove
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.demo import world
from lora_scripts.demo.evaluate import wilson
from lora_scripts.errors import UserError
from lora_scripts.families.base import LoadOptions, PictureFamily
from lora_scripts.families.table import load_pictures
from lora_scripts.formats import io
from lora_scripts.run import build, heldout
from lora_scripts.run.preflight import check
from lora_scripts.run.story import Run
from lora_scripts.train.advise import Facts, advise, never_fit
from lora_scripts.train.evidence import Evaluation

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SIDE = 64
FAULTS = {"rate_high": 3, "rate_low": 3, "memorise": 1, "captions": 1, "strays": 2}
"""How many units of each: the long runs are fewer."""
SETS = {"tune": (1000, 8, 1), "report": (2000, 40, 4)}
"""First seed, healthy runs, and a unit of planted ones: see `specs`."""


@dataclass(frozen=True)
class Spec:
    """One run."""

    name: str
    kind: str
    seed: int


def specs(which: str) -> list[Spec]:
    """All runs of a set, healthy and planted ones mixed, so that a part of them is a fair sample."""
    first, healthy, planted = SETS[which]
    kinds = ["healthy"] * healthy + [fault for fault, share in FAULTS.items() for _ in range(share * planted)]
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
        "warmup_steps": rng.choice([0, 3]),
        "batch_size": rng.choice([2, 3, 4]),
        "caption_dropout": rng.choice([0.0, 0.1]),
        "min_snr_gamma": rng.choice([None, 5.0]),
        "seed": spec.seed,
    }
    count, style = rng.randint(16, 36), rng.choice(["neon", "sketch"])
    if spec.kind == "rate_high":
        keys["learning_rate"] = min(1.0, rate * rng.choice([30, 50, 100]))
    elif spec.kind == "rate_low":
        keys["learning_rate"] = rate / 100
    elif spec.kind == "memorise":
        keys |= {"lora_rank": 16, "lora_alpha": 16.0, "learning_rate": 4e-3, "batch_size": 4, "caption_dropout": 0.0}
        keys |= {"optimizer": "adamw", "lr_schedule": "cosine", "min_snr_gamma": None}
        count = 6
    elif spec.kind in ("captions", "strays"):
        count = rng.randint(20, 32)
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


@functools.cache
def base() -> PictureFamily:
    """Loaded once for all runs."""
    return load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))


class Shortened(Run):
    """A run without its end: no file, no proof, no report."""

    def train_only(self) -> None:
        """Everything up to the last step, and the look at every training picture."""
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

    def take_off(self) -> None:
        """Leaves the base as it was."""
        remove(self.family.roots, self.layers)

    def _save(self) -> None:
        pass


def run_one(spec: Spec, folder: Path) -> dict[str, Any]:
    """Trains; all that was measured."""
    keys, count, style = settings(spec)
    scratch = folder / f"scratch-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    bad = write_data(spec, count, style, scratch / "data")
    steps = 200 if spec.kind == "memorise" else 24
    trained = count if spec.kind == "memorise" else round(0.9 * count)
    keys["epochs"] = -(-steps // -(-trained // keys["batch_size"]))
    if spec.kind == "memorise":
        held = Spec(spec.name, "healthy", spec.seed + 500)
        write_data(held, 8, style, scratch / "held")
        keys["val_data_dir"] = scratch / "held"
    config = TrainConfig(
        train_data_dir=scratch / "data", base_model=BASE, output_dir=scratch / "out", resolution=SIDE,
        targets=("attention", "feed_forward") if spec.kind == "memorise" else ("attention",),
        val_every=steps // (5 if spec.kind == "memorise" else 4), sample_every=0, save_steps=10**6,
        device="cpu", precision="fp32", **keys,
    )  # fmt: skip
    run = Shortened(config, *check(config, resume=None), resume=False)
    begun = time.process_time()
    failed = ""
    try:
        run.train_only()
    except UserError as error:
        failed = str(error)
    run.take_off()
    return {
        "spec": asdict(spec), "keys": {k: v for k, v in keys.items() if k != "val_data_dir"},
        "pictures": count, "style": style, "bad": bad, "failed": failed,
        "evaluations": run.state.evaluations, "fit": None if failed else run.fitted, "losses": run.state.losses,
        "seconds": time.process_time() - begun,
    }  # fmt: skip


def told(found: dict[str, Any]) -> list[str]:
    """The kinds of advice that a run gets; "stopped" where the training itself refused to go on."""
    if found["failed"]:
        return ["stopped"]
    keys, taken = found["keys"], [Evaluation(**row) for row in found["evaluations"]]
    steps = len(found["losses"])
    facts = Facts(keys["learning_rate"], steps, max(1, steps // keys["epochs"]), keys["warmup_steps"], "lora")
    kinds = [one.kind for one in advise(taken, facts)]
    return kinds + (["never_fit"] if never_fit(steps, *found["fit"]) else [])


RIGHT = {
    "rate_high": {"rises", "oscillates", "stopped"},
    "rate_low": {"does_not_fall"},
    "memorise": {"memorises"},
    "captions": {"never_fit"},
    "strays": {"never_fit"},
}


def table(folder: Path, which: str) -> str:
    """Shares of runs that were advised, with 95 % intervals (Wilson), as Markdown."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"{which}-*.json")):
        one = json.loads(path.read_text("utf-8"))
        found.setdefault(one["spec"]["kind"], []).append(one)
    rows = ["| runs | told the fault | told something else |", "|---|---|---|"]
    for kind in ("healthy", *FAULTS):
        kinds = [set(told(one)) for one in found.get(kind, [])]
        if not kinds:
            continue
        right, count = RIGHT.get(kind, set()), len(kinds)
        hits, others = sum(bool(k & right) for k in kinds), sum(bool(k - right) for k in kinds)
        cells = [_share(hits, count) if right else "", _share(others, count)]
        rows.append(f"| {kind} ({count}) | {' | '.join(cells)} |")
    strays = [one for one in found.get("strays", []) if not one["failed"]]
    named = [set(advice.names) if (advice := never_fit(0, *one["fit"])) else set() for one in strays]
    hit = sum(len(n & set(one["bad"])) for n, one in zip(named, strays, strict=True))
    bad, wrong = sum(len(set(one["bad"]) & set(one["fit"][0])) for one in strays), sum(map(len, named)) - hit
    return "\n".join([*rows, f"\nOf {bad} stray pictures {hit} were named, and {wrong} others."])


def _share(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits} = {hits / count:.0%} ({low:.0%} to {high:.0%})".replace("%", " %")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=SETS, default="report")
    parser.add_argument("--only", nargs="+", choices=("healthy", *FAULTS), help="these kinds of runs")
    args = parser.parse_args()
    if args.what == "table":
        print(table(args.folder, args.set))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    build.load_family = lambda *told: base()
    heldout.STRATA, heldout.TRAIN_STRATA = 4, 3
    for spec in specs(args.set):
        path = args.folder / f"{spec.name}.json"
        if path.exists() or (args.only and spec.kind not in args.only):
            continue
        path.write_text(json.dumps(run_one(spec, args.folder)), encoding="utf-8")
        print(path.name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
