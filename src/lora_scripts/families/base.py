"""What the training loop knows of a model: the Family protocol, and the table of families."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.formats.header import Kind, identify, refuse
from lora_scripts.losses.diffusion import Objective, Prediction
from lora_scripts.losses.noise import Draws


@dataclass(frozen=True)
class Spec:
    """Published facts of a family, in one place."""

    name: str
    """As people call it: "Stable Diffusion 1.x"."""
    vae_factor: int
    """Pixels a latent stands for, along each side."""
    latent_channels: int
    bucket_step: int
    """Sides of training pictures are multiples of this, in pixels."""
    groups: Mapping[str, Callable[[str], bool]]
    """Names for sets of layers, for the config's `targets`."""
    image_root: str
    """The part that LoRA goes into by default."""
    text_root: str
    """The part that LoRA goes into with `train_text_encoder`."""


@dataclass(frozen=True)
class Sampling:
    """How a preview picture is made."""

    steps: int = 20
    cfg: float = 7.0
    negative: str = ""
    size: tuple[int, int] = (512, 512)
    """(width, height) in pixels"""
    scheduler: str | None = None
    """A name of `families.schedulers`; None: the usual one."""
    start: Tensor | None = None
    """[3, height, width] in [-1, 1] of `size`: a picture to begin with, instead of noise alone."""
    denoise: float = 1.0
    """Of `start`: the share of the steps that are done, 0 … 1."""


@dataclass(frozen=True)
class Batch:
    """n training pictures of one size, ready for the loss."""

    mean: Tensor
    """[n, c, h, w] float32: mean of the latents' posterior"""
    std: Tensor
    """as `mean`"""
    captions: Sequence[str]
    """n texts"""
    states: Tensor | None
    """[n, tokens, width]: the encoded captions; None when the text encoder is trained"""
    names: Sequence[str]
    """n file names, for messages"""
    generators: list[torch.Generator]
    """n CPU generators: all the randomness of the step"""
    masks: Tensor | None = None
    """[n, 1, h, w] float32, 0 … 1: how much each place of the latents counts; None: all the same"""
    weights: Tensor | None = None
    """[n] float32: how much each picture's loss counts; None: all the same"""


class Family(Protocol):
    """One kind of model. The loop calls `loss`; everything else is done before and after it."""

    spec: Spec
    device: torch.device
    native_size: tuple[int, int]
    """(width, height) in pixels of the pictures that the base was made for"""

    prediction: Prediction
    """What the base model answers with; `generate` needs to know."""

    zero_terminal_snr: bool
    """That the base was made for a noise schedule that ends in pure noise; `generate` needs to know."""

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        """The parts that can take LoRA, by the first word of a path."""
        ...

    clip_skip: int
    """1: the text encoder's last layer is read; 2: the one before it, and so on."""
    caption_tokens: int
    """Where captions are cut off: 75, 150 or 225 tokens. Prompts of pictures are never cut."""

    def trainable(self) -> dict[str, nn.Module]:
        """Path -> layer, for every layer that LoRA may wrap and the export has a name for."""
        ...

    def fingerprint(self, part: str) -> str:
        """A digest of what turns pictures ("vae") or captions ("text") into cached tensors."""
        ...

    def set_words(self, words: Mapping[str, Tensor]) -> None:
        """Words that the text encoder lacks, each with its vectors [k, width]; {}: none, and it is as it was loaded.

        A vector that is a Parameter is read where it is, and gets a gradient. Cached captions know nothing of them.
        """
        ...

    def vectors_of(self, text: str) -> Tensor:
        """[n, width] float32 on the CPU: the text encoder's vectors of the n tokens of a text; of "" the mean."""
        ...

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, h, w] in [-1, 1] -> {"mean", "std"}, each [n, c, h / f, w / f] float32 on the CPU, scaled."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """n captions -> [n, tokens, width], in the text encoder's own precision."""
        ...

    def loss(self, batch: Batch, objective: Objective) -> tuple[Tensor, int]:
        """The sum of the batch's losses, with gradient, and how many were summed."""
        ...

    def losses(self, batch: Batch, objective: Objective, draws: Draws) -> Tensor:
        """The loss of each picture of the batch, [n] float32, as a function of what was drawn."""
        ...

    def generate(self, prompt: str, seed: int, sampling: Sampling) -> Image.Image:
        """A picture from the model as it stands, LoRA layers and all."""
        ...

    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
        """As `generate`, one picture for each seed, together; each is what it is alone, but for rounding."""
        ...

    def image_features(self, pixels: Tensor) -> list[Tensor]:
        """[n, 3, h, w] in [-1, 1] -> the maps [n, c, h', w'] that the image encoder makes, fine to coarse, float32."""
        ...

    def rest(self, *, text_encoder: bool) -> None:
        """Moves to the CPU what is not needed while training (the VAE, and the text encoder if told so)."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """What `load` of every family takes besides the path."""

    device: torch.device
    dtype: torch.dtype
    vae: Path | None = None
    memory: MemoryOptions = field(default_factory=MemoryOptions)


FAMILIES = {"sd1": "lora_scripts.families.sd1.model"}
"""Name -> module with `load(path, options) -> Family`."""
KINDS = {Kind.SD1: "sd1"}
"""What the header of a checkpoint says -> name."""


def find_family(path: Path) -> str:
    """The name of the family of a checkpoint, told by its header. UserError if it is of none."""
    if path.is_dir():  # the loader looks into the folder
        return "sd1"
    kind = identify(path)
    return KINDS[kind] if kind in KINDS else refuse(kind, path)


def load_family(name: str, path: Path, options: LoadOptions) -> Family:
    """Builds a family from its checkpoint; its module, and with it the heavy libraries, is imported only now."""
    family: Family = importlib.import_module(FAMILIES[name]).load(path, options)
    return family
