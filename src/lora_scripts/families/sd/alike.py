"""What every family of pictures does alike, of its `LatentCoder` and its answer to a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from lora_scripts.families.base import Batch, Sampling
from lora_scripts.families.sd.latents import LatentCoder
from lora_scripts.families.sd.steps import Answered
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.noise import Draws


class Pictures(ABC):
    """The part of `families.base.PictureFamily` that needs no more than this."""

    coder: LatentCoder

    @abstractmethod
    def _answered(self, batch: Batch, objective: Objective, draws: Draws) -> Answered:
        """What the model says to each picture of a batch, as a function of what was drawn."""

    @abstractmethod
    def levels(self, objective: Objective) -> int | None: ...

    @abstractmethod
    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]: ...

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.coder.encode(pixels)

    def told_of_latents(self) -> str:
        return self.coder.told()

    def decode_image(self, latents: Tensor) -> Image.Image:
        return self.coder.decode(latents)

    def image_features(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.coder.features(pixels)

    def loss(self, batch: Batch, objective: Objective) -> tuple[Tensor, int]:
        return self.losses(batch, objective, batch.draws(objective, self.levels(objective))).sum(), len(batch.captions)

    def losses(self, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
        return self._answered(batch, objective, draws).losses(batch, objective)

    def answers(self, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
        return self._answered(batch, objective, draws).output

    def missed(self, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
        return self._answered(batch, objective, draws).missed(objective)

    def generate(self, prompt: str, seed: int, sampling: Sampling) -> Image.Image:
        return self.draw(prompt, [seed], sampling)[0]
