"""Trains the miniature world's VAE (SD 1.x topology, widths 96, 64, 64, 96) on 32 and 64 px crops of drawn scenes.

python -m benchmarks.miniature.build_vae WORK_FOLDER [--steps N]     continues from WORK_FOLDER/vae.pt
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.miniature import kept
from diffusers import AutoencoderKL
from torch.nn import functional as F

from lora_scripts.demo import world

WIDTHS = (96, 64, 64, 96)
"""The last norms of encoder and decoder have 32 groups: with fewer than 3 channels a group they erase mean colours."""


def new_vae() -> AutoencoderKL:
    """The SD 1.x autoencoder (f8, 4 latent channels, two residual blocks a level), narrow."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=128,
    )


@torch.no_grad()
def start_as_thumbnail(vae: AutoencoderKL) -> None:
    """Weights to start from: the code is the mean colour of 8 x 8 pixels, and decodes to those blocks.

    Every trunk layer passes its channels on, every residual branch adds nothing, and training adds the details. From
    random weights a VAE this narrow spends its first hundreds of steps in grey. Around the last norms, a colour s rides
    in a group of three channels (s, -s, 6): the constant makes the norm nearly linear in s, and
    silu(4 + 2s) - silu(4 - 2s) is 4.2 s.
    """
    constant, spread = 6.0, math.sqrt(2 * 6.0**2 / 9 + 0.2)

    def pass_on(conv: Any, taps: list[tuple[int, int]]) -> None:
        conv.weight.zero_()
        conv.bias.zero_()
        for i in range(min(conv.in_channels, conv.out_channels)):
            for y, x in taps:
                conv.weight[i, i, y, x] = 1 / len(taps)

    def colours_in(conv: Any) -> None:
        for c in range(3):
            conv.weight[3 * c : 3 * c + 3] = 0
            conv.weight[3 * c, c, 1, 1], conv.weight[3 * c + 1, c, 1, 1] = 1, -1
            conv.bias[3 * c : 3 * c + 3] = torch.tensor([0.0, 0.0, constant])

    def colours_out(norm: Any, conv: Any) -> None:
        conv.weight[3:] *= 0.3
        conv.weight[:3] = 0
        conv.bias.zero_()
        for c in range(3):
            norm.weight[3 * c : 3 * c + 2], norm.bias[3 * c : 3 * c + 2] = 2 * spread, 8.0
            conv.weight[c, 3 * c, 1, 1], conv.weight[c, 3 * c + 1, 1, 1] = 1 / 4.2, -1 / 4.2

    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name.endswith("conv_shortcut"):
            pass_on(module, [(0, 0)])
        elif isinstance(module, torch.nn.Conv2d) and "downsamplers" in name:
            pass_on(module, [(0, 0), (0, 1), (1, 0), (1, 1)])
        elif isinstance(module, torch.nn.Conv2d) and "upsamplers" in name:
            pass_on(module, [(1, 1)])
        elif name.endswith(("conv2", "to_out.0")):
            module.weight.zero_()
            module.bias.zero_()
    for half in (vae.encoder, vae.decoder):
        colours_in(half.conv_in)
        colours_out(half.conv_norm_out, half.conv_out)
    vae.encoder.conv_out.weight[4:] = 0
    pass_on(vae.quant_conv, [(0, 0)])
    pass_on(vae.post_quant_conv, [(0, 0)])
    vae.quant_conv.bias[4:] = -6.0  # a standard deviation of 0.05: noise of 1 would drown the code


def pictures(work: Path, count: int = 2400) -> torch.Tensor:
    """uint8 [count, 3, 128, 128]: half plain, a third neon, a sixth sketch, drawn once."""
    path = work / "vae_pictures.npy"
    if not path.exists():
        streams = {s: world.scenes(7, s) for s in world.STYLES}
        cycle = itertools.cycle(("plain", "neon", "plain", "neon", "plain", "sketch"))
        drawn = [np.asarray(world.draw(next(streams[s]))) for s, _ in zip(cycle, range(count), strict=False)]
        np.save(path, np.stack(drawn))
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)


def crops(pool: torch.Tensor, rng: random.Random, count: int, size: int) -> torch.Tensor:
    """Random crops in [-1, 1]; one in seven with permuted or inverted colours, so that the code stays general."""
    out = torch.empty(count, 3, size, size)
    for i in range(count):
        y, x = rng.randrange(0, 129 - size), rng.randrange(0, 129 - size)
        crop = pool[rng.randrange(len(pool)), :, y : y + size, x : x + size].float() / 127.5 - 1
        if rng.random() < 0.5:
            crop = crop.flip(-1)
        if rng.random() < 0.15:
            crop = crop[rng.sample(range(3), 3)] * rng.choice((1, -1))
        out[i] = crop
    return out


