"""What a run may do to need less memory, each at a price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import SCALING, Fault, Keys


class MemoryKeys(Keys):
    """What a run may do to need less memory, each at a price."""

    TITLE: ClassVar[str] = "Memory"
    NEEDS: ClassVar[Mapping[str, str]] = {"vae_tiling": "vae"}

    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass, and keep only its input: a slower step, the same LoRA."""
    base_precision: Literal["auto", "fp8", "int8", "nf4", "w8a8"] = "auto"
    """How the base's blocks are stored: auto, as precision says, or their weights rounded to 8 or 4 bits; w8a8: its
    products are computed in 8 bits, too, which is quicker with compile."""
    offload_blocks: Annotated[int, Field(ge=0, le=1000)] = 0
    """How many of the base's blocks, the largest first, stay in RAM and come to the card one ahead."""
    vae_tiling: bool = False
    """Encode and draw pictures with a side over 512 pixels in tiles that overlap; their latents differ a little."""
    on_oom: Literal["stop", "adapt"] = "stop"
    """When memory runs out in a step: stop with what was learnt saved, or adapt: take it and all that follow with half
    the batch and twice the accumulation, which learns the same."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        stored, adapter = values.get("base_precision"), values.get("adapter")
        if stored == "nf4" and find_spec("bitsandbytes") is None:
            yield "base_precision", "nf4 needs the package bitsandbytes", "install it: pip install bitsandbytes"
        if stored not in ("auto", None) and adapter in SCALING:
            told = f"rounds the weights that adapter: {adapter} scales, so the file would not fit the base as it is"
            yield "base_precision", told, "leave base_precision out, or take adapter: lora"
        if values.get("offload_blocks") and values.get("device") in ("cpu", "mps"):
            told = f"has no effect with device: {values['device']}, whose memory is the RAM"
            yield "offload_blocks", told, "leave offload_blocks out"
        if values.get("on_oom") == "adapt" and values.get("batch_size") == 1:
            yield "on_oom", "has no effect with batch_size: 1, which cannot be halved", "leave on_oom out"
