"""Proof of an export: a fresh base loads the file through diffusers, and every change it makes is compared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lora_scripts.errors import UserError


@dataclass(frozen=True)
class Proof:
    """How a consumer took the file."""

    modules: int
    """Modules changed by the consumer, all of them as trained."""
    largest: float
    """Largest |change applied - change trained| of any weight."""

    def __str__(self) -> str:
        return f"verified: {self.modules} of {self.modules} modules, largest difference {self.largest:.0e}"


def prove(path: Path, expected: Mapping[str, Tensor], unet: nn.Module, text_encoder: nn.Module) -> Proof:
    """Loads `path` into a fresh UNet and text encoder as diffusers' users do; `expected` is path -> dW, float64.

    UserError, naming the modules, if one is missing, is there without having been trained, or differs by more than
    float32 rounding.
    """
    changes = _applied_by_diffusers(path, unet, text_encoder)
    missing, extra = sorted(set(expected) - set(changes)), sorted(set(changes) - set(expected))
    if missing or extra:
        told = [
            f"{len(names)} {what}, first {names[0]}"
            for names, what in ((missing, "missing"), (extra, "extra"))
            if names
        ]
        raise UserError(f"the exported file does not load as trained: {'; '.join(told)}", file=path)
    sizes = {name: wanted.abs().max().item() for name, wanted in expected.items()}
    worst, largest = 0.0, max(sizes.values())
    for name, wanted in expected.items():
        difference = (changes[name].double() - wanted).abs().max().item()
        # Of each module's own size: early in a training all of the changes are small.
        if not difference <= 1e-5 * sizes[name] + 1e-8 * largest:
            raise UserError(
                f"the exported file changes {name} by something else than was trained ({difference:.1e})", file=path
            )
        worst = max(worst, difference)
    return Proof(len(expected), worst)


def _applied_by_diffusers(path: Path, unet: nn.Module, text_encoder: nn.Module) -> dict[str, Tensor]:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from peft.tuners.lora import LoraLayer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = StableDiffusionLoraLoaderMixin
        tensors, alphas = loader.lora_state_dict(str(path), local_files_only=True, unet_config=None)
        loader.load_lora_into_unet(tensors, network_alphas=alphas, unet=unet, adapter_name="proof")
        loader.load_lora_into_text_encoder(
            tensors, network_alphas=alphas, text_encoder=text_encoder, prefix="text_encoder", adapter_name="proof"
        )
    changes = {}
    for root, model in (("unet", unet), ("text_encoder", text_encoder)):
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and "proof" in module.lora_A:
                changes[f"{root}.{name.removeprefix('text_model.')}"] = module.get_delta_weight("proof").detach()
    return changes


def expected_changes(weights: Mapping[str, tuple[Tensor, Tensor, float]]) -> dict[str, Tensor]:
    """(A, B, alpha) as they stand in the file -> dW = (alpha / rank) B A, float64, in the frozen weight's shape."""
    out = {}
    for name, (down, up, alpha) in weights.items():
        product = up.double().flatten(1) @ down.double().flatten(1)
        out[name] = (alpha / down.shape[0]) * product.view(up.shape[0], *down.shape[1:])
    return out
