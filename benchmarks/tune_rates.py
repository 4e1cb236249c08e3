"""Whether the learning rate that is best in a quarter of a run is the best in all of it, on the miniature world.

    PYTHONPATH=. python benchmarks/tune_rates.py run   --work FOLDER [--styles neon,wash] [--seed 100] [--epochs 8,2]
    PYTHONPATH=. python benchmarks/tune_rates.py table --work FOLDER [--epochs 8,2] [--out FILE.json]

Each run is one of `lora-scripts train` on the bundled base: 128 px, rank 16, batches of 4, 50 pictures of a style and
16 held out, the defaults besides; what is finished is not run again. `lora-scripts tune` would try a part of these runs
and take the lowest held-out loss; the table says which rate that is, by all 16 pictures and by 5 of them drawn 500
times (as many as a run of 50 pictures holds out), and how much higher the whole run's loss is there than at its best
rate. Rates are those of the grid, octave by octave.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from benchmarks.styles import write

from lora_scripts.cli import main as lora_scripts
from lora_scripts.demo import world

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
PICTURES, HELD, SIDE, FEW, DRAWS = 50, 16, 128, 5, 500
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
KEYS = {"base_model": BASE, "resolution": SIDE, "lora_rank": 16, "batch_size": 4, "sample_every": 0, "report": "one"}
Losses = Mapping[float, list[list[float]]]
"""Rate -> of each measurement the losses of the held-out pictures."""


def run(work: Path, style: str, seed: int, epochs: int, rate: float) -> None:
    """One training, unless it is there."""
    folder = work / f"{style}{seed}"
    if not folder.exists():
        trained = world.style_set(style, PICTURES, seed)
        held = world.style_set(style, HELD, seed + 1000, skip=frozenset(scene.key for scene in trained))
        for name, scenes in (("train", trained), ("held", held)):
            write(folder / name, scenes, [world.caption(scene) for scene in scenes], SIDE)
    output = folder / f"run-{rate:g}-{epochs}"
    if (output / "report.html").exists():
        return
    keys = {**KEYS, "train_data_dir": folder / "train", "val_data_dir": folder / "held", "cache_dir": folder / "cache"}
    keys |= {"output_dir": output, "learning_rate": rate, "epochs": epochs, "seed": 1}
    config = folder / "config.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()), encoding="utf-8")
    assert lora_scripts(["train", "--config", str(config), "--sure"]) == 0


def losses(folder: Path, epochs: int) -> Losses:
    """Of all finished runs of a style with so many epochs."""
    found = {}
    for record in folder.glob(f"run-*-{epochs}/heldout.json"):
        rate = float(record.parent.name.removeprefix("run-").removesuffix(f"-{epochs}"))
        rows = json.loads(record.read_text("utf-8"))["evaluations"]
        found[rate] = [row["held"] for row in rows if not row["name"]]
    return found


def lowest(each: Losses, pictures: list[int]) -> dict[float, float]:
    """Rate -> the lowest mean loss over these pictures."""
    return {rate: min(mean(row[i] for i in pictures) for row in rows) for rate, rows in each.items()}


def judged(folder: Path, whole: int, part: int) -> dict[str, object]:
    """What a part of the run says of the whole of it."""
    all_of_them = list(range(HELD))
    end, short = lowest(losses(folder, whole), all_of_them), losses(folder, part)
    best, rng = min(end, key=lambda rate: end[rate]), random.Random(1)
    by_all = lowest(short, all_of_them)
    chosen = min(by_all, key=lambda rate: by_all[rate])
    costs, hits = [], 0
    for _ in range(DRAWS):
        by_few = lowest(short, rng.sample(all_of_them, FEW))
        taken = min(by_few, key=lambda rate: by_few[rate])
        hits += taken == best
        costs.append(end[taken] / end[best] - 1)
    return {
        "style": folder.name,
        "epochs": [part, whole],
        "whole": dict(sorted(end.items())),
        "part": dict(sorted(by_all.items())),
        "best of the whole": best,
        "best of the part": chosen,
        "cost": end[chosen] / end[best] - 1,
        f"by {FEW} pictures": {"the same": hits / DRAWS, "cost, mean": mean(costs), "cost, most": max(costs)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--styles", default="neon,duotone")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--epochs", default="8,2")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    epochs = [int(count) for count in options.epochs.split(",")]
    if options.what == "run":
        for style in options.styles.split(","):
            for count in epochs:
                for rate in RATES:
                    run(options.work, style, options.seed, count, rate)
        return
    rows = []
    for folder in sorted(path for path in options.work.iterdir() if path.is_dir()):
        whole = max(epochs)
        rows += [judged(folder, whole, part) for part in epochs if part != whole and losses(folder, part)]
    for row in rows:
        print(json.dumps(row))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
