"""Trains the judge, the classifier of pictures of the miniature world that ships in `demo/assets`, and measures it.

python -m benchmarks.miniature.build_judge WORK_FOLDER [--vae FOLDER]     trains, writes judge.safetensors, measures

It is trained on scenes that were blurred, coarsened, shifted and made noisy, so that it also reads what a small VAE has
decoded.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.demo import world
from lora_scripts.demo.judge import ASSET, SIDE, SLOTS, Judge, as_input, new_network, reduced
from lora_scripts.formats.io import save_safetensors, write_atomic

HIDDEN = {"plain": (), "neon": ("colour",), "sketch": ("colour",)}
"""What a style hardly shows: neon's fills are near black, sketch's a faint wash. Ground and sky keep lines."""
CYCLE = ("plain", "neon", "plain", "sketch", "plain", "neon")
"""The styles of the training scenes, in turn."""
TRAINING_SEED, FRESH_SEED = 31, 32
"""Seeds of `world.scenes`; the base model's scenes have 7 and 11."""


# --- training ---------------------------------------------------------------------------------------------------------


def scenes_of(seed: int, count: int) -> list[world.Scene]:
    """Scenes in the styles of CYCLE."""
    streams = {style: world.scenes(seed, style) for style in world.STYLES}
    return [next(streams[style]) for style in itertools.islice(itertools.cycle(CYCLE), count)]


def labels_of(scenes: Sequence[world.Scene]) -> Tensor:
    """int64 [n, 5]: the index in each slot, -1 where the style hides it."""
    rows = []
    for scene in scenes:
        words = (*scene.key, scene.style)
        hidden = HIDDEN[scene.style]
        rows.append([-1 if s in hidden else SLOTS[s].index(w) for s, w in zip(SLOTS, words, strict=True)])
    return torch.tensor(rows)


