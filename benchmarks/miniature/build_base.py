"""Trains the miniature world's text encoder and UNet (SD 1.x topology, narrow), on drawn scenes, and packs the base.

python -m benchmarks.miniature.build_base WORK_FOLDER [--steps N]

Continues from WORK_FOLDER/unet.pt, which `unpack` may have made of a base; needs build_vae first.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.miniature import kept, masters
from benchmarks.miniature.quick_norm import quicken
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from lora_scripts.demo import world
from lora_scripts.families.clip.tokenizer import clip_tokenizer

TEXT_WIDTH = 32
UNET_WIDTHS = (96, 64, 64, 64)
"""The first: three channels a group in the last norm, as in build_vae."""
SLOTS = (list(world.OBJECTS), list(world.COLOURS), list(world.GROUNDS), list(world.SKIES))


def new_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
            projection_dim=TEXT_WIDTH,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Four levels, two residual blocks a level, 8 heads: SD 1.x, narrow."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=UNET_WIDTHS,
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )


def phrase(key: tuple[str, str, str, str], rng: random.Random) -> tuple[str, list[int]]:
    """A way to say a content, and what it says of each slot (-1: nothing). One in ten says nothing at all."""
    thing, colour, ground, sky = key
    said = [slot.index(word) for slot, word in zip(SLOTS, key, strict=True)]
    way = rng.random()
    if way < 0.70:
        return world.caption(world.Scene(*key)), said
    if way < 0.78:
        return f"{colour} {thing}, {ground}, {sky.removeprefix('a ')}", said
    if way < 0.84:
        return f"a {colour} {thing}", [*said[:2], -1, -1]
    if way < 0.90:
        return f"a {colour} {thing} on {ground}", [*said[:3], -1]
    return "", [-1] * 4


def tokens_of(texts: list[str]) -> torch.Tensor:
    """int64 [len(texts), 77]."""
    return clip_tokenizer()(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def train_text(work: Path, steps: int = 800, batch: int = 32) -> CLIPTextModel:
    """Teaches the text encoder the words: from the end of a sentence on, every state must tell the four slots."""
    folder = work / "text_encoder"
    if folder.exists():
        return CLIPTextModel.from_pretrained(folder)
    torch.manual_seed(1)
    encoder, heads = new_text_encoder(), torch.nn.ModuleList(torch.nn.Linear(TEXT_WIDTH, len(s) + 1) for s in SLOTS)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0, fused=True)
    keys = world.all_keys()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rng = random.Random(f"text/{step}")
        phrases = [phrase(rng.choice(keys), rng) for _ in range(batch)]
        tokens, said = tokens_of([text for text, _ in phrases]), torch.tensor([slots for _, slots in phrases])
        end = (tokens == 49407).int().argmax(1)
        states = encoder(tokens).last_hidden_state
        at = torch.stack([torch.stack([s[e], s[rng.randrange(int(e), 77)]]) for s, e in zip(states, end, strict=True)])
        targets = torch.where(said < 0, torch.tensor([len(s) for s in SLOTS]), said)
        losses = [F.cross_entropy(h(at).flatten(0, 1), targets[:, i].repeat_interleave(2)) for i, h in enumerate(heads)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"text step {step + 1}/{steps} loss {loss:.4f}", flush=True)
    encoder.save_pretrained(folder)
    return encoder


def drawn(work: Path, count: int) -> tuple[list[world.Scene], np.ndarray]:
    """Plain scenes and their pictures, uint8 [count, 128, 128, 3], drawn once and kept."""
    scenes = list(itertools.islice(world.scenes(11), count))
    path = work / "plain_pictures.npy"
    if not path.exists() or len(np.load(path, mmap_mode="r")) < count:
        np.save(path, np.stack([np.asarray(world.draw(s)) for s in scenes]))
    return scenes, np.load(path)[:count]


@torch.no_grad()
def latents_of(work: Path, count: int) -> tuple[list[world.Scene], torch.Tensor, torch.Tensor]:
    """Scenes, and mean and standard deviation of their latents, scaled by 0.18215; each [count, 4, 16, 16]."""
    scenes, pictures = drawn(work, count)
    path = work / "plain_latents.pt"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae").to(memory_format=torch.channels_last)
        means, stds = [], []
        for chunk in torch.from_numpy(pictures).split(16):
            x = (chunk.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(x).latent_dist
            means.append(posterior.mean.float())
            stds.append(posterior.std.float())
        kept.save((torch.cat(means) * 0.18215, torch.cat(stds) * 0.18215), path)
    mean, std = kept.load(path)
    return scenes, mean, std


def alphas_cumprod() -> torch.Tensor:
    """SD 1.x's scaled-linear schedule, float32 [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


