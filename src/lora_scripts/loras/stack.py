"""LoRAs on and off a loaded model, as prompts ask for them; off means that the base is back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_scripts.adapters.dora import DoraLayer
from lora_scripts.adapters.inject import remove
from lora_scripts.adapters.layer import Adapter
from lora_scripts.adapters.weights import SHORTEST
from lora_scripts.families.base import PictureFamily
from lora_scripts.loras.file import read
from lora_scripts.loras.on_model import apply, check_fits, check_words_fit, set_strength
from lora_scripts.loras.reading import Change
from lora_scripts.loras.words import read_words, together


@dataclass(frozen=True)
class Worn:
    """A LoRA file and how strongly it is on."""

    path: Path
    unet: float
    text: float


class LoraStack:
    """The LoRAs that are on a model. With `merged` they are added to its weights, so that drawing costs what the base
    costs; the weights that were there are kept and put back."""

    def __init__(self, family: PictureFamily, *, merged: bool = False) -> None:
        self.family, self.merged = family, merged
        self.read: dict[Path, Mapping[str, Change]] = {}
        self.worn: tuple[Worn, ...] = ()
        self.layers: list[dict[str, Adapter]] = []
        self.kept: dict[nn.Linear | nn.Conv2d, Tensor] = {}
        self.words: dict[Path, Mapping[str, Tensor]] = {}
        """That the files bring."""

    def load(self, path: Path) -> None:
        """Reads a file, once. UserError for one that is no LoRA, or does not fit the model."""
        if path not in self.read:
            modules = read(path, self.family.facts).modules
            check_fits(modules, self.family, path)
            self.words[path] = read_words(path)
            check_words_fit(self.words[path], self.family, path)
            self.read[path] = modules

    def wear(self, wanted: Sequence[Worn]) -> None:
        """From now on exactly these are on, the first one innermost. UserError as `load`."""
        wanted = tuple(wanted)
        if wanted == self.worn:
            return
        if any(one.path not in self.read for one in wanted):
            self.take_off()  # files are checked against the bare model
        for one in wanted:
            self.load(one.path)
        if not self.merged and self.layers and [w.path for w in wanted] == [w.path for w in self.worn]:
            for one, layers in zip(wanted, self.layers, strict=True):
                set_strength(self.family, layers, one.unet, one.text)
        else:
            self.take_off()
            self.family.set_words(together({w.path: self.words[w.path] for w in wanted}))
            self.layers = [apply(self.family, self.read[w.path], w.unet, w.text) for w in wanted]
            if self.merged:
                self._merge()
        self.worn = wanted

    def take_off(self) -> None:
        """The base as it was loaded."""
        for layer, weight in self.kept.items():
            layer.weight.data = weight
        self.kept.clear()
        self._unwrap()
        self.family.set_words({})
        self.worn = ()

    def _unwrap(self) -> None:
        for layers in reversed(self.layers):
            remove(self.family.roots, layers)
        self.layers = []

    @torch.no_grad()
    def _merge(self) -> None:
        """Sums in float32 and rounds once, into the layout in memory that the weight had."""
        whole: dict[nn.Linear | nn.Conv2d, Tensor] = {}
        for layers in self.layers:  # the innermost first
            for adapter in layers.values():
                if adapter.strength != 0.0:
                    layer = adapter.frozen
                    inner = whole.get(layer, layer.weight.detach())  # which may be in RAM, the change on a card
                    whole[layer] = _with_change(adapter, inner.to(self.family.device, torch.float32))
        self._unwrap()
        for layer, weight in whole.items():
            self.kept[layer] = layer.weight.data
            layer.weight.data = torch.empty_like(layer.weight.data).copy_(weight)


def _with_change(adapter: Adapter, inner: Tensor) -> Tensor:
    """The weight, float32, that stands for `adapter` around a layer of weight `inner`."""
    if not isinstance(adapter, DoraLayer):
        return inner + adapter.strength * adapter.delta()
    # As its forward pass has it: the input is scaled, for whatever is inside.
    change = super(DoraLayer, adapter).delta()
    gain = (adapter.magnitude / adapter.norm().clamp(min=SHORTEST)).view(1, -1, *[1] * (inner.dim() - 2))
    return inner * (1 + adapter.strength * (gain - 1)) + adapter.strength * change * gain
