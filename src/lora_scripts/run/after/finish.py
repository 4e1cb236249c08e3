"""After the last step: the final file, its proof, the pictures with and without it, the report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.image import on_white
from lora_scripts.data.scan import Sample
from lora_scripts.data.trigger import Trigger, calling
from lora_scripts.events import Note, Saved, Sink
from lora_scripts.families import table
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.generate.command import save
from lora_scripts.generate.known_by import lora_hash
from lora_scripts.loras.proof import UNREAD_BY
from lora_scripts.report.data import (
    COMPARED,
    PREVIEWS,
    THUMBNAIL,
    THUMBNAILS,
    Comparison,
    Kept,
    LoraFile,
    Nearest,
    ReportData,
    Strength,
    StrengthRow,
)
from lora_scripts.report.page import render
from lora_scripts.report.usage import MEASURED
from lora_scripts.run.after import base_kept, copies, strengths
from lora_scripts.run.after.copies import thumbnail
from lora_scripts.run.after.worn import Worn
from lora_scripts.run.configs import dump_config
from lora_scripts.run.heldout import Measuring
from lora_scripts.run.parts import HeldOut, Model
from lora_scripts.run.previews import Preview, infotext
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.train.feed import Feed
from lora_scripts.train.optim import Rates
from lora_scripts.train.progress import Board
from lora_scripts.train.state import RunState

STRENGTHS = (0.0, 0.4, 0.6, 0.8, 1.0)
NEWER = frozenset({"Forge", "SD.Next"})
"""Programs that know newer models in newer versions, and are named for them though `LoraFacts.unread_by` has them."""
ROWS = 2
"""Prompts that are drawn at every strength."""

Cells = Mapping[tuple[int, float], Image.Image]
"""(number of the preview, strength) -> picture"""


def report_pictures(worn: Worn, previews: Sequence[Preview], *, short: bool) -> dict[tuple[int, float], Image.Image]:
    """Draws with the exported file, not with the weights in memory; `short`: without it and with it alone."""
    rows = 0 if short else ROWS
    wanted = [(i, s) for i in range(len(previews)) for s in (STRENGTHS if i < rows else (0.0, 1.0))]
    return {(i, strength): worn.draw(previews[i], strength) for i, strength in wanted}


def made_from(preview: Preview) -> list[Image.Image]:
    """What the page shows of it."""
    return [image for path in preview.references[:2] if (image := thumbnail(path, 512)) is not None]


def reported(config: TrainConfig, previews: Sequence[Preview]) -> Sequence[Preview]:
    """Those of all previews that are drawn in the end."""
    return previews[: 1 if config.report == "one" else COMPARED]


def drawn_in_all(config: TrainConfig, previews: Sequence[Preview], samples: Sequence[Sample], held: HeldOut) -> int:
    """How many pictures `report_pictures` and `look` draw, of a run with these previews."""
    previews = reported(config, previews)
    if config.report != "full":
        return len(previews) * 2
    count = len(previews) * 2 + min(len(previews), ROWS) * (len(STRENGTHS) - 2)
    if held.on:
        count += sum(q.preview not in previews for q in copies.questions(config, samples, held.samples))
        count += base_kept.DRAWN if calling(config.named_words, [sample.caption for sample in samples]) else 0
    return count


def save_last_previews(
    folder: RunFolder,
    config: TrainConfig,
    model: Model,
    previews: Sequence[Preview],
    drawn: Cells,
    step: int,
    board: Board,
    sink: Sink,
) -> None:
    """The file's effect at full strength is the last preview, in TensorBoard too."""
    autov3 = lora_hash(folder.final)
    for i, preview in enumerate(previews):
        path = folder.sample(step, i + 1)
        save(path, drawn[i, 1.0], infotext(config, model, preview, autov3))
        board.picture(step, f"preview/{i + 1}", drawn[i, 1.0], preview.prompt)
        sink(Saved("preview", path, step))


