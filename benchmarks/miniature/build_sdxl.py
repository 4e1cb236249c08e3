"""Trains a narrow SDXL on the miniature world: two text encoders, sizes as conditions, the bundled VAE.

    python -m benchmarks.miniature.build_sdxl WORK_FOLDER [--steps N]

Writes WORK_FOLDER/sdxl.safetensors in the published layout, and continues from WORK_FOLDER/sdxl_unet.pt. It is not
bundled: it shows, by `benchmarks/sdxl_learns.py`, that a LoRA on this kind of base learns.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from benchmarks.miniature import kept
from benchmarks.miniature.build_base import SLOTS, alphas_cumprod, phrase
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_scripts.demo import world
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.sd.text import TextLayout, text_config
from lora_scripts.families.sd.unet import UnetLayout
from lora_scripts.families.sdxl import singlefile
from lora_scripts.families.sdxl.layout import SCALING, SdxlLayout, unet_config
from lora_scripts.families.table import by_name, load_family
from lora_scripts.formats import io

LAYOUT = SdxlLayout(
    unet=UnetLayout(
        widths=(128, 64, 128),
        depths=(0, 1, 2),
        heads=(2, 1, 2),
        context_width=128,
        linear=True,
        pooled_width=64,
        size_width=32,
    ),
    text=TextLayout(64, 3, 256, 49408, 77),
    text_2=TextLayout(64, 3, 256, 49408, 77, projection=64, activation="gelu"),
)
SIZES = (128.0, 128.0, 0.0, 0.0, 128.0, 128.0)
"""What the UNet is told of every picture: its size, the corner of its crop, the crop's size."""
END, SECOND_PAD = 49407, 0


