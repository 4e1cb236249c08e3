"""The table of families for the shared tests: one row each, with a narrow random model of the true topology."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

import tiny
import tiny_anima
import tiny_chroma
import tiny_flux1
import tiny_flux2
import tiny_flux2_dev
import tiny_flux3
import tiny_krea2
import tiny_qwen
import tiny_qwen21
import tiny_sd2
import tiny_sd3
import tiny_xl
import tiny_zimage
from lora_scripts.families.base import Batch
from lora_scripts.losses.noise import draw

SOME = "['*mid_block*attn*', '*up_blocks.1*to_q*']"
"""`targets` of the UNets, whose layers are many; test_training and test_sdxl prove all of them."""
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""Of Stable Diffusion, as its configurations have them."""


@torch.no_grad()
def loss_is_diffusers(family: Any, kind: str, unet: Any, states: Tensor, captions: Sequence[str]) -> None:
    """Of a Stable Diffusion without XL, of two captions, at drawn noise levels, and at the first and the last; `unet`
    and `states`: diffusers' and what its pipeline makes of the captions."""
    scheduler = DDPMScheduler(**BETAS)
    g = torch.Generator().manual_seed(3)
    latents = {"mean": torch.randn(2, 4, 8, 8, generator=g), "std": 0.1 * torch.rand(2, 4, 8, 8, generator=g)}
    batch = Batch(latents, list(captions), family.encode_text(captions), ["a", "b"], [], None)
    draws = draw((2, 4, 8, 8), [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    for u in (draws.u, torch.tensor([0.0, 0.9999999]).double()):
        drawn, t = replace(draws, u=u), (u * 1000).floor().long()
        x0 = latents["mean"] + latents["std"] * drawn.posterior
        wanted = scheduler.get_velocity(x0, drawn.noise, t) if kind == "v" else drawn.noise
        out = unet(scheduler.add_noise(x0, drawn.noise, t), t, states).sample
        theirs = (out - wanted).square().mean((1, 2, 3))
        torch.testing.assert_close(family.losses(batch, family.objective, drawn), theirs, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Row:
    """One family, as `test_families_life` takes it through the whole life of a LoRA."""

    name: str
    file: Callable[[Path], Path]
    """Writes the model as people have it in one file."""
    folder: Callable[[Path], Path] | None
    """Writes the same model as a diffusers folder; None where there is none."""
    keys: dict[str, object] = field(default_factory=lambda: {"train_text_encoder": "true", "targets": SOME})
    """Of the config, beyond `tiny.write_config`."""
    beside: Callable[[Path], dict[str, object]] = lambda folder: {}
    """Keys of the config for what `file` wrote into its folder besides: a text encoder, a VAE."""
    namings: tuple[str, ...] = ("diffusers", "original", "kohya")
    """Names that `convert` goes through, and back."""
    slow: bool = False
    """Whether it takes long, and shows little that another does not."""


def _folder(path: Path) -> Path:
    for part, model in zip(("unet", "vae", "text_encoder"), tiny.models(), strict=True):
        model.save_pretrained(path / part)
    return path


def _flow(name: str, made: ModuleType, *namings: str, **keys: object) -> Row:
    """Of a module of narrow models; its text encoder is trained where `keys` say so."""
    return Row(name, made.write_base, made.write_folder, keys=keys, beside=made.beside, namings=namings)


ROWS = (
    Row("sd1", tiny.write_base, _folder),
    Row("sd2", tiny_sd2.write_base, tiny_sd2.write_folder, slow=True),  # the way of sd1
    Row("sdxl", tiny_xl.write_base, tiny_xl.write_folder),
    _flow("zimage", tiny_zimage, "diffusers", "original", "kohya"),
    _flow("flux1", tiny_flux1, "kohya", "diffusers", train_text_encoder="true"),
    # the way of flux1 without its CLIP
    replace(_flow("chroma", tiny_chroma, "kohya", "diffusers"), slow=True),
    replace(_flow("sd3", tiny_sd3, "kohya", "diffusers", targets="['*.0.attn*', '*.2.attn.*']"), slow=True),
    _flow("flux2", tiny_flux2, "diffusers", "kohya"),
    # the way of flux2, with other captions
    replace(_flow("flux2_dev", tiny_flux2_dev, "diffusers", "kohya"), slow=True),
    # the way of flux2, with the text encoder of krea2
    replace(_flow("flux3", tiny_flux3, "diffusers", "kohya"), slow=True),
    _flow("qwen_image", tiny_qwen, "diffusers", "kohya"),
    # the way of zimage, with the text encoder of krea2
    replace(_flow("qwen_image21", tiny_qwen21, "original", "diffusers", "kohya"), slow=True),
    _flow("anima", tiny_anima, "diffusers", "kohya"),
    _flow("krea2", tiny_krea2, "original", "diffusers", "kohya", targets="['*.0.attn.*', '*.projector']"),
)
