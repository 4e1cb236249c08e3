"""OneTrainer's steps on a card, from its checkout: `python benchmarks/card.py --peers DIR`, in DIR/OneTrainer.

Its own layers in 8 bits, LoRA and compiling of blocks, put together as its modelSetup does, with checkpointing off. A
step of its trainer: everything under autocast to bf16, gradients clipped at 1, torch's fused AdamW, the loss read last;
attention by diffusers' "native" way. It sets no channels_last, no TF32 for bf16 training, no choice of cuDNN's
algorithms. For a UNet its set-up compiles blocks only beside checkpointing, so there these arms are better than what it
offers.
"""

from __future__ import annotations

import importlib
import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peers_card import Make, Step, Task, imports, update


def arms(place: Path) -> Iterator[tuple[str, Make]]:
    """Name, and what makes a step: its presets' LoRA in float32; the LoRA in bf16, too; no layer in 8 bits."""
    half = torch.bfloat16
    yield "OneTrainer, int8 W8A8, blocks compiled", partial(onetrainer, place, True, torch.float32)
    yield "OneTrainer, int8 W8A8, blocks compiled, bf16 LoRA", partial(onetrainer, place, True, half)
    yield "OneTrainer, bf16, blocks compiled, bf16 LoRA", partial(onetrainer, place, False, half)


QUANTISED = {
    "sd1": "attentions",
    "sdxl": "attentions",
    "flux1": "transformer_block",
    "flux2": "transformer_block",
    "zimage": "layers",
}
"""Which linear layers are held in 8 bits: its preset "blocks" (for a UNet, which has none, that of its LoRA)."""


@cache
def parts_of_onetrainer(place: Path) -> tuple[types.SimpleNamespace, Any]:
    """Its modules, and its own remainder for torch's symbols. Importing it puts that into torch, a larger limit on
    compiling, and a line on the screen for each thing compiled: all is taken out again, for the arms of others."""
    from torch._dynamo.callback import callback_handler
    from torch.utils._sympy.functions import Mod

    starts, plain = list(callback_handler.start_callbacks), Mod.__dict__["eval"]
    names = {
        "checkpointing": "util.checkpointing_util",
        "quantization": "util.quantization_util",
        "lora": "module.LoRAModule",
        "autocast": "util.dtype_util",
        "config": "util.config.TrainConfig",
        "types": "util.enum.DataType",
    }
    limit = torch._dynamo.config.recompile_limit
    with imports(place, "parse"), torch._dynamo.config.patch(recompile_limit=limit):
        found = {key: importlib.import_module(f"modules.{name}") for key, name in names.items()}
    theirs = Mod.__dict__["eval"]
    Mod.eval = plain  # type: ignore[method-assign]
    callback_handler.start_callbacks[:] = starts
    return types.SimpleNamespace(**found), theirs


@contextmanager
def as_onetrainer_compiles(theirs: Any) -> Iterator[None]:
    from torch.utils._sympy.functions import Mod

    with torch._dynamo.config.patch(recompile_limit=8192), patch.object(Mod, "eval", theirs):
        yield


def onetrainer(place: Path, w8a8: bool, lora_type: torch.dtype, task: Task) -> Step:
    """As its setup_optimizations and setup_model do one after the other."""
    parts, remainder = parts_of_onetrainer(place)
    base, kind = task.made(task.theirs()), parts.types.DataType
    ends, config = task.ends(base), parts.config.TrainConfig.default_values()
    config.train_device, config.train_dtype, config.compile = task.on.type, kind.BFLOAT_16, True
    config.lora_rank, config.lora_alpha, config.layer_filter_regex = task.rank, float(task.rank), True
    config.unet.gradient_checkpointing = config.transformer.gradient_checkpointing = False
    if w8a8:
        config.quantization.layer_filter = QUANTISED[task.family]
        told = {"quantization": config.quantization, "copy_parameters": True, "keep_in_fp32_modules": []}
        parts.quantization.replace_linear_with_quantized_layers(base, kind.INT_W8A8, **told)
    enable = {
        "flux1": parts.checkpointing.enable_checkpointing_for_flux_transformer,
        "flux2": parts.checkpointing.enable_checkpointing_for_flux2_transformer,
        "zimage": parts.checkpointing.enable_checkpointing_for_z_image_transformer,
    }.get(task.family)
    if enable:
        enable(base, config, config.transformer)
    else:
        enable = parts.checkpointing.enable_checkpointing_for_basic_transformer_blocks
        enable(base, config, config.unet, supports_offloading=False)
    parts.quantization.quantize_layers(base, task.on, kind.BFLOAT_16, config)
    base.set_attention_backend("native")
    base.to(task.on)  # scales are made in RAM
    only = "^(" + "|".join(map(re.escape, ends)) + ")$"
    lora = parts.lora.LoRAModuleWrapper(base, "transformer", config, [only])
    lora.to(dtype=lora_type)
    lora.hook_to_module()
    base.requires_grad_(False).train()
    lora.requires_grad_(True)
    parameters = lora.parameters()
    assert len(parameters) == 2 * len(ends), (len(parameters), len(ends))
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, foreach=False, fused=True)

    loss_of = task.asked(base)

    def step() -> float:
        with as_onetrainer_compiles(remainder):
            with parts.autocast.create_autocast_context(task.on, kind.BFLOAT_16, True):
                loss = loss_of()
            return update(loss, parameters, optimizer)

    return step