def drawn(work: Path, count: int) -> tuple[list[world.Scene], np.ndarray]:
    """Training scenes and their reduced pictures, uint8 [count, 64, 64, 3], drawn once and kept."""
    scenes, path = scenes_of(TRAINING_SEED, count), work / "judge_pictures.npy"
    if not path.exists() or len(np.load(path, mmap_mode="r")) < count:
        buffer = BytesIO()
        np.save(buffer, np.stack([reduced(world.draw(scene)) for scene in scenes]))
        write_atomic(path, buffer.getvalue())
    return scenes, np.load(path)[:count]


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [n, 3, h, w]; sigma in pixels."""
    reach = max(1, round(2.5 * sigma))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    bell = (bell / bell.sum()).repeat(3, 1, 1, 1)  # [3, 1, 1, 2 reach + 1]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), "replicate"), bell, groups=3)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), "replicate"), bell.transpose(2, 3), groups=3)


def coarsened(x: Tensor, side: int, how: str) -> Tensor:
    """Reduced to side x side and enlarged again, as an autoencoder with few latents does."""
    small = F.interpolate(x, size=(side, side), mode="area")
    return F.interpolate(small, size=x.shape[-2:], mode=how)


def augmented(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored, moved by up to 3 px, scaled by up to 8 %, softened, with other light, and noisy: [n, 3, 64, 64]."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) * (high - low) + low

    n = len(x)
    moves = torch.zeros(n, 2, 3)
    moves[:, 1, 1] = uniform(0.92, 1.08, n)
    moves[:, 0, 0] = moves[:, 1, 1] * (uniform(0, 1, n) < 0.5).float().mul(2).sub(1)
    moves[:, :, 2] = uniform(-6 / SIDE, 6 / SIDE, n, 2)
    x = F.grid_sample(x, F.affine_grid(moves, list(x.shape), False), padding_mode="border", align_corners=False)
    parts = []
    for part in x.split(8):  # one kind of softness for eight pictures: quicker than one each
        way = float(uniform(0, 1))
        if 0.25 < way < 0.80:
            how = ("nearest", "bilinear")[int(uniform(0, 2))]
            part = coarsened(part, int(uniform(14, 42)), how)
        if way > 0.60:
            part = blurred(part, float(uniform(0.4, 1.7)))
        parts.append(part)
    x = torch.cat(parts) * uniform(0.8, 1.2, n, 1, 1, 1) + uniform(-0.12, 0.12, n, 1, 1, 1)
    x = x + uniform(-0.07, 0.07, n, 3, 1, 1)
    return x + uniform(0, 0.08, n, 1, 1, 1) * torch.randn(x.shape, generator=rng)


def loss_of(scores: Tensor, labels: Tensor) -> Tensor:
    """The sum over slots of the mean cross-entropy of what is shown."""
    slots = scores.split([len(words) for words in SLOTS.values()], 1)
    return torch.stack(
        [F.cross_entropy(slot, labels[:, i], ignore_index=-1, label_smoothing=0.02) for i, slot in enumerate(slots)]
    ).sum()


def train(work: Path, steps: int, count: int, batch: int = 64) -> nn.Sequential:
    """AdamW, one cosine; every step is a function of its number."""
    torch.manual_seed(3)
    network, (scenes, pictures) = new_network(), drawn(work, count)
    x, labels, start = as_input(pictures), labels_of(scenes), time.time()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.02)
    schedule = torch.cos(torch.linspace(0, torch.pi, steps)).add(1).mul(1.5e-3)
    for step in range(steps):
        rng = torch.Generator().manual_seed(step)
        picked = torch.randint(count, (batch,), generator=rng)
        loss = loss_of(network(augmented(x[picked], rng)), labels[picked])
        optimizer.param_groups[0]["lr"] = float(schedule[step]) * min(1.0, (step + 1) / 50)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"judge step {step + 1}/{steps} loss {loss:.3f} {time.time() - start:.0f} s", flush=True)
    return network


def save(network: nn.Module, path: Path, steps: int, count: int) -> None:
    """Writes the weights in fp16."""
    tensors = {n: t.half() for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    about = {
        "title": "judge of the miniature world",
        "made_by": "python -m benchmarks.miniature.build_judge",
        "license": "Apache-2.0",
        "input": f"RGB, {SIDE} x {SIDE}, -1 to 1",
        "slots": "; ".join(f"{slot}: {', '.join(words)}" for slot, words in SLOTS.items()),
        "steps": str(steps),
        "scenes": str(count),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(path, tensors, about)


# --- measuring --------------------------------------------------------------------------------------------------------


def accuracies(judge: Judge, scenes: Sequence[world.Scene], images: Sequence[Image.Image]) -> dict[str, float]:
    """Slot -> share of pictures read right, of those in whose style the slot shows."""
    right: dict[str, list[bool]] = {slot: [] for slot in SLOTS}
    for scene, reading in zip(scenes, judge.read(images), strict=True):
        for slot in SLOTS:
            if slot not in HIDDEN[scene.style]:
                right[slot].append(getattr(reading, slot) == getattr(scene, slot))
    return {slot: sum(hits) / len(hits) for slot, hits in right.items() if hits}


def softened(image: Image.Image) -> Image.Image:
    """128 px -> 24 px -> 128 px: blurrier than a VAE of factor 8 leaves it."""
    return image.resize((24, 24), Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)


@torch.no_grad()
def through_vae(folder: Path, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures as a VAE (a diffusers folder) gives them back: the best that its base model could do."""
    from diffusers import AutoencoderKL

    vae, out = AutoencoderKL.from_pretrained(folder), []
    for image in images:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample[0].clamp(-1, 1)
        out.append(Image.fromarray(((y + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()))
    return out


def measure(judge: Judge, count: int, vae: Path | None) -> None:
    """Prints shares read right on fresh scenes: as drawn, softened, and through a VAE (a third as many)."""
    scenes = scenes_of(FRESH_SEED, count)
    images = [world.draw(scene) for scene in scenes]
    kinds = [("as drawn", scenes, images), ("softened", scenes, [softened(image) for image in images])]
    if vae is not None:
        kinds.append(("through the VAE", scenes[: count // 3], through_vae(vae, images[: count // 3])))
    print(f"{'share read right':28}" + "".join(f"{slot:>9}" for slot in SLOTS))
    for name, about, pictures in kinds:
        for style in ("all", *world.STYLES):
            chosen = [i for i, scene in enumerate(about) if style in ("all", scene.style)]
            shares = accuracies(judge, [about[i] for i in chosen], [pictures[i] for i in chosen])
            cells = (f"{shares[slot]:9.1%}" if slot in shares else f"{'-':>9}" for slot in SLOTS)
            print(f"{name + ', ' + style:22}{len(chosen):6}" + "".join(cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--fresh", type=int, default=720, help="scenes to measure on")
    parser.add_argument("--vae", type=Path, help="a diffusers folder, to measure through")
    parser.add_argument("--measure-only", action="store_true", help="measure the judge that ships")
    args = parser.parse_args()
    if not args.measure_only:
        args.work.mkdir(parents=True, exist_ok=True)
        save(train(args.work, args.steps, args.scenes), ASSET, args.steps, args.scenes)
    measure(Judge.load(), args.fresh, args.vae)
