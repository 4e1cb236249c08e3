"""`lora-scripts grid`: pictures over two or three axes, each drawn once, as one picture and one page with measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lora_scripts.config.values import check_size
from lora_scripts.errors import UserError
from lora_scripts.formats import io
from lora_scripts.generate.command import file_hash, lora_hash, parameters, save
from lora_scripts.grid.axes import NAMES, Cell, GridOptions, Plan, Point, plan, unique
from lora_scripts.grid.sources import LoraSource, Sources, find_sources

if TYPE_CHECKING:
    from lora_scripts.families.base import PictureFamily, Sampling
    from lora_scripts.families.samplers import Sampler
    from lora_scripts.loras.stack import LoraStack


@dataclass
class Grid:
    """A grid that is being drawn."""

    options: GridOptions
    sources: Sources
    plan: Plan
    family: PictureFamily
    stack: LoraStack
    sampler: Sampler
    precision: str

    @property
    def folder(self) -> Path:
        return self.options.output / "cells"

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.digest}.png"

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
        options, line = self.options, self.sources.prompts[point.prompt]
        size = self.sources.size or self.family.native_size
        vae = self.sources.vae
        settings = (self.precision, self.sources.prediction, self.sources.zero_terminal_snr, self.sources.clip_skip)
        return Cell(
            base=_identity(self.sources.base),
            vae=_identity(vae) if vae else "",
            loras=() if bare else tuple((file_hash(one.path), strength) for one, strength in self.worn(point)),
            prompt=line.prompt,
            negative=options.negative_prompt if line.negative is None else line.negative,
            seed=options.seeds[point.seed],
            cfg=options.cfgs[point.cfg],
            steps=line.steps or options.steps,
            size=(line.width or size[0], line.height or size[1]),
            scheduler=self.sampler.name,
            settings=settings,
        )


def _identity(path: Path) -> str:
    return file_hash(path) if path.is_file() else str(path.resolve())


def draw_grid(options: GridOptions) -> None:
    """Draws what is not drawn yet, then writes grid.png, grid.html and grid.json. Mistakes are told before a model is
    loaded."""
    sources = find_sources(options)
    wanted = plan(_labels(options, sources))
    grid = _load(options, sources, wanted)
    io.make_folder(grid.folder)
    io.remove_stale_temps(grid.folder)
    cells = {place: grid.cell(point) for place, point in wanted.points.items()}
    points = {cell.digest: wanted.points[place] for place, cell in cells.items()}
    bare = {place: grid.cell(point, bare=True) for place, point in wanted.points.items()}
    extra = [cell for place, cell in bare.items() if cell.digest not in points] if options.measures else []
    points |= {cell.digest: Point() for cell in extra}
    _draw(grid, unique([*cells.values(), *extra], lambda cell: cell.loras), points)

    from lora_scripts.grid.result import write_grid

    write_grid(grid, cells, bare)


def _labels(options: GridOptions, sources: Sources) -> dict[str, list[str]]:
    labels = {
        "prompt": [line.prompt for line in sources.prompts],
        "lora": [one.label if one else "" for one in sources.loras],
        "checkpoint": [one.label if one else "" for one in sources.checkpoints],
        "seed": [str(seed) for seed in options.seeds],
        "cfg": [f"{cfg:g}" for cfg in options.cfgs],
        "strength": [f"{strength:g}" for strength in options.strengths],
    }
    for name in NAMES:
        twice = sorted({label for label in labels[name] if labels[name].count(label) > 1})
        if twice and name != "prompt":
            raise UserError(f"--{name}s: {twice[0]} is given twice", hint="leave one out")
    return labels


def _load(options: GridOptions, sources: Sources, wanted: Plan) -> Grid:
    from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
    from lora_scripts.families.base import LoadOptions
    from lora_scripts.families.samplers import find_sampler
    from lora_scripts.families.table import load_pictures
    from lora_scripts.loras.stack import LoraStack

    for line in sources.prompts:
        sampler = find_sampler(options.scheduler, sources.prediction, line.steps or options.steps)
        for side in (line.width, line.height):
            if side is not None:
                check_size(side)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    settings = {key: getattr(sources, key) for key in ("prediction", "zero_terminal_snr", "clip_skip")}
    load = LoadOptions(device, DTYPES[precision], sources.vae, settings=settings)
    family = load_pictures(sources.base, load)
    stack = LoraStack(family)
    for one in (*sources.checkpoints, *sources.loras):
        if one is not None:
            stack.load(one.path)
    return Grid(options, sources, wanted, family, stack, sampler, precision)


def _draw(grid: Grid, cells: Sequence[Cell], points: Mapping[str, Point]) -> None:
    """What is not there yet, the cells of one LoRA together."""
    missing = [cell for cell in cells if not _whole(grid.path(cell))]
    kept = f"; {len(cells) - len(missing)} were there already" if len(missing) < len(cells) else ""
    print(f"{len(missing)} pictures to draw{kept}", flush=True)
    for number, cell in enumerate(missing, 1):
        worn = grid.wear(points[cell.digest]) if cell.loras else []
        if not worn:
            grid.stack.take_off()
        image = grid.family.generate(cell.prompt, cell.seed, sampling := _sampling(cell))
        tags = "".join(f" <lora:{one.path.stem}:{strength:g}>" for one, strength in worn)
        loras = {one.path.stem: lora_hash(one.path) for one, _ in worn}
        text = parameters(
            grid.sources.base,
            cell.prompt + tags,
            cell.seed,
            sampling,
            grid.sampler,
            loras,
            clip_skip=grid.sources.clip_skip,
        )
        save(grid.path(cell), image, text)
        if number % 10 == 0 or number == len(missing):
            print(f"{number}/{len(missing)} drawn", flush=True)
    grid.stack.take_off()


def _sampling(cell: Cell) -> Sampling:
    from lora_scripts.families.base import Sampling

    return Sampling(cell.steps, cell.cfg, cell.negative, cell.size, cell.scheduler)


def _whole(path: Path) -> bool:
    """That a picture is there and can be read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def remembered(path: Path) -> dict[str, float]:
    """What was measured of a cell before."""
    try:
        found: dict[str, float] = json.loads(path.read_text("utf-8"))
        return found
    except (OSError, ValueError):
        return {}
