"""Steps of other trainers, from checkouts that are given: `python benchmarks/run.py --suite cpu --peers DIR`.

DIR/sd-scripts: kohya's, at any commit that has `networks/lora.py` and `library/original_unet.py`. Only its UNet and its
LoRA are used, through their own functions; what it imports besides and this machine lacks (torchvision, cv2; neither is
used in a step) stands in as an empty module. einops must be importable.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.families.base import Batch

Step = Callable[[int], float]
CPU = torch.device("cpu")
Batches = Callable[[int], Batch]


def arms(
    folder: Path, rank: int, on: torch.device = CPU
) -> Iterator[tuple[str, Callable[[Batches], tuple[Step, nn.Module]]]]:
    """Name, and what makes a step of batches, for each trainer that lies in `folder`."""
    if (place := folder / "sd-scripts").is_dir():
        yield "kohya's sd-scripts, full_bf16", partial(kohya, place, rank, on)


def kohya(place: Path, rank: int, on: torch.device, batches: Batches) -> tuple[Step, nn.Module]:
    """As its train_network does with cached latents and texts, `--full_bf16 --sdpa`, AdamW, gradients clipped at 1."""
    for name in ("torchvision", "cv2"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].transforms = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(place))
    unets: Any = importlib.import_module("library.original_unet")
    networks: Any = importlib.import_module("networks.lora")
    logging.getLogger().setLevel(logging.WARNING)
    told = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False}
    unet = unets.UNet2DConditionModel(**told, upcast_attention=False).requires_grad_(False).to(on, torch.bfloat16)
    unet.set_use_sdpa(True)
    network = networks.create_network(1.0, rank, rank, None, [], unet)
    network.apply_to([], unet, False, True)
    network.requires_grad_(True).to(on, torch.bfloat16).train()
    assert len(network.unet_loras) == 192, len(network.unet_loras)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    noising = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)

    def step(seed: int) -> float:
        batch = batches(seed)
        latents = batch.latents["mean"].to(on, torch.bfloat16)
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),), device=on)
        noised: Any = noising.add_noise(latents, noise, times)  # type: ignore[arg-type]
        assert batch.texts is not None
        answer: Tensor = unet(noised, times, batch.texts["states"].to(on, torch.bfloat16)).sample
        loss = F.mse_loss(answer.float(), noise.float(), reduction="none").mean([1, 2, 3]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, unet
