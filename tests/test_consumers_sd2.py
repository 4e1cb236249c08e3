"""ComfyUI's matcher against a record of what ComfyUI did with LoRAs of Stable Diffusion 2.x: its own loading code
(0.33.0, commit 783545f6) found and built the model from random numbers in the published layout and patched its weights
(26 November 2026, on the CPU, in float32). The files were written here, rank 4, alpha 2, of every layer with a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_scripts.adapters.dora import DoraLayer
from lora_scripts.adapters.lycoris import LycorisLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.names import Layer
from lora_scripts.families.sd1.names import STANDARD_2, sd1_base
from lora_scripts.families.table import by_name, settings
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui, compare, published

FACTS = by_name("sd2")
NAMES = FACTS.names()
# As deep as the model that was run, 138 layers of its text encoder among them, and narrower; its shortcuts stand in the
# blocks in which the published widths have them.
NARROW = replace(STANDARD_2, unet_widths=(8, 16, 8, 8), context_width=12, text_width=12, text_intermediate=16)
BASE = sd1_base(NARROW)
LAYERS = {layer.path: layer for layer in BASE.layers if layer.kohya}
BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
Tensors = dict[str, Tensor]
Modules = dict[str, LoraWeights]


def module(layer: Layer) -> nn.Linear | nn.Conv2d:
    out, inner, *kernel = layer.shape
    return nn.Conv2d(inner, out, kernel[0]) if kernel else nn.Linear(inner, out)


def plain() -> Modules:
    g = torch.Generator().manual_seed(0)
    made = {}
    for path, layer in LAYERS.items():
        out, inner, *kernel = layer.shape
        down, up = torch.randn(4, inner, *kernel, generator=g), torch.randn(out, 4, *(1 for _ in kernel), generator=g)
        made[path] = LoraWeights(down, up, 2.0)
    return made


def dora() -> Tensors:
    """As a run makes them, with other numbers."""
    made = {}
    for path, w in plain().items():
        lengths = DoraLayer(module(LAYERS[path]), 4, 2.0).leaves()["dora_scale"]
        made[path] = LoraWeights(w.down, w.up, w.alpha, torch.rand(lengths.shape) + 0.5)
    return dialects.own_form(kohya.prepared(made), NAMES, torch.float32).tensors


def lycoris(kind: str) -> Callable[[], Tensors]:
    def made() -> Tensors:
        pytest.importorskip("lycoris")
        modules, g = {}, torch.Generator().manual_seed(1)
        for path, layer in LAYERS.items():
            leaves = LycorisLayer(module(layer), kind, 4, 2.0).leaves()
            modules[path] = {
                leaf: value if leaf == "alpha" else value + torch.randn(value.shape, generator=g)
                for leaf, value in leaves.items()
            }
        return kohya.to_lycoris(modules, NAMES.written, dtype=torch.float32)

    return made


# Form of the file -> how it is written, and how many of its 416 layers ComfyUI did not change. It asks for no q, k, v
# or out of the UNet under the names that diffusers has now.
FORMS: dict[str, tuple[Callable[[], Tensors], int]] = {
    "own": (lambda: dialects.own_form(plain(), NAMES, torch.float32).tensors, 0),
    "original": (lambda: kohya.to_kohya(plain(), NAMES.original, dtype=torch.float32), 0),
    "diffusers": (lambda: dialects.to_diffusers(plain(), NAMES, torch.float32).tensors, 128),
    "dora": (dora, 0),
    "lokr": (lycoris("lokr"), 0),
    "loha": (lycoris("loha"), 0),
    "oft": (lycoris("oft"), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_as_comfyui_took_them(form: str) -> None:
    write, left = FORMS[form]
    tensors = write()
    meant = published.read(tensors, BASE, NAMES)
    assert not meant.faults and len(meant.changes) == len(LAYERS) == 416
    reading = comfyui.read(tensors, BASE)
    (verdict,) = compare.judge(meant.changes, {"ComfyUI": reading}, BASE, list(tensors), [])
    assert (verdict.right, verdict.ok) == (416 - left, left == 0)


# Spread of the telling bias -> whether ComfyUI took the file for one that predicts v, in each precision. What else the
# file said (v_pred, ztsnr, the ModelSpec) changed nothing there.
PREDICTS = {0.02: False, 0.0895: False, 0.0899: False, 0.0901: True, 0.0905: True, 0.2: True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", PREDICTS)
def test_what_it_predicts_as_comfyui_took_it(spread: float, dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(320, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    bias = (x - x.mean()) / x.std(unbiased=False) * spread + 0.01
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1, 4), BIAS: bias.to(dtype)}
    tensors = unet | {"cond_stage_model.model.ln_final.bias": torch.zeros(1)}
    save_file(tensors, path := tmp_path / "x.safetensors")
    assert settings(path, {})["prediction"] == ("v" if PREDICTS[spread] else "epsilon")
    for word in ("v", "epsilon"):  # here it counts more
        save_file(tensors, path, {"modelspec.prediction_type": word})
        assert settings(path, {})["prediction"] == word
