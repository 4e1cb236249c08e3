"""Reference pictures: what a model that edits is shown beside the caption.

Each lies in a folder of its own under the name of the picture that is to become of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lora_scripts.data.buckets import Size, bucket_sizes, choose_bucket, views
from lora_scripts.data.findings import Finding
from lora_scripts.data.image import apply_view, load_rgb, size_of
from lora_scripts.data.listing import list_data
from lora_scripts.data.masks import folded, raise_first
from lora_scripts.data.scan import Looked, Sample, scan
from lora_scripts.errors import Faults, UserError, UserErrors, raise_all

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERED = re.compile(r"(.+)_(\d+)")


@dataclass(frozen=True)
class References:
    """Where they lie, and how many of one picture the base takes."""

    folder: Path
    most: int
    also: Mapping[str, Path] = field(default_factory=dict)
    """Pictures by name besides those that are looked at, whose references lie there, too: held-out ones."""


@dataclass(frozen=True)
class Paired:
    """Samples with their references, and what is wrong with them."""

    samples: list[Sample]
    faults: list[UserError]
    """Of pictures with none or with too many, and of references that cannot be read, each with its path."""
    notes: list[Finding]
    """How many are the reference of nothing."""


def pair(samples: Sequence[Sample], asked: References, seen: Looked | None = None) -> Paired:
    """Gives each sample its references, `asked.most` at most, as `belonging` finds them. Captions beside them are not
    read.

    UserError for a folder without pictures.
    """
    there, faults = list_data(asked.folder, captions=False).images, Faults()
    pictures = [*((sample.name, sample.path) for sample in samples), *asked.also.items()]
    belong, idle = belonging([name for name, _ in pictures], there)
    found = {one.name: one for one in faults.attempt(lambda: scan(asked.folder, captions=False, seen=seen)) or ()}
    for name, path in pictures:
        faults += _faults(name, path, belong[name], asked, there)
    own = [tuple(found[name] for name in belong[sample.name] if name in found) for sample in samples]
    out = [replace(sample, references=references) for sample, references in zip(samples, own, strict=True)]
    message = f"{len(idle)} not read: the reference of no picture ({idle[0] if idle else ''})"
    note = Finding("not_read", "note", (), message, "name each as the picture that is to become of it")
    return Paired(out, faults, [note] if idle else [])


def _faults(
    name: str, path: Path, own: Sequence[str], asked: References, there: Mapping[str, Path]
) -> Iterator[UserError]:
    """What is wrong with how many a picture has; `there`: all that the folder holds."""
    if not own:
        yield UserError("has no reference", file=path, hint=_mend(name, path, asked.folder, there.values()))
    if len(own) > asked.most:
        text, least = f"has {len(own)} references, and this base takes {asked.most}", there[own[asked.most]]
        yield UserError(text, file=path, hint=f"remove {least.as_posix()} and those behind it")


def belonging(names: Sequence[str], there: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Of each picture's name those of its references: of "b/a.jpg" what is "b/a" with any suffix, or else "b/a_1",
    "b/a_2", … in the order of their numbers. Case does not count, nor how an accent is written. And the names that
    belong to none."""
    stems = set(map(_stem, names))
    named: dict[str, list[tuple[int, str]]] = {}
    for name in there:
        stem = _stem(name)
        several = None if stem in stems else _NUMBERED.fullmatch(stem)
        owner, number = (several[1], int(several[2])) if several else (stem, -1)
        named.setdefault(owner, []).append((number, name))
    belong: dict[str, list[str]] = {}
    for name in names:
        own = sorted(named.get(_stem(name), []), key=lambda one: one[0])
        own = own[:1] if own and own[0][0] < 0 else own  # of one that has exactly its name others say nothing
        belong[name] = [one for _, one in own]
    used = {one for own in belong.values() for one in own}
    return belong, [name for own in named.values() for _, name in own if name not in used]


def listed(names: Sequence[str], folder: Path) -> dict[str, tuple[Path, ...]]:
    """Of each picture's name the files of its references, none of which is opened; UserErrors as of `list_data`."""
    there = list_data(folder, captions=False).images
    return {name: tuple(there[one] for one in own) for name, own in belonging(names, there)[0].items()}


def _mend(name: str, path: Path, folder: Path, there: Iterable[Path]) -> str:
    """What to do about a picture without a reference; `there`: all that the folder holds."""
    wanted, stem = (folder / name).with_suffix(".png"), _stem(path.name)
    alike = (one for one in there if _stem(one.name) == stem and one != path)
    if (near := next(alike, None)) is None:
        return f"add {wanted.as_posix()}, which it is made from"
    at = wanted.with_suffix(near.suffix).as_posix()
    return f"{near.as_posix()} has its name: put that at {at}, or name its folder as reference_dir"


def with_references(
    samples: Sequence[Sample], asked: References, *, seen: Looked | None = None, notes: list[Finding]
) -> list[Sample]:
    """As `pair`; UserErrors for its faults. `notes` takes its notes."""
    paired = pair(samples, asked, seen)
    raise_first(paired.faults)
    notes.extend(paired.notes)
    return paired.samples


def reference_findings(asked: References, samples: Sequence[Sample]) -> tuple[list[Finding], list[Sample]]:
    """What is wrong with the references of a data set, for the check; and the samples with those that can be read."""
    names = {sample.path: (sample.name,) for sample in samples}
    try:
        paired = pair(samples, asked)
    except (UserError, UserErrors) as error:
        return [_told(fault, ()) for fault in error.errors], []
    found = [_told(fault, names.get(Path(fault.file), ())) for fault in paired.faults if fault.file]
    same = [one for one in paired.samples if any(other.digest == one.digest for other in one.references)]
    message, mend = "is its own reference: there is nothing to learn", "give the picture that it is made from"
    found += [Finding("reference", "warning", (one.name,), message, mend) for one in same]
    return [*found, *paired.notes], paired.samples


def _told(fault: UserError, files: tuple[str, ...]) -> Finding:
    source = None if files or fault.file is None else Path(fault.file).as_posix()
    return Finding("reference", "error", files, fault.message, fault.hint or "correct it", None, source)


def seen_beside(paths: Sequence[Path], size: Size, steps: tuple[int, int]) -> list[Tensor]:
    """Each [3, h, w] in [-1, 1], as training shows it beside a picture of that size: of its own shape, with as many
    pixels. `steps`: as `Facts.bucket_steps`. UserError for what is no picture."""
    sizes, out = _sizes(size, steps), []
    for path in paths:
        image = load_rgb(path)
        bucket = choose_bucket(image.size, sizes)
        (view,) = views(image.size, bucket, flip=False, random_crop=False, seed=0, index=0)
        out.append(apply_view(image, view))
    return out


def require_readable(paths: Iterable[Path]) -> None:
    """UserErrors for those that are no pictures."""
    faults = Faults()
    for path in dict.fromkeys(paths):
        faults.attempt(partial(load_rgb, path))
    raise_all(faults)


def as_shaped(paths: Sequence[Path], size: Size, steps: tuple[int, int]) -> Size:
    """The size of a picture that is drawn from these: of the first one's shape, with as many pixels as `size`; where
    there is none, `size`."""
    return choose_bucket(size_of(paths[0]), _sizes(size, steps)) if paths else size


def _sizes(size: Size, steps: tuple[int, int]) -> list[Size]:
    """Those of about as many pixels as `size`, which is among them unless it is tiny."""
    return bucket_sizes((max(size[0], 64), max(size[1], 64)), *steps)


def _stem(name: str) -> str:
    return folded(PurePosixPath(name).with_suffix(""))
