"""The texts of a model card: Markdown with the Hugging Face header, and the JSON that WebUIs read beside a LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data import LoraFile
from .parts import tag
from .usage import diffusers_code


@dataclass(frozen=True)
class CardPicture:
    """A picture that the LoRA drew, and how."""

    path: Path
    name: str
    """Relative to the card."""
    prompt: str
    negative: str
    seed: int
    steps: int
    cfg: float
    sampler: str
    size: tuple[int, int]
    strength: float


@dataclass(frozen=True)
class StrengthLine:
    """What a grid measured at one strength; 0 is the base."""

    strength: float
    pixels: float
    style: float | None
    prompt: float


@dataclass(frozen=True)
class Card:
    """Everything that is told."""

    stem: str
    """The LoRA's name."""
    family: str
    size: int
    """Bytes."""
    hashes: Mapping[str, str]
    metadata: Mapping[str, str]
    ranks: Sequence[int]
    alphas: Sequence[float]
    base_model: str
    license: str | None
    description: str
    triggers: Sequence[str]
    strength: float
    reason: str
    lines: Sequence[StrengthLine]
    pictures: Sequence[CardPicture]

    @property
    def trigger(self) -> str:
        return ", ".join(self.triggers)


# Key of the metadata -> what people call it.
_FACTS = {
    "ss_sd_model_name": "base",
    "modelspec.resolution": "resolution",
    "ss_num_train_images": "pictures (with repeats)",
    "ss_steps": "steps",
    "ss_num_epochs": "epochs",
    "ss_total_batch_size": "batch size",
    "ss_gradient_accumulation_steps": "gradient accumulation",
    "ss_learning_rate": "learning rate",
    "ss_text_encoder_lr": "learning rate of the text encoder",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule",
    "ss_min_snr_gamma": "Min-SNR γ",
    "ss_noise_offset": "noise offset",
    "ss_clip_skip": "clip skip",
    "ss_mixed_precision": "precision",
    "ss_seed": "seed",
    "modelspec.prediction_type": "prediction",
    "modelspec.date": "date",
}
_VERSIONS = {"Stable Diffusion 1.x": ("SD1", "SD 1.5"), "SDXL": ("SDXL", "SDXL 1.0")}
"""Family -> what the WebUI and civitai call it."""


def readme(card: Card) -> str:
    """README.md for Hugging Face."""
    parts = [
        _header(card),
        f"# {card.stem}\n",
        f"{card.description}\n" if card.description else "",
        "<Gallery />\n" if card.pictures else "",
        _use(card),
        _strengths(card),
        _training(card),
        _file(card),
    ]
    return "\n".join(part for part in parts if part)


def _header(card: Card) -> str:
    rows = [f"base_model: {_yaml(card.base_model)}" if card.base_model else "# base_model: its name on Hugging Face"]
    license_ = f"license: {_yaml(card.license)}" if card.license else "# license: choose one, as creativeml-openrail-m"
    rows += [license_, "library_name: diffusers", "pipeline_tag: text-to-image"]
    rows += ["tags:", "- text-to-image", "- stable-diffusion", "- lora", "- diffusers", "- template:sd-lora"]
    rows.append(f"instance_prompt: {_yaml(card.trigger) if card.trigger else 'null'}")
    if card.pictures:
        rows.append("widget:")
        for picture in card.pictures:
            rows += [f"- text: {_yaml(picture.prompt)}", "  output:", f"    url: {_yaml(picture.name)}"]
    return "\n".join(["---", *rows, "---", ""])


def _yaml(text: str) -> str:
    """A JSON string is a YAML string."""
    return json.dumps(text, ensure_ascii=False)


