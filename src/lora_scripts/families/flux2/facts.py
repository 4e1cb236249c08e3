"""FLUX.2 klein, as facts."""

from __future__ import annotations

from lora_scripts.families.black_forest.flux2_files import GROUPS
from lora_scripts.families.facts import Drawing, Kept
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flux2.check import CHECKPOINT, DISTILLED, FILES, folder_kind, kind_of

FACTS = flow_facts(
    "flux2",
    FILES,
    example="flux-2-klein-base-4b.safetensors",
    mergeable=(CHECKPOINT, DISTILLED),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups=GROUPS,
    lora=flow_lora("flux2_klein", "Flux.2/lora", loader="Flux2LoraLoaderMixin", civitai="Flux.2 Klein", tag="flux2"),
    recipes=recipes(rates="3e-5 to 1e-4"),
    kept={3876: Kept(16779, 709), 9079: Kept(28574, 1195)},
    drawn=Drawing(28, 4.0),
    fused=True,
    vae_factor=16,
    latent_channels=128,
    references=4,
)
