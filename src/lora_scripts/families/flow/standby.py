"""A frozen text encoder of a flow model: loaded when a text is to be encoded that is not known yet, gone when it may
rest. What it is, and how it reads, is the subclass's.
"""

from __future__ import annotations

import gc
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.compute import memory
from lora_scripts.errors import UserError
from lora_scripts.families.base import Conditions, stacked
from lora_scripts.formats.hashes import sha256_of


class Standby(ABC):
    """What texts gave is kept, where that is asked for."""

    def __init__(self, files: Sequence[Path], reading: str, device: torch.device, dtype: torch.dtype) -> None:
        """`files` and `reading`: what makes it give what it gives."""
        self.device, self.dtype = device, dtype
        self._files, self._reading = files, reading
        self._model: Any = None
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._digest = ""
        self.digest_of: Callable[[Path], str] = sha256_of
        """As of `LoadOptions`: of each of its files."""

    def fingerprint(self) -> str:
        """A digest of what turns captions into what the model is told."""
        if not self._digest:
            files = [self.digest_of(file) for file in self._files]
            self._digest = hashlib.sha256(" ".join([*files, self._reading]).encode()).hexdigest()
        return self._digest

    def encode(self, captions: Sequence[str], shown: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """By name what the model is told, each [n, ...], on the CPU; zeros behind the shorter ones. No LoRA counts.
        What is `shown` says something to an encoder that sees, and nothing to others."""
        keys = {text: self._key(text, shown) for text in captions}
        return stacked([self._kept.get(keys[text]) or self._on_cpu(text, shown) for text in captions])

    def told(self, captions: Sequence[str], encoded: Conditions | None = None) -> Conditions:
        """What the model is told of captions as the encoder stands, with whatever LoRA on it; `encoded`: what `encode`
        gave of them, where that is there."""
        return self.encode(captions) if encoded is None else encoded

    @property
    def roots(self) -> Mapping[str, Callable[[], nn.Module]]:
        """Its parts that take LoRA, by the first word of a path, each loaded when it is asked for."""
        return {}

    def trainable(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, layer) of the layers in them that LoRA files have names for."""
        yield from ()

    def remember(self, texts: Sequence[str], shown: Sequence[Tensor] = ()) -> None:
        """Encodes texts, and keeps what they gave."""
        for text in texts:
            if (key := self._key(text, shown)) not in self._kept:
                self._kept[key] = self._on_cpu(text, shown)

    def rest(self) -> None:
        """The encoder leaves the memory; what is kept stays."""
        self._model = None
        if self.device.type == "cuda":
            gc.collect()  # blocks that came for their turn know each other
            torch.cuda.empty_cache()

    @abstractmethod
    def excess(self, text: str) -> int:
        """How many tokens of a text are cut off."""

    def is_short(self, text: str) -> bool:
        """Whether a text says less than those that the base was made for."""
        return False

    @abstractmethod
    def _read(self, text: str) -> dict[str, Tensor]:
        """What the model is told of one text."""

    @abstractmethod
    def _build(self) -> Any:
        """The model."""

    def _key(self, text: str, shown: Sequence[Tensor]) -> str:
        """By which what a text gives is known."""
        return text

    def _on_cpu(self, text: str, shown: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self._read(text).items()}

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self._build()
            memory.bring(self._model, self.device)
        return self._model


def require_numbers(states: Tensor, whose: str, path: Path) -> None:
    """UserError where a text encoder's states are no numbers, as where fp16 does not hold them; `path`: of its file."""
    if not torch.isfinite(states).all():
        raise UserError(f"{whose} states are no numbers", file=path, hint="use precision bf16 or fp32")
