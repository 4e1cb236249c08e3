"""The names of the layers of FLUX.2 dev that a LoRA may change, by its layout: those of klein, and more blocks."""

from __future__ import annotations

from functools import cache

from lora_scripts.families.black_forest.flux2_layout import DEV, Flux2Layout, rows
from lora_scripts.families.black_forest.streams import base_of, names_of
from lora_scripts.families.names import Base, Names


@cache
def names() -> Names:
    """FLUX.2 dev. What has only layers that klein has, too, is klein's, unless sizes, metadata or who reads it tell."""
    return names_of("flux2_dev", "FLUX.2 dev", rows(DEV), whole=True)


def base(layout: Flux2Layout | None) -> Base:
    """The layers of a FLUX.2 dev; without a layout those of the published one, without shapes."""
    return base_of(rows(layout or DEV), layout.text_width if layout else None)
