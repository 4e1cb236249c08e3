"""The judge: a small classifier that says what a picture of the miniature world shows. It has seen drawn scenes only.

It reads pictures at 64 x 64 px. It knows no picture of the base model, so its word on those is independent; how it was
trained is `benchmarks/miniature/build_judge.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_scripts.demo import world

ASSET = Path(__file__).parent / "assets" / "judge.safetensors"
SIDE = 64
"""Pixels of the side that the network sees."""
SLOTS: dict[str, tuple[str, ...]] = {
    "object": world.OBJECTS,
    "colour": tuple(world.COLOURS),
    "ground": tuple(world.GROUNDS),
    "sky": tuple(world.SKIES),
    "style": world.STYLES,
}


@dataclass(frozen=True)
class Reading:
    """What the judge sees. Outside the plain style the colour is a guess."""

    object: str
    colour: str
    ground: str
    sky: str
    style: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """As `world.Scene.key`."""
        return (self.object, self.colour, self.ground, self.sky)


def new_network() -> nn.Sequential:
    """[n, 3, 64, 64] in [-1, 1] -> [n, 23]: the scores of all slots, in the order of SLOTS. 101 thousand parameters."""

    def stage(wide_in: int, wide_out: int, kernel: int) -> list[nn.Module]:
        conv = nn.Conv2d(wide_in, wide_out, kernel, stride=2, padding=kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(wide_out), nn.ReLU()]

    # The last map, 4 x 4, is read place by place: sky is above, ground below.
    stages = [*stage(3, 24, 5), *stage(24, 48, 3), *stage(48, 64, 3), *stage(64, 64, 3)]
    return nn.Sequential(*stages, nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * 64, sum(map(len, SLOTS.values()))))


class Judge:
    """The network and its words. It runs on the CPU."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, path: Path = ASSET) -> Judge:
        """The judge that ships with the package."""
        network = new_network()
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=False)
        return cls(network)

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """What each picture shows; pictures of any size, best 128 x 128."""
        if not images:
            return []
        batch = np.stack([reduced(image) for image in images])
        scores = torch.cat([self.network(part) for part in as_input(batch).split(64)])
        best = [slot.argmax(1).tolist() for slot in scores.split([len(words) for words in SLOTS.values()], 1)]
        return [
            Reading(*(words[i] for words, i in zip(SLOTS.values(), row, strict=True)))
            for row in zip(*best, strict=True)
        ]


def reduced(image: Image.Image) -> np.ndarray:
    """uint8 [64, 64, 3], by the mean over areas."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def as_input(pictures: np.ndarray) -> Tensor:
    """uint8 [n, 64, 64, 3] -> float32 [n, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
