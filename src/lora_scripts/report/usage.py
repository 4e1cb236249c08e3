"""What a person types to use the file: a prompt's tag, a program for diffusers, a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.report.data import UNMEASURED
from lora_scripts.units import typed

if TYPE_CHECKING:
    from lora_scripts.report.data import LoraFile


ONE_FILE = (".safetensors", ".gguf")
MEASURED = "strength.json"
"""In a run's folder: the strength that was measured of its finished file."""


def measured(folder: Path, autov3: str | None = None) -> tuple[float, str] | None:
    """The strength that a run recommends, and why; None where it measured none, or that of another file than this."""
    try:
        told = json.loads((folder / MEASURED).read_text("utf-8"))
        return (float(told["strength"]), str(told["reason"])) if autov3 in (None, told["lora"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tag(stem: str, strength: float = UNMEASURED, trigger: str = "") -> str:
    """What a person writes in a prompt to use the file: the tag, and behind it the word that calls the LoRA."""
    return f"<lora:{stem}:{strength:g}> {trigger}".rstrip()


def chat_command(base: str | Path, lora: str | Path) -> str:
    """What a person types to talk to a language model with a LoRA on it."""
    return typed(["lora-scripts", "chat", "--base", str(base), "--lora", f"{lora}:1"])


def diffusers_code(
    lora: LoraFile, prompt: str, strength: float, base: str, pipeline: str, *, edits: bool = False
) -> str:
    """A complete program; names and prompts are Python literals. `edits`: it draws from a picture.

    `base`: its file, its folder or its name on Hugging Face; empty where nobody knows. `pipeline`: diffusers' class
    that opens it as one file; without one a folder has to be named.
    """
    load = "from diffusers.utils import load_image\n" if edits else ""
    shown = ', image=load_image("path/to/the/picture.png")' if edits else ""
    kind, way = "DiffusionPipeline", "from_pretrained"
    if base.lower().endswith(ONE_FILE):
        kind, way, base = (pipeline, "from_single_file", base) if pipeline else (kind, way, "")
    return (
        f"from diffusers import {kind}\n{load}\n"
        f"pipe = {kind}.{way}({_literal(base or 'path/to/the/base/model')})\n"
        f'pipe.load_lora_weights(".", weight_name={_literal(lora.name)}, adapter_name="lora")\n'
        f'pipe.set_adapters("lora", {strength:g})\n'
        f"prompt = {_literal(prompt or 'your prompt')}\n"
        f'pipe(prompt=prompt{shown}).images[0].save("picture.png")\n'  # some take a picture first
    )


def _literal(text: str) -> str:
    """A Python string in double quotes: JSON's escapes are Python's too."""
    return json.dumps(text, ensure_ascii=False)