def loss_of(vae: AutoencoderKL, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 + L1 of the differences (edges) + L1 of 8 x 8 means (colours) + a little KL; and the plain L1."""
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.mean + posterior.std * noise).sample
    d = y.float() - x
    l1 = d.abs().mean()
    edges = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    colours = F.avg_pool2d(d, 8).abs().mean()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return l1 + 0.5 * edges + colours + 1e-5 * kl, l1


@torch.no_grad()
def set_latent_scale(vae: AutoencoderKL, pool: torch.Tensor) -> None:
    """Rescales the code so that 0.18215 x latents has unit variance, as SD 1.x assumes; pictures stay the same."""
    x = pool[:: len(pool) // 64].float() / 127.5 - 1
    moments = torch.cat([vae.encode(b).latent_dist.mean for b in x.split(8)])
    factor = 1 / (vae.config.scaling_factor * moments.std())
    half = vae.config.latent_channels
    vae.quant_conv.weight[:half] *= factor
    vae.quant_conv.bias[:half] *= factor
    vae.quant_conv.bias[half:] += 2 * factor.log()
    vae.post_quant_conv.weight /= factor


def train(work: Path, steps: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vae = new_vae().to(memory_format=torch.channels_last)
    start_as_thumbnail(vae)
    ema = {k: v.clone() for k, v in vae.state_dict().items()}
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    state_path, step = work / "vae.pt", 0
    if state_path.exists():
        state = kept.load(state_path)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    pool, start = pictures(work), time.time()
    while step < steps:
        lr = 2e-4 * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = lr
        size, batch = (32, 8) if step < 0.7 * steps else (64, 4)
        x = crops(pool, random.Random(f"vae/{step}"), batch, size).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(batch, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            loss, l1 = loss_of(vae, x, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.99, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.values()), list(vae.state_dict().values()), 1 - decay)
        if step % 50 == 0 or step == steps:
            print(
                f"vae step {step}/{steps} loss {loss:.4f} l1 {l1:.4f} lr {lr:.1e} {time.time() - start:.0f} s",
                flush=True,
            )
        if step % 100 == 0 or step == steps:
            kept.save(
                {"vae": vae.state_dict(), "ema": ema, "optimizer": optimizer.state_dict(), "step": step}, state_path
            )
    vae.load_state_dict(ema)
    set_latent_scale(vae, pool)
    vae.save_pretrained(work / "vae")


def refine_decoder(work: Path, steps: int) -> None:
    """Trains the decoder alone, from WORK/vae to WORK/vae: the code stays, and so a UNet trained on it stays valid.

    The latents get a little extra noise, as those that a UNet has drawn are not quite the encoder's.
    """
    torch.manual_seed(3)
    vae = AutoencoderKL.from_pretrained(work / "vae").to(memory_format=torch.channels_last)
    trained = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    ema = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    pool, start, state_path, step = pictures(work), time.time(), work / "decoder.pt", 0
    if state_path.exists():
        state = kept.load(state_path)
        torch._foreach_copy_([p.data for p in trained], state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    while step < steps:
        lr = 4e-4 * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = lr
        x = crops(pool, random.Random(f"decoder/{step}"), 4, 64).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                posterior = vae.encode(x).latent_dist
            z = posterior.mean + (posterior.std + 0.05 / vae.config.scaling_factor) * noise
            d = vae.decode(z).sample.float() - x
        l1 = d.abs().mean()
        edges = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
        loss = l1 + 0.5 * edges + F.avg_pool2d(d, 8).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        torch._foreach_lerp_(ema, [p.data for p in trained], 1 - min(0.99, (1 + step) / (10 + step)))
        if step % 50 == 0 or step == steps:
            print(f"decoder step {step}/{steps} loss {loss:.4f} l1 {l1:.4f} {time.time() - start:.0f} s", flush=True)
        if step % 100 == 0 or step == steps:
            weights = [p.data for p in trained]
            kept.save({"weights": weights, "ema": ema, "optimizer": optimizer.state_dict(), "step": step}, state_path)
    torch._foreach_copy_([p.data for p in trained], ema)
    vae.save_pretrained(work / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--decoder-steps", type=int, default=0, help="then train the decoder alone")
    args = parser.parse_args()
    if not (args.work / "vae").exists():
        train(args.work, args.steps)
    if args.decoder_steps:
        refine_decoder(args.work, args.decoder_steps)
