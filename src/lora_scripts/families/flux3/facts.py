"""FLUX.3 klein, as facts."""

from __future__ import annotations

from lora_scripts.families.facts import Drawing, Kept
from lora_scripts.families.flow.facts import UNREAD_BY, flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flux3.check import CHECKPOINT, DISTILLED, FILES, folder_kind, kind_of

_REFERENCES = "transformer.mode_blocks.image_cond."
FACTS = flow_facts(
    "flux3",
    FILES,
    example="flux-3-image-klein-base.safetensors",
    mergeable=(CHECKPOINT, DISTILLED),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: ".attn." in path and not path.startswith(_REFERENCES),
        "feed_forward": lambda path: ".ff." in path and not path.startswith(_REFERENCES),
        "image": lambda path: path.startswith("transformer.mode_blocks.image."),
        "text": lambda path: path.startswith("transformer.txt_mode_blocks."),
        "single": lambda path: path.startswith("transformer.single_transformer_blocks."),
    },
    lora=flow_lora(
        "flux3_klein",
        "Flux.3/lora",
        loader="Flux3LoraLoaderMixin",
        civitai="Flux.3 Klein",
        tag="flux3",
        unread_by=UNREAD_BY | {"ComfyUI"},  # no version that could be read knows the model
    ),
    recipes=recipes(batch="captions that fill as many windows of 80 tokens go through together"),
    kept={4925: Kept(20200, 1086)},
    drawn=Drawing(28, 3.5, steps_why="50 draw finer"),
    vae_factor=16,
    latent_channels=128,
)
