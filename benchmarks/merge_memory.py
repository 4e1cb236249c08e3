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

from lora_scripts.families.sdxl import names
from lora_scripts.families.sdxl.names import Module
from lora_scripts.formats import io

GIVEN = {  # channels that come into the residual blocks of the UNet
    "input_blocks": {1: 320, 2: 320, 4: 320, 5: 640, 7: 640, 8: 1280},
    "middle_block": {0: 1280, 2: 1280},
    "output_blocks": {0: 2560, 1: 2560, 2: 1920, 3: 1920, 4: 1280, 5: 960, 6: 960, 7: 640, 8: 640},
}
REST = {
    "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
    "first_stage_model.everything": (83_653_863,),
}


def width(block: str, number: int) -> int:
    """Channels of a block of the UNet."""
    if block == "middle_block":
        return 1280
    levels = (320, 640, 1280) if block == "input_blocks" else (1280, 640, 320)
    return levels[min(2, (number - (block == "input_blocks")) // 3)]


def shape(module: Module) -> tuple[int, ...] | None:
    """Of the layer's weight in SDXL 1.0; None where the model has no such layer (a skip without a change of width)."""
    part, *path = module.path.split(".")
    leaf = ".".join(path[-2:])
    if part != "unet":
        wide = 768 if part == "text_encoder" else 1280
        return {"mlp.fc1": (4 * wide, wide), "mlp.fc2": (wide, 4 * wide)}.get(leaf, (wide, wide))
    block, number = path[0], int(path[1])
    w = width(block, number)
    given = GIVEN[block].get(number, w)
    if leaf == "in_layers.2":
        return (w, given, 3, 3)
    if leaf == "out_layers.3" or path[-1] in ("op", "conv"):
        return (w, w, 3, 3)
    if path[-1] == "skip_connection":
        return None if given == w else (w, given, 1, 1)
    if leaf == "emb_layers.1":
        return (w, 1280)
    if "attn2" in path and path[-1] in ("to_k", "to_v"):
        return (w, 2048)
    if path[-2:] == ["0", "proj"]:
        return (8 * w, w)
    return (w, 4 * w) if path[-2:] == ["net", "2"] else (w, w)


def write_base(path: Path) -> int:
    """The sparse checkpoint; its size in bytes."""
    shapes = dict(REST)
    for module in names.modules():
        size = shape(module)
        if size is not None:
            shapes[module.ldm] = size if module.third is None else (3 * size[0], *size[1:])
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
    for module in names.modules():
        size = shape(module)
        if size is not None:
            ones = (1,) * (len(size) - 2)
            weights[module.path] = LoraWeights(
                torch.randn(rank, *size[1:]), torch.randn(size[0], rank, *ones), rank / 2
            )
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
