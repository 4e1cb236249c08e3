"""Looks at every picture of a data set, and says what is wrong with them."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from lora_scripts.check import duplicates, whole_set
from lora_scripts.check.facts import PictureFacts, measure
from lora_scripts.check.shape import shape_findings
from lora_scripts.data.buckets import MAX_RATIO, Size, choose_bucket
from lora_scripts.data.findings import Finding, Severity
from lora_scripts.data.scan import MIN_SIDE
from lora_scripts.errors import UserError
from lora_scripts.events import Progress, Sink, ignore
from lora_scripts.units import listed, percent

DUPLICATES = ("exact_duplicate", "near_duplicate")
"""Kinds of findings whose first file is the copy to keep, and whose others can go."""
_CHUNK = 8
"""Files that a worker takes at a time. Fewer than that for each worker are not worth starting processes."""
_SMALL_AREA = 512 * 512
"""Pixels below which a picture is small for every model in common use."""
_STRONG_BLOCKS = 1.3
"""Grey values, see `surface.blocking`: for what was strongly compressed once, and saved again."""
_LOW_QUALITY = 35
_WORKERS = 61
"""Processes at most: Windows lets nobody wait for more."""


def look(files: Mapping[str, Path], *, workers: int | None = None, sink: Sink = ignore) -> list[PictureFacts]:
    """Measures every picture (name -> path), in the order given.

    By default in as many processes as there are cores. UserError if one of them is killed.
    """
    names = list(files)
    chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
    workers = min(workers or os.cpu_count() or 1, len(chunks), _WORKERS)
    done: dict[str, PictureFacts] = {}
    for facts in _measured([[(name, files[name]) for name in chunk] for chunk in chunks], workers):
        done.update((fact.name, fact) for fact in facts)
        sink(Progress("pictures", len(done), len(names)))
    return [done[name] for name in names]


def picture_findings(facts: Sequence[PictureFacts], buckets: Sequence[Size] | None) -> list[Finding]:
    """Everything to say about the pictures; `buckets`: the sizes that will be trained, None if unknown.

    Of `DUPLICATES` the first file is the one to keep.
    """
    singles = [finding for fact in facts for finding in _single(fact, buckets)]
    return [*singles, *_copies(facts), *whole_set.findings(facts)]


def _measured(chunks: list[list[tuple[str, Path]]], workers: int) -> Iterator[list[PictureFacts]]:
    if workers <= 1:
        yield from map(_chunk, chunks)
        return
    # spawned, not forked: the caller may have threads, and a worker needs no copy of what it has loaded
    pool: Executor = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_interrupts)
    try:
        for future in as_completed([pool.submit(_chunk, chunk) for chunk in chunks]):
            yield future.result()
    except BrokenProcessPool:
        hint = "close other programs, or take fewer workers"
        raise UserError("a process that looked at pictures was killed, perhaps for want of memory", hint=hint) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process; the one that was started by the person answers it for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chunk(files: list[tuple[str, Path]]) -> list[PictureFacts]:
    return [measure(name, path) for name, path in files]


def _single(fact: PictureFacts, buckets: Sequence[Size] | None) -> Iterator[Finding]:
    name = (fact.name,)
    if fact.problem is not None:
        yield Finding("corrupt", "error", name, fact.problem, fact.mend or "copy or download it again")
        return
    width, height = fact.size
    bucket = None if buckets is None else choose_bucket(fact.size, buckets)
    if min(fact.size) < MIN_SIDE:
        message = f"{width} x {height} px is too small to learn from"
        yield Finding("too_small", "error", name, message, "remove it")
    elif buckets is not None:
        yield from shape_findings(fact.name, fact.size, buckets)
    else:
        yield from _alone(fact)
    yield from _sharpness(fact, bucket)
    yield from _blocks(fact)
    yield from _additions(fact)


def animated(images: Mapping[str, Path]) -> list[Finding]:
    """The animations among WebP files, by the flag of their header (extended file format, "VP8X"), among PNG files, by
    the chunk "acTL" before the first of the picture, and among AVIF files, by their brand."""

    def moves(path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                head = file.read(21)
                if head.startswith(b"RIFF"):
                    return head[12:16] == b"VP8X" and len(head) == 21 and bool(head[20] & 2)
                if head[4:8] == b"ftyp":
                    return head[8:12] == b"avis"
                file.seek(8)
                while len(chunk := file.read(8)) == 8 and chunk[4:] not in (b"IDAT", b"acTL"):
                    file.seek(int.from_bytes(chunk[:4]) + 4, 1)  # what it holds, and its checksum
        except OSError:
            return False
        return chunk[4:] == b"acTL"

    kinds = (".webp", ".png", ".avif")
    files = tuple(name for name, path in images.items() if path.suffix.lower() in kinds and moves(path))
    message, mend = "an animation: its first frame is taken", "save the frames that you want, each as one picture"
    return [Finding("animated", "note", (name,), message, mend) for name in files]


def _alone(fact: PictureFacts) -> Iterator[Finding]:
    """Of a size for which no resolution is known."""
    width, height = fact.size
    if max(width / height, height / width) > MAX_RATIO:
        message = f"{width} x {height} px is an odd shape: training will cut its ends away"
        yield Finding("odd_aspect", "warning", (fact.name,), message, "crop it yourself to what matters")
    if width * height < 0.8 * _SMALL_AREA:
        message = f"{width} x {height} px is small: models are trained with about 512 x 512 px and more"
        yield Finding("too_small", "warning", (fact.name,), message, "look for a larger copy, or remove it")


def _sharpness(fact: PictureFacts, bucket: Size | None) -> Iterator[Finding]:
    width, height = fact.size
    blurred, enlarged = fact.sharp.blurred, fact.sharp.enlarged
    if blurred is not None and blurred > 0:
        message = "nothing in it is in focus: no edge is sharper than about 2 px at a size of 512 px"
        yield Finding("blurred", "warning", (fact.name,), message, "remove it, or use a sharp one", _sure(blurred))
    elif enlarged is not None and enlarged > 0:
        # twice the pixels that training takes: what is missing would not be seen
        spare = bucket is not None and min(width / bucket[0], height / bucket[1]) >= 2
        message = f"its {width} x {height} px hold no more detail than {width // 2} x {height // 2}: enlarged, or soft"
        mend = "nothing to do: training makes it smaller than that" if spare else "use the original, or remove it"
        yield Finding("upscaled", "note" if spare else "warning", (fact.name,), message, mend, _sure(enlarged))


def _blocks(fact: PictureFacts) -> Iterator[Finding]:
    name, mend = (fact.name,), "look for a better copy, or remove it"
    if fact.quality is not None and fact.quality <= _LOW_QUALITY:
        message = f"strongly compressed: a JPEG of quality {fact.quality}"
        yield Finding("jpeg_blocks", "warning", name, message, mend, 0.95)
    elif fact.blocking > _STRONG_BLOCKS:
        message = f"strong JPEG blocks: steps of {fact.blocking:.1f} grey values every 8 px"
        yield Finding("jpeg_blocks", "warning", name, message, mend, 0.7)


def _additions(fact: PictureFacts) -> Iterator[Finding]:
    """Bars and writing: what was put around and over the picture."""
    if fact.border is not None:
        bars = {"left": fact.border.left, "top": fact.border.top, "right": fact.border.right}
        bars["bottom"] = fact.border.bottom
        widths = ", ".join(f"{side} {percent(part)}" for side, part in bars.items() if part)
        severity: Severity = "warning" if fact.border.sure > 0.5 else "note"
        mend = "crop the bars away, or they will be learned"
        yield Finding("border", severity, (fact.name,), f"bars of one colour: {widths}", mend, fact.border.sure)
    if fact.texts:
        best = fact.texts[0]
        across, down = (best.box[0] + best.box[2]) / 2, (best.box[1] + best.box[3]) / 2
        place = f"{('top', 'middle', 'bottom')[int(down * 2.999)]} {('left', 'centre', 'right')[int(across * 2.999)]}"
        more = f", and {len(fact.texts) - 1} more" if len(fact.texts) > 1 else ""
        message = f"perhaps text or a watermark at the {place}{more}"
        yield Finding("overlay", "note", (fact.name,), message, "look; crop or paint it out if it is one", best.sure)


def _copies(facts: Sequence[PictureFacts]) -> Iterator[Finding]:
    by_name = {fact.name: fact for fact in facts}
    copies = duplicates.find(facts)
    for group in copies.exact:
        same_file = len({by_name[name].sha256 for name in group}) == 1
        message = f"the same {'file' if same_file else 'pixels'} {_times(len(group))}: {listed(group, 6)}"
        yield Finding("exact_duplicate", "warning", tuple(group), message, f"keep {group[0]}, remove the rest")
    for group in copies.near:
        message = f"nearly the same picture {_times(len(group))}: {listed(group, 6)}"
        mend = f"keep {group[0]}, which has most detail, remove the rest"
        yield Finding("near_duplicate", "warning", tuple(group), message, mend, 0.95)
    for first, second in copies.mirrored:
        message = f"{second} is {first} mirrored"
        yield Finding(
            "mirrored", "note", (first, second), message, "remove one, and set flip: true if mirroring is fine", 0.95
        )


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


def _sure(odds: float) -> float:
    """Log odds as a probability, never quite certain."""
    return round(min(0.99, 1 / (1 + math.exp(-max(odds, 0.0) - 0.5))), 2)
