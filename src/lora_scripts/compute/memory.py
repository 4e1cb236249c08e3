"""How a model comes to its device and type, storing and keeping no more than it is told to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.compute.checkpoints import around
from lora_scripts.compute.compiled import compile_blocks
from lora_scripts.compute.device import numbered
from lora_scripts.compute.offload import CudaMover, Offloader, PlainMover, offload, slots_of
from lora_scripts.compute.quantised import Storage, quantise_layers, restore

TILE = 512
"""Pixels along a side of the tiles that a VAE works in, if told to: the size that SD's was trained at."""


COMPILED = "compiled"
"""Of the cache's folders, that for what was compiled."""
PIECE = 1 << 18
"""Numbers that are cast at a time: they stay in the CPU's own memory in between."""
ASKED = 1 << 30
"""Bytes that a card keeps free for what a text encoder computes of one text."""


@dataclass(frozen=True)
class MemoryOptions:
    """What is done so that less memory is needed."""

    checkpointing: bool = False
    storage: Storage | None = None
    """Of the frozen weights in the blocks; None: the precision of the rest."""
    offloaded: int = 0
    """Blocks that live in RAM."""
    vae_tiling: bool = False
    encoding: torch.dtype = torch.float32
    """In which a VAE makes latents, where they then agree with those in float32."""
    resting: bool = False
    """VAE and text encoders are in RAM only while they are asked."""
    compiled: bool = False
    """Each block as one compiled function."""
    cache: Path | None = None
    """A folder on the disk in which what was compiled is kept."""


def blocks_of(unet: Any) -> list[nn.Module]:
    """Residual blocks, transformers, down- and upsamplers of a diffusers UNet, in the order in which they are run."""
    found: list[nn.Module] = []
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for pair in zip_longest(level.resnets, getattr(level, "attentions", ())):
            found += [block for block in pair if block is not None]
        found += [*(getattr(level, "downsamplers", None) or ()), *(getattr(level, "upsamplers", None) or ())]
    return found


def layers_of(transformer: nn.Module) -> list[nn.Module]:
    """Of a transformer, in the order in which they are run: the longest list of modules in it."""
    lists = [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def place(
    unet: Any,
    options: MemoryOptions,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Sequence[nn.Module] | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    idle: Sequence[nn.Module] = (),
) -> None:
    """Brings a model in RAM to its device and type, storing and keeping no more than it is told to.

    `blocks`: of a model that is no UNet, in the order in which they are run. `layout`: of its convolutions. `idle`:
    modules that are never run, and stay in RAM.
    """
    blocks = blocks_of(unet) if blocks is None else blocks
    if options.storage is not None:  # from the file's own numbers, and before the card sees them
        quantise_layers(unet, blocks, options.storage, dtype)
    for layer in unet.modules():
        restore(layer)
    _cast(unet, dtype, layout)
    away = offload(blocks, options.offloaded, CudaMover(device)).blocks if options.offloaded else ()
    _rest_to(unet, [*away, *idle], device)
    inside = {id(module) for block in away for module in block.modules()}
    if options.compiled:
        kept = options.cache and options.cache / COMPILED
        compile_blocks([part for block in blocks for part in pieces_of(block)], kept)
    if options.checkpointing:
        for block in blocks:
            if id(block) not in inside:
                for part in pieces_of(block):
                    around(part)


def bring(model: nn.Module, device: torch.device, room: int | None = None) -> None:
    """Brings a frozen model that is only asked to its device: whole if it fits there, else its blocks (of the longest
    list in it) each for its turn.

    `room`: bytes that are free there; None: those of a card; others are taken to suffice.
    """
    if room is None and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = torch.cuda.get_per_process_memory_fraction(numbered(device)) * total  # where a plan is told how much
        room = round(min(free + torch.cuda.memory_reserved(device), allowed)) - torch.cuda.memory_allocated(device)
    tensors = {id(s.tensor): s.tensor.nbytes for module in model.modules() for s in slots_of(module)}
    if room is None or sum(tensors.values()) + ASKED <= room:
        model.to(device)
        return
    blocks = layers_of(model)
    Offloader(blocks, PlainMover(device))
    _rest_to(model, blocks, device)


def _rest_to(model: nn.Module, away: Iterable[nn.Module], device: torch.device) -> None:
    inside = {id(module) for block in away for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            module._apply(lambda t: t.to(device), recurse=False)


def _cast(model: Any, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """To a type. What its library keeps in float32, such as the scales of norms around 0, stays that precise."""
    words = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    whole = {name: p.detach().float() for name, p in model.named_parameters() if words & set(name.split("."))}
    model._apply(lambda t: cast(t, dtype, layout) if t.is_floating_point() else t)
    for name, numbers in whole.items():
        model.get_parameter(name).data = numbers


def cast(t: Tensor, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A tensor in a type, and one of four dimensions in a layout: the numbers of `to`.

    On a CPU it goes piece by piece where that is quicker, since torch has each of two steps by vectors, and the one
    that is both not: from float16 to bfloat16 by float32 (half of the time or less), to a type before a layout (0.7).
    """
    layout = layout if t.ndim == 4 else torch.contiguous_format
    halves = (t.dtype, dtype) == (torch.float16, torch.bfloat16)
    turned = t.dtype != dtype and not t.is_contiguous(memory_format=layout)
    if t.device.type != "cpu" or t.ndim == 0 or not (halves or turned):
        return t.to(dtype, memory_format=layout) if t.ndim == 4 else t.to(dtype)
    out = torch.empty(t.shape, dtype=dtype, memory_format=layout)
    between = torch.float32 if halves else dtype
    rows = max(1, PIECE // max(1, t[:1].numel()))
    for begin in range(0, len(t), rows):
        out[begin : begin + rows] = t[begin : begin + rows].to(between)
    return out


def pieces_of(block: Any) -> Sequence[nn.Module]:
    """What is computed again, or compiled, at a time: of a deep transformer a block, else all that they keep is
    there at once (for ten of 1280 channels, one picture at 1024 px: 727 MiB measured on the CPU; a tenth for one)."""
    inner = getattr(block, "transformer_blocks", ())
    return list(inner) if len(inner) > 1 else [block]
