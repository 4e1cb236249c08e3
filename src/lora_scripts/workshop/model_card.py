"""`lora-scripts card`: what people and WebUIs are told of a LoRA, from its file, its run and a grid of it."""

from __future__ import annotations

import io as memory
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_scripts.config.load import load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.captions import tags_of
from lora_scripts.data.image import on_white
from lora_scripts.data.listing import list_data
from lora_scripts.data.trigger import trigger_of
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Saved, Sink, ignore
from lora_scripts.families.facts import LoraFacts
from lora_scripts.families.table import FAMILIES, require_lora
from lora_scripts.formats import io
from lora_scripts.loras.metadata import AGREEMENT
from lora_scripts.report.card import Card, civitai_info, readme, webui_json
from lora_scripts.workshop.card_evidence import evidence_of
from lora_scripts.workshop.inspect import report_of

PREVIEW = 512
"""Pixels of the thumbnail's longer side, at most."""
UNKNOWN = LoraFacts("", "", "")
"""What is said of a family that is not known."""


@dataclass(frozen=True)
class WrittenCard:
    """A card, and the files beside the LoRA."""

    files: tuple[Path, ...]
    """That were written."""
    license: str | None
    base_model: str
    """Of the header; "" where nobody knows it."""
    base_model_asked: bool
    """That it was given, not looked up."""
    strength: float
    """The recommended one."""
    reason: str
    """Why that one."""
    pictures: tuple[Path, ...]
    """That the card shows."""


def write_card(
    lora: Path,
    *,
    grid: Path | None = None,
    report: Path | None = None,
    output: Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    trigger: str | None = None,
    strength: float | None = None,
    description: str = "",
    language: str | None = None,
    overwrite: bool = False,
    sink: Sink = ignore,
) -> WrittenCard:
    """Writes README.md with its pictures, NAME.preview.png, NAME.json and NAME.civitai.info.

    `grid` and `report` are folders of a grid and of a run; what is None is looked up; `language`: "en" or "zh".
    UserErrors before anything is written, also for files that are there.
    """
    require_lora(lora, "name a LoRA's file")
    inspected = report_of(lora)
    config = _config(lora, report)
    evidence = evidence_of(inspected.hashes["AutoV3"], grid, report or lora.parent, strength)
    family = next((facts.lora for facts in FAMILIES if facts.words == inspected.family), UNKNOWN)
    card = Card(
        stem=lora.stem,
        family=inspected.family,
        webui_family=family.webui,
        civitai_family=family.civitai,
        tags=family.hub_tags,
        size=inspected.size,
        hashes=inspected.hashes,
        metadata=inspected.metadata,
        plain=inspected.plain,
        ranks=inspected.lora.ranks if inspected.lora else [],
        alphas=inspected.lora.alphas if inspected.lora else [],
        base_model=base_model or inspected.metadata.get("ss_sd_model_name", "").removesuffix(".safetensors"),
        base=base_model or inspected.metadata.get("ss_sd_model_name", ""),
        pipeline=family.pipeline,
        license=license,
        description=description,
        triggers=[trigger] if trigger else _triggers(inspected.triggers, config),
        language=language or (config.language if config else "en"),
        agreement="" if trigger else inspected.metadata.get(AGREEMENT, ""),
        strength=evidence.strength,
        reason=evidence.reason,
        lines=evidence.lines,
        pictures=evidence.pictures,
    )
    files = _files(card, lora, output or lora.with_name(f"{lora.stem}-card"))
    _write(files, overwrite=overwrite, sink=sink)
    return WrittenCard(
        files=tuple(files),
        license=license,
        base_model=card.base_model,
        base_model_asked=base_model is not None,
        strength=evidence.strength,
        reason=evidence.reason,
        pictures=tuple(picture.path for picture in evidence.pictures),
    )


def _files(card: Card, lora: Path, output: Path) -> dict[Path, bytes]:
    files: dict[Path, bytes] = {output / "README.md": readme(card).encode()}
    files |= {output / picture.name: picture.path.read_bytes() for picture in card.pictures}
    if card.pictures:
        files[lora.with_suffix(".preview.png")] = _preview(card.pictures[0].path)
    files[lora.with_suffix(".json")] = _json(webui_json(card))
    files[lora.with_suffix(".civitai.info")] = _json(civitai_info(card))
    return files


def _write(files: Mapping[Path, bytes], *, overwrite: bool, sink: Sink) -> None:
    if not overwrite:
        others = [path for path, data in files.items() if path.exists() and path.read_bytes() != data]
        raise_all([UserError("is there already", file=path, hint="add --overwrite to replace it") for path in others])
    for path, data in files.items():
        io.make_folder(path.parent)
        io.write_atomic(path, data)
        sink(Saved("card", path))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _preview(path: Path) -> bytes:
    with Image.open(path) as image:
        small = on_white(image)
    small.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    buffer = memory.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def _config(lora: Path, report: Path | None) -> TrainConfig | None:
    """Of the run, named or found beside the file. It may have moved since: then it tells nothing."""
    path = (report or lora.parent) / "config.yaml"
    if not path.is_file():
        if report is not None:
            raise UserError("there is no config.yaml in this folder", file=report, hint="name a run's folder")
        return None
    try:
        return load_config(path)
    except UserError:
        return None


def _triggers(words: Sequence[tuple[str, int | None]], config: TrainConfig | None) -> list[str]:
    """What calls it: the file's own phrase, or what nearly all captions hold, in the metadata or in the run's data."""
    phrases = [word for word, count in words if count is None]
    if phrases:
        return phrases
    counts = [(word, count) for word, count in words if count is not None and count > 1]
    if counts:
        top = max(count for _, count in counts)
        return [word for word, count in counts if count >= 0.8 * top][:3]
    if config is None:
        return []
    if config.named_words:
        return [*config.named_words]
    if not config.train_data_dir.is_dir():
        return []
    try:
        listing = list_data(config.train_data_dir, config.metadata_path, allow_missing_captions=True)
    except UserError:
        return []
    captions = [listing.caption(name) for name in listing.images]
    begins = trigger_of(captions)
    if begins is not None:
        return [begins.phrase]
    tags = Counter(tag for caption in captions for tag in set(tags_of(caption)))
    return [tag for tag, count in tags.most_common(3) if count > 1 and count >= 0.8 * len(captions)]
