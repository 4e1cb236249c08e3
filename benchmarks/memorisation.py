"""What the copies test of the report says of healthy LoRAs of the miniature world, and of one that memorises.

python benchmarks/memorisation.py FOLDER    two healthy runs (50 pictures, 20 epochs), one planted (6 pictures, 200
                                            epochs), at 64 px; a few minutes each
"""

from __future__ import annotations

import sys
from pathlib import Path

from lora_scripts import run
from lora_scripts.config.schema import TrainConfig
from lora_scripts.demo import world

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SIDE = 64
RUNS = {"planted": ("neon", 6, 200), "neon": ("neon", 50, 20), "sketch": ("sketch", 50, 20)}
"""Style, pictures and epochs."""


def main() -> None:
    folder = Path(sys.argv[1])
    held = folder / "held"
    for name, (style, count, epochs) in RUNS.items():
        scenes = world.style_set(style, count + 8, seed=3)
        for where, part in ((folder / f"data-{name}", scenes[:count]), (held / name, scenes[count:])):
            world.write_pictures(where, part, SIDE)
            rows = [f"img{i:03d}.png,{world.caption(scene)}" for i, scene in enumerate(part, 1)]
            (where / "metadata.csv").write_text("\n".join(["filename,prompt", *rows]) + "\n", encoding="utf-8")
        out = folder / name
        if (out / "report.html").exists():
            continue
        print(f"--- {name}: {count} pictures, {epochs} epochs", flush=True)
        config = TrainConfig(
            train_data_dir=folder / f"data-{name}", val_data_dir=held / name, base_model=BASE, output_dir=out,
            resolution=SIDE, batch_size=4, epochs=epochs, learning_rate=4e-3, lora_rank=16, warmup_steps=10,
            save_steps=60, keep_last=1, sample_every=0, sample_cfg=4.0, precision="fp32", device="cpu",
            sample_prompts=tuple(world.caption(scene) for scene in scenes[:4]),
        )  # fmt: skip
        run.train(config, resume=(out / "state").exists())


if __name__ == "__main__":
    main()
