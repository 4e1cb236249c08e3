"""A training adapter: a frozen LoRA that is on while a base is trained, and off when it draws.

A base that was distilled to few steps unlearns them where it is trained as it is. With a LoRA beside it that takes the
distillation back, what is trained learns from an ordinary base, and is worn on the distilled one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from lora_scripts.adapters.layer import Adapter, counting
from lora_scripts.families.base import PictureFamily, Sampling
from lora_scripts.loras.on_model import apply, check_fits

if TYPE_CHECKING:
    from lora_scripts.loras.reading import Change


class Aided:
    """A picture family with such a LoRA in it: it is on in all that the family does, but not when it draws."""

    def __init__(self, family: PictureFamily, layers: Mapping[str, Adapter]) -> None:
        self._family, self._layers = family, layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def generate(self, prompt: str, seed: int, sampling: Sampling) -> Image.Image:
        """As `PictureFamily.generate`."""
        with counting(self._layers.values(), 0.0):
            return self._family.generate(prompt, seed, sampling)

    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
        """As `PictureFamily.draw`."""
        with counting(self._layers.values(), 0.0):
            return self._family.draw(prompt, seeds, sampling)


def aided(family: PictureFamily, modules: Mapping[str, Change], path: Path) -> PictureFamily:
    """The family with a training adapter put on, innermost; `path`: of its file. UserErrors where it does not fit."""
    check_fits(modules, family, path)
    return cast("PictureFamily", Aided(family, apply(family, modules, 1.0)))
