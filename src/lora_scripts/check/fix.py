"""Mends what can be mended without losing anything: duplicates are set aside, captions corrected beside a backup.

Every step leaves a whole data set, so a process that is killed between two of them has lost nothing, and the next
`--fix` does the rest: first the captions of what goes are written into the side folder, then the caption files are
rewritten (each after its backup), and the pictures move last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lora_scripts.check.tags import corrected, corrections
from lora_scripts.data.captions import METADATA_SUFFIXES, TornRow, read_metadata
from lora_scripts.data.csv_rows import write_record
from lora_scripts.data.findings import SIDECAR_SUFFIXES
from lora_scripts.data.listing import Listing, Said
from lora_scripts.data.rewrite import rewritten
from lora_scripts.errors import UserError
from lora_scripts.formats import io
from lora_scripts.utf8 import is_utf8, read_bytes, read_otherwise

SIDE_LIST = "captions.csv"
"""In the side folder: what the captions of the pictures in it were."""


@dataclass(frozen=True)
class Mend:
    """What `apply` will do."""

    side: Path
    """The folder for what is set aside, beside the image folder."""
    moves: dict[Path, Path] = field(default_factory=dict)
    """Pictures and their sidecars -> where they go."""
    captions: dict[str, str] = field(default_factory=dict)
    """Name in the side folder -> caption, of the pictures that go."""
    changes: dict[Path, dict[int | None, str | None]] = field(default_factory=dict)
    """Caption file -> line (None: all of a sidecar) -> new caption (None: the row goes)."""
    left: list[str] = field(default_factory=list)
    """What is left to the person, in words."""

    def __bool__(self) -> bool:
        return bool(self.moves or self.changes)


def beside(folder: Path, ending: str) -> Path:
    """`data/cats-set-aside` for `data/cats`: a name outside of the folder, so that nothing there is scanned."""
    whole = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    return whole.with_name(whole.name + ending)


def merged(clusters: Iterable[Sequence[str]]) -> list[list[str]]:
    """Clusters that share a name, put together; names in order."""
    separate: list[set[str]] = []
    for cluster in clusters:
        touching = [other for other in separate if other & set(cluster)]
        separate = [other for other in separate if other not in touching] + [set(cluster).union(*touching)]
    return sorted(sorted(cluster) for cluster in separate)


def plan(folder: Path, listing: Listing, surplus: Iterable[str], *, captions: bool = True) -> Mend:
    """The moves of `surplus`, names of pictures that go, and with `captions` the corrections of all captions."""
    mend = Mend(beside(folder, "-set-aside"))
    gone = set()
    for name in sorted(surplus):
        if listing.images[name].is_symlink():
            mend.left.append(f"{name} is a link, which is not moved; remove it if you do not need it")
        else:
            gone.add(name)
    _plan_moves(mend, listing, gone)
    _plan_captions(mend, listing, gone, correct=captions)
    return mend


def _plan_moves(mend: Mend, listing: Listing, gone: set[str]) -> None:
    owners: dict[Path, set[str]] = {}
    for name in listing.images:
        for said in _sidecars(listing, name):
            owners.setdefault(said.file, set()).add(name)
    for name in sorted(gone):
        # a.txt stays as long as another a.jpg is there. It goes before its picture: what a kill leaves is found again.
        own = [said.file for said in _sidecars(listing, name) if owners[said.file] <= gone]
        target = _free(mend.side / name, [*own, listing.images[name]])
        mend.moves.update({source: target.with_suffix(source.suffix) for source in [*own, listing.images[name]]})
        if text := listing.caption(name) or _torn_caption(listing, name):
            mend.captions[target.relative_to(mend.side).as_posix()] = text


def _torn_caption(listing: Listing, name: str) -> str:
    """What a row says of a picture in which a comma stands without quotes; empty where there is none."""
    torn = {(fault.file, fault.line): fault.caption for fault in listing.faults if isinstance(fault, TornRow)}
    return next((torn[at] for said in listing.said.get(name, ()) if (at := (said.file, said.line)) in torn), "")


def _sidecars(listing: Listing, name: str) -> list[Said]:
    return [said for said in listing.said.get(name, ()) if said.line is None]


def _free(target: Path, sources: Sequence[Path]) -> Path:
    """`target`, or with a number if something else of its stem lies there from an earlier time."""
    number, free = 1, target
    while any((there := free.with_suffix(source.suffix)).exists() and not _same(there, source) for source in sources):
        number += 1
        free = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return free


def _same(one: Path, other: Path) -> bool:
    return read_bytes(one) == read_bytes(other)


def _plan_captions(mend: Mend, listing: Listing, gone: set[str], *, correct: bool) -> None:
    table = corrections([listing.caption(name) for name in listing.images if name not in gone])
    broken = {(fault.file, fault.line): fault for fault in listing.faults}
    for name, sources in listing.said.items():
        for said in sources:
            fault = broken.get((said.file, said.line))
            goes = name in gone and isinstance(fault, TornRow)  # its end is known, so the row can be taken out
            if (fault is not None and not goes) or said.file in mend.moves:
                continue
            text = corrected(said.text, table) if correct else said.text
            if name in gone and said.line is not None:
                mend.changes.setdefault(said.file, {})[said.line] = None
            elif name not in gone and text and text != said.text:
                mend.changes.setdefault(said.file, {})[said.line] = text


def apply(mend: Mend, folder: Path) -> list[str]:
    """Does it; gives in words what was done, and how to undo it. UserError when the disk or the permissions refuse."""
    done: list[str] = []
    undo: list[str] = []
    if mend.captions:
        _keep_captions(mend)
    for path, changes in mend.changes.items():
        backup = _backed_up(path)
        io.write_atomic(path, _changed(path, changes))
        rows = sum(text is None for text in changes.values())
        what = [f"{rows} row{'s' if rows > 1 else ''} taken out"] if rows else []
        edits = len(changes) - rows
        what += [f"{edits} caption{'s' if edits > 1 else ''} corrected"] if edits else []
        done.append(f"{path}: {', '.join(what)}; as it was: {backup.name}")
        undo.append(f"move {backup} back over {path}")
    for source, target in mend.moves.items():
        io.move(source, target)
        done.append(f"{source} set aside as {target}")
    if mend.moves:
        undo.insert(0, f"move the files in {mend.side} (not {SIDE_LIST}) back into {folder}")
    return done + ([f"to undo: {'; '.join(_few(undo))}"] if undo else []) + mend.left


@dataclass(frozen=True)
class Foreign:
    """Caption files in another encoding than UTF-8."""

    encoding: str
    texts: Mapping[Path, str]
    """File -> what it says."""

    def __bool__(self) -> bool:
        return bool(self.texts)


def foreign(listing: Listing) -> Foreign:
    """Those of a data set that can be read all the same."""
    paths = dict.fromkeys(Path(fault.file) for fault in listing.faults if fault.file is not None)
    files: dict[Path, bytes] = {}
    for path in paths:
        if path.suffix.lower() in (*SIDECAR_SUFFIXES, *METADATA_SUFFIXES):
            with suppress(UserError):  # of one that cannot be opened, which is among the faults
                files[path] = read_bytes(path)
    files = {path: data for path, data in files.items() if not is_utf8(data)}
    texts, name = read_otherwise([*files.values()]) if files else ([], "")
    return Foreign(name, {path: text for path, text in zip(files, texts, strict=True) if text is not None})


def write_as_utf8(of: Foreign) -> list[str]:
    """Each beside a backup; gives in words what was done. UserError when the disk or the permissions refuse."""
    backups = []
    for path, text in of.texts.items():
        backups.append(_backed_up(path))
        io.write_atomic(path, text.encode())
    count, first = len(backups), backups[0]
    what = "caption file was" if count == 1 else "caption files were"
    rest = f", and so on with {count - 1} more" if count > 1 else ""
    done = f"{count} {what} {of.encoding}, and UTF-8 now; as before: {first.name}{rest}"
    return [done, f"to undo: move {first} back over {next(iter(of.texts))}{rest}"]


def _few(undo: list[str]) -> list[str]:
    return undo if len(undo) <= 3 else [*undo[:3], f"and so on with {len(undo) - 3} more backups, each beside its file"]


def _keep_captions(mend: Mend) -> None:
    """Adds the captions of what goes to the list in the side folder. What stands there stays."""
    path = mend.side / SIDE_LIST
    rows: Mapping[str, str] = {}
    if path.exists():
        faults: list[UserError] = []
        rows = {name: caption.text for name, caption in read_metadata(path, faults, allow_empty=True).items()}
        if faults:
            raise faults[0]
    everything = {**mend.captions, **rows}
    lines = [write_record(["filename", "prompt"]), *(write_record([*row]) for row in sorted(everything.items()))]
    text = "\n".join(lines) + "\n"
    if everything != rows:
        io.make_folder(mend.side)
        io.write_text(path, text)


def _backed_up(path: Path) -> Path:
    """A copy beside the file, as metadata.csv.bak-1; the newest one if it is a copy already."""
    numbers = [
        int(match[1])
        for other in path.parent.iterdir()
        if (match := re.fullmatch(re.escape(path.name) + r"\.bak-(\d+)", other.name))
    ]
    data, newest = read_bytes(path), max(numbers, default=0)
    backup = path.with_name(f"{path.name}.bak-{newest}")
    if newest and read_bytes(backup) == data:
        return backup
    backup = path.with_name(f"{path.name}.bak-{newest + 1}")
    io.write_atomic(backup, data)
    return backup


def _changed(path: Path, changes: Mapping[int | None, str | None]) -> bytes:
    if path.suffix.lower() in SIDECAR_SUFFIXES:
        return f"{changes[None]}\n".encode()
    return rewritten(path, {line: text for line, text in changes.items() if line is not None})
