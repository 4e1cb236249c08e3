"""What is kept of a run's numbers: the smoothed loss, and TensorBoard's curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SMOOTHING = 0.98
"""Factor of the moving average of the loss."""


class Smoothed:
    """The moving average of the loss, not pulled towards zero at its start (Kingma & Ba 2015, section 3)."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self.average, self.weight = 0.0, 0.0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float:
        return self.average / self.weight if self.weight else float("nan")


class Board:
    """TensorBoard's event files under `folder`; a resumed run hides what an interrupted one wrote beyond its step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        import numpy as np

        self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
