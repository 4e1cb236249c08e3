"""What is trained: the base model of a config with its LoRA layers in it, and the optimizer over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_scripts.config.schema import TrainConfig
from lora_scripts.families.base import Family, LoadOptions, find_family, load_family
from lora_scripts.families.device import DTYPES
from lora_scripts.formats import metadata
from lora_scripts.formats.kohya import LoraWeights
from lora_scripts.generate.apply import check_fits
from lora_scripts.lora.inject import inject, select
from lora_scripts.lora.layer import LoraLayer
from lora_scripts.train.optim import Group, adamw


@dataclass
class Model:
    """A family with LoRA layers in it."""

    family: Family
    layers: dict[str, LoraLayer]
    optimizer: torch.optim.Optimizer
    rank: int
    alpha: float
    base_digest: str
    """SHA-256 of the base's file; empty for a folder."""

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """path -> (A, B), copied into the layers."""
        for path, (down, up) in weights.items():
            layer = self.layers[path]
            layer.down.copy_(down.reshape(layer.down.shape))
            layer.up.copy_(up.reshape(layer.up.shape))

    def weights(self) -> dict[str, Tensor]:
        """The trained values by "path.name", as a resume state keeps them."""
        pairs = ((p, n, t) for p, layer in self.layers.items() for n, t in (("down", layer.down), ("up", layer.up)))
        return {f"{path}.{name}": tensor for path, name, tensor in pairs}

    def train(self, training: bool) -> None:
        """Dropout on or off."""
        for layer in self.layers.values():
            layer.train(training)


def build_model(config: TrainConfig, device: torch.device, precision: str, initial: Mapping[str, LoraWeights]) -> Model:
    """Loads the base and puts the LoRA in, with the weights of `init_lora` if given. UserError for a mistake."""
    options = LoadOptions(device, DTYPES[precision], config.vae)
    family = load_family(find_family(config.base_model), config.base_model, options)
    family.prediction, family.zero_terminal_snr = config.prediction, config.zero_terminal_snr
    digest = metadata.model_hashes(config.base_model).sha256 if config.base_model.is_file() else ""
    spec, layers = family.spec, family.trainable()
    if initial:
        assert config.init_lora is not None
        check_fits(initial, family, config.init_lora)
    image = select([p for p in layers if p.startswith(spec.image_root + ".")], config.targets, spec.groups)
    text = [p for p in layers if p.startswith(spec.text_root + ".")] if config.train_text_encoder else []
    # A continued LoRA keeps its rank; layers that it lacks get the same.
    first = next(iter(initial.values()), None)
    rank, alpha = (first.rank, first.alpha) if first else (config.lora_rank, config.effective_alpha)

    def ranks(path: str) -> tuple[int, float]:
        return (initial[path].rank, initial[path].alpha) if path in initial else (rank, alpha)

    paths = list(dict.fromkeys([*image, *text, *initial]))
    injected = inject(family.roots, paths, ranks, dropout=config.lora_dropout, seed=config.seed)
    _freeze_all_but(injected, {*image, *text})
    groups = [Group("unet", _parameters(injected, image), config.learning_rate)]
    if config.effective_text_encoder_lr is not None:
        groups.append(Group("text_encoder", _parameters(injected, text), config.effective_text_encoder_lr))
    model = Model(family, injected, adamw(groups, config.weight_decay), rank, alpha, digest)
    model.set_weights({p: (w.down, w.up) for p, w in initial.items()})
    return model


def _freeze_all_but(layers: Mapping[str, LoraLayer], trained: set[str]) -> None:
    """Layers that only `init_lora` has are applied as they are."""
    for path, layer in layers.items():
        for p in (layer.down, layer.up):
            p.requires_grad_(path in trained)
        if path not in trained:
            layer.dropout = 0.0


def _parameters(layers: Mapping[str, LoraLayer], paths: Iterable[str]) -> list[torch.nn.Parameter]:
    return [p for path in paths for p in (layers[path].down, layers[path].up)]
