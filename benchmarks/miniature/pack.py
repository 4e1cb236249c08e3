"""Packs the miniature base: one fp16 `.safetensors` in the published LDM layout of Stable Diffusion 1.x.

python -m benchmarks.miniature.pack WORK_FOLDER OUT.safetensors     what build_vae and build_base left in WORK_FOLDER

A checkpoint of a training that still runs can be packed, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from benchmarks.miniature import build_base, kept
from safetensors.torch import load_file
from torch import Tensor

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.sd1 import singlefile
from lora_scripts.formats.io import save_safetensors

PARTS = {
    "vae/diffusion_pytorch_model.safetensors": "build_vae",
    "text_encoder/model.safetensors": "build_base",
    "unet.pt": "build_base",
}
"""File in the work folder -> the script that makes it."""


def pack(work: Path, out: Path) -> int:
    """Writes the base with the UNet's averaged weights; gives the number of parameters. UserError for missing parts."""
    raise_all(
        [
            UserError(
                "this part of the base is missing", file=work / name, hint=f"run benchmarks.miniature.{script} first"
            )
            for name, script in PARTS.items()
            if not (work / name).is_file()
        ]
    )
    vae_file, text_file, unet_file = (work / name for name in PARTS)
    state = kept.load(unet_file)
    with torch.device("meta"):
        names = [name for name, _ in build_base.new_unet().named_parameters()]
    unet: dict[str, Tensor] = dict(zip(names, state["ema"], strict=True))
    tensors = singlefile.to_ldm(unet, load_file(vae_file), load_file(text_file))
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    beyond = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if beyond:
        raise UserError(f"{beyond[0]} holds values that fp16 cannot", file=work, hint="the training has diverged")
    save_safetensors(out, tensors, metadata(state["before"] + state["step"]))
    return sum(tensor.numel() for tensor in tensors.values())


def metadata(steps: int) -> dict[str, str]:
    """ModelSpec 1.0.1: what the file is; the resolution is what previews and `generate` take by default."""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": "Miniature world",
        "modelspec.description": f"Small Stable Diffusion 1.x for drawn scenes; UNet trained for {steps} steps",
        "modelspec.usage_hint": "a red house on sand under a night sky",
        "modelspec.author": "lora-scripts contributors",
        "modelspec.license": "Apache-2.0",
        "modelspec.resolution": "128x128",
        "modelspec.prediction_type": "epsilon",
        "miniature.unet_steps": str(steps),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    try:
        parameters = pack(args.work, args.out)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{args.out}: {parameters / 1e6:.1f} M parameters, {args.out.stat().st_size / 1e6:.1f} MB")