class Trainer:
    """bf16 forward and backward on `net`, AdamW and an average on the float32 `master`."""

    def __init__(self, path: Path, weights: dict[str, torch.Tensor] | None = None, before: int = 0) -> None:
        """`weights`: of a UNet to begin with, trained for `before` steps, where `path` is not yet there."""
        torch.manual_seed(2)
        self.path, self.step, self.before = path, 0, before
        net = new_unet()
        net.up_blocks[3].resnets[2].conv2.bias.data[2::3] = 1.0
        if weights is not None:
            net.load_state_dict(weights)
        self.master = [p.detach().clone().requires_grad_() for p in net.parameters()]
        self.ema = [p.detach().clone() for p in self.master]
        self.optimizer = torch.optim.AdamW(self.master, lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        if path.exists():
            state = kept.load(path)
            self.step, self.before, self.ema = state["step"], state["before"], state["ema"]
            self.optimizer.load_state_dict(state["optimizer"])
            torch._foreach_copy_([p.data for p in self.master], state["master"])
        self.net = net.to(torch.bfloat16).to(memory_format=torch.channels_last)
        # Plain products beat the fused attention kernel by far at the narrow head widths of this model.
        self.net.set_attn_processor(AttnProcessor())
        quicken(self.net)
        torch._foreach_copy_([p.data for p in self.net.parameters()], [p.data for p in self.master])

    def update(self, loss: torch.Tensor, lr: float) -> None:
        loss.backward()
        self.step += 1
        masters.update(self.optimizer, self.master, list(self.net.parameters()), self.ema, lr, self.step)

    def save(self) -> None:
        state = {"step": self.step, "before": self.before, "ema": self.ema, "optimizer": self.optimizer.state_dict()}
        temporary = self.path.with_suffix(".tmp")
        kept.save({**state, "master": [p.data for p in self.master]}, temporary)
        temporary.replace(self.path)

    def averaged(self) -> dict[str, Any]:
        """The averaged weights under their names."""
        return dict(zip((n for n, _ in self.net.named_parameters()), self.ema, strict=True))


def train_unet(work: Path, steps: int, pictures: int, batch: int = 16, peak: float = 1e-3) -> Trainer:
    """Epsilon prediction, Min-SNR-5 weights (Hang et al. 2023); constant rate, then linear to 0 over the last fifth."""
    encoder = train_text(work).eval()
    scenes, mean, std = latents_of(work, pictures)
    trainer, bars, start = Trainer(work / "unet.pt"), alphas_cumprod(), time.time()
    known: dict[str, torch.Tensor] = {}
    total = 0.0
    while trainer.step < steps:
        step = trainer.step
        rng, noise_rng = random.Random(f"unet/{step}"), torch.Generator().manual_seed(step)
        picked = rng.sample(range(len(scenes)), batch)
        texts = [phrase(scenes[i].key, rng)[0] for i in picked]
        new = [t for t in dict.fromkeys(texts) if t not in known]
        if new:
            with torch.no_grad():
                known.update(zip(new, encoder(tokens_of(new)).last_hidden_state.bfloat16(), strict=True))
        x = mean[picked] + std[picked] * torch.randn(mean[picked].shape, generator=noise_rng)
        noise = torch.randn(x.shape, generator=noise_rng)
        # Stratified: the batch covers all noise levels every step.
        t = ((torch.arange(batch) + torch.rand(batch, generator=noise_rng)) / batch * 1000).long()
        a = bars[t][:, None, None, None]
        x_t = a.sqrt() * x + (1 - a).sqrt() * noise
        snr = (a / (1 - a)).flatten()
        out = trainer.net(x_t.bfloat16(), t, torch.stack([known[s] for s in texts])).sample.float()
        loss = ((out - noise).square().mean((1, 2, 3)) * snr.clamp(max=5) / snr).mean()
        lr = peak * min(1.0, (step + 1) / 200, (steps - step) / (0.2 * steps))
        trainer.update(loss, lr)
        total += loss.item()
        if trainer.step % 50 == 0:
            seconds = time.time() - start
            print(f"unet step {trainer.step}/{steps} loss {total / 50:.4f} lr {lr:.1e} {seconds:.0f} s", flush=True)
            total = 0.0
        if trainer.step % 250 == 0 or trainer.step == steps:
            trainer.save()
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--peak", type=float, default=1e-3, help="the highest learning rate (default 1e-3)")
    args = parser.parse_args()
    train_unet(args.work, args.steps, args.pictures, peak=args.peak)
