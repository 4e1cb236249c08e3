"""A family of one linear layer, for what must hold for every family: milliseconds instead of seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lora_scripts.data.image import load_rgb
from lora_scripts.data.scan import Sample
from lora_scripts.families.base import Batch, Sampling
from lora_scripts.families.facts import Facts, LoraFacts
from lora_scripts.formats.header import Kind
from lora_scripts.losses import diffusion, noise
from lora_scripts.train.feed import Feed, Settings
from lora_scripts.train.planned import Picture, plan_pictures


def _none(*_: object) -> Any:
    raise NotImplementedError


FACTS = Facts(
    name="toy",
    words="Toy",
    example="toy.safetensors",
    checkpoint=Kind("a toy"),
    mergeable=frozenset(),
    model="toy",
    features=frozenset({"pictures"}),
    native_size=(64, 64),
    made_for=lambda path: (64, 64),
    least_share=0.0,
    bucket_step=8,
    vae_factor=8,
    latent_channels=3,
    groups={"all": lambda path: True},
    image_root="net",
    text_roots=("text",),
    recipes={},
    lora=LoraFacts("toy", "toy/lora", "toy"),
    names=_none,
    kind_of=_none,
    folder_kind=_none,
    told=lambda path: {},
    check=_none,
    check_vae=_none,
    weights=_none,
    parts={"net": ""},
    wrapped=lambda: {},
    base=_none,
    build=_none,
)


class Toy:
    """`mean` is the 8 x 8 means of a picture's colours, so a mirrored or moved picture shows."""

    facts = FACTS
    device = torch.device("cpu")
    native_size = (64, 64)
    objective = diffusion.Objective()

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = nn.Linear(3, 3)
        self.encoded: list[str] = []
        self.vae, self.text = "vae 1", "text 1"

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        return {"net": self.net}

    def trainable(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def fingerprint(self, part: str) -> str:
        return {"vae": self.vae, "text": self.text}[part]

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        self.encoded.append("picture")
        mean = nn.functional.avg_pool2d(pixels, 8) + len(self.vae)
        return {"mean": mean, "std": torch.full_like(mean, 0.1)}

    def encode_text(self, captions: Sequence[str], shown: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        self.encoded += captions
        numbers = [int.from_bytes(hashlib.sha256(f"{self.text}/{c}".encode()).digest()[:2], "big") for c in captions]
        return {"states": torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)}

    def loss(self, batch: Batch, objective: diffusion.Objective) -> tuple[Tensor, int]:
        return self.losses(batch, objective, batch.draws(objective, self.levels(objective))).sum(), len(batch.captions)

    def losses(self, batch: Batch, objective: diffusion.Objective, draws: noise.Draws) -> Tensor:
        levels, _ = diffusion.discrete(objective.prediction).at(draws.u, self.device)
        x0 = batch.latents["mean"] + batch.latents["std"] * draws.posterior
        output = self.net(diffusion.add_noise(x0, draws.noise, levels).movedim(1, -1)).movedim(-1, 1)
        return diffusion.loss_of(output, x0, draws, levels, objective, batch.masks)

    def levels(self, objective: diffusion.Objective) -> int | None:
        return 1000

    def generate(self, prompt: str, seed: int, sampling: Sampling) -> Image.Image:
        raise NotImplementedError

    def rest(self, *, text_encoder: bool) -> None:
        pass


def samples(folder: Path, count: int = 5, size: tuple[int, int] = (96, 64)) -> list[Sample]:
    """Pictures of noise, on the disk; `size` (width, height) in pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(count):
        path = folder / f"{i}.png"
        colours = np.random.default_rng(i).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(size).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        width, height = load_rgb(path).size
        found.append(Sample(path, path.name, f"a{i}, b, c, d, e, f", width, height, digest))
    return found


def feed(
    family: Toy,
    pictures: Sequence[Sample],
    *,
    flip: bool = False,
    random_crop: bool = False,
    resolution: tuple[int, int] = (64, 64),
    cache_text: bool = True,
    **settings: object,
) -> Feed:
    """A feed that is not filled yet; `settings` as in `Settings`."""
    defaults = {"batch_size": 2, "accumulation": 1, "repeats": 1, "seed": 1, "caption_dropout": 0.0}
    values = {**defaults, "shuffle_tags": False, "keep_tags": 1, **settings}
    planned: list[Picture] = plan_pictures(
        pictures, resolution, family.facts.bucket_steps, flip=flip, random_crop=random_crop, seed=1
    )
    return Feed(family, planned, Settings(**values), cache_text)  # type: ignore[arg-type]