def save_strength(folder: RunFolder, strength: Strength | None) -> None:
    """Beside the file, under its hash: of another file it says nothing."""
    if strength is not None:
        told = {"lora": lora_hash(folder.final), "strength": strength.best, "reason": strength.reason}
        io.write_text(folder.path / MEASURED, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Seen:
    """What the finished file's pictures tell."""

    strength: Strength | None
    copies: Nearest | None
    base: Kept | None

    def tell(self, sink: Sink) -> None:
        """In words."""
        if self.copies is not None:
            sink(Note(self.copies.verdict))
        for found in (self.base, self.strength):
            if found is not None:
                sink(Note(found.words))


def look(
    worn: Worn,
    config: TrainConfig,
    feed: Feed,
    held: HeldOut,
    samples: Sequence[Sample],
    previews: Sequence[Preview],
    drawn: Cells,
) -> Seen:
    """Measures the pictures, and draws what else is needed for it; of the strength alone where nothing is measured,
    and nothing for a short report."""
    if config.report != "full":
        return Seen(None, None, None)
    strength = strengths.measure(worn.family, feed, {key: drawn[key] for key in drawn if key[0] < ROWS})
    if not held.on:
        return Seen(strength, None, None)
    whole = {previews[i]: image for (i, at), image in drawn.items() if at == 1.0}
    found = copies.look(worn, config, feed, held.feed, whole)
    trigger = calling(config.named_words, [sample.caption for sample in samples])
    if trigger is None:
        return Seen(strength, found, None)
    calls = [i for i, p in enumerate(previews) if trigger.stands_in(p.prompt)]
    called = [(drawn[i, 0.0], drawn[i, 1.0]) for i in calls or range(len(previews))]
    return Seen(strength, found, base_kept.keeps_base(worn, config, trigger.phrase, called))


def report(
    path: Path,
    folder: RunFolder,
    config: TrainConfig,
    *,
    proof: str,
    rows: Sequence[tuple[str, str]],
    previews: Sequence[Preview],
    drawn: Cells,
    state: RunState,
    rates: Rates,
    measuring: Measuring,
    seen: Seen,
    samples: Sequence[Sample],
    trigger: Trigger | None,
) -> None:
    """Writes report.html."""
    lora, facts = folder.final, table.find(config.base_model)
    small = [(thumbnail(s.path, THUMBNAIL), s.caption) for s in samples[:THUMBNAILS]]
    at = [s for s in STRENGTHS if (0, s) in drawn and config.report == "full"]
    data = ReportData(
        name=folder.name,
        lora=LoraFile(lora.name, lora.stat().st_size, model_hashes(lora).sha256),
        verification=proof,
        unread_by=[*UNREAD_BY.get(config.adapter, ()), *(facts.lora.unread_by - NEWER)],
        edit_node=facts.lora.edit_node,
        base=str(config.base_model),
        pipeline=facts.lora.pipeline,
        language=config.language,
        warning=measuring.warning,
        trigger=trigger,
        facts=[*rows, ("finished", time.strftime("%Y-%m-%d %H:%M"))],
        comparisons=[
            Comparison(p.prompt, p.seed, drawn[i, 0.0], drawn[i, 1.0], made_from(p)) for i, p in enumerate(previews)
        ],
        strengths=[StrengthRow(previews[0].prompt, previews[0].seed, [(s, drawn[0, s]) for s in at])] if at else [],
        strength=seen.strength,
        kept=seen.base,
        previews=_previews(folder, [p.prompt for p in previews]),
        loss=list(enumerate(state.losses, 1)),
        learning_rate=rates.curve(config.learning_rate, state.total, state.step),
        held_out=measuring.curve(),
        advice=[str(one) for one in measuring.advice],
        nearest=seen.copies,
        thumbnails=[(image, caption) for image, caption in small if image is not None],
        config_text=dump_config(config),
        versions=state.versions,
    )
    io.write_text(path, render(data))


def _previews(folder: RunFolder, prompts: Sequence[str]) -> list[tuple[int, list[tuple[str, Image.Image | None]]]]:
    """The pictures in samples/, by step; those of an earlier, interrupted start are there too. What can no longer be
    read is left out."""
    rows = []
    for step in folder.sampled():
        rows.append((step, [(prompt, _drawn(folder.sample(step, n))) for n, prompt in enumerate(prompts, 1)]))
    if len(rows) <= PREVIEWS:
        return rows
    return [rows[round(i * (len(rows) - 1) / (PREVIEWS - 1))] for i in range(PREVIEWS)]


def _drawn(path: Path) -> Image.Image | None:
    with suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
        return on_white(image)
    return None