def _use(card: Card) -> str:
    trigger = (
        f"Trigger words: **{_plain(card.trigger)}**"
        if card.trigger
        else "It needs no trigger word: its effect comes with the tag alone."
    )
    lora = LoraFile(f"{card.stem}.safetensors", card.size, card.hashes["sha256"])
    prompt = card.pictures[0].prompt if card.pictures else card.trigger
    code = diffusers_code(lora, prompt).replace('"lora", 0.8', f'"lora", {card.strength:g}')
    return (
        f"## Use it\n\n{trigger}\n\nIn a WebUI, put the file into `models/Lora` and write\n\n"
        f"```\n{tag(card.stem, card.strength)}\n```\n\nIn Python:\n\n```python\n{code}```\n"
    )


def _strengths(card: Card) -> str:
    text = f"## How strong\n\nRecommended: **{card.strength:g}** ({card.reason}).\n"
    if not card.lines:
        return text
    style = any(line.style is not None for line in card.lines)
    heads = [
        "strength",
        "difference from the base",
        *(["likeness to the training style"] if style else []),
        "prompt found",
    ]
    rows = [heads, ["---:"] * len(heads)]
    for line in card.lines:
        likeness = ["–" if line.style is None or not line.strength else f"{line.style:.0%}"] if style else []
        name = f"{line.strength:g}" if line.strength else "0, the base"
        rows.append([name, f"{line.pixels:.1%}", *likeness, f"{line.prompt:.1%}"])
    note = (
        "Recommended is the weakest strength within 5 points of the best likeness, of those at which at least half as "
        "much of the prompt is found as by the base in its own pictures.\n"
    )
    return f"{text}\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{note}"


def _training(card: Card) -> str:
    facts = [("family", card.family)]
    facts += [(name, _span(values)) for name, values in (("rank", card.ranks), ("alpha", card.alphas)) if values]
    told = ((name, card.metadata.get(key, "")) for key, name in _FACTS.items())
    facts += [(name, value) for name, value in told if value and value != "None"]
    rows = "\n".join(f"| {name} | {_plain(value)} |" for name, value in facts)
    return f"## Training\n\n| | |\n|---|---|\n{rows}\n"


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} … {values[-1]:g}"


def _file(card: Card) -> str:
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in card.hashes.items() if value)
    return f"## The file\n\n| | |\n|---|---|\n| name | `{card.stem}.safetensors` |\n{rows}\n"


def _plain(text: str) -> str:
    """Safe inside a line or a cell of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def webui_json(card: Card) -> dict[str, object]:
    """NAME.json, the user metadata of A1111's WebUI."""
    return {
        "description": card.description,
        "sd version": _VERSIONS.get(card.family, ("Unknown", ""))[0],
        "activation text": card.trigger,
        "preferred weight": card.strength,
        "notes": f"strength {card.strength:g}: {card.reason}",
    }


def civitai_info(card: Card) -> dict[str, object]:
    """NAME.civitai.info, as the helpers of WebUIs keep it."""
    names = {"AutoV2": "AutoV2", "AutoV3": "AutoV3", "sha256": "SHA256"}
    return {
        "name": card.stem,
        "description": card.description or None,
        "trainedWords": list(card.triggers),
        "baseModel": _VERSIONS.get(card.family, ("", "Other"))[1],
        "model": {"name": card.stem, "type": "LORA", "nsfw": False, "poi": False},
        "files": [
            {
                "name": f"{card.stem}.safetensors",
                "sizeKB": card.size / 1024,
                "type": "Model",
                "primary": True,
                "metadata": {"format": "SafeTensor"},
                "hashes": {name: card.hashes[key].upper() for key, name in names.items()},
            }
        ],
        "images": [
            {
                "url": f"{card.stem}.preview.png",
                "width": picture.size[0],
                "height": picture.size[1],
                "nsfw": "None",
                "meta": {
                    "prompt": f"{picture.prompt} {tag(card.stem, picture.strength)}",
                    "negativePrompt": picture.negative,
                    "seed": picture.seed,
                    "steps": picture.steps,
                    "cfgScale": picture.cfg,
                    "sampler": picture.sampler,
                    "Size": f"{picture.size[0]}x{picture.size[1]}",
                },
            }
            for picture in card.pictures[:1]
        ],
    }
