"""Bases in float8 and in int8 with a scale beside each matrix, of every family that draws: what is loaded is what the
codes stand for, worked out here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import ROWS, Row
from lora_scripts.families.sd1 import singlefile
from lora_scripts.families.sd1.check import require_file
from lora_scripts.families.table import by_name
from runs import faults

Form = tuple[Callable[[Tensor], Tensor], torch.dtype, str, dict[str, Tensor]]
State = dict[str, Tensor]


def word(form: str) -> dict[str, Tensor]:
    return {"comfy_quant": torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)}


OLD: Form = (lambda w: w.abs().max() / 448, torch.float8_e4m3fn, "scale_weight", {"scale_input": torch.tensor(1.0)})
NEW: Form = (lambda w: w.abs().amax(1, keepdim=True) / 448, torch.float8_e4m3fn, "weight_scale", word("float8_e4m3fn"))
INT8: Form = (lambda w: w.abs().amax(1, keepdim=True) / 127, torch.int8, "weight_scale", word("int8_tensorwise"))
"""(a matrix -> its scale or scales, the type of the codes, what the scale is called, what else stands beside) of
ComfyUI's fp8_scaled of both ages, and of its int8."""


def rounded(tensors: State, forms: Sequence[Form]) -> tuple[State, State]:
    """(a file with every matrix in codes, of one form after the other; a plain one of what these stand for)."""
    codes, meant, turn = dict(tensors), dict(tensors), cycle(forms)
    for key, weight in tensors.items():
        stem = key.removesuffix(".weight")
        if stem == key or weight.dim() != 2 or "embed" in stem.rpartition(".")[2] or stem.endswith("shared"):
            continue
        scale_of, kind, name, beside = next(turn)
        scale = scale_of(weight)
        code = weight / scale
        codes[key] = (code if kind.is_floating_point else code.round()).to(kind)
        codes |= {f"{stem}.{name}": scale} | {f"{stem}.{leaf}": tensor.clone() for leaf, tensor in beside.items()}
        meant[key] = codes[key].float() * scale
        assert 1e-4 < (meant[key] - weight).norm() / weight.norm() < 0.06
    assert len(codes) > len(tensors) + 20
    return codes, meant


def parts(row: Row, path: Path) -> State:
    """Every number of the parts that such a file holds in codes, as loaded."""
    if "language" in by_name(row.name).features:
        files = import_module(f"lora_scripts.families.{row.name}.check").FILES
        files.check(path, False)
        found: State = files.load(path, torch.float32).state_dict()
        return found
    head = require_file(path, vae=True)
    with safe_open(path, "pt") as handle:
        unet, _, text = singlefile.from_ldm(handle, singlefile.layout_of(head.shapes), file=path)
    return unet | text


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "sdxl"], ids=lambda row: row.name)
def test_codes_with_scales_are_the_numbers_that_they_stand_for(row: Row, tmp_path: Path) -> None:
    """SDXL's stand in test_sdxl_file."""
    facts = by_name(row.name)
    tensors, flow = load_file(row.file(tmp_path / "base.safetensors")), "language" in facts.features
    small, plain = (tmp_path / f"{kind}.safetensors" for kind in ("small", "plain"))
    codes, meant = rounded(tensors, (OLD, NEW, INT8) if flow else (OLD, NEW))
    save_file(codes, small)
    save_file(meant, plain)
    got, want = parts(row, small), parts(row, plain)
    assert got.keys() == want.keys()
    for key, tensor in got.items():
        assert (tensor - want[key]).norm() <= 1e-6 * want[key].norm(), key
    if not flow:
        save_file(rounded(tensors, [INT8])[0], small)
        assert "this is a quantised file" in faults(lambda: facts.check(small, True))
