"""What the options of docs/memory.md save, and what they cost.

    python benchmarks/memory.py step [--size 256] [--batch 4]     peak memory and time of a step, Stable Diffusion 1.5
    python benchmarks/memory.py blocks                            bytes on the card with offload_blocks, by count
    python benchmarks/memory.py merge [--lora FILE]               what is left of a LoRA in a rounded base
    python benchmarks/memory.py tiles                             how far pictures in tiles are from whole ones

`step` and `blocks` use a UNet of the true size with random weights, made on the spot in bf16; each row is a process of
its own. `merge` and `tiles` use the bundled base.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lora_scripts.adapters.inject import assign, inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.compute import memory
from lora_scripts.compute.memory import MemoryOptions, blocks_of
from lora_scripts.compute.meter import peak_ram, restart_ram, used_ram
from lora_scripts.compute.quantised import dequantise, quantise
from lora_scripts.demo import world
from lora_scripts.families.base import Batch, LoadOptions
from lora_scripts.families.sd.load import build_unet
from lora_scripts.families.sd.unet import UnetLayout, unet_config
from lora_scripts.families.sd1.layout import Sd1Layout, text_config, vae_config
from lora_scripts.families.sd1.model import StableDiffusion1
from lora_scripts.families.table import load_pictures
from lora_scripts.loras import file as loras
from lora_scripts.losses.diffusion import Objective

SD15 = Sd1Layout(
    unet_widths=(320, 640, 1280, 1280),
    context_width=768,
    in_channels=4,
    out_channels=4,
    vae_widths=(32, 32, 32, 32),  # neither it nor the text encoder takes part in a step
    latent_channels=4,
    text_width=768,
    text_layers=1,
    text_intermediate=32,
    vocab=49408,
    positions=77,
)
ROWS: dict[str, MemoryOptions] = {
    "all as it is": MemoryOptions(),
    "gradient_checkpointing": MemoryOptions(checkpointing=True),
    "base_precision: fp8": MemoryOptions(storage="fp8"),
    "base_precision: int8": MemoryOptions(storage="int8"),
    "base_precision: nf4": MemoryOptions(storage="nf4"),
    "int8 and gradient_checkpointing": MemoryOptions(storage="int8", checkpointing=True),
}
BASE = Path(str(resources.files("lora_scripts.demo"))) / "assets" / "base.safetensors"


def library_unet(layout: UnetLayout) -> UNet2DConditionModel:
    """diffusers' own, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(**unet_config(layout, 64))


def random_unet(*, library: bool = False) -> nn.Module:
    torch.manual_seed(0)
    bare = library_unet(SD15.unet) if library else build_unet(SD15.unet)
    unet: nn.Module = bare.to(torch.bfloat16).to_empty(device="cpu")
    for name, p in unet.named_parameters():
        with torch.no_grad():
            p.fill_(1.0) if "norm" in name and name.endswith("weight") else p.uniform_(-0.03, 0.03)
    return unet


def one_step(name: str, size: int, batch: int) -> dict[str, float]:
    """A row: GB after loading, highest GB in the second step, MiB kept for its backward pass, seconds of it."""
    vae = AutoencoderKL(**vae_config(SD15))
    text = CLIPTextModel(CLIPTextConfig(**text_config(SD15)))
    options = LoadOptions(torch.device("cpu"), torch.bfloat16, memory=ROWS[name])
    family = StableDiffusion1(random_unet(), vae, text, options)
    paths = assign(family.trainable(), [Group("attention"), Group("feed_forward")], family.facts.groups)
    layers = inject(
        family.roots, [p for p in paths if p.startswith("unet.")], lambda _, layer: LoraLayer(layer, 16, 16.0)
    )
    side, held = size // 8, used_ram()
    generators = [torch.Generator().manual_seed(n) for n in range(batch)]
    mean = torch.randn(batch, 4, side, side)
    latents, texts = {"mean": mean, "std": 0.1 * mean.abs()}, {"states": torch.randn(batch, 77, 768)}
    data = Batch(latents, [""] * batch, texts, [""] * batch, generators)
    own = {t.untyped_storage().data_ptr() for t in (*family.unet.parameters(), *family.unet.buffers())}
    kept, seconds, peak = dict[int, int](), 0.0, 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(2):  # the first warms up, and makes the gradients
        kept.clear()
        restart_ram()
        begun = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss, _ = family.loss(data, Objective())
        loss.backward()
        seconds, peak = time.process_time() - begun, peak_ram()
    assert all(p.grad is not None for layer in layers.values() for p in layer.values().values())
    return {
        "held": held / 2**30,
        "peak": peak / 2**30,
        "kept": sum(kept.values()) / 2**20,
        "seconds": seconds,
        "loss": loss.item(),
    }


class Group:
    """A rule for `assign`."""

    def __init__(self, match: str) -> None:
        self.match = match


