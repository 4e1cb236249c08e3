"""How long `lora-scripts check` looks at 1,000 JPEG pictures of 1024 px, start of the processes included.

    python benchmarks/check_speed.py --count 1000 --workers 2

CPU seconds stand beside the wall clock, for machines on which other work runs. No two pictures are alike, so that the
search for copies has to look at all pairs.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import material
import numpy as np
from PIL import Image

from lora_scripts.check.pictures import look, picture_findings
from lora_scripts.data.buckets import bucket_sizes


def write(folder: Path, count: int) -> None:
    """`count` files, of parts of 30 drawings, each turned, scaled and tinted anew."""
    kinds = {**material.TUNING, **material.HELD_OUT}
    drawn = [material.picture(make, np.random.default_rng([3, i]), 768) for i, make in enumerate(kinds.values())]
    for number in range(count):
        rng = np.random.default_rng([4, number])
        image = drawn[number % len(drawn)]
        side = int(min(image.size) * rng.uniform(0.5, 0.9))
        left, top = (int(rng.integers(0, edge - side + 1)) for edge in image.size)
        part = image.crop((left, top, left + side, top + side)).resize((1024, 1024), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 3, (1024, 1024, 1)).astype(np.float32)
        values = np.asarray(part, np.float32) * rng.uniform(0.7, 1.3, 3).astype(np.float32) + grain
        turned = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).rotate(90 * int(rng.integers(4)))
        turned.save(folder / f"{number:05d}.jpg", quality=88)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--workers", type=int, default=2)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, given.count)
        files = {path.name: path for path in sorted(folder.iterdir())}
        size = sum(path.stat().st_size for path in files.values()) / 1e6
        before, start = _cpu(), time.perf_counter()
        facts = look(files, workers=given.workers)
        looked, start_pairs = time.perf_counter() - start, time.perf_counter()
        found = picture_findings(facts, bucket_sizes((1024, 1024)))
        paired, used = time.perf_counter() - start_pairs, _cpu() - before
    print(f"{len(files)} pictures of 1024 x 1024 px, {size:.0f} MB, {given.workers} processes")
    print(f"looked at in {looked:.1f} s, compared in {paired:.1f} s, {used:.1f} s of CPU; {len(found)} findings")


def _cpu() -> float:
    """Seconds of this process and of those that it waited for."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in both)


if __name__ == "__main__":
    main()
