"""What a rehearsal tells, as it goes from its process to the one that plans. Torch is not needed.

Sizes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

PHASES = {
    "load": "loading",
    "encode": "encoding",
    "preview": "a preview",
    "step": "a step",
    "save": "a save",
    "measure": "held-out loss",
}
"""What needs memory, in the order of a rehearsal, and how a table calls it."""


class Kind(NamedTuple):
    """Batches of one shape."""

    width: int
    """Pixels, as of height"""
    height: int
    images: int
    per_epoch: int
    beside: int = 0
    """Pixels of what one image is made from."""

    @property
    def pixels(self) -> int:
        """Of the whole batch."""
        return (self.width * self.height + self.beside) * self.images

    def __str__(self) -> str:
        return f"{self.images} {'image' if self.images == 1 else 'images'} of {self.width}x{self.height}"


class Views(NamedTuple):
    """How many views of pictures are encoded at one size."""

    width: int
    height: int
    pictures: int
    views: int


@dataclass
class Measured:
    """What a rehearsal tells; of one that ran out of memory, as far as it got."""

    at: str = "start"
    """The phase under way: one of PHASES; in the end "done"."""
    short: bool = False
    """Memory ran out, in phase `at`."""
    device: str = ""
    precision: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)
    """The table that a training begins with."""
    steps: int = 0
    kinds: list[Kind] = field(default_factory=list)
    """The shapes of the batches of an epoch, the largest first."""
    views: list[Views] = field(default_factory=list)
    captions: int = 0
    """Texts that are encoded once."""
    thumbnails: int = 0
    """Pixels of the training pictures that the report shows."""
    prompts: int = 1
    previews: int = 0
    """How often they are drawn between the first step and the last."""
    shown: int = 4
    """Pictures that are drawn for the report."""
    best: bool = False
    """The LoRA with the lowest held-out loss is kept, too."""
    measuring: float = 0.0
    """Share of the run's time for held-out losses."""
    drawn: int = 0
    """Class pictures to draw before the first step."""
    accumulation: int = 1
    """Batches in each rehearsed step."""
    seconds: dict[str, float] = field(default_factory=dict)
    """load, picture (read and encoded), view (one more of it), caption, largest, smallest (batch), preview, save"""
    peaks: dict[str, int] = field(default_factory=dict)
    """Phase -> highest use of the device's memory."""
    resident: int = 0
    """What is held between two steps."""
    there: int = 0
    """Memory of the device for this process; 0: unknown."""
    ram: int = 0
    """Highest use of RAM where the device is a card; 0 elsewhere."""
    free_ram: int = 0
    """Likewise: RAM for this process."""
    profile: dict[str, Any] | None = None
    """Where the time of a step goes, if it was asked for: a `compute.profile.Profile`."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of files: latents (of a view in the largest batch, with its mask), caption, lora, state, picture, scalars (of one
    step); kept: what is encoded, as far as a run keeps it in RAM"""

    @staticmethod
    def read(values: Mapping[str, Any]) -> Measured:
        """From `asdict`, through JSON and back."""
        found = Measured(**values)
        found.rows = [(name, value) for name, value in found.rows]
        found.kinds = [Kind(*row) for row in found.kinds]
        found.views = [Views(*row) for row in found.views]
        return found

    def write(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def done(self) -> bool:
        return self.at == "done" and not self.short

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    @property
    def worst(self) -> str:
        """The phase that needs most, or that the memory did not suffice for."""
        # The first of about equal ones: what a step took, a process keeps for what follows.
        return self.at if self.short else next(p for p, peak in self.peaks.items() if peak >= 0.97 * self.peak)
