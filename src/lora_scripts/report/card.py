"""The texts of a model card: Markdown with the Hugging Face header, and the JSON that WebUIs read beside a LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.report.data import LoraFile
from lora_scripts.report.environment import fill_markdown
from lora_scripts.report.usage import diffusers_code, tag
from lora_scripts.units import span


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
    """As people call it."""
    webui_family: str
    """As A1111's WebUI calls it,"""
    civitai_family: str
    """and as civitai does."""
    tags: Sequence[str]
    """Of the family, on Hugging Face."""
    size: int
    """Bytes."""
    hashes: Mapping[str, str]
    metadata: Mapping[str, str]
    plain: bool
    """That it is neither a DoRA nor a LyCORIS file, which diffusers does not read."""
    ranks: Sequence[int]
    alphas: Sequence[float]
    base_model: str
    base: str
    """What a program opens: the same with the end of a file's name."""
    pipeline: str
    """Diffusers' class that opens a base in one file; empty for none."""
    license: str | None
    description: str
    triggers: Sequence[str]
    language: str
    """en, or zh"""
    agreement: str
    """How many of the captions have them, "48 of 50"; empty where nobody knows."""
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


def readme(card: Card) -> str:
    """README.md for Hugging Face."""
    lora = LoraFile(f"{card.stem}.safetensors", card.size, card.hashes["sha256"])
    prompt = card.pictures[0].prompt if card.pictures else card.trigger
    return fill_markdown(
        "card.md",
        language=card.language,
        card=card,
        tag=tag(card.stem, card.strength, card.trigger),
        code=diffusers_code(lora, prompt, card.strength, card.base, card.pipeline) if card.plain else "",
        facts=_training(card),
    )


def _training(card: Card) -> list[tuple[str, str]]:
    facts = [("family", card.family)]
    facts += [(name, span(values)) for name, values in (("rank", card.ranks), ("alpha", card.alphas)) if values]
    stored = ((name, card.metadata.get(key, "")) for key, name in _FACTS.items())
    return facts + [(name, value) for name, value in stored if value and value != "None"]


def webui_json(card: Card) -> dict[str, object]:
    """NAME.json, the user metadata of A1111's WebUI."""
    return {
        "description": card.description,
        "sd version": card.webui_family,
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
        "baseModel": card.civitai_family,
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
