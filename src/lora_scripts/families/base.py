"""What the house knows of a model: the protocol of every family, and that of picture families."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.facts import Facts
from lora_scripts.formats.hashes import sha256_of
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.noise import Draws, draw

REFERENCE = "reference"
Conditions = Mapping[str, Tensor]
"""What a model is told besides what it works on, by the family's own names; each [n, ...]."""


def stacked(rows: Sequence[Conditions]) -> dict[str, Tensor]:
    """n tables of tensors [...] as one of tensors [n, ...]; of texts of different lengths the shorter ones are filled
    up with zeros."""
    return {name: _stack([row[name] for row in rows]) for name in rows[0]}


def _stack(tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)


@dataclass(frozen=True)
class Sampling:
    """How a preview picture is made."""

    steps: int = 20
    cfg: float = 7.0
    negative: str = ""
    size: tuple[int, int] = (512, 512)
    """(width, height) in pixels"""
    scheduler: str | None = None
    """A name of `families.samplers`; None: the usual one."""
    start: Tensor | None = None
    """[3, height, width] in [-1, 1] of `size`: a picture to begin with, instead of noise alone."""
    denoise: float = 1.0
    """Of `start`: the share of the steps that are done, 0 … 1."""
    references: Sequence[Tensor] = ()
    """Each [3, h, w] in [-1, 1], of its own size: pictures to draw from, at most as many as the family's facts say."""


@dataclass(frozen=True)
class Place:
    """How a training picture came to be as it is: some families tell it to their model."""

    size: tuple[int, int]
    """(width, height) of the picture as it was, in pixels"""
    corner: tuple[int, int]
    """(left, top) of what is seen of it, in pixels of the resized picture"""
    target: tuple[int, int]
    """(width, height) of what is seen, in pixels"""

    def numbers(self) -> Tensor:
        """[6] float32: height and width that the picture had, top and left of the cut, height and width of what is
        seen."""
        pairs = self.size[::-1], self.corner[::-1], self.target[::-1]
        return torch.tensor([float(number) for pair in pairs for number in pair])


@dataclass(frozen=True)
class Batch:
    """n training samples, ready for the loss. Pictures of one batch have one size."""

    latents: Mapping[str, Tensor]
    """What the family's encoder gave of each sample, by its own names: each [n, ...]; and the "mean" that it gave of
    each picture that it is made from, as `REFERENCE` and a number from 0"""
    captions: Sequence[str]
    """n texts"""
    texts: Conditions | None
    """The encoded captions; None when the text encoder is trained"""
    names: Sequence[str]
    """n file names, for messages"""
    generators: list[torch.Generator]
    """n CPU generators: all the randomness of the step, but for the noise levels where there are `quantiles`"""
    places: Tensor | None = None
    """[n, 6] of pictures, each as `Place.numbers` has it"""
    masks: Tensor | None = None
    """[n, 1, h, w] float32, 0 … 1: how much each place of the latents counts; None: all the same"""
    weights: Tensor | None = None
    """[n] float32: how much each sample's loss counts; None: all the same"""
    quantiles: Tensor | None = None
    """[n] float64 in [0, 1): each sample's noise level, as of `losses.noise.Timesteps.at`; None: it is drawn"""
    preserved: bool = False
    """Whether the base's own answers are what the model should answer, in place of what the objective has of picture
    and noise; such samples come beside those that are trained, and do not count as samples of the step"""
    answers: Tensor | None = None
    """[n, ...]: those answers, once they are known"""

    def draws(self, objective: Objective, levels: int | None) -> Draws:
        """What chance decides for the batch; `levels`: of how many noise levels, None: of any number."""
        shape = tuple(self.latents["mean"].shape)
        return draw(shape, self.generators, objective.timesteps, objective.noise, levels, self.quantiles)


class Family(Protocol):
    """A model of any kind, as whatever puts a LoRA on it, trains it or saves what was trained knows it."""

    @property
    def facts(self) -> Facts: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        """The parts that can take LoRA, by the first word of a path."""
        ...

    def trainable(self) -> dict[str, nn.Module]:
        """Path -> layer, for every layer that LoRA may wrap and the export has a name for."""
        ...


