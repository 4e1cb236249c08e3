"""What `exchanged_captions` and `strays` share: sets that are asked about once, kept, and judged in a table."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_scripts.demo import world
from lora_scripts.evaluate.scoring import wilson
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.table import load_pictures

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
Kept = dict[str, Tensor]


class Judged(NamedTuple):
    """One set, as it is and planted."""

    rows: Sequence[str]
    """Of the table, that it belongs to."""
    blamed: bool
    """Whether something was named in it as it is."""
    at_fault: int
    named: int
    """Of these."""
    others: bool
    """Whether others were named, too."""


def share(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits} of {count} = {hits / count:.0%} ({low:.0%} to {high:.0%})".replace("%", " %")


def table(judged: Sequence[Judged], what: str) -> str:
    """Shares with 95 % intervals (Wilson), as Markdown."""
    lines = [f"| sets | healthy: something was named | {what} named | planted: others named |", "|---|---|---|---|"]
    names = dict.fromkeys(row for one in judged for row in one.rows)
    for row in sorted(names, key=lambda name: name == "all"):
        found = [one for one in judged if row in one.rows]
        n, bad = len(found), sum(one.at_fault for one in found)
        cells = share(sum(f.blamed for f in found), n), share(sum(f.named for f in found), bad)
        lines.append(f"| {row} ({n}) | {' | '.join(cells)} | {share(sum(f.others for f in found), n)} |")
    return "\n".join(lines)


def command(
    about: str | None,
    what: str,
    sets: Mapping[str, tuple[int, int, Any]],
    usual: str,
    drawn: Callable[[str, int], Any],
    ask: Callable[[Any, Any], Kept],
    judge: Callable[[Any, Kept], Sequence[Judged]],
) -> int:
    """`run` asks the base about each set that `drawn` gives and keeps the answer; `table` judges what is kept."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=sets, default=usual)
    parser.add_argument("--part", default="1/1", help="which of how many parts, for several at a time")
    args = parser.parse_args()
    all_of = [drawn(args.set, number) for number in range(sets[args.set][1])]
    files = [args.folder / f"{one.name}.safetensors" for one in all_of]
    if args.what == "table":
        there = [(one, file) for one, file in zip(all_of, files, strict=True) if file.exists()]
        print(table([judged for one, file in there for judged in judge(one, load_file(file))], what))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    family = load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))
    part, of = map(int, args.part.split("/"))
    for number, (one, file) in enumerate(zip(all_of, files, strict=True)):
        if number % of == part - 1 and not file.exists():
            begun = time.process_time()
            save_file({name: t.contiguous() for name, t in ask(family, one).items()}, file)
            print(file.name, one.style, len(one.scenes), f"pictures, {time.process_time() - begun:.0f} s", flush=True)
    return 0
