"""stable-diffusion-webui-forge (commit dfdcbab6).

It asks for the layers of the base as ComfyUI does (see there), but knows no OFT, and neither the generic names nor
`lycoris_…`. Keys that nobody asked for are listed in its log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from lora_scripts.families.names import Base, Layer
from lora_scripts.loras.consumers import comfyui
from lora_scripts.loras.consumers.rules import Reading


def read(tensors: Mapping[str, Tensor], base: Base) -> Reading:
    """What it would apply."""
    return comfyui.read_as(_names, tensors, base, ("loha", "lokr"))


def _names(layer: Layer) -> Iterator[str]:
    yield from (name for name in comfyui.names(layer) if not name.startswith(("text_encoders.", "lycoris_")))
