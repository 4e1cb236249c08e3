"""Steps of other trainers on a card, from checkouts: what peers_onetrainer.py and peers_aitoolkit.py share.

All their arms train the same layers, but for ai-toolkit's own FLUX.2. What a checkout imports, takes no part in a step
and is not installed (parse; av, torchaudio, torchao, optimum.quanto) stands in as an empty module, and what it changes
in torch when it is imported is taken out again, so that no other arm runs with it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], float]


@dataclass(frozen=True)
class Task:
    """What an arm trains; of card.py."""

    family: str
    count: int
    rank: int
    on: torch.device
    theirs: Callable[[], Any]
    """The model as diffusers has it, on the meta device."""
    made: Callable[[Any], Any]
    """It with random weights on the card, in bf16, frozen."""
    ends: Callable[[Any], list[str]]
    """Paths of its layers that get a LoRA."""
    asked: Callable[..., Callable[[], Tensor]]
    """(the model, how it is asked where not as diffusers') What gives the loss on the next batch."""


Make = Callable[[Task], Step]
"""What makes the step of an arm."""


def update(loss: Tensor, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Back, clip, step; the loss is read when all else is given to the card."""
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


class Empty(types.ModuleType):
    """A module in which every name is a class without anything."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def imports(place: Path, *stand_ins: str) -> Iterator[None]:
    """Within it modules are imported from a checkout, and empty ones stand for what is not installed; after it nothing
    else finds either."""
    added = []
    for name in stand_ins:
        parts = name.split(".")
        for whole in (".".join(parts[: n + 1]) for n in range(len(parts))):
            if whole not in sys.modules and importlib.util.find_spec(whole) is None:
                sys.modules[whole] = Empty(whole)
                added.append(whole)
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
        for name in added:
            del sys.modules[name]
