"""How long a step takes, and what it computes and keeps: this project's quick ways, its plain ones, and a peer's step.

    python benchmarks/run.py --suite cpu [--rows 128x4,512x1] [--rounds 5] [--peers DIR] [--out FOLDER]

Stable Diffusion 1.5 of the true size with random weights, made on the spot: bf16, rank 16, the same 192 layers in every
arm. The arms take their steps in turn in one process, with one thread; what is told is CPU seconds, the median, and the
median of this project's time over an arm's, round by round, with the least and the greatest. It writes run.json and
run.md.

The peer is the step of diffusers' own example: its UNet as it comes, LoRA by peft, in bf16 as that script has it, a
mean squared error, and AdamW as torch has it; latents and texts are ready, which that script makes anew at each step.
With --peers, trainers whose checkouts lie in a folder take their steps, too: see peers.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from memory import SD15, Group, random_unet
from peers import arms as peer_arms
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from lora_scripts.adapters.inject import assign, inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.masters import Masters
from lora_scripts.compute.device import cpu_has_bf16
from lora_scripts.compute.pages import keep_freed
from lora_scripts.families.base import Batch, LoadOptions
from lora_scripts.families.sd1.layout import text_config, vae_config
from lora_scripts.families.sd1.model import StableDiffusion1
from lora_scripts.losses.diffusion import Objective

RANK = 16
OURS = "this project"
BY_ITSELF = 2**26
"""Bytes of what was freed that glibc keeps by itself, in every other arm: only this project asks for more."""
Step = Callable[[int], None]


def batch_of(size: int, count: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 4, size // 8, size // 8, generator=g)
    texts = {"states": torch.randn(count, 77, 768, generator=g)}
    generators = [torch.Generator().manual_seed(100 * seed + n) for n in range(count)]
    return Batch({"mean": mean, "std": 0.1 * mean.abs()}, [""] * count, texts, [""] * count, generators)


def project(size: int, count: int, *, plain: bool) -> tuple[Step, nn.Module]:
    """One step, as `train.loop` takes it."""
    vae = AutoencoderKL(**vae_config(SD15))
    text = CLIPTextModel(CLIPTextConfig(**text_config(SD15)))
    family = StableDiffusion1(random_unet(library=plain), vae, text, LoadOptions(torch.device("cpu"), torch.bfloat16))
    paths = assign(family.trainable(), [Group("attention"), Group("feed_forward")], family.facts.groups)
    kind = PlainLayer if plain else LoraLayer
    inside = [path for path in paths if path.startswith("unet.")]
    layers = inject(family.roots, inside, lambda _, layer: kind(layer, RANK, float(RANK)))
    masters = Masters([] if plain else layers.values())
    parameters = [p for layer in layers.values() for p in layer.values().values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step(seed: int) -> None:
        loss, n = family.loss(batch_of(size, count, seed), Objective())
        loss.backward()
        masters.gather()
        torch._foreach_div_([p.grad for p in parameters], n)  # type: ignore[misc]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        masters.refresh()

    return step, family.unet


class PlainLayer(LoraLayer):
    """The layer as it was: two products beside the frozen one, each remembered by autograd."""

    fused = False  # type: ignore[assignment]


def peer(size: int, count: int) -> tuple[Step, nn.Module]:
    unet = random_unet(library=True).requires_grad_(False)
    assert isinstance(unet, UNet2DConditionModel)
    ends = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=ends))
    parameters = [p.requires_grad_() for name, p in unet.named_parameters() if "lora_" in name]
    for p in parameters:
        p.data = p.data.to(torch.bfloat16)
    assert len(parameters) == 2 * 192
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step(seed: int) -> None:
        batch = batch_of(size, count, seed)
        noise, latents = torch.randn_like(batch.latents["mean"]), batch.latents["mean"].to(torch.bfloat16)
        assert batch.texts is not None
        times = torch.randint(0, 1000, (count,))
        answer = unet((latents + noise).to(torch.bfloat16), times, batch.texts["states"].to(torch.bfloat16)).sample
        F.mse_loss(answer.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, unet


def measured(size: int, count: int, rounds: int, peers: Path | None) -> list[dict[str, Any]]:
    others = peer_arms(peers, RANK) if peers else ()
    arms = {
        **{name: make(partial(batch_of, size, count)) for name, make in others},
        "diffusers' example, the same layers": peer(size, count),
        "this project, plain": project(size, count, plain=True),
        OURS: project(size, count, plain=False),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    kept = {name: _kept(*arm) for name, arm in arms.items()}  # the first step of each, too
    for n in range(rounds):
        for name, (step, _) in arms.items():
            keep_freed(*(() if name == OURS else (BY_ITSELF,)))
            begun = time.process_time()
            step(n + 1)
            taken[name].append(time.process_time() - begun)
    rows = []
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(taken[OURS], seconds, strict=True)]
        low, high = min(ratios), max(ratios)
        figures = {"seconds": seconds, "median": median(seconds), "ratio": median(ratios), "least": low, "most": high}
        rows.append({"size": size, "batch": count, "arm": name, "kept": kept[name], **figures})
    return rows


def _kept(step: Step, unet: nn.Module) -> int:
    """Bytes that a step keeps for its backward pass, without what the model holds."""
    own = {t.untyped_storage().data_ptr() for t in unet.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(0)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def machine() -> dict[str, str]:
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    units = "bf16 matrix units (AMX)" if amx else "AVX512-BF16, no matrix units" if cpu_has_bf16() else "no bf16"
    packages = ("torch", "diffusers", "peft", "transformers")
    return {"processor": name, "units": units, **{package: version(package) for package in packages}}


def page(about: dict[str, str], rows: list[dict[str, Any]]) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [
        "| px, batch | | CPU s a step | this project takes of it (least to most) | kept, MiB |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        ratio = f"{r['ratio']:.2f} ({r['least']:.2f} to {r['most']:.2f})"
        kept = f"{r['kept'] / 2**20:.0f}"
        lines.append(f"| {r['size']}, {r['batch']} | {r['arm']} | {r['median']:.2f} | {ratio} | {kept} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["cpu"], required=True)
    parser.add_argument("--rows", default="128x4,512x1", help="sizes in pixels x batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=Path, help="a folder with other trainers' checkouts, such as sd-scripts")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size, _, count in (row.partition("x") for row in options.rows.split(",")):
        rows += measured(int(size), int(count), options.rounds, options.peers)
        about = machine()
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "run.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
        (options.out / "run.md").write_text(page(about, rows))
    print(page(machine(), rows))


if __name__ == "__main__":
    main()
