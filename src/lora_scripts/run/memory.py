"""What a run does to need less memory: its keys as the families take them, and how a table tells it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lora_scripts.compute.memory import TILE, MemoryOptions
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError, raise_all


def options_of(config: TrainConfig, device: torch.device) -> MemoryOptions:
    """Every key of the group "Memory", for a device. UserErrors for what does nothing, or cannot be, on it."""
    faults = []
    if config.offload_blocks and device.type != "cuda":
        where = "the CPU" if device.type == "cpu" else device.type
        faults.append(UserError(f"offload_blocks has no effect on {where}", hint="leave offload_blocks out"))
    if config.base_precision in ("fp8", "nf4") and device.type == "mps":
        told = f"base_precision {config.base_precision} is not known to Apple's chip"
        faults.append(UserError(told, hint="write base_precision: int8"))
    raise_all(faults)
    storage = None if config.base_precision == "auto" else config.base_precision
    return MemoryOptions(config.gradient_checkpointing, storage, config.offload_blocks, config.vae_tiling)


def check_tiles(config: TrainConfig, buckets: Iterable[tuple[int, int]]) -> None:
    """UserError where `vae_tiling` would do nothing: no picture that is trained or drawn is as large."""
    longest = max(max(size) for size in [*buckets, config.effective_sample_size])
    if config.vae_tiling and longest <= TILE:
        told = f"vae_tiling has no effect: no picture that is trained or drawn has a side over {TILE} pixels"
        raise UserError(told, hint="leave vae_tiling out")


def told(config: TrainConfig) -> str:
    """For the table: what is done; empty if nothing."""
    parts = []
    if config.gradient_checkpointing:
        parts.append("blocks computed again in the backward pass")
    if config.base_precision != "auto":
        parts.append(f"base stored as {config.base_precision}")
    if config.offload_blocks:
        parts.append(f"{config.offload_blocks} blocks in RAM")
    if config.vae_tiling:
        parts.append("pictures in tiles")
    return ", ".join(parts)
