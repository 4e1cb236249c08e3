"""What `plan --cards` says of the published models: `PYTHONPATH=src python benchmarks/cards.py`.

Each transformer or UNet on torch's meta device, from the widths that are published; pictures as the base is made for,
batches of one, rank 16, and nothing of the group "Memory". It prints the table of docs/memory.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from lora_scripts.config.schema import TrainConfig
from lora_scripts.families.anima import layout as anima
from lora_scripts.families.anima.check import FILES as ANIMA
from lora_scripts.families.black_forest import flux2_layout as flux2
from lora_scripts.families.chroma import layout as chroma
from lora_scripts.families.chroma.check import FILES as CHROMA
from lora_scripts.families.flux1 import layout as flux1
from lora_scripts.families.flux1.check import FILES as FLUX1
from lora_scripts.families.flux2.check import FILES as FLUX2
from lora_scripts.families.flux2_dev.check import FILES as FLUX2_DEV
from lora_scripts.families.flux3 import layout as flux3
from lora_scripts.families.flux3.check import FILES as FLUX3
from lora_scripts.families.krea2 import layout as krea2
from lora_scripts.families.krea2.check import FILES as KREA2
from lora_scripts.families.qwen_image import layout as qwen
from lora_scripts.families.qwen_image.check import FILES as QWEN
from lora_scripts.families.qwen_image21 import layout as qwen21
from lora_scripts.families.qwen_image21.check import FILES as QWEN21
from lora_scripts.families.sd.unet import UnetLayout, unet_config
from lora_scripts.families.sd1.names import STANDARD as SD15
from lora_scripts.families.sd1.names import STANDARD_2 as SD21
from lora_scripts.families.sd3 import layout as sd3
from lora_scripts.families.sd3.check import FILES as SD3
from lora_scripts.families.sdxl.layout import STANDARD as SDXL
from lora_scripts.families.table import by_name
from lora_scripts.families.zimage import layout as zimage
from lora_scripts.families.zimage.check import FILES as ZIMAGE
from lora_scripts.plan.cards import CARDS, Base, allowed, measured
from lora_scripts.units import size

KLEIN_4B = replace(flux2.KLEIN, width=3072, double=5, single=20, inner=9216, text_width=7680)


def unet(layout: UnetLayout, side: int) -> Any:
    with torch.device("meta"):
        return UNet2DConditionModel(**unet_config(layout, side // 8))


PUBLISHED: dict[str, tuple[str, int, Any]] = {
    "Stable Diffusion 1.5": ("sd1", 512, lambda: unet(SD15.unet, 512)),
    "Stable Diffusion 2.1": ("sd2", 768, lambda: unet(SD21.unet, 768)),
    "SDXL": ("sdxl", 1024, lambda: unet(SDXL.unet, 1024)),
    "Z-Image": ("zimage", 1024, lambda: ZIMAGE.build(zimage.STANDARD)),
    "FLUX.2 klein 4B": ("flux2", 1024, lambda: FLUX2.build(KLEIN_4B)),
    "FLUX.2 klein 9B": ("flux2", 1024, lambda: FLUX2.build(flux2.KLEIN)),
    "FLUX.2 dev": ("flux2_dev", 1024, lambda: FLUX2_DEV.build(flux2.DEV)),
    "FLUX.3 klein": ("flux3", 1024, lambda: FLUX3.build(flux3.STANDARD)),
    "Qwen-Image": ("qwen_image", 1024, lambda: QWEN.build(qwen.STANDARD)),
    "Qwen-Image-2.1": ("qwen_image21", 1024, lambda: QWEN21.build(qwen21.STANDARD)),
    "Anima": ("anima", 1024, lambda: ANIMA.build(anima.STANDARD)),
    "Krea 2": ("krea2", 1024, lambda: KREA2.build(krea2.STANDARD)),
    "FLUX.1": ("flux1", 1024, lambda: FLUX1.build(flux1.STANDARD)),
    "Chroma": ("chroma", 1024, lambda: CHROMA.build(chroma.STANDARD)),
    "SD 3.5 Medium": ("sd3", 1024, lambda: SD3.build(sd3.MEDIUM)),
    "SD 3.5 Large": ("sd3", 1024, lambda: SD3.build(sd3.LARGE)),
}
"""Name -> family, pixels along a side of the pictures that it is made for, and the model."""


def published(name: str, **keys: Any) -> tuple[TrainConfig, Base]:
    """A config of one of them, and what there is to place."""
    family, side, make = PUBLISHED[name]
    here = Path(__file__)  # its base is not looked at
    usual = {"train_data_dir": here.parent, "base_model": here, "output_dir": here.parent / "lora", "batch_size": 1}
    config = TrainConfig.model_validate({**usual, "resolution": side, **keys})
    return config, measured(make(), config, by_name(family), side * side)


def short(changes: Any) -> str:
    words = {"gradient_checkpointing": "again", "base_precision": "int8", "vae_tiling": "tiles"}
    told = [words.get(key) or f"{value} blocks in RAM" for key, value in changes.items()]
    return ", ".join(told) or "as it is"


def main() -> None:
    print(f"| | {' | '.join(f'{card} GB' for card in CARDS)} |")
    print("|---" * (1 + len(CARDS)) + "|")
    for name in PUBLISHED:
        config, base = published(name)
        cells = []
        for card in CARDS:
            row = allowed(config, base, card)
            cells.append("–" if row.changes is None else f"{short(row.changes)}: {size(row.bytes)}")
        known = "" if base.kept else " (not counted)"
        print(f"| {name}{known} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
