"""What a LoRA costs while drawing: CPU seconds of a picture by the base, by LoRA layers beside it, and merged.

OMP_NUM_THREADS=1 python benchmarks/merged_speed.py [--lora FILE] [--rounds 60]

The three take turns within one process, in an order that rotates; medians over the rounds. The base is the bundled one,
the LoRA random numbers of rank 16 in every attention layer, unless one is named.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

from lora_scripts.adapters.layer import lora_shapes
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.base import LoadOptions, PictureFamily, Sampling
from lora_scripts.families.table import by_name, load_pictures
from lora_scripts.formats import io
from lora_scripts.loras import kohya
from lora_scripts.loras.stack import LoraStack, Worn

NAMES = ("base", "LoRA", "merged")


def random_lora(family: PictureFamily, folder: Path) -> Path:
    """A file of rank 16 with small random numbers."""
    g, weights = torch.Generator().manual_seed(0), {}
    chosen = family.facts.groups["attention"]
    for path, layer in family.trainable().items():
        if chosen(path) and path.startswith("unet."):
            down, up = lora_shapes(layer, 16)  # type: ignore[arg-type]
            small = 0.01 * torch.randn(up, generator=g)
            weights[path] = LoraWeights(torch.randn(down, generator=g) / down[1] ** 0.5, small, 16.0)
    io.save_safetensors(folder / "random.safetensors", kohya.to_kohya(weights, by_name("sd1").names().kohya))
    return folder / "random.safetensors"


def loaded(base: Path) -> PictureFamily:
    return load_pictures(base, LoadOptions(torch.device("cpu"), torch.float32))


def measure(families: Sequence[PictureFamily], rounds: int, sampling: Sampling) -> list[list[float]]:
    """CPU seconds of each picture, by family."""
    seconds: list[list[float]] = [[] for _ in families]
    for turn in range(-1, rounds):  # the first round warms up
        for i in range(len(families)):
            which = (i + turn) % len(families)
            start = time.process_time()
            families[which].generate("a red house on sand under a night sky", 1, sampling)
            if turn >= 0:
                seconds[which].append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = Path(str(resources.files("lora_scripts.demo").joinpath("assets/base.safetensors")))
    families = [loaded(base) for _ in NAMES]
    with tempfile.TemporaryDirectory() as folder:
        lora = args.lora or random_lora(families[0], Path(folder))
        for family, merged in ((families[1], False), (families[2], True)):
            LoraStack(family, merged=merged).wear([Worn(lora, 1.0, 1.0)])
    found = measure(families, args.rounds, Sampling(steps=args.steps, cfg=4.0, size=(128, 128)))
    first = statistics.median(found[0])
    for name, seconds in zip(NAMES, found, strict=True):
        middle = statistics.median(seconds)
        # Turn by turn, so that what else the machine does falls on both.
        ratio = statistics.median(own / other for own, other in zip(seconds, found[0], strict=True))
        low, *_, high = statistics.quantiles(seconds, n=4)
        print(
            f"{name:8}{middle:8.4f} s  ({low:.4f} to {high:.4f})  {middle / first:6.3f} of the base, paired {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
