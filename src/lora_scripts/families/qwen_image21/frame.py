"""The VAE of Qwen-Image-2.1 as one of pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.families.flow.still import Still
from lora_scripts.families.qwen_image21.layout import PIXEL


class Frame(Still):
    """What `sd.latents.LatentCoder` asks of a VAE, of an AutoencoderKLQwenImage21. Pictures without transparency are
    opaque, as diffusers' pipeline makes them."""

    def encode(self, pixels: Tensor) -> Any:
        """[n, 3 or 4, h, w] -> an object with `latent_dist`, of latents [n, c, h / 16, w / 16]."""
        return super().encode(_opaque(pixels))

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """[n, c, h, w] -> ([n, 4, 16 h, 16 w],)."""
        frame, film = latents.unsqueeze(2), self.film
        if film.use_tiling:
            return (film.decode(frame, return_dict=False)[0].squeeze(2),)
        return (film.decoder(film.post_quant_conv(frame), first_chunk=True).squeeze(2),)

    @property
    def levels(self) -> list[nn.Module]:
        """As `Still.levels`."""
        return [*self.film.encoder.down_blocks]


def _opaque(pixels: Tensor) -> Tensor:
    """With a fourth channel, of ones, where there is none."""
    n, channels, height, width = pixels.shape
    if channels == PIXEL:
        return pixels
    return torch.cat([pixels, pixels.new_ones(n, PIXEL - channels, height, width)], 1)
