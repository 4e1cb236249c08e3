"""That a LoRA on SDXL learns: the demo's neon style on a narrow SDXL of the miniature world, judged on unseen contents.

    python -m benchmarks.miniature.build_sdxl WORK       # once: the narrow base, an hour and more on two cores
    python benchmarks/sdxl_learns.py WORK [--count 50]   # trains the LoRA, draws with and without it, prints the table

The base has both text encoders, pooled states and sizes as conditions, and is read as the published file is. The LoRA
is trained by `lora-scripts train` with the demo's keys on the demo's 50 pictures. `demo.evaluate` prints how many
pictures of the base, and of the LoRA at 1.0, show the object, colour, ground and sky asked for, and the style.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import resources
from pathlib import Path

from lora_scripts.cli import main as lora_scripts
from lora_scripts.demo import world
from lora_scripts.label.base import MINIATURE
from lora_scripts.label.command import LabelOptions, label

DEMO = Path(str(resources.files("lora_scripts.demo"))) / "assets" / "demo.yaml"
"""The demo's config."""


def train(
    data: Path, base: Path, out: Path, overrides: list[str], unknown: tuple[str, ...] = (), template: Path = DEMO
) -> Path:
    """The LoRA, trained as the demo's on a narrow base; the pictures are drawn into `data`, and labelled, once.

    `unknown`: keys of the template that are not for such a base.
    """
    if not (data / "metadata.csv").exists():
        world.write_pictures(data, world.training_scenes())
        label(LabelOptions(input=data, model=MINIATURE))
    if not (out / "report.html").exists():
        lines = template.read_text("utf-8").splitlines()
        config = data.parent / f"{out.name}.yaml"
        config.write_text("\n".join(line for line in lines if not line.startswith(unknown)), encoding="utf-8")
        paths = {
            "base_model": base,
            "train_data_dir": data,
            "metadata_path": data / "metadata.csv",
            "output_dir": out,
        }
        resume = ["--resume"] if (out / "state").exists() else []
        words = [f"{key}={path}" for key, path in paths.items()]
        if lora_scripts(["train", "--config", str(config), *resume, *words, "sample_every=0", *overrides]):
            raise SystemExit(2)
    return out / f"{out.name}.safetensors"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=50, help="pictures of each (default 50)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="laid over the demo's config")
    args = parser.parse_intermixed_args()
    base, sheet = args.work / "sdxl.safetensors", args.work / "sheet.png"
    lora = train(args.work / "data", base, args.work / "neon", args.overrides)
    command = [sys.executable, "-m", "lora_scripts.demo.evaluate", base, "--lora", lora]
    return subprocess.call([*map(str, command), "--count", str(args.count), "--grid", str(sheet)])


if __name__ == "__main__":
    sys.exit(main())
