"""Trains the miniature world's VAE on, encoder and decoder or the decoder alone, on pictures of many kinds.

python -m benchmarks.miniature.refine_vae WORK_FOLDER --steps N [--decoder-only]    WORK_FOLDER/vae, from and to

Continues from WORK_FOLDER/refined.pt (or refined_decoder.pt). With the encoder a UNet trained on the code before has to
be trained on, too.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from benchmarks import styles
from benchmarks.miniature import elsewhere, kept, masters
from benchmarks.miniature.build_vae import set_latent_scale
from benchmarks.miniature.measure_vae import TRAINED, measured, through_folder
from benchmarks.miniature.quick_norm import quicken
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Tensor

from lora_scripts.demo import world

SEED = 61
"""Of the pictures."""
OTHERS = tuple(style for style in TRAINED if style not in world.STYLES)
SIDE, BATCH, CROP = 128, 4, 64


def fine(rng: random.Random) -> Image.Image:
    """Lines of one pixel or less, dots and letters, on one colour or a gradient."""
    image = elsewhere.gradient(rng).resize((4 * SIDE, 4 * SIDE))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randrange(4, 40)):
        ink = tuple(rng.randrange(256) for _ in range(3))
        x, y, reach = rng.uniform(0, 4 * SIDE), rng.uniform(0, 4 * SIDE), rng.choice((40, 120, 400))
        ends = [(x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach)) for _ in range(rng.randrange(1, 5))]
        kind = rng.random()
        if kind < 0.7:
            draw.line([(x, y), *ends], fill=ink, width=rng.randrange(2, 9), joint="curve")
        elif kind < 0.9:
            r = rng.uniform(1.5, 6)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        else:
            draw.text((x, y), "".join(rng.choices("abcdefghiklmnorstuwxz", k=6)), fill=ink, font_size=36)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def diet() -> Iterator[Image.Image]:
    """Endless pictures: of 20, six plain, three neon, three sketch, four of other styles, two of fine lines, two of no
    scene at all."""
    rng, strange, other = random.Random(f"fine/{SEED}"), elsewhere.pictures(SEED), itertools.cycle(OTHERS)
    own = {style: world.scenes(SEED, style) for style in TRAINED}

    def scene(style: str) -> Callable[[], Image.Image]:
        return lambda: styles.paint(next(own[style]), SIDE)

    makers: dict[str, Callable[[], Image.Image]] = {style: scene(style) for style in world.STYLES}
    makers |= {"other": lambda: scene(next(other))(), "fine": lambda: fine(rng), "strange": lambda: next(strange)}
    round_ = ("plain", "neon", "sketch", "plain", "other", "plain", "fine", "other", "neon", "strange") * 2
    for i, kind in enumerate(itertools.cycle(round_)):
        yield makers["sketch" if i % 20 == 13 else kind]()


def pool_of(work: Path, count: int) -> Tensor:
    """uint8 [count, 3, 128, 128], drawn once."""
    path = work / "diet.npy"
    if not path.exists():
        np.save(path, np.stack([np.asarray(image) for image in itertools.islice(diet(), count)]))
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)


def crops(pool: Tensor, rng: random.Random) -> Tensor:
    """Random crops in [-1, 1]; some mirrored, turned, with other colours or less contrast."""
    out = torch.empty(BATCH, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    for i in range(BATCH):
        y, x = rng.randrange(0, SIDE + 1 - CROP), rng.randrange(0, SIDE + 1 - CROP)
        crop = pool[rng.randrange(len(pool)), :, y : y + CROP, x : x + CROP].float() / 127.5 - 1
        crop = crop.flip(-1) if rng.random() < 0.5 else crop
        crop = crop.transpose(1, 2) if rng.random() < 0.1 else crop
        if rng.random() < 0.15:
            crop = crop[rng.sample(range(3), 3)] * rng.choice((1, -1))
        if rng.random() < 0.1:
            crop = crop * rng.uniform(0.3, 1.0) + rng.uniform(-0.3, 0.3)
        out[i] = crop.clamp(-1, 1)
    return out


def loss_of(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over pictures of log MSE, which is PSNR, + half of the same for the differences (edges); and the MSE of
    each. A picture counts less below 42 dB or so, or flat ones would count most."""
    d = y - x
    mse = d.square().mean((1, 2, 3))
    across, down = d[..., 1:] - d[..., :-1], d[..., 1:, :] - d[..., :-1, :]
    edges = across.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))
    return ((mse + 2.5e-4).log() + 0.5 * (edges + 2.5e-4).log()).mean(), mse


