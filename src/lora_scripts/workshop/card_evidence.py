"""What was drawn with a LoRA and measured of it, for its card: a grid's cells, or a run's last previews."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_scripts.errors import UserError
from lora_scripts.generate.png import read_infotext
from lora_scripts.report.card import CardPicture, StrengthLine
from lora_scripts.report.data import UNMEASURED
from lora_scripts.report.usage import measured as of_run
from lora_scripts.units import percent

MOST_PICTURES = 6
_TAG = re.compile(r" <lora:[^<>]*>$")
PROMPT_KEPT, STYLE_NEAR = 0.5, 0.05
"""See `recommended`."""


@dataclass(frozen=True)
class Evidence:
    """At which strength to wear a LoRA, and what shows it."""

    strength: float
    """The recommended one."""
    reason: str
    """Why that one."""
    lines: list[StrengthLine]
    """A grid's measures, by strength."""
    pictures: list[CardPicture]
    """Drawn at the strength nearest to the recommended one."""


def evidence_of(autov3: str, grid: Path | None, run: Path, strength: float | None) -> Evidence:
    """Of the LoRA with this hash, from a grid; without one, or what it lacks, from its run. `strength`: what its maker
    recommends; None: as measured. UserErrors for a grid that is none, or not of this LoRA."""
    pictures, lines = _from_grid(grid, autov3) if grid else ([], [])
    reason = "as its maker recommends"
    if strength is None:
        unknown = UNMEASURED, "that of the training; none was measured"
        strength, reason = recommended(lines) or of_run(run, autov3) or unknown
    return Evidence(strength, reason, lines, _at(strength, pictures or _from_run(run, autov3)))


def _at(strength: float, pictures: Sequence[CardPicture]) -> list[CardPicture]:
    """Some of those that were drawn at the strength nearest to it."""
    nearest = min((abs(picture.strength - strength) for picture in pictures), default=0.0)
    return [picture for picture in pictures if abs(picture.strength - strength) == nearest][:MOST_PICTURES]


def _from_grid(folder: Path, autov3: str) -> tuple[list[CardPicture], list[StrengthLine]]:
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
    return pictures, sorted({line.strength: line for line in lines}.values(), key=lambda line: line.strength)


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
