"""Memory and time of a merge that streams: a made-up SDXL checkpoint of true size, and a LoRA in all its layers.

    python benchmarks/merge_memory.py --folder /somewhere/with/15/GB

The checkpoint is a sparse file: a true header over zeros, so it takes no room; the merged file does, and is removed.
Told is the peak resident memory (ru_maxrss) of a child that runs `lora-scripts merge` as a person would: Python, torch
and all. The file is read with plain reads, so the system's file cache does not count in it.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lora_scripts.families.sdxl import layout, names
from lora_scripts.families.sdxl.layout import STANDARD
from lora_scripts.formats import io


def write_base(path: Path) -> int:
    """The sparse checkpoint; its size in bytes."""
    shapes = {row.ldm: row.file_shape for table in layout.parts(STANDARD).values() for row in table}
    rows = [io.Row(name, "F16", size, 2 * math.prod(size)) for name, size in shapes.items()]
    head = io.safetensors_header(rows, {"modelspec.title": "zeros"})
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(row.size for row in rows))
    return path.stat().st_size


def write_lora(path: Path, rank: int) -> None:
    """A random fp16 LoRA in every layer, 3 x 3 convolutions too."""
    import torch

    from lora_scripts.adapters.weights import LoraWeights
    from lora_scripts.loras import kohya

    weights = {}
    for layer in names.sdxl_base(STANDARD).layers:
        if layer.kohya:
            up = torch.randn(layer.shape[0], rank, *(1,) * (len(layer.shape) - 2))
            weights[layer.path] = LoraWeights(torch.randn(rank, *layer.shape[1:]), up, rank / 2)
    io.save_safetensors(path, kohya.to_kohya(weights, names.sdxl().kohya))


def peak(argv: list[str]) -> tuple[float, float]:
    """(GB, seconds) of a child; this process stays small, because a child's peak counts from its parent's size."""
    start = time.perf_counter()
    child = subprocess.Popen(argv)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"it failed: {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room for 15 GB"
    )
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--write-lora", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_lora:
        write_lora(options.write_lora, options.rank)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        base, lora, output = (folder / f"{n}.safetensors" for n in ("base", "lora", "merged"))
        size = write_base(base)
        peak([sys.executable, __file__, "--write-lora", str(lora), "--rank", str(options.rank)])
        words = ["merge", f"{lora}:0.8", "--base", str(base), "--output", str(output)]
        memory, seconds = peak([sys.executable, "-m", "lora_scripts", *words])
        idle, _ = peak([sys.executable, "-c", "import torch"])
    print(f"base {size / 1e9:.2f} GB, LoRA rank {options.rank}: peak {memory:.2f} GB, {seconds:.0f} s")
    print(f"of it Python and torch alone: {idle:.2f} GB")


if __name__ == "__main__":
    main()
