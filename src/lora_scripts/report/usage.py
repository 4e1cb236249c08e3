"""How to install and call the file in the programs that people use."""

from __future__ import annotations

import json
from html import escape

from .data import LoraFile
from .parts import copyable, section, tag


def usage(lora: LoraFile, prompt: str) -> str:
    """The section "Use it": where the file goes and what to type, for A1111, ComfyUI and diffusers."""
    web_ui = (
        f"<h3>Stable Diffusion WebUI</h3><p>Copy {_file(lora)} into</p>{copyable('models/Lora')}"
        "<p>and write in the prompt, near 1 for a strong effect, below 0.5 for a light touch:</p>"
        f"{copyable(tag(lora.stem))}"
        "<p>With the Additional Networks extension the folder is</p>"
        f"{copyable('extensions/sd-webui-additional-networks/models/lora/')}"
    )
    comfy = (
        f"<h3>ComfyUI</h3><p>Copy {_file(lora)} into</p>{copyable('models/loras')}"
        "<p>and put a <b>Load LoRA</b> node between the checkpoint and the sampler; its strength is the number of the "
        "tag.</p>"
    )
    python = f"<h3>diffusers</h3><p>In Python, beside the file:</p>{copyable(diffusers_code(lora, prompt), block=True)}"
    cards = "".join(f'<div class="card">{card}</div>' for card in (web_ui, comfy))
    return section("Use it", "One file; nothing else is needed.", f'<div class="cards">{cards}</div>{python}')


def diffusers_code(lora: LoraFile, prompt: str) -> str:
    """A complete program but for the base model's folder; names and prompts are Python literals."""
    return (
        "from diffusers import DiffusionPipeline\n\n"
        'pipe = DiffusionPipeline.from_pretrained("path/to/the/base/model")\n'
        f'pipe.load_lora_weights(".", weight_name={_literal(lora.name)}, adapter_name="lora")\n'
        'pipe.set_adapters("lora", 0.8)\n'
        f"prompt = {_literal(prompt or 'your prompt')}\n"
        'pipe(prompt).images[0].save("picture.png")\n'
    )


def _literal(text: str) -> str:
    """A Python string in double quotes: JSON's escapes are Python's too."""
    return json.dumps(text, ensure_ascii=False)


def _file(lora: LoraFile) -> str:
    return f"<b>{escape(lora.name)}</b>"
