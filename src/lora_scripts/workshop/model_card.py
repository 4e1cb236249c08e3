"""`lora-scripts card`: what people and WebUIs are told of a LoRA, from its file, its run and a grid of it."""

from __future__ import annotations

import io as memory
import json
import re
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
from lora_scripts.generate.png import read_infotext
from lora_scripts.loras.metadata import AGREEMENT
from lora_scripts.report.card import Card, CardPicture, StrengthLine, civitai_info, readme, webui_json
from lora_scripts.report.data import UNMEASURED
from lora_scripts.report.usage import measured as of_run
from lora_scripts.units import percent
from lora_scripts.workshop.inspect import report_of

PREVIEW = 512
"""Pixels of the thumbnail's longer side, at most."""
MOST_PICTURES = 6
UNKNOWN = LoraFacts("", "", "")
"""What is said of a family that is not known."""
_TAG = re.compile(r" <lora:[^<>]*>$")
PROMPT_KEPT, STYLE_NEAR = 0.5, 0.05
"""See `recommended`."""


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


@dataclass(frozen=True)
class _Evidence:
    """A grid's pictures of this LoRA, and its measures by strength; without a grid, the run's last previews."""

    pictures: list[CardPicture]
    lines: list[StrengthLine]


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
    autov3, run = inspected.hashes["AutoV3"], report or lora.parent
    evidence = _from_grid(grid, autov3) if grid else _Evidence([], [])
    reason = "as its maker recommends"
    if strength is None:
        unknown = UNMEASURED, "that of the training; none was measured"
        strength, reason = recommended(evidence.lines) or of_run(run, autov3) or unknown
    shown = _at(strength, evidence.pictures or _from_run(run, autov3))
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
        strength=strength,
        reason=reason,
        lines=evidence.lines,
        pictures=shown,
    )
    files = _files(card, lora, output or lora.with_name(f"{lora.stem}-card"))
    _write(files, overwrite=overwrite, sink=sink)
    return WrittenCard(
        files=tuple(files),
        license=license,
        base_model=card.base_model,
        base_model_asked=base_model is not None,
        strength=strength,
        reason=reason,
        pictures=tuple(picture.path for picture in shown),
    )


def _at(strength: float, pictures: Sequence[CardPicture]) -> list[CardPicture]:
    """Some of those that were drawn at the strength nearest to it."""
    nearest = min((abs(picture.strength - strength) for picture in pictures), default=0.0)
    return [picture for picture in pictures if abs(picture.strength - strength) == nearest][:MOST_PICTURES]


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


def _from_grid(folder: Path, autov3: str) -> _Evidence:
    path = folder / "grid.json"
    try:
        grid = json.loads(path.read_text("utf-8"))
        # One that stands there twice, as the best step that is the last, counts once.
        cells = list({c["file"]: c for c in grid["cells"] if c["loras"] == [autov3]}.values())
        pictures = [
            CardPicture(folder / c["file"], f"images/{Path(c['file']).name}", c["prompt"], c["negative"], c["seed"],
                        c["steps"], c["cfg"], c["scheduler"], tuple(c["size"]), c["strength"])
            for c in cells
        ]  # fmt: skip
        rows = [row for row in grid["rows"] if row["loras"] in ([], [autov3])]
        lines = [
            StrengthLine(row["strength"] if row["loras"] else 0.0, row["pixels"], row["style"], row["prompt"])
            for row in rows
        ]
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=path, hint="draw it with lora-scripts grid") from None
    except (ValueError, KeyError, TypeError):
        raise UserError("this is no grid of lora-scripts", file=path, hint="draw it again") from None
    if not pictures:
        raise UserError("this grid has no picture of the LoRA alone", file=path, hint="draw one with --loras")
    lost = next((picture.path for picture in pictures if not picture.path.is_file()), None)
    if lost is not None:
        raise UserError("this picture of the grid is gone", file=lost, hint="draw the grid again")
    return _Evidence(pictures, sorted({line.strength: line for line in lines}.values(), key=lambda line: line.strength))


def _from_run(folder: Path, autov3: str) -> list[CardPicture]:
    """The last pictures in samples/, which are drawn with this very file at full strength, as they say themselves."""
    files = sorted((folder / "samples").glob("step*-*.png"))
    pictures = []
    for path in [file for file in files if file.name.partition("-")[0] == files[-1].name.partition("-")[0]]:
        with Image.open(path) as image:
            size, text = image.size, str(image.info.get("parameters", ""))
        prompt, negative, rows = read_infotext(text)
        if autov3 not in rows.get("Lora hashes", ""):
            continue
        sampler = " ".join(filter(None, [rows.get("Sampler"), rows.get("Schedule type")]))
        pictures.append(
            CardPicture(path, f"images/{path.name}", _TAG.sub("", prompt), negative, int(rows["Seed"]),
                        int(rows["Steps"]), float(rows["CFG scale"]), sampler, size, 1.0)
        )  # fmt: skip
    return pictures


def recommended(lines: Sequence[StrengthLine]) -> tuple[float, str] | None:
    """The strength to recommend, and why; None where nothing was measured.

    Of the strengths at which at least half as much of the prompt is found as by the base in its own pictures, the
    weakest that is within 0.05 of the best likeness to the training style, where more than 1 counts as 1. Without
    likeness, the strongest of them.
    """
    tried = [line for line in lines if line.strength > 0]
    base = next((line.prompt for line in lines if line.strength == 0), None)
    if not tried:
        return None
    usable = [line for line in tried if base is None or base <= 0 or line.prompt >= PROMPT_KEPT * base]
    if not usable:
        best = max(tried, key=lambda line: line.prompt)
        return best.strength, "the one that keeps most of the prompt; all of them lose more than half of it"
    styles = {line.strength: min(line.style, 1.0) for line in usable if line.style is not None}
    if not styles:
        return max(line.strength for line in usable), "the strongest at which the prompt is kept"
    top = max(styles.values())
    chosen = min(strength for strength, style in styles.items() if style >= top - STYLE_NEAR)
    return chosen, f"{percent(styles[chosen])} of the training style, with the prompt kept"


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
