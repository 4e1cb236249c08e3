"""A VAE of films as one of pictures: in place of a film it is given one frame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from lora_scripts.compute import memory
from lora_scripts.families.sd.vae import LEVELS, RESNETS


class Still(nn.Module):
    """What `sd.latents.LatentCoder` asks of a VAE, of an AutoencoderKLQwenImage."""

    def __init__(self, film: Any) -> None:
        super().__init__()
        self.film, self.config = film, film.config
        for layer in film.modules():
            if isinstance(layer, QwenImageCausalConv3d):
                _last_slice(layer)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.film.dtype
        return dtype

    def encode(self, pixels: Tensor) -> Any:
        """[n, 3, h, w] -> an object with `latent_dist`, of latents [n, c, h / 8, w / 8]."""
        frame, film = pixels.unsqueeze(2), self.film
        # Not by `film.encode`, but in tiles: that keeps what each layer reads, for the frame behind.
        numbers = film.encode(frame).latent_dist.parameters if film.use_tiling else film.quant_conv(film.encoder(frame))
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(numbers.squeeze(2)))

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """[n, c, h, w] -> ([n, 3, 8 h, 8 w],)."""
        frame, film = latents.unsqueeze(2), self.film
        tiles = film.use_tiling
        pixels = film.decode(frame, return_dict=False)[0] if tiles else film.decoder(film.post_quant_conv(frame))
        return (pixels.squeeze(2),)

    @property
    def levels(self) -> list[nn.Module]:
        """Behind which the maps [n, c, 1, h', w'] of each of the encoder's levels come out."""
        blocks = self.film.encoder.down_blocks
        found = [*[*blocks][RESNETS :: RESNETS + 1], blocks[-1]]
        assert len(found) == LEVELS
        return found

    def enable_tiling(self) -> None:
        """In tiles that overlap by a quarter."""
        stride = memory.TILE * 3 // 4
        self.film.enable_tiling(memory.TILE, memory.TILE, stride, stride)

    def disable_tiling(self) -> None:
        self.film.disable_tiling()


def _last_slice(layer: QwenImageCausalConv3d) -> None:
    """Leaves out of a kernel what would see the frames before."""
    if layer.kernel_size[0] > 1:
        layer.weight = nn.Parameter(layer.weight[:, :, -1:].contiguous(), requires_grad=False)
        layer.kernel_size = (1, *layer.kernel_size[1:])
        layer._padding = (*layer._padding[:4], 0, 0)
