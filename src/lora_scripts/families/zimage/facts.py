"""Z-Image, as facts."""

from __future__ import annotations

from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.zimage.check import CHECKPOINT, FILES, folder_kind, kind_of

_LAYERS = "transformer.layers."
FACTS = flow_facts(
    "zimage",
    FILES,
    example="z_image_bf16.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: path.startswith(_LAYERS) and ".attention." in path,
        "feed_forward": lambda path: path.startswith(_LAYERS) and ".feed_forward." in path,
        "modulation": lambda path: path.startswith(_LAYERS) and ".adaLN_modulation." in path,
        "refiners": lambda path: path.startswith(("transformer.noise_refiner.", "transformer.context_refiner.")),
    },
    lora=flow_lora("z_image", "Z-Image/lora", loader="ZImageLoraLoaderMixin", civitai="ZImageBase", tag="z-image"),
    previews=(
        Setting("sample_cfg", "5", "closeness of previews to the prompt; of Turbo 1"),
        Setting("sample_steps", "28", "of previews; of Turbo 8"),
    ),
    fused=True,
)
