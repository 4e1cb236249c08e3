"""What makes steps quicker, where the machine can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from lora_scripts.config.types import Fault, Keys


class SpeedKeys(Keys):
    """What makes steps quicker, where the machine can."""

    TITLE: ClassVar[str] = "Speed"
    NEEDS: ClassVar[Mapping[str, str]] = {"compile": "pictures", "cuda_graphs": "pictures"}

    compile: bool = False
    """Compile the base's blocks, which takes a minute or two at every size of pictures' first step: then steps are
    quicker. Needs triton on a card (on Windows the package triton-windows)."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """Record a step on an NVIDIA card and play it back, with bases of which launching the kernels takes longer than
    computing them: auto, where possible, or off, which needs less memory."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        stored = values.get("base_precision")
        if values.get("compile") and stored == "nf4":
            yield "compile", "cannot be with base_precision: nf4", "leave compile out, or write base_precision: int8"
        if values.get("compile") and values.get("adapter") == "oft":
            yield "compile", "cannot be with adapter: oft", "leave compile out, or take adapter: lora"
        if values.get("compile") and values.get("device") == "mps":
            yield "compile", "has no effect on Apple's chip", "leave compile out"
