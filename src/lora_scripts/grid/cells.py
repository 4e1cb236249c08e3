"""The pictures of a grid: each is named by all that it depends on, so that it is drawn once and found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lora_scripts.config.values import check_size
from lora_scripts.data.image import on_white
from lora_scripts.data.references import as_shaped, require_readable, seen_beside
from lora_scripts.events import Note, Progress, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.generate import known_by
from lora_scripts.generate.command import parameters, save
from lora_scripts.generate.known_by import file_hash, lora_hash, model_hash
from lora_scripts.generate.unread import tell_unread
from lora_scripts.grid.axes import Place, Plan, Point
from lora_scripts.grid.sources import GridOptions, LoraSource, Sources
from lora_scripts.units import number_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_scripts.config.prompt_line import PromptLine
    from lora_scripts.families.base import PictureFamily
    from lora_scripts.families.facts import Facts
    from lora_scripts.families.samplers import Sampler
    from lora_scripts.loras.stack import LoraStack

VERSION = 1
"""Of the way cells are drawn; another one makes all cells new."""


@dataclass(frozen=True)
class Cell:
    """One picture: all that it depends on."""

    base: str
    """SHA-256, of a folder its path."""
    vae: str
    """Of what was given beside the base: another VAE, a text encoder."""
    loras: tuple[tuple[str, float], ...]
    """SHA-256 of each file and its strength, innermost first; none at strength 0."""
    prompt: str
    negative: str
    seed: int
    cfg: float
    steps: int
    size: tuple[int, int]
    scheduler: str
    settings: tuple[object, ...]
    """Precision, prediction, zero-terminal SNR, clip skip."""
    references: tuple[tuple[str, str], ...] = ()
    """Path and SHA-256 of each picture that it is drawn from."""

    @property
    def digest(self) -> str:
        """The name of its file, 20 hexadecimal digits."""
        told = {key: value for key, value in asdict(self).items() if key != "references" or value}
        text = json.dumps([VERSION, told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Cells:
    """All pictures of a grid."""

    plan: Plan
    at: Mapping[Place, Cell]
    """What is to be seen at each place."""
    bare: Mapping[Place, Cell]
    """The base's own picture of the same prompt, seed and cfg."""

    def different(self, *, bare: bool) -> dict[str, tuple[Cell, Point]]:
        """Each cell once, by its digest, with a point at which it is drawn; with `bare` the base's own, too."""
        cells = {cell.digest: (cell, Point()) for cell in self.bare.values()} if bare else {}
        return cells | {cell.digest: (cell, self.plan.points[place]) for place, cell in self.at.items()}


@dataclass(frozen=True)
class Painter:
    """Draws cells: a base with what can be put onto it."""

    options: GridOptions
    sources: Sources
    family: PictureFamily
    stack: LoraStack
    sampler: Sampler
    precision: str

    def path(self, cell: Cell) -> Path:
        return self.options.output / "cells" / f"{cell.digest}.png"

    def worn(self, point: Point) -> list[tuple[LoraSource, float]]:
        """What is on at a point, innermost first: the checkpoint and the LoRA, at one strength; nothing at 0."""
        strength = self.options.strengths[point.strength]
        both = (self.sources.checkpoints[point.checkpoint], self.sources.loras[point.lora])
        return [(one, strength) for one in both if one is not None and strength != 0]

    def wear(self, point: Point) -> list[tuple[LoraSource, float]]:
        """Puts on what is on at a point, and gives it."""
        from lora_scripts.loras.stack import Worn

        worn = self.worn(point)
        self.stack.wear([Worn(one.path, strength, strength) for one, strength in worn])
        return worn

    def cell(self, point: Point, *, bare: bool = False) -> Cell:
        """What is drawn at a point; `bare`: by the base alone."""
        options, sources = self.options, self.sources
        line = sources.prompts[point.prompt]
        how = sources.how(line, sources.cfgs[point.cfg])
        return Cell(
            base=_identity(sources.base),
            vae=" ".join(_identity(path) for path in (sources.vae, *sources.text_encoder) if path),
            loras=() if bare else tuple((file_hash(one.path), strength) for one, strength in self.worn(point)),
            prompt=line.prompt,
            negative=how.negative,
            seed=options.seeds[point.seed],
            cfg=how.cfg,
            steps=how.steps,
            size=_size(sources, line, self.family.facts),
            scheduler=self.sampler.name,
            settings=(self.precision, sources.prediction, sources.zero_terminal_snr, sources.clip_skip),
            references=tuple((str(path), file_hash(path)) for path in line.references),
        )

    def cells(self, plan: Plan) -> Cells:
        """Those of a whole grid."""
        return Cells(
            plan,
            {place: self.cell(point) for place, point in plan.points.items()},
            {place: self.cell(point, bare=True) for place, point in plan.points.items()},
        )

    def draw(self, cell: Cell, point: Point) -> None:
        """Draws one cell at a point where it stands, and writes it with the text that tells how it was made."""
        from lora_scripts.families.base import Sampling

        worn = self.wear(point) if cell.loras else []
        if not worn:
            self.stack.take_off()
        steps = self.family.facts.bucket_steps
        shown = seen_beside([Path(path) for path, _ in cell.references], cell.size, steps)
        sampling = Sampling(cell.steps, cell.cfg, cell.negative, cell.size, cell.scheduler, references=shown)
        image = self.family.generate(cell.prompt, cell.seed, sampling)
        tags = "".join(f" <lora:{one.path.stem}:{strength:g}>" for one, strength in worn)
        loras = {one.path.stem: lora_hash(one.path) for one, _ in worn}
        base, clip_skip = self.sources.base, self.sources.clip_skip
        prompt = cell.prompt + tags
        save(
            self.path(cell),
            image,
            parameters(base, model_hash(base), prompt, cell.seed, sampling, self.sampler, loras, clip_skip=clip_skip),
        )


