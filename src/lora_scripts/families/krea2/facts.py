"""Krea 2, as facts."""

from __future__ import annotations

from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.krea2.check import CHECKPOINT, FILES, folder_kind, kind_of

_BLOCKS = "transformer.transformer_blocks."
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
    previews=(
        Setting("targets", '["*"]', "every layer, as its makers advise; [attention] for a long run"),
        Setting("sample_cfg", "4.5", "closeness of previews to the prompt, Krea's own 3.5; of Turbo 1"),
        Setting("sample_steps", "28", "of previews; 52 draw finer; of Turbo 8"),
    ),
    bucket_step=16,
)
