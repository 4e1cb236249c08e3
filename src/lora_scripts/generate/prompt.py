"""The WebUI's "<lora:name:0.8>" in a prompt, and where the LoRA of that name lies. Without torch.

Two numbers are the strengths in the UNet and in the text encoder: <lora:name:0.8:0.5>, or by name, as the WebUI reads
them too, <lora:name:unet=0.8:te=0.5>.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_scripts.config.values import did_you_mean
from lora_scripts.errors import UserError
from lora_scripts.families import table
from lora_scripts.formats.below import models_below

_TAG = re.compile(r"<lora:([^<>:]+)((?::[^<>:]*)*)>")
# Anything that starts like a tag but is none, to its end or as far as the comma; also in the brackets of an input
# method, and a name with a weight where the word lora was forgotten.
_BROKEN = re.compile(
    r"[<＜〈《]\s*(lora|lyco|hypernet)\b[^<>＞〉》,\n]*[>＞〉》]?|<[^<>,:：\n]+[:：]\s*[-+]?[0-9.]+\s*>", re.IGNORECASE
)
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_FORM = "write <lora:name:0.8>, or <lora:name:0.8:0.5> for UNet and text encoder"


@dataclass(frozen=True)
class LoraCall:
    """A LoRA that a prompt asks for, by the stem of its file, and how strongly."""

    name: str
    unet: float
    """Strength in the UNet."""
    text: float
    """Strength in the text encoder."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What `lora-scripts generate` was asked for; `size` (width, height) in pixels, None: the base model's own, or that
    of `image`."""

    base: Path
    prompt: str | None
    """Or a `from_file`."""
    output: Path | None = None
    """None: a free name, `naming_pictures.USUAL` or one with a number."""
    from_file: Path | None = None
    negative_prompt: str | None = None
    """None, as of `steps` and `cfg`: as the base is usually drawn with."""
    seed: int = 42
    steps: int | None = None
    cfg: float | None = None
    size: tuple[int, int] | None = None
    lora_dir: Path = Path("output")
    vae: Path | None = None
    text_encoder: Sequence[Path] = ()
    """Of a base in separate files."""
    count: int = 1
    batch: int = 1
    """Pictures that are drawn together."""
    scheduler: str | None = None
    image: Path | None = None
    """A picture to begin with."""
    reference: Sequence[Path] = ()
    """Pictures to draw from, for a base that edits; a prompt of a file may name others."""
    denoise: float | None = None
    """How much of it is drawn anew, the WebUI's denoising strength; None without `image`."""
    merged: bool = False
    """LoRAs are added to the weights instead of computed beside them."""
    device: str = "auto"
    precision: str = "auto"
    prediction: Literal["epsilon", "v", "flow"] | None = None
    """What the base predicts; None: what it says of itself."""
    zero_terminal_snr: bool | None = None
    clip_skip: int = 1
    """As the key of a config."""


def parse_prompt(text: str) -> tuple[str, list[LoraCall]]:
    """The prompt without its `<lora:name:weight>` tags, and the LoRAs they call, in order of their first tag.

    One weight is for both parts, two are for UNet and text encoder. It may be left out (1), negative, or above 1. Each
    tag is applied, so the weights of tags with the same name add up. Raises UserError, with the piece, for what starts
    like a tag and is none.
    """
    weights: dict[str, tuple[float, float]] = {}
    clean, end = "", 0
    for match in _TAG.finditer(text):
        name, (unet, te) = match[1].strip(), _weights(match)
        before = weights.get(name, (0.0, 0.0))
        weights[name] = before[0] + unet, before[1] + te
        clean, end = _join(clean, _without_broken(text[end : match.start()])), match.end()
    if not weights:
        return _without_broken(text).strip(), []
    clean = _join(clean, _without_broken(text[end:])).strip().rstrip(",， \t\n")
    return clean, [LoraCall(name, *both) for name, both in weights.items()]


def by_name(text: str) -> str:
    """The prompt with two bare strengths of a tag by their names: the WebUI takes bare ones in the other order."""

    def named(match: re.Match[str]) -> str:
        strengths = match[2].split(":")[1:]
        if len(strengths) != 2 or "=" in match[2]:
            return match[0]
        return f"<lora:{match[1]}:unet={strengths[0].strip()}:te={strengths[1].strip()}>"

    return _TAG.sub(named, text)


