"""Incremental training on the miniature world: 25 pictures, then 25 more from `init_lora`, against all 50 at once.

python benchmarks/continuing.py FOLDER      three runs at 64 px, the same number of steps in both ways; a few minutes
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lora_scripts import run
from lora_scripts.config.schema import TrainConfig
from lora_scripts.demo import world
from lora_scripts.train.evidence import bootstrap, less, mean

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SIDE, STEPS = 64, 120


def write(folder: Path, scenes: list[world.Scene], first: int = 1) -> Path:
    """Pictures and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["filename,prompt"]
    for number, scene in enumerate(scenes, first):
        world.draw(scene, SIDE).save(folder / f"img{number:03d}.png")
        rows.append(f"img{number:03d}.png,{world.caption(scene)}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def train(folder: Path, name: str, data: Path, held: Path, steps: int, **more: object) -> list[dict[str, object]]:
    """What a run measured; it is not run again if it is there."""
    out = folder / name
    if not (out / "report.html").exists():
        count = len(list(data.glob("*.png")))
        config = TrainConfig(
            train_data_dir=data, val_data_dir=held, base_model=BASE, output_dir=out, resolution=SIDE,
            batch_size=5, epochs=round(steps / (count / 5)), learning_rate=2e-3, lora_rank=8, warmup_steps=5,
            save_steps=20, keep_last=1, sample_every=0, sample_steps=4, precision="fp32", device="cpu", **more,
        )  # fmt: skip
        run.train(config, resume=(out / "state").exists())
    found: list[dict[str, object]] = json.loads((out / "heldout.json").read_text("utf-8"))["evaluations"]
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    scenes = world.training_scenes()
    held = write(folder / "held", world.held_out_scenes(16))
    half, whole = write(folder / "half", scenes[:25]), write(folder / "whole", scenes)
    first = train(folder, "first", half, held, STEPS // 2)
    second = train(folder, "second", whole, held, STEPS // 2, init_lora=folder / "first" / "first.safetensors")
    once = train(folder, "once", whole, held, STEPS)
    rows = {
        "base": first[0], "25 pictures": first[-1], "init_lora, as the second run found it": second[1],
        "25 more from there": second[-1], "50 at once": once[-1],
    }  # fmt: skip
    for name, row in rows.items():
        print(f"{name:40} {mean(row['held']):.4f}")  # type: ignore[arg-type]
    apart = bootstrap(less(second[-1]["held"], once[-1]["held"]))  # type: ignore[arg-type]
    floor = mean(once[-1]["held"])  # type: ignore[arg-type]
    parts = (apart.mean, apart.low, apart.high)
    print("25 + 25 against 50 at once: {:+.1%} (95 %: {:+.1%} to {:+.1%})".format(*(x / floor for x in parts)))


if __name__ == "__main__":
    main()
