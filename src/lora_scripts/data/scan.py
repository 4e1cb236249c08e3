"""A folder of images -> samples; every fault of the data set at once."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lora_scripts.data.findings import Finding
from lora_scripts.data.image import decode_rgb
from lora_scripts.data.listing import list_data
from lora_scripts.data.unquoted import told_once
from lora_scripts.errors import UserError, raise_all
from lora_scripts.utf8 import read_bytes

MIN_SIDE = 16
"""Pixels. An image with a shorter side is an icon or a mistake."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set, known to be readable."""

    path: Path
    name: str
    """Posix path relative to the folder, in Unicode's NFC form."""
    caption: str
    width: int
    """Pixels, as shown: after EXIF rotation."""
    height: int
    digest: str
    """SHA-256 of the file's bytes, 64 hex digits."""
    small: bytes = field(default=b"", compare=False, repr=False)
    """The picture squeezed into a square of a few pixels, RGB, by which copies are known; empty unless asked for."""
    references: Sequence[Sample] = ()
    """What it is to be made from, of a model that edits."""

    def called(self, name: str, caption: str) -> Sample:
        """The same image by a name, with a caption. (`dataclasses.replace` takes three times as long, and there may be
        50,000.)"""
        return Sample(self.path, name, caption, self.width, self.height, self.digest, self.small)

    def row(self) -> list[Any]:
        """What JSON can carry of it, `small` left out; `of_row` reads it back."""
        made_from = [one.row() for one in self.references]
        return [str(self.path), self.name, self.caption, self.width, self.height, self.digest, made_from]

    @staticmethod
    def of_row(row: Sequence[Any]) -> Sample:
        path, name, caption, width, height, digest, made_from = row
        references = tuple(map(Sample.of_row, made_from))
        return Sample(Path(path), name, caption, width, height, digest, references=references)


class Looked(Protocol):
    """What earlier starts found in pictures."""

    def known(self, path: Path) -> Sample | None:
        """Of a picture that has not changed since, without name, caption and `small`."""
        ...

    def look(self, path: Path, small: int) -> Sample | UserError:
        """As `inspect`, and remembers it."""
        ...


def scan(
    folder: Path,
    metadata: Path | None = None,
    *,
    allow_missing_captions: bool = False,
    captions: bool = True,
    small: int = 0,
    seen: Looked | None = None,
    notes: list[Finding] | None = None,
) -> list[Sample]:
    """The images below `folder`, sorted by name, each fully decoded once. `small`: the side of `Sample.small`.
    `seen`: what earlier starts found, of which pictures are not opened again. `notes` takes those of the listing.

    Where they and their captions come from, if `captions` are read: see `list_data`. Raises UserError or UserErrors
    with everything that is wrong with images and captions.
    """
    listing = list_data(folder, metadata, allow_missing_captions=allow_missing_captions, captions=captions)
    faults = listing.faults
    if notes is not None:
        notes.extend(listing.notes)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files, which are told here as faults or do not matter
        known = {name: sample for name, path in listing.images.items() if seen and (sample := seen.known(path))}
        unknown = {name: path for name, path in listing.images.items() if name not in known}
        looked = pool.map(seen.look if seen else inspect, unknown.values(), repeat(small))
        found = dict(zip(unknown, looked, strict=True))
    samples: list[Sample] = []
    for name in listing.images:
        result = known.get(name) or found[name]
        if isinstance(result, UserError):
            faults.append(result)
        else:
            samples.append(result.called(name, listing.caption(name)))
    raise_all(told_once(faults))
    return samples


def inspect(path: Path, small: int) -> Sample | UserError:
    """An image by itself, without name and caption; or what is wrong with it."""
    try:
        data = read_bytes(path)
        image = decode_rgb(data, path)
    except UserError as fault:
        return fault
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        return UserError(f"{width} x {height} px is too small to learn from", file=path, hint="remove it")
    pixels = image.resize((small, small), Image.Resampling.BOX).tobytes() if small else b""
    return Sample(path, "", "", width, height, hashlib.sha256(data).hexdigest(), pixels)
