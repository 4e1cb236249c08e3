"""LoRA files of FLUX.1 or Chroma at the published widths, through diffusers' own loader: 19 and 38 blocks, no weights.

    python benchmarks/flux1_names.py [chroma]

A random LoRA of rank 4, alpha 2, in all layers of attention and feed-forward, of FLUX.1 of CLIP-L too, is written in
our names and in kohya's, where q, k and v (and the MLP) are one layer. diffusers' converter of the latter has these
widths written into it. The models' memory is asked for and never written to: 1.1 GB of RAM are enough; it takes
minutes.
"""

from __future__ import annotations

import math
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.flow import clip_l
from lora_scripts.families.flow.transformer import PART, linear, stem
from lora_scripts.families.sd.load import bare_text
from lora_scripts.families.table import by_name
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui, run_diffusers
from lora_scripts.loras.file import read, save

NAME = sys.argv[1] if len(sys.argv) > 1 else "flux1"
FILES, LAYOUT, NAMES = (import_module(f"lora_scripts.families.{NAME}.{part}") for part in ("check", "layout", "names"))
FACTS = by_name(NAME)
RANK, ALPHA = 4, 2.0
SEEN = 64
"""Rows of each ΔW that are compared."""


def lora() -> dict[str, LoraWeights]:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{PART}.{stem(row.hf)}": row.shape for row in linear(LAYOUT.rows(LAYOUT.STANDARD))}
    trained = [FACTS.groups[group] for group in ("attention", "feed_forward")]
    shapes = {p: shape for p, shape in shapes.items() if "_blocks." in p and any(group(p) for group in trained)}
    weights = {}
    if FACTS.text_roots:
        shapes |= {layer.path: layer.shape for layer in clip_l.layers(clip_l.STANDARD, shapes=True)}
    for path, (out, inner) in shapes.items():
        down, up = (torch.randn(*shape, generator=generator) / 8 for shape in ((RANK, inner), (out, RANK)))
        weights[path] = LoraWeights(down, up, ALPHA)
    return weights


def change(w: Any) -> torch.Tensor:
    return (w.up[:SEEN].float() @ w.down.float()) * w.alpha / w.rank


def main() -> None:
    names, weights = FACTS.names(), lora()
    with tempfile.TemporaryDirectory() as folder:
        own = dialects.own_form(weights, names, torch.float32)
        fused = kohya.to_kohya(weights, names.kohya, dtype=torch.float32, fused=names.fused)
        found = comfyui.read(own.tensors, NAMES.base(LAYOUT.STANDARD))
        print(
            f"{len(weights)} layers; our reading of ComfyUI's rules: {len(found.changes)}, faults {len(found.faults)}"
        )
        for name, tensors, metadata in (("own", own.tensors, own.metadata), ("kohya", fused, {})):
            path = Path(folder) / f"{name}.safetensors"
            save(path, tensors, metadata)
            back = read(path, FACTS).weights
            same = all(torch.equal(back[p].up, w.up) and torch.equal(back[p].down, w.down) for p, w in weights.items())
            models = {PART: FILES.FILES.build(LAYOUT.STANDARD)}
            models |= {clip_l.PART: bare_text(clip_l.STANDARD)} if FACTS.text_roots else {}
            there = {part: model.to_empty(device="cpu") for part, model in models.items()}
            reading = run_diffusers.read(path, there, FACTS.lora.loader)
            off = [
                (change(reading.changes[p].change) - change(w)).abs().max().item() / change(w).abs().max().item()
                if p in reading.changes
                else math.inf
                for p, w in weights.items()
            ]
            print(f"{name}: read again equal: {same}; diffusers: {len(reading.changes)} layers, off by {max(off):.1e}")


if __name__ == "__main__":
    main()
