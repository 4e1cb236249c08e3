"""How well a base model, and a LoRA on it, draw the miniature world: pictures for random prompts, read by the judge.

python -m lora_scripts.demo.evaluate BASE [--count 100] [--grid FILE.png]     the base, on any content of the grammar
python -m lora_scripts.demo.evaluate BASE --lora FILE …                       base, and LoRA at 1.0, on unseen contents
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
from lora_scripts.config.values import DEVICE
from lora_scripts.demo import world
from lora_scripts.demo.judge import SLOTS, Judge, Reading
from lora_scripts.errors import UserError
from lora_scripts.evaluate.scoring import wilson
from lora_scripts.families.base import LoadOptions, PictureFamily, Sampling
from lora_scripts.families.table import load_pictures
from lora_scripts.formats.io import save_png
from lora_scripts.loras import file as loras
from lora_scripts.loras import on_model
from lora_scripts.units import percent

SIDE = 128
"""Pixels of the pictures: what the world is drawn at."""
SHEET, COLUMNS, LINE = 24, 8, 11
"""Pictures on a contact sheet, how many in a row, and the height of a line under them in pixels."""


@dataclass(frozen=True)
class Judged:
    """A picture, what it was asked to show, and what the judge sees in it."""

    asked: world.Scene
    image: Image.Image
    seen: Reading

    def wrong(self) -> list[str]:
        """The slots that are not as asked; in another style than plain only those that a style shows, and the style."""
        slots = SLOTS if self.asked.style == "plain" else ("object", "style")
        return [slot for slot in slots if getattr(self.seen, slot) != getattr(self.asked, slot)]


def prompts(seed: int, count: int, skip: frozenset[tuple[str, str, str, str]] = frozenset()) -> list[world.Scene]:
    """`count` random contents of the grammar, none of `skip`."""
    return list(itertools.islice((scene for scene in world.scenes(seed) if scene.key not in skip), count))


def draw(
    family: PictureFamily, judge: Judge, asked: Sequence[world.Scene], seed: int, sampling: Sampling
) -> Iterator[Judged]:
    """A picture for each caption, the i-th from seed + i."""
    for i, scene in enumerate(asked):
        image = family.generate(world.caption(scene), seed + i, sampling)
        yield Judged(scene, image, judge.read([image])[0])


MEASURES: dict[str, Callable[[Judged], bool]] = {
    "object right": lambda j: j.seen.object == j.asked.object,
    "colour right": lambda j: j.seen.colour == j.asked.colour,
    "ground right": lambda j: j.seen.ground == j.asked.ground,
    "sky right": lambda j: j.seen.sky == j.asked.sky,
    "object, colour, ground and sky right": lambda j: j.seen.key == j.asked.key,
    "neon": lambda j: j.seen.style == "neon",
}


def table(columns: Mapping[str, Sequence[Judged]]) -> str:
    """A row for each measure, a column for each set of pictures: the share and its 95 % interval."""
    lines = [f"{'':38}" + "".join(f"{f'{name} ({len(found)})':>28}" for name, found in columns.items())]
    for name, test in MEASURES.items():
        cells = []
        for found in columns.values():
            hits = sum(map(test, found))
            low, high = wilson(hits, len(found))
            cells.append(f"{percent(hits / len(found), 1)} ({percent(low, 1)} to {percent(high, 1)})")
        lines.append(f"{name:38}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def contact_sheet(columns: Mapping[str, Sequence[Judged]]) -> Image.Image:
    """The first 24 pictures of each set; under a wrong one what the judge read instead."""
    shown = {name: list(found[:SHEET]) for name, found in columns.items()}
    below = LINE * len(SLOTS) + 4
    rows = sum(-(-len(found) // COLUMNS) for found in shown.values())
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 4) + 4, rows * (SIDE + below) + (LINE + 6) * len(shown)), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(10), 0
    for name, found in shown.items():
        pen.text((4, top + 2), name, "black", font)
        top += LINE + 6
        for start in range(0, len(found), COLUMNS):
            for i, judged in enumerate(found[start : start + COLUMNS]):
                left = 4 + i * (SIDE + 4)
                sheet.paste(judged.image, (left, top))
                words = [f"{getattr(judged.asked, s)}: {getattr(judged.seen, s)}" for s in judged.wrong()]
                pen.text((left, top + SIDE + 1), "\n".join(words), (190, 0, 0), font, spacing=1)
            top += SIDE + below
    return sheet


def evaluate(args: argparse.Namespace) -> None:
    """Draws, judges and prints, as the command line asks."""
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    family = load_pictures(args.base, LoadOptions(device, DTYPES[precision]))
    weights = None
    if args.lora is not None:
        weights = loras.read(args.lora).weights
        on_model.check_fits(weights, family, args.lora)
    judge, sampling = Judge.load(), Sampling(args.steps, args.cfg, args.negative, (SIDE, SIDE))
    trained_on = frozenset(scene.key for scene in world.training_scenes()) if weights else frozenset()
    asked = prompts(args.seed, args.count, trained_on)

    def judged(name: str, style: str) -> list[Judged]:
        start, found = time.time(), []
        for one in draw(family, judge, [world.Scene(*s.key, style=style) for s in asked], args.seed, sampling):
            found.append(one)
            if len(found) % 10 == 0:
                print(f"{name}: {len(found)} of {args.count}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
        return found

    columns = {"base": judged("base", "plain")}
    if weights is not None:
        on_model.apply(family, weights, 1.0)
        columns["LoRA at 1.0"] = judged("LoRA", "neon")
    kind = "contents that are not in the training set" if weights else "random contents"
    print(f"{kind}, seed {args.seed}, {args.steps} steps, cfg {args.cfg:g}, {precision} on {device}; 95 % intervals")
    print(table(columns))
    if args.grid is not None:
        save_png(args.grid, contact_sheet(columns))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a checkpoint of the miniature world")
    parser.add_argument("--lora", type=Path, help="a LoRA file that the demo has trained")
    parser.add_argument("--count", type=int, default=100, help="pictures of each (default 100)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    parser.add_argument("--cfg", type=float, default=5.0, help="closeness to the prompt (default 5)")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--seed", type=int, default=1000, help="of contents and noise (default 1000)")
    parser.add_argument("--grid", type=Path, help="a .png for a contact sheet of the first 24 pictures of each")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", choices=("auto", *DTYPES), default="auto")
    args = parser.parse_args()
    if args.count < 1 or args.steps < 1 or not DEVICE.fullmatch(args.device):
        parser.error("--count and --steps must be 1 or more, --device auto, cpu, cuda or mps")
    try:
        evaluate(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