def tokens_of(texts: list[str], pad: int) -> Tensor:
    """int64 [len(texts), 77]; the second tokenizer pads with "!", which is 0."""
    ids = clip_tokenizer()(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    behind = (ids == END).cumsum(1) > 1
    return torch.where(behind, torch.tensor(pad), ids)


def new_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    torch.manual_seed(1)
    first = CLIPTextModel(CLIPTextConfig(**text_config(LAYOUT.text)))
    second = CLIPTextModelWithProjection(CLIPTextConfig(**text_config(LAYOUT.text_2)))
    return first, second


def encoded(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, texts: list[str]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(states [n, 77, 128] of the last layers but one, pooled [n, 64], the token numbers of each)."""
    ids = tokens_of(texts, END), tokens_of(texts, SECOND_PAD)
    one = first(ids[0], output_hidden_states=True).hidden_states[-2]
    answer = second(ids[1], output_hidden_states=True)
    return torch.cat([one, answer.hidden_states[-2]], -1), answer.text_embeds, ids


def train_text(work: Path, steps: int, batch: int = 32) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Teaches both the words: from the end of a sentence on every state of each, and the pooled one, tells all."""
    path = work / "sdxl_text.pt"
    first, second = new_encoders()
    if path.exists():
        states = kept.load(path)
        first.load_state_dict(states["first"])
        second.load_state_dict(states["second"])
        return first, second
    makers = [nn.ModuleList(nn.Linear(64, len(slot) + 1) for slot in SLOTS) for _ in range(3)]
    parameters = [*first.parameters(), *second.parameters(), *(p for heads in makers for p in heads.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0, fused=True)
    keys = world.all_keys()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        rng = random.Random(f"sdxl text/{step}")
        phrases = [phrase(rng.choice(keys), rng) for _ in range(batch)]
        states, pooled, ids = encoded(first, second, [text for text, _ in phrases])
        said = torch.tensor([slots for _, slots in phrases])
        targets = torch.where(said < 0, torch.tensor([len(s) for s in SLOTS]), said)
        end = (ids[0] == END).int().argmax(1)
        rows = torch.arange(batch)
        at = torch.stack([states[rows, end], states[rows, [rng.randrange(int(e), 77) for e in end]]], 1)
        losses = []
        for heads, seen in zip(makers, (at[..., :64], at[..., 64:], pooled[:, None]), strict=True):
            for i, head in enumerate(heads):
                wanted = targets[:, i].repeat_interleave(seen.shape[1])
                losses.append(F.cross_entropy(head(seen).flatten(0, 1), wanted))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"text step {step + 1}/{steps} loss {loss:.4f}", flush=True)
    kept.save({"first": first.state_dict(), "second": second.state_dict()}, path)
    return first, second


@torch.no_grad()
def latents_of(work: Path, count: int) -> tuple[list[world.Scene], Tensor, Tensor, dict[str, Tensor]]:
    """Scenes, mean and standard deviation of their latents times 0.13025, and the bundled VAE's own weights."""
    scenes = list(itertools.islice(world.scenes(11), count))
    base = Path(str(resources.files("lora_scripts.demo").joinpath("assets/base.safetensors")))
    family = load_family(by_name("sd1"), base, LoadOptions(torch.device("cpu"), torch.float32))
    vae = family.vae  # type: ignore[attr-defined]
    path = work / "sdxl_latents.pt"
    if not path.exists():
        means, stds = [], []
        for start in range(0, count, 16):
            pictures = np.stack([np.asarray(world.draw(s)) for s in scenes[start : start + 16]])
            x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
            posterior = vae.encode(x).latent_dist
            means.append(posterior.mean)
            stds.append(posterior.std)
        kept.save((torch.cat(means) * SCALING, torch.cat(stds) * SCALING), path)
    mean, std = kept.load(path)
    return scenes, mean, std, vae.state_dict()


def train_unet(work: Path, steps: int, pictures: int, text_steps: int, batch: int = 16, peak: float = 1e-3) -> None:
    """Epsilon prediction, Min-SNR-5 weights; constant rate, then linear to 0 over the last fifth; then packs."""
    first, second = (encoder.eval() for encoder in train_text(work, text_steps))
    scenes, mean, std, vae = latents_of(work, pictures)
    torch.manual_seed(2)
    net = UNet2DConditionModel(**unet_config(LAYOUT)).to(memory_format=torch.channels_last)
    net.up_blocks[-1].resnets[-1].conv2.bias.data[3::4] = 1.0  # the last norm would erase the picture's mean colours
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    saved, begun, start, total, bars = work / "sdxl_unet.pt", 0, time.time(), 0.0, alphas_cumprod()
    if saved.exists():
        state = kept.load(saved)
        begun, average = state["step"], state["average"]
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    known: dict[str, tuple[Tensor, Tensor]] = {}
    for step in range(begun, steps):
        rng, noise_rng = random.Random(f"sdxl/{step}"), torch.Generator().manual_seed(step)
        picked = rng.sample(range(len(scenes)), batch)
        texts = [phrase(scenes[i].key, rng)[0] for i in picked]
        new = [t for t in dict.fromkeys(texts) if t not in known]
        if new:
            with torch.no_grad():
                states, pooled, _ = encoded(first, second, new)
            known.update(zip(new, zip(states, pooled, strict=True), strict=True))
        x = mean[picked] + std[picked] * torch.randn(mean[picked].shape, generator=noise_rng)
        noise = torch.randn(x.shape, generator=noise_rng)
        t = ((torch.arange(batch) + torch.rand(batch, generator=noise_rng)) / batch * 1000).long()
        a = bars[t][:, None, None, None]
        snr = (a / (1 - a)).flatten()
        added = {
            "text_embeds": torch.stack([known[s][1] for s in texts]),
            "time_ids": torch.tensor(SIZES).repeat(batch, 1),
        }
        with torch.autocast("cpu", torch.bfloat16):
            x_t = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
            context = torch.stack([known[s][0] for s in texts])
            out = net(x_t, t, context, added_cond_kwargs=added).sample.float()
        loss = ((out - noise).square().mean((1, 2, 3)) * snr.clamp(max=5) / snr).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 200, (steps - step) / (0.2 * steps))
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in net.named_parameters():
                average[name].lerp_(p, 1 - decay)
        total += loss.item()
        if step % 50 == 49:
            print(f"unet step {step + 1}/{steps} loss {total / 50:.4f} {time.time() - start:.0f} s", flush=True)
            total = 0.0
        if step % 250 == 249 or step + 1 == steps:
            state = {"step": step + 1, "average": average, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
            kept.save(state, saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").replace(saved)
    net.load_state_dict(average)
    parts = (net.state_dict(), vae, first.state_dict(), second.state_dict())
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in singlefile.to_ldm(*parts).items()}
    io.save_safetensors(work / "sdxl.safetensors", tensors, {"modelspec.resolution": "128x128"})
    print(work / "sdxl.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--text-steps", type=int, default=800)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train_unet(args.work, args.steps, args.pictures, args.text_steps)
