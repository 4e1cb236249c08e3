"""Pictures to latents and back: a frozen VAE, in float32."""

from __future__ import annotations

import hashlib

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from lora_scripts.compute import memory
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.compute.parked import park
from lora_scripts.errors import UserError
from lora_scripts.families.sd.vae import FACTOR


def digest_of(model: nn.Module, *settings: str) -> str:
    """A digest of a model's numbers, and of settings that change what it gives; empty ones count as none."""
    digest = hashlib.sha256()
    for words in settings:
        digest.update(words.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class LatentCoder:
    """The VAE of a family. It goes to the device when it is needed, and stays there until it may `rest`."""

    def __init__(self, vae: AutoencoderKL, scaling: float, device: torch.device, options: MemoryOptions) -> None:
        """`scaling`: what latents are multiplied with, so that they have unit variance."""
        self._parking = options.parking if vae.dtype != torch.float32 and device.type == "cpu" else None
        tiling = options.vae_tiling
        # float32: in half precision the VAE of some checkpoints gives NaN, seen as black pictures.
        self.vae = vae.float().requires_grad_(False).eval()
        self.scaling, self.device, self.tiling, self._digest = scaling, device, tiling, ""
        if tiling:
            self.vae.enable_tiling()
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = memory.TILE, memory.TILE // FACTOR

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, h, w] in [-1, 1] -> {"mean", "std"} of the posterior, each [n, c, h / 8, w / 8] float32 on the CPU."""
        self.vae.to(self.device)
        posterior = self.vae.encode(pixels.to(self.device)).latent_dist
        return {"mean": (posterior.mean * self.scaling).cpu(), "std": (posterior.std * self.scaling).cpu()}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Image.Image:
        """The picture of one [c, h, w]: at full size the VAE needs more memory than all else. UserError for NaN."""
        self.vae.to(self.device)
        pixels = self.vae.decode(latents[None] / self.scaling, return_dict=False)[0][0]
        if not torch.isfinite(pixels).all():
            raise UserError("the picture came out as NaN", hint="use precision fp32 or bf16, or a lower LoRA strength")
        array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(array)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> list[Tensor]:
        """[n, 3, h, w] in [-1, 1] -> the maps [n, c, h', w'] of the encoder's levels, fine to coarse, float32."""
        self.vae.to(self.device)
        maps: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _m, _i, out: maps.append(out.float().cpu()))
            for block in self.vae.encoder.down_blocks
        ]
        try:
            self.vae.encoder(pixels.to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        return maps

    def fingerprint(self) -> str:
        """A digest of what turns pictures into latents, made once: nothing changes a VAE."""
        if not self._digest:
            self._digest = digest_of(self.vae, f"tiles of {memory.TILE} px" if self.tiling else "")
        return self._digest

    def rest(self) -> None:
        self.vae.to("cpu")
        if self._parking is not None:  # what was read as float32 is mapped already
            park(self.vae, self._parking)
            self._parking = None
