"""FLUX.1, as facts."""

from __future__ import annotations

from lora_scripts.families.facts import Setting
from lora_scripts.families.flow.facts import flow_facts, flow_lora
from lora_scripts.families.flux1.check import CHECKPOINT, FILES, KONTEXT, folder_kind, kind_of

_MLP = (".ff.", ".ff_context.", ".proj_mlp", ".proj_out")
_MODULATION = (".norm1.", ".norm1_context.", ".norm.linear")
FACTS = flow_facts(
    "flux1",
    FILES,
    example="flux1-dev.safetensors",
    mergeable=(CHECKPOINT, KONTEXT),
    kind_of=kind_of,
    folder_kind=folder_kind,
    groups={
        "attention": lambda path: ".attn." in path,
        "feed_forward": lambda path: any(mark in path for mark in _MLP),
        "modulation": lambda path: any(mark in path for mark in _MODULATION),
        "double": lambda path: path.startswith("transformer.transformer_blocks."),
        "single": lambda path: path.startswith("transformer.single_transformer_blocks."),
    },
    lora=flow_lora("flux1", "flux-1-dev/lora", loader="FluxLoraLoaderMixin", civitai="Flux.1 D", tag="flux"),
    previews=(
        Setting("sample_cfg", "3.5", "guidance of previews, which dev is told; schnell knows none"),
        Setting("sample_steps", "28", "of previews; of schnell 4"),
    ),
    negative=False,
)
