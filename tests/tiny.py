"""A Stable Diffusion 1.x model of the true topology with random weights, small enough to train in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from lora_scripts.families.sd1 import singlefile
from lora_scripts.families.sd1.layout import Sd1Layout, text_config, unet_config, vae_config
from lora_scripts.formats import io

LAYOUT = Sd1Layout(
    unet_widths=(32, 32, 64, 64),
    context_width=16,
    in_channels=4,
    out_channels=4,
    vae_widths=(32, 32, 32, 32),
    latent_channels=4,
    text_width=16,
    text_layers=1,
    text_intermediate=32,
    vocab=49408,
    positions=77,
)


def models(seed: int = 0) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**unet_config(LAYOUT))
    vae = AutoencoderKL(**vae_config(LAYOUT))
    text = CLIPTextModel(CLIPTextConfig(**text_config(LAYOUT)))
    return unet.eval(), vae.eval(), text.eval()


def write_base(path: Path, seed: int = 0) -> Path:
    """The model as one file in the published LDM layout."""
    unet, vae, text = (m.state_dict() for m in models(seed))
    tensors = singlefile.to_ldm(unet, vae, text)
    io.save_safetensors(path, tensors, {"modelspec.resolution": "64x64"})
    return path


def write_pictures(folder: Path, count: int = 5, size: tuple[int, int] = (64, 64)) -> Path:
    """Pictures in gradients, with captions in metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["filename,prompt"]
    for i in range(count):
        image = Image.linear_gradient("L").resize(size).rotate(90 * i)
        Image.merge("RGB", (image, image.transpose(Image.Transpose.ROTATE_90).resize(size), image)).save(
            folder / f"{i}.png"
        )
        rows.append(f'{i}.png,"picture {i}, a gradient, round {i}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def written(value: object) -> object:
    """A value of a config; of a list of paths what stands in brackets."""
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value


SOME = "['*mid_block*attn*', '*up_blocks.3*to_q*']"
"""`targets` for what does not ask which layers: steps, saves and the proof are several times as quick."""


def write_config(folder: Path, **keys: object) -> Path:
    """A config for the pictures and the base in `folder`: two epochs of three steps, in fp32."""
    values: dict[str, object] = {
        "train_data_dir": folder / "data",
        "base_model": folder / "base.safetensors",
        "output_dir": folder / "out",
        "resolution": 64,
        "lora_rank": 2,
        "epochs": 2,
        "batch_size": 2,
        "learning_rate": 0.01,
        "save_steps": 2,
        "sample_every": 0,
        "sample_steps": 1,
        "report": "short",  # what else a report draws has tests of its own,
        "val_split": 0,  # and so has what is measured besides
        "precision": "fp32",
        **keys,
    }
    path = folder / "config.yaml"
    path.write_text("".join(f"{k}: {written(v)}\n" for k, v in values.items()), encoding="utf-8")
    return path
