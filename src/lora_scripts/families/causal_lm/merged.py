"""What a merged model has beside its weights, so that it talks as it was trained to: template, stops, Modelfile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lora_scripts.families.causal_lm.load import open_folder
from lora_scripts.families.causal_lm.modelfile import modelfile
from lora_scripts.families.causal_lm.template import Template
from lora_scripts.families.causal_lm.tokens import load_tokenizer, stops_of

TEMPLATE = "chat_template.jinja"
"""In a LoRA's folder: the template that it was trained with."""


def template_of(loras: Sequence[Path]) -> str | None:
    """The template that the last of the LoRAs was trained with, where it is another than the model's own."""
    files = [path / TEMPLATE for path in loras if (path / TEMPLATE).is_file()]
    return files[-1].read_text(encoding="utf-8") if files else None


def beside(base: Path, loras: Sequence[Path]) -> dict[str, bytes]:
    """Name -> content. A model of running text, without a template, needs nothing."""
    folder, tokenizer, source = open_folder(base), load_tokenizer(base), template_of(loras)
    if source is None and tokenizer.chat_template is None:
        return {}
    template = Template(tokenizer, source or tokenizer.get_chat_template())
    files = {} if source is None else {TEMPLATE: source.encode()}
    stops = set(stops_of(folder, tokenizer))
    sign = template.end_of_turn
    if sign is not None and sign not in stops:
        told = {**folder.generation, "eos_token_id": sorted({*folder.stops, sign})}
        files["generation_config.json"] = (json.dumps(told, indent=2) + "\n").encode()
        stops.add(sign)
    written = modelfile(template, tokenizer.convert_ids_to_tokens(sorted(stops)))
    return files if written is None else files | {"Modelfile": written.encode()}