def load_painter(options: GridOptions, sources: Sources, sink: Sink = ignore) -> Painter:
    """Loads the base and every LoRA. UserErrors for what does not fit."""
    from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
    from lora_scripts.families.base import LoadOptions
    from lora_scripts.families.samplers import find_sampler
    from lora_scripts.families.table import (
        load_pictures,
        require_drawn,
        require_negative,
        require_pictures,
        require_references,
        require_sight,
        settings_asked,
    )
    from lora_scripts.generate.cut import remember
    from lora_scripts.loras.stack import LoraStack

    facts = require_pictures(sources.base)
    width, height = sources.size or (0, 0)
    sizes = [(line.width or width, line.height or height) for line in sources.prompts]
    require_drawn(facts, sizes, options.clip_skip)
    for path in filter(None, (sources.base, sources.vae, *sources.text_encoder)):
        known_by.begin(path)
    keys = ("prediction", "zero_terminal_snr", "clip_skip")
    made_with = settings_asked(sources.base, {key: getattr(sources, key) for key in keys})
    sources = replace(sources, **{key: made_with[key] for key in keys})
    for line in sources.prompts:
        sampler = find_sampler(options.scheduler, made_with["prediction"], sources.how(line, cfg=0).steps)
        for side in (line.width, line.height):
            if side is not None:
                check_size(side)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    each = [(line.prompt, sources.how(line, cfg)) for line in sources.prompts for cfg in sources.cfgs]
    negatives = [how.negative for _, how in each]
    require_negative(facts, negatives)
    require_references(facts, sources.prompts)
    require_sight(facts, sources.base, sources.text_encoder, [len(line.references) for line in sources.prompts])
    require_readable(path for line in sources.prompts for path in line.references)
    tell_unread(facts, each, sink)
    first = partial(remember, asked=_asked(sources, facts), sink=sink)
    load = LoadOptions(device, DTYPES[precision], sources.vae, sources.text_encoder, first, settings=made_with)
    family = load_pictures(sources.base, load)
    stack = LoraStack(family)
    for one in (*sources.checkpoints, *sources.loras):
        if one is not None:
            stack.load(one.path)
    return Painter(options, sources, family, stack, sampler, precision)


def _size(sources: Sources, line: PromptLine, facts: Facts) -> tuple[int, int]:
    size = sources.size or as_shaped(line.references, facts.made_for(sources.base), facts.bucket_steps)
    return (line.width or size[0], line.height or size[1])


def _asked(sources: Sources, facts: Facts) -> Iterator[tuple[Sequence[str], Sequence[Tensor]]]:
    """The texts of each prompt, and what a text encoder that sees is shown beside them."""
    for line in sources.prompts:
        shown = seen_beside(line.references, _size(sources, line, facts), facts.bucket_steps) if facts.sees else ()
        yield (line.prompt, *(sources.how(line, cfg).negative for cfg in sources.cfgs)), shown


def draw_missing(painter: Painter, cells: Mapping[str, tuple[Cell, Point]], sink: Sink) -> int:
    """Draws the cells that are not there yet, those of one LoRA together, and gives their number."""
    folder = painter.options.output / "cells"
    io.make_folder(folder)
    io.remove_stale_temps(folder)
    missing = [(cell, point) for cell, point in _by_loras(cells) if not _is_whole(painter.path(cell))]
    there = len(cells) - len(missing)
    sink(Note(f"{number_of(len(missing), 'picture')} to draw" + (f"; {there} were there already" if there else "")))
    for number, (cell, point) in enumerate(missing, 1):
        painter.draw(cell, point)
        sink(Progress("pictures", number, len(missing)))
    painter.stack.take_off()
    return len(missing)


def opened(path: Path) -> Image.Image:
    """A cell's picture, RGB."""
    with Image.open(path) as image:
        return on_white(image)


def _by_loras(cells: Mapping[str, tuple[Cell, Point]]) -> Iterator[tuple[Cell, Point]]:
    groups: dict[tuple[tuple[str, float], ...], list[tuple[Cell, Point]]] = {}
    for cell, point in cells.values():
        groups.setdefault(cell.loras, []).append((cell, point))
    for group in groups.values():
        yield from group


def _is_whole(path: Path) -> bool:
    """That a picture is there and can be read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def _identity(path: Path) -> str:
    return file_hash(path) if path.is_file() else str(path.resolve())
