"""Trains a narrow Z-Image or FLUX.2 klein on the miniature world: a Qwen3 as text encoder, the bundled VAE's weights.

    python -m benchmarks.miniature.build_flow WORK_FOLDER --family zimage|flux2 [--steps N]

Writes WORK_FOLDER/FAMILY as a diffusers folder, and continues from WORK_FOLDER/FAMILY.pt. It is not bundled: it shows,
by `benchmarks/flow_learns.py`, that a LoRA on this kind of base learns. The loss, the texts and the pictures are the
family's own, so a wrong sign, level or template there would show here.

1. VAE: the bundled one. Its four channels are repeated, 4 times for Z-Image's 16 and 8 times for FLUX.2's 32, each with
   noise of its own, so pictures are as readable in noise as those of a VAE with so many channels. No weight is trained;
   what it decodes is the same (`widened` says how).
2. Text encoder: the words of the grammar. Every state that is read, behind the sentence, must tell the four slots.
3. Transformer: on plain scenes, by the family's loss at the noise levels of its sampler.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from benchmarks.miniature import kept
from benchmarks.miniature.build_base import phrase
from benchmarks.miniature.build_sdxl import latents_of as sdxl_latents
from benchmarks.miniature.flow_parts import TEXT_WIDTH, new_tokenizer, old_vae, raw_latents, train_text, widened
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_scripts.demo import world
from lora_scripts.demo.evaluate import draw, prompts
from lora_scripts.demo.judge import Judge
from lora_scripts.families.base import Batch, LoadOptions, Sampling
from lora_scripts.families.black_forest.flux2_layout import Flux2Layout
from lora_scripts.families.flow.model import FlowFamily
from lora_scripts.families.sd.latents import pack
from lora_scripts.families.sdxl.layout import SCALING
from lora_scripts.families.table import by_name, load_family
from lora_scripts.families.zimage.layout import ZImageLayout
from lora_scripts.losses.noise import Draws

LAYOUTS: dict[str, Any] = {
    "zimage": ZImageLayout(width=160, layers=5, refiners=1, head=32, text_width=TEXT_WIDTH),
    "flux2": Flux2Layout(width=160, double=2, single=8, head=32, text_width=3 * TEXT_WIDTH, inner=480),
}
TEXT_LAYERS = {"zimage": 4, "flux2": 28}
"""FLUX.2 reads behind layer 27."""
PIPELINES = {"zimage": "ZImagePipeline", "flux2": "Flux2KleinPipeline"}
SHORT = 40
"""Tokens that FLUX.2's captions are filled up to in the first steps: 512 make a step ten times as long."""
LENGTHS = {SHORT: 1, 128: 2, 512: 4}
"""And in those that follow, by chance: tokens -> by what a batch is smaller. A base that saw 512 in its last steps
alone finds the words among so many fillings, but loses them under a LoRA."""
MATRICES = (".attn", ".attention", ".ff", ".feed_forward")
"""Of the blocks' parameters."""
SAMPLING = Sampling(steps=20, cfg=4.0, size=(128, 128))


# --- the folder -------------------------------------------------------------------------------------------------------


