"""Encoding pictures against what the VAE alone takes: `python benchmarks/preparation.py [--pictures 50] [--rounds 3]`.

Pictures of 1024 px, made on the spot, and a VAE of the usual kind with random weights, narrow and without attention,
so that decoding shows beside it; with --true-size Stable Diffusion's own, which takes half a minute a picture on a CPU,
in float32. In turn, each with an
empty cache: the VAE on tensors that are ready; a picture decoded, scaled, encoded and written after the other; and
`Encoded.fill`, which decodes and scales the next one meanwhile. Wall clock and processor time, and the VAE's share.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from memory import SD15
from PIL import Image

from lora_scripts.data.cache import Cache
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.scan import scan
from lora_scripts.families.sd1.facts import FACTS
from lora_scripts.families.sd1.layout import vae_config
from lora_scripts.formats import io
from lora_scripts.train.encoded import Encoded
from lora_scripts.train.planned import plan_pictures

SIDE = 1024


class Family:
    """What `Encoded` asks of one."""

    facts = FACTS

    def __init__(self, *, true_size: bool) -> None:
        torch.manual_seed(0)
        if true_size:
            self.vae = AutoencoderKL(**vae_config(replace(SD15, vae_widths=(128, 256, 512, 512))))
            return
        widths, down = (16, 16, 32, 32), ("DownEncoderBlock2D",) * 4
        up = ("UpDecoderBlock2D",) * 4
        self.vae = AutoencoderKL(
            down_block_types=down, up_block_types=up, block_out_channels=widths, latent_channels=4, norm_num_groups=8,
            mid_block_add_attention=False,
        )  # fmt: skip

    def fingerprint(self, part: str) -> str:
        return part

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        return {"mean": posterior.mean, "std": posterior.std}


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files of 1.5 × the side, so that they are scaled, too."""
    for n in range(count):
        rng = np.random.default_rng(n)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((1536, 1536))
        grain = rng.normal(0, 6, (1536, 1536, 1))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(folder / f"{n}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--true-size", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, data = Path(name), Path(name) / "data"
        family: Any = Family(true_size=args.true_size)
        data.mkdir()
        write_pictures(data, args.pictures)
        samples = scan(data, allow_missing_captions=True)
        pictures = plan_pictures(samples, (SIDE, SIDE), (64, 8), flip=False, random_crop=False, seed=0)
        ready = [apply_view(load_rgb(p.sample.path), p.views[0])[None].half() for p in pictures]  # 6 MB each

        def alone(cache: Cache) -> None:
            for pixels in ready:
                family.encode_image(pixels.float())

        def one_by_one(cache: Cache) -> None:
            for n, p in enumerate(pictures):
                image = load_rgb(p.sample.path, p.sample.digest)
                entry = family.encode_image(apply_view(image, p.views[0])[None])
                cache.put(f"{n:064x}", {key: value[0] for key, value in entry.items()})

        def fill(cache: Cache) -> None:
            Encoded(family, pictures, None, texts=False).fill(cache, lambda *told: None)

        arms: dict[str, Callable[[Cache], None]] = {"the VAE alone": alone, "one by one": one_by_one, "fill": fill}
        taken: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
        family.encode_image(ready[0].float())
        for n in range(args.rounds):
            for arm, act in arms.items():
                cache = Cache(work / f"{arm}-{n}", io.write_atomic)
                begun, used = time.perf_counter(), time.process_time()
                act(cache)
                taken[arm].append((time.perf_counter() - begun, time.process_time() - used))
        for arm, rows in taken.items():
            shares = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(taken["the VAE alone"], rows, strict=True)]
            print(
                f"{arm}: wall {median(w for w, _ in rows):.1f} s, CPU {median(c for _, c in rows):.1f} s; "
                f"the VAE's share {', '.join(f'{w:.2f} of the wall and {c:.2f} of the CPU' for w, c in shares)}"
            )


if __name__ == "__main__":
    main()