def steps(size: int, batch: int) -> None:
    print(f"{'':32}  loaded GB  peak GB  kept MiB  CPU s")
    for name in ROWS:
        command = [sys.executable, __file__, "step", "--row", name, "--size", str(size), "--batch", str(batch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name:32}  failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        r = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:32}  {r['held']:9.2f}  {r['peak']:7.2f}  {r['kept']:8.0f}  {r['seconds']:5.1f}", flush=True)


def blocks() -> None:
    """By count: bytes of the UNet that stay on the card, and the two largest of the blocks that come and go."""
    unet = build_unet(SD15.unet)
    sizes = sorted((sum(p.numel() for p in b.parameters()) * 2 for b in blocks_of(unet)), reverse=True)
    whole = sum(p.numel() for p in unet.parameters()) * 2
    for count in (0, 4, 8, 16, 24, 44):
        there = whole - sum(sizes[:count]) + sum(sizes[: min(count, 2)])
        print(
            f"{count:3} of {len(sizes)}: {there / 2**20:6.0f} MiB on the card, {sum(sizes[:count]) / 2**20:6.0f} in RAM"
        )


def rounded(storage: str) -> Callable[[Tensor], Tensor]:
    if storage in ("bf16", "fp16"):
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[storage]
        return lambda w: w.to(dtype).float()

    def through(weight: Tensor) -> Tensor:
        codes, scale = quantise(weight, storage)  # type: ignore[arg-type]
        return dequantise(codes, scale, storage, weight.shape, torch.float32)  # type: ignore[arg-type]

    return through


def merge(lora: Path | None, sizes: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)) -> None:
    """For each storage: W as it rounds W0, M as it rounds W + dW; the share of dW in M - W, and how far off it is."""
    family = load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))
    layers = {p: m.weight.detach() for p, m in family.trainable().items() if p.startswith("unet.")}  # type: ignore[union-attr]
    changes: dict[str, dict[str, Tensor]] = {}
    for size in sizes:
        torch.manual_seed(1)
        drawn = {p: torch.randn(w.shape[0], 16) @ torch.randn(16, w[0].numel()) for p, w in layers.items()}
        changes[f"random, {size:.1%}"] = {
            p: (d * (size * layers[p].norm() / d.norm())).view(layers[p].shape) for p, d in drawn.items()
        }
    if lora is not None:
        found = loras.read(lora).weights
        real = {p: (w.up.flatten(1) @ w.down.flatten(1) * (w.alpha / w.rank)).float() for p, w in found.items()}
        real = {p: d.view(layers[p].shape) for p, d in real.items() if p in layers}
        size = (sum(d.square().sum() for d in real.values()) / sum(layers[p].square().sum() for p in real)) ** 0.5
        changes[f"trained, {size:.1%}"] = real
    print(f"{'LoRA, |dW| / |W|':20} {'into':5}  what is left  off by")
    for name, deltas in changes.items():
        for storage in ("fp16", "bf16", "int8", "fp8", "nf4"):
            through, along, error, energy = rounded(storage), 0.0, 0.0, 0.0
            for path, delta in deltas.items():
                before = through(layers[path])
                became = through(before + delta) - before
                along += (became * delta).sum().item()
                error += (became - delta).square().sum().item()
                energy += delta.square().sum().item()
            print(f"{name:20} {storage:5}  {along / energy:12.1%}  {(error / energy) ** 0.5:6.1%}", flush=True)


def tiles(size: int = 256, tile: int = 128) -> None:
    """A picture of the miniature world, encoded and drawn whole and in tiles of the size that its VAE was made for."""
    memory.TILE = tile
    cpu = torch.device("cpu")
    whole, parts = (
        load_pictures(BASE, LoadOptions(cpu, torch.float32, memory=MemoryOptions(vae_tiling=on)))
        for on in (False, True)
    )
    far, levels = [], []
    for scene in world.held_out_scenes(4):
        pixels = (
            torch.tensor(list(world.draw(scene, size).tobytes())).view(1, size, size, 3).permute(0, 3, 1, 2) / 127.5 - 1
        )
        one, other = whole.encode_image(pixels)["mean"], parts.encode_image(pixels)["mean"]
        far.append(((one - other).abs().max() / one.std(), (one - other).square().mean().sqrt() / one.std()))
        a, b = (torch.tensor(list(f.coder.decode(one[0]).tobytes())).view(size, size, 3) for f in (whole, parts))  # type: ignore[attr-defined]
        levels.append(((a - b).abs().max().item(), (a - b).abs().float().mean().item()))
    worst, usual = (max(f[n].item() for f in far) for n in (0, 1))
    print(f"latents of {size} px in tiles of {tile}: at most {worst:.2f}, RMS {usual:.3f} of their own spread")
    print(f"pictures: at most {max(x for x, _ in levels)} of 255 levels, mean {max(y for _, y in levels):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "blocks", "merge", "tiles"])
    parser.add_argument("--row", choices=list(ROWS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lora", type=Path)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(one_step(options.row, options.size, options.batch)))
    elif options.what == "step":
        steps(options.size, options.batch)
    else:
        {"blocks": blocks, "merge": lambda: merge(options.lora), "tiles": tiles}[options.what]()


if __name__ == "__main__":
    main()
