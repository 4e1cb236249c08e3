"""Krea 2, as facts."""

from __future__ import annotations

from pathlib import Path

from lora_scripts.families.facts import Drawing, Kept, Setting
from lora_scripts.families.flow.facts import QWEN, flow_facts, flow_lora
from lora_scripts.families.flow.recipes import recipes
from lora_scripts.families.flow.transformer import named_turbo
from lora_scripts.families.krea2.check import CHECKPOINT, FILES, folder_kind, kind_of
from lora_scripts.families.sd.check import index_of

_BLOCKS = "transformer.transformer_blocks."


def _drawn(path: Path) -> Drawing:
    """Turbo is the same model to every look but at what a folder says and at the name."""
    if index_of(path).get("is_distilled") or named_turbo(path):
        return Drawing(8, 1.0, steps_why="what Turbo was distilled to", cfg_why="Turbo knows no guidance")
    return Drawing(28, 4.5, steps_why="52 draw finer", cfg_why="closeness of previews to the prompt, Krea's own 3.5")


FACTS = flow_facts(
    "krea2",
    FILES,
    example="krea2_raw_bf16.safetensors",
    mergeable=(CHECKPOINT,),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: path.startswith(_BLOCKS) and ".attn." in path,
        "feed_forward": lambda path: path.startswith(_BLOCKS) and ".ff." in path,
        "text_fusion": lambda path: path.startswith("transformer.text_fusion."),
    },
    lora=flow_lora("krea2", "Krea-2/lora", loader="Krea2LoraLoaderMixin", civitai="Krea 2", tag="krea-2"),
    recipes=recipes(
        Setting("targets", '["*"]', "every layer, as its makers advise; [attention] for a long run"),
        rates="up to 3e-4",
        fp8="0.43 GB for each of the 28 large blocks",
    ),
    kept={12820: Kept(34937, 1487)},
    coder=QWEN,
    drawn=_drawn,
    bucket_step=16,
)
