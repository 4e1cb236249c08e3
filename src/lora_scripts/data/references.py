"""Reference pictures: what a model that edits is shown beside the caption.

Each lies in a folder of its own under the name of the picture that is to become of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lora_scripts.data.buckets import Size, bucket_sizes, choose_bucket, views
from lora_scripts.data.findings import Finding
from lora_scripts.data.image import apply_view, load_rgb, size_of
from lora_scripts.data.masks import raise_first
from lora_scripts.data.scan import Looked, Sample, scan
from lora_scripts.errors import Faults, UserError, raise_all

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERED = re.compile(r"(.+)_(\d+)")


def with_references(
    samples: Sequence[Sample],
    folder: Path,
    most: int,
    *,
    seen: Looked | None = None,
    notes: list[Finding] | None = None,
) -> list[Sample]:
    """The samples, each with its references: of "b/a.jpg" what is "b/a" with any suffix in the folder, or else "b/a_1",
    "b/a_2", … in the order of their numbers.

    UserErrors for samples with none or with more than `most`, and for pictures that cannot be read; `notes` takes how
    many are the reference of nothing. Case does not count, nor how an accent is written.
    """
    stems = {_stem(sample) for sample in samples}
    named: dict[str, list[tuple[int, Sample]]] = {}
    for found in scan(folder, allow_missing_captions=True, seen=seen):
        stem = _stem(found)
        several = None if stem in stems else _NUMBERED.fullmatch(stem)
        owner, number = (several[1], int(several[2])) if several else (stem, -1)
        named.setdefault(owner, []).append((number, found))
    faults, out = list[UserError](), list[Sample]()
    for sample in samples:
        own = sorted(named.get(_stem(sample), []), key=lambda one: one[0])
        own = own[:1] if own and own[0][0] < 0 else own  # of one that has exactly its name others say nothing
        if not own:
            near = (folder / sample.name).with_suffix(".png").as_posix()
            faults.append(UserError("has no reference", file=sample.path, hint=f"add {near}, which it is made from"))
        if len(own) > most:
            text, least = f"has {len(own)} references, and this base takes {most}", own[most][1].path
            faults.append(UserError(text, file=sample.path, hint=f"remove {least} and those behind it"))
        out.append(replace(sample, references=tuple(found for _, found in own)))
    raise_first(faults)
    used = {found.path for sample in out for found in sample.references}
    idle = [found for own in named.values() for _, found in own if found.path not in used]
    if notes is not None and idle:
        message = f"{len(idle)} not read: the reference of no picture ({idle[0].name})"
        notes.append(Finding("not_read", "note", (), message, "name each as the picture that is to become of it"))
    return out


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


def _stem(sample: Sample) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(sample.name).with_suffix(""))).casefold()