class Refiner:
    """bf16 forward and backward on `net`; AdamW and an average on the float32 `master`."""

    def __init__(self, work: Path, decoder_only: bool) -> None:
        self.work, self.decoder_only, self.step = work, decoder_only, 0
        self.path = work / ("refined_decoder.pt" if decoder_only else "refined.pt")
        self.vae = AutoencoderKL.from_pretrained(work / "vae").to(memory_format=torch.channels_last)
        parts = (self.vae.post_quant_conv, self.vae.decoder) if decoder_only else (self.vae,)
        self.trained = [p for part in parts for p in part.parameters()]
        self.vae.requires_grad_(False)
        self.master = [p.detach().clone().requires_grad_() for p in self.trained]
        self.ema = [p.detach().clone() for p in self.master]
        self.optimizer = torch.optim.AdamW(self.master, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        if self.path.exists():
            state = kept.load(self.path)
            torch._foreach_copy_([p.data for p in self.master], state["master"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema, self.step = state["ema"], state["step"]
        self.vae.to(torch.bfloat16)
        quicken(self.vae)
        for p in self.trained:
            p.requires_grad_()
        torch._foreach_copy_([p.data for p in self.trained], [p.data for p in self.master])

    def loss(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A little noise more than the posterior's, as what a UNet has drawn is not quite what the encoder says."""
        with torch.set_grad_enabled(not self.decoder_only):
            posterior = self.vae.encode(x.bfloat16()).latent_dist
        z = posterior.mean + (posterior.std + 0.03 / self.vae.config.scaling_factor) * noise.bfloat16()
        loss, mse = loss_of(self.vae.decode(z).sample.float(), x)
        mean, var, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
        return loss + 5e-4 * (mean**2 + var - 1 - logvar).mean(), mse

    def update(self, loss: Tensor, lr: float) -> None:
        loss.backward()
        self.step += 1
        masters.update(self.optimizer, self.master, self.trained, self.ema, lr, self.step)

    def save(self) -> None:
        state = {"step": self.step, "ema": self.ema, "optimizer": self.optimizer.state_dict()}
        kept.save({**state, "master": [p.data for p in self.master]}, self.path)

    def averaged(self) -> AutoencoderKL:
        """In float32, as it would be packed."""
        vae = AutoencoderKL.from_pretrained(self.work / "vae")
        parts = (vae.post_quant_conv, vae.decoder) if self.decoder_only else (vae,)
        torch._foreach_copy_([p.data for part in parts for p in part.parameters()], self.ema)
        return vae.to(memory_format=torch.channels_last)


def refine(work: Path, steps: int, decoder_only: bool, peak: float, pictures: int) -> None:
    refiner, pool = Refiner(work, decoder_only), pool_of(work, pictures)
    start, seen = time.process_time(), []
    while refiner.step < steps:
        step = refiner.step
        x = crops(pool, random.Random(f"refine/{decoder_only}/{step}"))
        noise = torch.randn(BATCH, 4, CROP // 8, CROP // 8, generator=torch.Generator().manual_seed(step))
        loss, mse = refiner.loss(x, noise)
        refiner.update(loss, peak * min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))))
        seen += (-10 * (mse.detach() / 4).log10()).tolist()
        if refiner.step % 100 == 0 or refiner.step == steps:
            spent = time.process_time() - start
            print(f"step {refiner.step}/{steps} {sum(seen) / len(seen):.2f} dB, {spent:.0f} CPU s", flush=True)
            seen = []
            refiner.save()
        if refiner.step % 1000 == 0:
            through = through_folder(refiner.averaged())
            found = [f"{s} {measured(through, s, 4)[0]:.1f}" for s in TRAINED]
            print(f"averaged, on held-out scenes, dB: {', '.join(found)}", flush=True)
    vae = refiner.averaged()
    if not decoder_only:
        set_latent_scale(vae, pool)
    vae.save_pretrained(work / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--peak", type=float, default=3e-4, help="the highest learning rate (default 3e-4)")
    parser.add_argument("--pictures", type=int, default=4000)
    args = parser.parse_args()
    refine(args.work, args.steps, args.decoder_only, args.peak, args.pictures)
