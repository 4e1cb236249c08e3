"""The narrow models of flow for benchmarks/flow_learns.py: their VAE decodes what the bundled one does."""

from __future__ import annotations

import pytest
import torch
from benchmarks.miniature import flow_parts
from diffusers import AutoencoderKL

from lora_scripts.families.flow.autoencoder import VAE16, VAE32, Autoencoder


@pytest.mark.parametrize("kind", [VAE16, VAE32], ids=["16 channels", "32 channels"])
@torch.no_grad()
def test_a_widened_vae_reads_and_decodes_as_the_one_of_four_channels(kind: Autoencoder) -> None:
    torch.manual_seed(4)
    levels = (("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4)
    old = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), layers_per_block=2, down_block_types=levels[0], up_block_types=levels[1]
    ).eval()
    new = flow_parts.widened(old, kind)
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    seen, wide = old.encode(pixels).latent_dist, new.encode(pixels).latent_dist
    mean, std = flow_parts.raw_latents(seen.mean, seen.std, old, kind)
    assert wide.mean.shape[1] == kind.channels
    assert torch.allclose(wide.mean, mean, atol=1e-5)
    assert torch.allclose(wide.std, std, atol=1e-5)
    assert torch.allclose(new.decode(mean).sample, old.decode(seen.mean).sample, atol=1e-5)