class PictureFamily(Family, Protocol):
    """A family whose samples are pictures. A step calls `loss`; everything else is done before and after it."""

    native_size: tuple[int, int]
    """(width, height) in pixels of the pictures that the base was made for"""

    def trainable(self, parts: Collection[str] | None = None) -> dict[str, nn.Module]:
        """Path -> layer, for every layer that LoRA may wrap and the export has a name for; of these parts alone, the
        first words of paths, where they are given: the others need not be loaded for it."""
        ...

    @property
    def objective(self) -> Objective:
        """What the base itself was made with: what it answers with, and its noise schedule; nothing weighted."""
        ...

    def fingerprint(self, part: str) -> str:
        """A digest of what turns pictures ("vae") or captions ("text") into cached tensors."""
        ...

    def encode_text(self, captions: Sequence[str], shown: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """n captions -> what the model is told of them, each [n, ...], in the text encoder's own precision.

        `shown`: the references of all of them, as of `Sampling`; read where the family's facts say that it `sees`.
        """
        ...

    def loss(self, batch: Batch, objective: Objective) -> tuple[Tensor, int]:
        """The sum of the batch's losses, with gradient, and how many were summed."""
        ...

    def losses(self, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
        """The loss of each sample of the batch, [n] float32, as a function of what was drawn."""
        ...

    def answers(self, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
        """What the model answers to each sample of the batch, [n, ...], as a function of what was drawn."""
        ...

    def levels(self, objective: Objective) -> int | None:
        """How many noise levels the model was made for; None where any number in [0, 1) is one."""
        ...

    def rest(self, *, text_encoder: bool) -> None:
        """Moves to the CPU what is not needed while training (the VAE, and the text encoder if told so)."""
        ...

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, h, w] in [-1, 1] -> latents by name, each [n, c, h / f, w / f] float32 on the CPU, scaled.

        "mean" is among them: it is what pictures are compared by.
        """
        ...

    def told_of_latents(self) -> str:
        """A sentence on how far those of `encode_image` are from float32's; "" where nothing of that was measured."""
        ...

    def missed(self, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
        """What the model's answers lack of what they should be, as the latents, float32 [n, c, h, w]: what `losses`
        measures, place by place."""
        ...

    def decode_image(self, latents: Tensor) -> Image.Image:
        """The picture of one's latents, [c, h / f, w / f] as `encode_image` gives them. UserError for NaN."""
        ...

    def generate(self, prompt: str, seed: int, sampling: Sampling) -> Image.Image:
        """A picture from the model as it stands, LoRA layers and all."""
        ...

    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
        """As `generate`, one picture for each seed, together; each is what it is alone, but for rounding."""
        ...

    def sampler(self, name: str | None, steps: int = 1) -> Any:
        """The `families.samplers.Sampler` of that name, or the usual one. UserError for one that does not fit."""
        ...

    def image_features(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[n, 3, h, w] in [-1, 1] -> the "mean" of `encode_image`, and the maps [n, c, h', w'] that the image encoder
        makes on the way, fine to coarse; all in float32."""
        ...

    @property
    def word_widths(self) -> tuple[int, ...]:
        """How many numbers of a new word's vector are each text encoder's: they stand side by side."""
        ...

    def set_words(self, words: Mapping[str, Tensor]) -> None:
        """Words that the text encoder lacks, each with its vectors [k, width]; {}: none, and it is as it was loaded.

        A vector that is a Parameter is read where it is, and gets a gradient. Cached captions know nothing of them.
        """
        ...

    def vectors_of(self, text: str) -> Tensor:
        """[n, width] float32 on the CPU: the text encoder's vectors of the n tokens of a text; of "" the mean."""
        ...


class CaptionEncoder(Protocol):
    """A text encoder by itself, while the rest of the model is not there yet."""

    def fingerprint(self) -> str:
        """As `PictureFamily.fingerprint("text")`."""
        ...

    def encode(self, captions: Sequence[str], shown: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """As `PictureFamily.encode_text`. Loads the encoder, where that is not there."""
        ...

    def remember(self, texts: Sequence[str], shown: Sequence[Tensor] = ()) -> None:
        """Encodes texts that will be drawn, from such references, and keeps what they gave."""
        ...

    def excess(self, text: str) -> int:
        """How many tokens of a text are cut off."""
        ...

    def is_short(self, text: str) -> bool:
        """Whether a text says less than those that the base was made for."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """What `load` of every family takes besides the path."""

    device: torch.device
    dtype: torch.dtype
    vae: Path | None = None
    text_encoder: Sequence[Path] = ()
    """Of a base in separate files, each with one."""
    first: Callable[[CaptionEncoder], None] | None = None
    """Of a family whose text encoder is large: called with it before the rest is loaded, so that both are never there
    at once; the encoder is gone afterwards. Other families do not call it."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    remembered: Callable[[str, Callable[[], str]], str] = lambda what, make: make()
    """Gives the digest of something that stands in the files of the base and of another VAE, by a name for it that
    says all that it is made of besides: one that was found before, or else what `make` gives."""
    digest: Callable[[Path], str] = sha256_of
    """Gives the SHA-256 of a file that texts are read with, which may be large and looked at before."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the config that a family has a use for, such as `prediction`; each takes its own and leaves the rest."""