def start(work: Path, name: str, text_steps: int) -> Path:
    """The folder with a trained text encoder, a widened VAE and a transformer that has learned nothing."""
    out = work / name
    if (out / "model_index.json").exists():
        return out
    files, reading = check_of(name).FILES, model_of(name).READING
    tokens = new_tokenizer(reading)
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokens.save(str(out / "tokenizer" / "tokenizer.json"))
    train_text(reading, TEXT_LAYERS[name], tokens, text_steps).save_pretrained(out / "text_encoder")
    old = old_vae()
    vae = widened(old, files.vae)
    if files.vae.normed:
        mean, std = raw_latents(*bundled_latents(work), old, files.vae)
        packed = pack(mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3)))
        vae.bn.running_mean.copy_(packed.mean((0, 2, 3)))
        vae.bn.running_var.copy_(packed.var((0, 2, 3)))
    vae.register_to_config(sample_size=SAMPLING.size[0])
    vae.save_pretrained(out / "vae")
    torch.manual_seed(2)
    import diffusers

    transformer = getattr(diffusers, files.model)(**files.config_of(LAYOUTS[name]))
    for parameter in transformer.parameters():  # the tokens that fill up are zeros as built
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    transformer.save_pretrained(out / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=name == "flux2").save_pretrained(out / "scheduler")
    index = {"_class_name": PIPELINES[name], "transformer": ["diffusers", files.model]}
    (out / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return out


def bundled_latents(work: Path, count: int = 2000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [count, 4, 16, 16] of the scenes that `build_sdxl` trains on."""
    _, mean, std, _ = sdxl_latents(work, count)
    return mean / SCALING, std / SCALING


def model_of(name: str) -> Any:
    return import_module(by_name(name).model)


def check_of(name: str) -> Any:
    return import_module(f"lora_scripts.families.{name}.check")


# --- the transformer --------------------------------------------------------------------------------------------------


class Trainer:
    """Muon for the matrices of the blocks (Jordan 2024, at AdamW's scale), AdamW for the rest, an average of all."""

    def __init__(self, net: nn.Module, path: Path, peak: float) -> None:
        self.net, self.path, self.peak, self.step = net, path, peak, 0
        for parameter in net.parameters():
            parameter.data = parameter.data.clone()  # no longer the file's own memory
        net.requires_grad_(True)
        inside = {
            name: p for name, p in net.named_parameters() if p.ndim == 2 and any(mark in name for mark in MATRICES)
        }
        others = [p for name, p in net.named_parameters() if name not in inside]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inside.values(), lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        ]
        self.average = {name: p.detach().clone() for name, p in net.named_parameters()}
        if path.exists():
            state = kept.load(path)
            self.step, self.average = state["step"], state["average"]
            net.load_state_dict(state["net"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def update(self, loss: Tensor, share: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.peak * share
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        decay = min(0.995, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.net.parameters()), 1 - decay)

    def save(self) -> None:
        state = {"step": self.step, "average": self.average, "net": self.net.state_dict()}
        temporary = self.path.with_suffix(".tmp")
        kept.save({**state, "optimizers": [one.state_dict() for one in self.optimizers]}, temporary)
        temporary.replace(self.path)


def drawn_batch(family: FlowFamily, scenes: list[world.Scene], mean: Tensor, std: Tensor, step: int, n: int) -> Tensor:
    """The family's loss of n scenes; the noise levels cover their whole range in every step."""
    rng, noise = random.Random(f"flow/{step}"), torch.Generator().manual_seed(step)
    picked = rng.sample(range(len(scenes)), n)
    texts = [phrase(scenes[i].key, rng)[0] for i in picked]
    family.encoder.remember(texts)
    shape = (n, *mean.shape[1:])
    u = (torch.arange(n) + torch.rand(n, generator=noise, dtype=torch.float64)) / n
    draws = Draws(u, torch.randn(shape, generator=noise), torch.randn(shape, generator=noise))
    latents = {"mean": mean[picked].float(), "std": std[picked].float()}
    batch = Batch(latents, texts, family.encoder.encode(texts), [""] * n, [])
    # Plain products are faster than the fused attention kernel at such narrow heads.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        return family.losses(batch, family.objective, draws).mean()


def judged(family: FlowFamily, average: dict[str, Tensor], count: int) -> str:
    """How many pictures of the averaged weights the judge finds as asked."""
    own = {name: p.detach().clone() for name, p in family.transformer.named_parameters()}
    family.transformer.load_state_dict(average)
    found = list(draw(family, Judge.load(), prompts(77, count), 77, SAMPLING))
    family.transformer.load_state_dict(own)
    right = {slot: sum(slot not in one.wrong() for one in found) for slot in ("object", "colour", "ground", "sky")}
    return f"of {count}: {right}"


def train(args: argparse.Namespace) -> None:
    folder = start(args.work, args.family, args.text_steps)
    family: Any = load_family(by_name(args.family), folder, LoadOptions(torch.device("cpu"), torch.float32))
    files, reading = check_of(args.family).FILES, family.encoder.reading
    scenes, *_ = sdxl_latents(args.work, 2000)
    mean, std = family.coder.normal.into(*raw_latents(*bundled_latents(args.work), old_vae(), files.vae))
    mean, std = mean.bfloat16(), std.bfloat16()
    trainer = Trainer(family.transformer, args.work / f"{args.family}.pt", args.peak)
    begun, total = time.time(), 0.0
    while trainer.step < args.steps:
        share = min(1.0, (trainer.step + 1) / 100, (args.steps - trainer.step) / (args.steps * 0.35))
        length = SHORT if trainer.step < args.short_steps else random.Random(trainer.step).choice(list(LENGTHS))
        if reading.filled and family.encoder.reading.most != length:
            family.encoder.reading, family.encoder._kept = replace(reading, most=length), {}
        n = args.batch // (LENGTHS[length] if reading.filled else 1)
        loss = drawn_batch(family, scenes, mean, std, trainer.step, n)
        trainer.update(loss, share)
        total += loss.item()
        if trainer.step % 25 == 0:
            seconds = f"{time.time() - begun:.0f} s, {time.process_time():.0f} s of CPU"
            print(f"step {trainer.step}/{args.steps} loss {total / 25:.4f} {seconds}", flush=True)
            total = 0.0
        if trainer.step % 50 == 0 or trainer.step == args.steps:
            trainer.save()
        if trainer.step % args.judge_every == 0:
            print(judged(family, trainer.average, 24), flush=True)
    family.transformer.load_state_dict(trainer.average)
    family.transformer.save_pretrained(folder / "transformer")
    print(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--family", choices=tuple(LAYOUTS), required=True)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--short-steps", type=int, default=1500, help="of FLUX.2: the first, with short captions alone")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--text-steps", type=int, default=600)
    parser.add_argument("--judge-every", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    train(args)
