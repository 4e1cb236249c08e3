"""In which operation a family's narrow model fails on a card: every operation is waited for, in each of four ways.

    PYTHONPATH=tests python benchmarks/card_fault.py flux1 [--dtype bf16] [--device cuda]

The ways: the frozen model forward; the same with a gradient by its input; a LoRA by plain products; a LoRA by this
project's own. Each is a process of its own, for a card gives a process no second chance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAYS = ("frozen forward", "frozen back", "plain LoRA", "own LoRA")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Waiting(TorchDispatchMode):
    """Waits for each operation, and says which it was that failed, and on what."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            out = func(*args, **(kwargs or {}))
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        except RuntimeError as error:
            given = [
                f"{t.dtype} {tuple(t.shape)} by {t.stride()} at {t.storage_offset()}"
                for t in tree_leaves((args, kwargs))
                if isinstance(t, Tensor)
            ]
            print(f"{func} failed: {str(error).splitlines()[0]}", *given, sep="\n    ", flush=True)
            raise SystemExit(1) from None
        return out


def one_way(name: str, way: str, dtype: torch.dtype, device: torch.device) -> None:
    import flow_checks
    from conftest import offline
    from families import ROWS
    from lora_scripts.adapters.inject import inject
    from lora_scripts.adapters.layer import LoraLayer
    from lora_scripts.adapters.masters import Masters
    from lora_scripts.families.base import LoadOptions
    from lora_scripts.families.table import by_name, load_family

    row = next(row for row in ROWS if row.name == name)
    with tempfile.TemporaryDirectory() as folder, offline():
        path = row.file(Path(folder) / "base.safetensors")
        options = replace(LoadOptions(torch.device("cpu"), torch.float32), **row.beside(path.parent))
        pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(5)) * 2 - 1
        family: Any = load_family(by_name(name), path, options)
        batch = flow_checks.batch_of(family, pixels, flow_checks.PROMPTS)
        family = load_family(by_name(name), path, replace(options, device=device, dtype=dtype))
        layers: dict[str, Any] = {}
        if "LoRA" in way:
            root = family.facts.image_root + "."
            if way == "plain LoRA":
                LoraLayer.fused = False  # type: ignore[assignment,method-assign]
            paths = [path for path in family.trainable() if path.startswith(root)]
            layers = inject(family.roots, paths, lambda _, layer: LoraLayer(layer, 2, 2.0))
            for layer in layers.values():
                layer.place(device)
        masters = Masters(layers.values())
        if way == "frozen back":
            batch = replace(batch, latents={k: t.requires_grad_() for k, t in batch.latents.items()})
        with Waiting(), torch.set_grad_enabled(way != "frozen forward"):
            total, _ = family.loss(batch, family.objective)
            if way != "frozen forward":
                total.backward()
            masters.gather()
            print(f"{way}: well, loss {total.item():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--way", choices=WAYS)
    o = parser.parse_args()
    if o.way:
        one_way(o.family, o.way, DTYPES[o.dtype], torch.device(o.device))
        return
    for way in WAYS:
        print(f"--- {way}", flush=True)
        subprocess.run([sys.executable, __file__, o.family, "--dtype", o.dtype, "--device", o.device, "--way", way])


if __name__ == "__main__":
    main()
