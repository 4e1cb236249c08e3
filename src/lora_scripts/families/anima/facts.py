"""Anima, as facts."""

from __future__ import annotations

from lora_scripts.families.anima.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.facts import Drawing, Kept
from lora_scripts.families.flow.facts import QWEN, flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes

FACTS = flow_facts(
    "anima",
    FILES,
    example="anima-base-v1.0.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: ".attn1." in path or ".attn2." in path,
        "feed_forward": lambda path: ".ff." in path,
        "modulation": lambda path: path.startswith("transformer.transformer_blocks.") and ".norm" in path,
    },
    lora=flow_lora("anima", "Anima/lora", loader="AnimaLoraLoaderMixin", civitai="Anima", tag="anima"),
    recipes=recipes(
        rank=("16", "8 for a person or a thing; a file of 46 MB"),
        of_one="8",
        rates="2e-5 to 1e-4",
        batch="2 or 4 where the memory allows it",
        fp8="",
    ),
    kept={1956: Kept(13317, 470)},
    coder=QWEN,
    drawn=Drawing(30, 4.0),
)
