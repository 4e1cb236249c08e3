"""What one training run is made of: made by `build`, `dataset` and `heldout`, and handed on in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lora_scripts.adapters.layer import Adapter, counting
from lora_scripts.adapters.masters import Masters
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.families.base import PictureFamily
from lora_scripts.families.texts import TextFamily
from lora_scripts.run.base_files import BaseFiles
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.train import fit
from lora_scripts.train.advise import Advice
from lora_scripts.train.average import Ema, averaged
from lora_scripts.train.feed import Feed
from lora_scripts.train.optim import Rates
from lora_scripts.train.probe import Probe
from lora_scripts.train.state import RunState


@dataclass(frozen=True)
class Trained:
    """Adapters in a model, and what moves them."""

    layers: dict[str, Adapter]
    optimizer: torch.optim.Optimizer
    rank: int
    alpha: float
    """Of most layers; single ones may have others, by `targets`."""
    base_digest: str
    """SHA-256 of the base's file; empty for a folder."""
    files: BaseFiles
    """Every file that was read for it: of the base, and of another VAE."""
    resized: str = ""
    """How the rank of `init_lora` was changed; empty if it was not."""
    words: dict[str, nn.Parameter] = field(default_factory=dict)
    """New words -> their vectors [k, width], trained too."""
    training_adapter: str = ""
    """SHA-256 of the file of `training_adapter`; empty for none."""
    masters: Masters = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "masters", Masters(self.layers.values()))
        self.optimizer.register_step_post_hook(lambda *_: self.masters.refresh())

    def weights(self) -> dict[str, nn.Parameter]:
        """The adapters' values by "path.name", and those of new words, as a resume state keeps them: each once, also
        where several layers have it."""
        words = {f"new_token.{word}": p for word, p in self.words.items()}
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for path, layer in self.layers.items():
            for name, p in layer.values().items():
                found.setdefault(id(p), (f"{path}.{name}", p))
        return dict(found.values()) | words

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copies values in, by the names of `weights()`."""
        for name, p in self.weights().items():
            p.copy_(weights[name].reshape(p.shape))
        self.masters.refresh()

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def off(self) -> AbstractContextManager[None]:
        """Within it the base answers alone."""
        return self.at(0.0)

    def at(self, factor: float) -> AbstractContextManager[None]:
        """Within it the adapters count so many times as much."""
        return counting(self.layers.values(), factor)

    def train(self, training: bool) -> None:
        """Dropout on or off."""
        for layer in self.layers.values():
            layer.train(training)


@dataclass(frozen=True, kw_only=True)
class Model(Trained):
    """A picture family with adapters in it."""

    family: PictureFamily


@dataclass(frozen=True, kw_only=True)
class TextModel(Trained):
    """A text family with adapters in it."""

    family: TextFamily


class Losses(Protocol):
    """Something whose losses are measured, the same each time."""

    def losses(self) -> Tensor:
        """[samples, draws] float32, as the model stands."""
        ...


class Probed(Protocol):
    """What `heldout.Measuring` needs to know of what it measures, whatever the samples are."""

    @property
    def on(self) -> bool:
        """Whether anything is measured."""
        ...

    @property
    def every(self) -> int:
        """Steps from one measurement to the next; 0: nothing is measured."""
        ...

    @property
    def samples(self) -> Sized:
        """Held out."""
        ...

    @property
    def outside(self) -> Losses:
        """Of them."""
        ...

    @property
    def inside(self) -> Losses:
        """Of some that are trained."""
        ...

    @property
    def of_tokens(self) -> bool:
        """Whether a loss is one of tokens, in nats, so that e to it is a perplexity."""
        ...

    def about(self) -> dict[str, object]:
        """What is measured, for the record: names, and how."""
        ...

    def strays(self, model: Trained, ema: Ema | None, step: int) -> list[Advice]:
        """What there is to say of samples that did not fit; empty where nobody looks, or all did."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """What is measured of a run: pictures that it does not train, and some that it does."""

    samples: list[Sample]
    """Held out."""
    feed: Feed
    """Of them."""
    outside: Probe
    """Their losses."""
    inside: Probe
    """The losses of some training pictures."""
    whole: Probe
    """The losses of all training pictures at the same noise, for those that do not fit."""
    every: int
    """Steps from one measurement to the next; 0: nothing is measured."""
    looks_at_whole: bool
    """Whether every training picture is looked at in the end: not in a short run, whose time it would take."""

    @property
    def on(self) -> bool:
        return self.every > 0

    @property
    def of_tokens(self) -> bool:
        return False

    def about(self) -> dict[str, object]:
        """What is measured, for the record."""
        return {
            "pictures": [sample.name for sample in self.samples],
            "training_pictures": [self.inside.feed.pictures[i].sample.name for i in self.inside.indices],
            "noise_levels": {"held_out": self.outside.levels.strata, "training": self.inside.levels.strata},
        }

    def strays(self, model: Trained, ema: Ema | None, step: int) -> list[Advice]:
        """Looks for training pictures that did not fit."""
        if not self.looks_at_whole:
            return []
        model.train(False)
        with model.off():
            before = self.whole.losses()
        with averaged(model.trained, model.optimizer, ema):
            after = self.whole.losses()
        model.train(True)
        names = [self.whole.feed.pictures[i].sample.name for i in self.whole.indices]
        found = fit.strays(step, names, before.double().numpy(), after.double().numpy())
        return [] if found is None else [found]


@dataclass(frozen=True)
class Parts:
    """One run, ready to train."""

    config: TrainConfig
    folder: RunFolder
    samples: list[Sample]
    """Trained; class pictures are not among them."""
    device: torch.device
    precision: str
    model: Model
    feed: Feed
    held: HeldOut
    rates: Rates
    ema: Ema | None
    scaler: torch.amp.GradScaler
    state: RunState
    """Where the run stands: the one part that changes."""
