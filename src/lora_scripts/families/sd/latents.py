"""Pictures to latents and back: a frozen VAE, in float32."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.compute import memory
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.compute.resting import Resting
from lora_scripts.errors import UserError
from lora_scripts.families.sd.vae import FACTOR
from lora_scripts.units import percent


def digest_of(model: nn.Module, *settings: str) -> str:
    """A digest of a model's numbers in float32, and of settings that change what it gives; empty ones count as none."""
    digest = hashlib.sha256()
    for words in settings:
        digest.update(words.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        whole = tensor.detach().float() if tensor.is_floating_point() else tensor
        digest.update(whole.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


Remembered = Callable[[str, Callable[[], str]], str]
"""As `LoadOptions.remembered`."""
AGREES = 0.015
"""Of the spread of latents: as far as those in another type may be off, in the mean square. The bundled VAE's are off
by 0.009 in bfloat16, and LoRAs did not notice (docs/performance.md)."""


@dataclass(frozen=True)
class Normal:
    """How a VAE's latents become those that a model works on, of about unit variance: (x - shift) * scale, of all
    channels alike or of each; after four neighbours, 2 x 2, have become channels of one place, if they do."""

    scale: float | Tensor
    """A number, or float32 [c, 1, 1]; BatchNorm's running statistics give 1 / sqrt(variance + eps)."""
    shift: float | Tensor = 0.0
    packed: bool = False

    @classmethod
    def of_channels(cls, vae: Any) -> Normal:
        """By the mean and the deviation of each channel, which the VAE's config lists."""
        numbers = vae.config.latents_mean, vae.config.latents_std
        mean, std = (torch.tensor(row).view(-1, 1, 1) for row in numbers)
        return cls(1 / std, mean)

    def into(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [n, c, h, w] of a VAE's latents, or [n, 4 c, h / 2, w / 2] of packed ones."""
        if self.packed:
            mean, std = pack(mean), pack(std)
        scale, shift = self._at(self.scale, mean), self._at(self.shift, mean)
        return (mean - shift) * scale, std * scale

    def back(self, latents: Tensor) -> Tensor:
        """Of latents [n, c, h, w] the VAE's own."""
        own = latents / self._at(self.scale, latents) + self._at(self.shift, latents)
        return unpack(own) if self.packed else own

    @staticmethod
    def _at(value: float | Tensor, like: Tensor) -> float | Tensor:
        return value.to(like.device) if isinstance(value, Tensor) else value


def _picture(maps: Tensor) -> Tensor:
    """[n, c, h, w] of those, or of the one frame [n, c, 1, h, w] of a VAE of films."""
    return maps.squeeze(2) if maps.dim() == 5 else maps


def pack(x: Tensor) -> Tensor:
    """[n, c, 2 h, 2 w] -> [n, 4 c, h, w]: the four neighbours stand behind each other in the order of the rows."""
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def unpack(x: Tensor) -> Tensor:
    """The inverse of `pack`."""
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


class LatentCoder:
    """The VAE of a family. It comes to the device when it is needed, and stays there until it may `rest`."""

    def __init__(
        self,
        vae: Any,
        normal: Normal,
        device: torch.device,
        options: MemoryOptions,
        remembered: Remembered = lambda what, make: make(),
    ) -> None:
        """`vae`: one, or a `Unbuilt`; `remembered`: as of `LoadOptions`."""
        self.device, self.normal, self.tiling, self._remembered = device, normal, options.vae_tiling, remembered
        # float32: in half precision the VAE of some checkpoints gives NaN, seen as black pictures.
        self._resting = Resting(vae, self._prepare)
        if not options.resting:
            self._resting.wake(torch.device("cpu"))
        self.quick, self._digest = options.encoding, ""
        self._off: float | None = None

    def _prepare(self, vae: Any) -> None:
        if self.tiling:
            vae.enable_tiling()
            if hasattr(vae, "tile_latent_min_size"):  # else it has tiles of this size
                vae.tile_sample_min_size, vae.tile_latent_min_size = memory.TILE, memory.TILE // FACTOR

    @property
    def vae(self) -> Any:
        """Built, if it was not."""
        return self._resting.model

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, h, w] in [-1, 1] -> {"mean", "std"} of the posterior, as `Normal.into`, float32 on the CPU."""
        self._resting.wake(self.device)
        mean, std = self.normal.into(*self._posterior(pixels, self.precision))
        return {"mean": mean.cpu(), "std": std.cpu()}

    @property
    def precision(self) -> torch.dtype:
        """In which latents are made: the one that is asked for, if it gives those of float32, but for `AGREES`, of a
        picture with smooth parts and fine ones: a property of the VAE, and of the machine, not of a data set."""
        if self.quick == torch.float32:
            return self.quick
        if self._off is None:
            g = torch.Generator().manual_seed(0)
            smooth = F.interpolate(torch.rand(1, 3, 5, 5, generator=g), size=(128, 128), mode="bicubic")
            picture = (2 * smooth - 1 + 0.2 * torch.randn(1, 3, 128, 128, generator=g)).clamp(-1, 1)
            (whole, _), (other, _) = (self._posterior(picture, dtype) for dtype in (torch.float32, self.quick))
            self._off = float((other - whole).square().mean().sqrt() / whole.std())
        return self.quick if self._off <= AGREES else torch.float32  # not if it is NaN

    def told(self) -> str:
        """How far latents in the type that was asked for are from float32's, if that was measured, and what follows."""
        if self._off is None:
            return ""
        kind = str(self.quick).removeprefix("torch.").replace("bfloat", "bf")
        if self.precision == self.quick:
            off = f"of a test picture {percent(self._off, 1)} off those in fp32"
            return f"the VAE makes latents in {kind}: {off} (limit {percent(AGREES, 1)})"
        off = "NaN" if math.isnan(self._off) else f"{percent(self._off, 1)} off"
        limit = f"limit {percent(AGREES, 1)}"
        return f"the VAE makes latents in fp32: in {kind} those of a test picture would be {off} ({limit})"

    def _posterior(self, pixels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float32, computed in a type."""
        quick = dtype != torch.float32
        # Channels innermost, as matrix units read them; float32 gains nothing.
        layout = torch.channels_last if quick else torch.contiguous_format
        with torch.autocast(self.device.type, dtype, enabled=quick):
            posterior = self.vae.encode(pixels.to(self.device, memory_format=layout)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Image.Image:
        """The picture of one [c, h, w]: at full size the VAE needs more memory than all else. UserError for NaN."""
        self._resting.wake(self.device)
        pixels = self.vae.decode(self.normal.back(latents[None].to(self.device)), return_dict=False)[0][0]
        if not torch.isfinite(pixels).all():
            raise UserError("the picture came out as NaN", hint="use precision fp32 or bf16, or a lower LoRA strength")
        array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(array)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[n, 3, h, w] in [-1, 1] -> the "mean" of `encode`, and the maps [n, c, h', w'] behind the encoder's levels,
        fine to coarse: both float32 on the CPU, of one pass, and of whole pictures where `encode` has them in tiles."""
        self._resting.wake(self.device)
        maps: list[Tensor] = []
        if self.tiling:
            self.vae.disable_tiling()
        hooks = [
            block.register_forward_hook(lambda _m, _i, out: maps.append(_picture(out).float().cpu()))
            for block in getattr(self.vae, "levels", None) or self.vae.encoder.down_blocks
        ]
        try:
            mean, std = self._posterior(pixels, torch.float32)
        finally:
            for hook in hooks:
                hook.remove()
            self._prepare(self.vae)
        return self.normal.into(mean, std)[0].cpu(), maps

    def fingerprint(self) -> str:
        """A digest of what turns pictures into latents, made once: nothing changes a VAE."""
        if not self._digest:
            tiles = f"tiles of {memory.TILE} px" if self.tiling else ""
            quick = "" if self.quick == torch.float32 else f"{self.quick} where it agrees"
            self._digest = self._remembered(f"vae {tiles} {quick}", lambda: digest_of(self.vae, tiles, quick))
        return self._digest

    def rest(self) -> None:
        """Nobody needs it for a while."""
        self._resting.rest()