def _without_broken(piece: str) -> str:
    """A piece of a prompt that holds no whole tag; UserError where it holds the beginnings of one."""
    if broken := _BROKEN.search(piece):
        hint = _FORM if (broken[1] or "lora").lower() == "lora" else "only <lora:name:0.8> is known"
        raise UserError(f"the prompt holds {broken[0].strip()!r}, which calls no LoRA", hint=hint)
    return piece


def _weights(match: re.Match[str]) -> tuple[float, float]:
    """(UNet, text encoder) of one tag; UserError where the name or a number is none."""
    if not match[1].strip():
        raise UserError(f"{match[0]!r} in the prompt has no name", hint=_FORM)
    parts = [part.strip() for part in match[2].split(":")[1:]]
    if not parts:
        return 1.0, 1.0
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    numbers = {key.strip(): _number(text, match) for key, text in named.items()}
    if numbers:
        if len(numbers) < len(parts) or not numbers.keys() <= {"unet", "te"}:
            raise UserError(f"{match[0]!r} in the prompt names other things than unet and te", hint=_FORM)
        te = numbers.get("te", 1.0)  # alone it counts for both, as in the WebUI
        return numbers.get("unet", te), te
    if len(parts) > 2:
        raise UserError(f"{match[0]!r} in the prompt has {len(parts)} weights", hint=_FORM)
    both = [_number(part, match) for part in parts]
    return both[0], both[-1]


def _number(text: str, match: re.Match[str]) -> float:
    text = text.strip()
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise UserError(f"the weight of {match[0]!r} in the prompt is not a number", hint=_FORM)
    return float(text)


def _join(left: str, right: str) -> str:
    """Two pieces of a prompt between which a tag stood, without the comma or space that belonged to the tag."""
    if not left.strip() or left.rstrip().endswith((",", "，")):
        right = right.lstrip(",， \t")
    left = left.rstrip(" \t")
    if not left or not right.strip() or left.endswith(("(", "，")) or right.lstrip()[0] in ",，.;)":
        return left + right.lstrip(" \t")
    return f"{left} {right.lstrip()}"


def find_lora(name: str, lora_dir: Path) -> Path:
    """The file `name`.safetensors in `lora_dir` or any folder below it, but for resume states, caches and
    `embeddings/`.

    Of several, the final file of a run (`name/name.safetensors`) is taken. UserError if none or no single one is left.
    """
    if not lora_dir.is_dir():
        raise UserError(f"<lora:{name}> is not found: {lora_dir} is not a folder", hint="name one with --lora-dir")
    below, _ = models_below(lora_dir, ".safetensors")
    files = [path for path in below if "embeddings" not in path.relative_to(lora_dir).parts[:-1]]
    named = [path for path in files if path.stem == name]
    final = [path for path in named if path.parent.name == name]
    if len(final) == 1 or len(named) == 1:
        return (final if len(final) == 1 else named)[0]
    if named:
        listed = ", ".join(map(str, named))
        raise UserError(f"<lora:{name}> is several files: {listed}", hint="name a folder with one with --lora-dir")
    raise UserError(f"there is no {name}.safetensors in {lora_dir}", hint=_nearest(name, files))


def _nearest(name: str, files: list[Path]) -> str:
    stems = sorted({path.stem for path in files})
    if not stems:
        return "it holds no LoRA at all: train one, or name another folder with --lora-dir"
    # The WebUI's name has no suffix and no folder.
    plain = name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")
    if near := (plain if plain in stems else did_you_mean(plain, stems)):
        return f"did you mean <lora:{near}:0.8>?"
    # Trials of `tune` last: a person seldom means one.
    loras = sorted({("tune" in path.parts, path.stem) for path in files if not _is_base(path)})
    return f"there is {', '.join(stem for _, stem in loras[:8])}" + (" …" if len(loras) > 8 else "")


def _is_base(path: Path) -> bool:
    try:
        table.find(path)
        return True
    except UserError:
        return False
