"""The base with the exported file on it, as anybody's program would wear it, at any strength."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from lora_scripts.adapters.inject import remove
from lora_scripts.adapters.layer import Adapter, counting
from lora_scripts.families.base import PictureFamily
from lora_scripts.loras import file as loras
from lora_scripts.loras.on_model import apply
from lora_scripts.loras.words import read_words
from lora_scripts.run.parts import Model
from lora_scripts.run.previews import Preview, draw_preview


@dataclass(frozen=True)
class Worn:
    """A family with a file's layers in it."""

    family: PictureFamily
    layers: Mapping[str, Adapter]
    words: Mapping[str, Tensor]
    """New words of the file, which the base does not know."""

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """Within it the LoRA counts so much; 0 is the base."""
        self.family.set_words(self.words if strength else {})
        try:
            with counting(self.layers.values(), strength):
                yield
        finally:
            self.family.set_words(self.words)

    def draw(self, preview: Preview, strength: float) -> Image.Image:
        """A picture at a strength."""
        with self.at(strength):
            return draw_preview(self.family, preview)


def wear(model: Model, lora: Path) -> Worn:
    """Puts the file on. The layers that were trained are taken off, for good."""
    family = model.family
    remove(family.roots, model.layers)
    return Worn(family, apply(family, loras.read(lora).modules, 1.0), read_words(lora))
