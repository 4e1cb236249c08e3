"""A data set as it lies on the disk: which pictures there are, and what captions say of each. No picture is opened."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from lora_scripts.data.captions import METADATA_SUFFIXES, read_metadata, read_sidecar
from lora_scripts.data.findings import HEIC, HEIC_MEND, IMAGE_SUFFIXES, SIDECAR_SUFFIXES, Finding, left_out
from lora_scripts.data.loader import folder_above
from lora_scripts.errors import UserError, raise_all
from lora_scripts.units import typed

MANY = 20
"""From here on faults of one kind are counted instead of listed: they have one cause."""
_OF_SYSTEMS = frozenset(["__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"])
"""What macOS, Windows and network drives (Synology, QNAP) make by themselves, in lower case: thumbnails, bins."""
_MASK = "-masklabel.png"
"""What OneTrainer puts behind the name of a picture for its mask."""


@dataclass(frozen=True)
class Said:
    """What one source says about one image."""

    text: str
    file: Path
    line: int | None
    """Of a metadata file; None for a sidecar, which is all one caption."""
    source: str
    """As told to a person: "metadata.csv:3", "a.txt"."""


@dataclass(frozen=True)
class Listing:
    """A data set, faults and all."""

    images: dict[str, Path]
    """Name -> path, sorted by name."""
    said: dict[str, list[Said]]
    """Name -> captions; none for an image that no source names, or whose sidecar cannot be read."""
    faults: list[UserError]
    lost: bool
    """A metadata file could not be read at all, so that captions missing now say nothing."""
    notes: Sequence[Finding] = ()
    """On files that are not read; see `left_out`."""

    def caption(self, name: str) -> str:
        """The first source's; empty where there is none."""
        said = self.said.get(name)
        return said[0].text if said else ""


def list_data(
    folder: Path, metadata: Path | None = None, *, allow_missing_captions: bool = False, captions: bool = True
) -> Listing:
    """The images below `folder` and what is said about each, unless not even that is read. UserError(s) if there is no
    image at all.

    Captions come from `metadata`, or else from metadata.csv and metadata.jsonl in any folder of the tree, and from
    sidecars (a.txt or a.caption beside a.png). Left out are hidden files and folders, those that systems make, and the
    masks that OneTrainer keeps beside pictures.
    """
    faults: list[UserError] = []
    files = _files(folder, faults)
    images = {name: path for name, path in sorted(files.items()) if path.suffix.lower() in IMAGE_SUFFIXES}
    masks = _masks(images)
    for name in masks:
        del images[name]
    if not images:
        message, unread = f"no images (jpg, png, webp, avif, bmp) found; {_kinds(files)}", left_out(files, tables=False)
        raise_all([*faults, UserError(message, file=folder, hint=unread[0].mend if unread else None)])
    if not captions:
        return Listing(images, {}, faults, False)
    read = _Captions(folder, files, images, faults, allow_missing_captions)
    read.read(metadata)
    bare = metadata is None and any(not read.said.get(name) for name in images)
    notes = [*_of_folder(folder, images), *_of_masks(masks), *left_out(files, tables=bare)]
    return Listing(images, read.said, faults, read.lost, notes)


def _masks(images: Mapping[str, Path]) -> list[str]:
    """Which of them are masks by OneTrainer, by their names: that of another one comes first."""
    masks = [name for name in images if name.lower().endswith(_MASK)]
    stems = {name.rpartition(".")[0] for name in images} if masks else ()
    return [name for name in masks if name[: -len(_MASK)] in stems]


def _of_masks(names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    message = f"{len(names)} not read as pictures: masks by OneTrainer ({names[0]})"
    mend = "to use them, move them into a folder of their own, each named as its picture, and set mask_dir"
    return [Finding("not_read", "note", (), message, mend)]


def _of_folder(folder: Path, names: Iterable[str]) -> list[Finding]:
    """A note where the folder is the one above those of kohya's trainers."""
    above = folder_above(names)
    if above is None:
        return []
    main, others = above
    trained = f", and what lies in {' and '.join(others)} is trained, too" if others else ""
    message = f"this is the folder above {main}: its numbers, as in 10_name, are not read from here{trained}"
    return [Finding("not_read", "note", (), message, _one_deeper(folder, above))]


def _one_deeper(folder: Path, above: tuple[str, Sequence[str]]) -> str:
    """What to give in place of the folder above."""
    main, of_class = (folder / above[0]).as_posix(), [name for name in above[1] if name.lower().startswith("reg")]
    own = f", and {(folder / of_class[0]).as_posix()} as class_data_dir" if of_class else ""
    return f"give {main} in its place{own}: {typed(['lora-scripts', 'check', main])}"


def _files(folder: Path, faults: list[UserError]) -> dict[str, Path]:
    """Every file below `folder` that is not hidden, by its posix path. Links to folders are followed, once each."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such folder"
        raise UserError(what, file=folder, hint="name the folder with the images")
    files: dict[str, Path] = {}
    visited: set[tuple[int, int]] = set()
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        try:
            stat = os.stat(here)
            if (stat.st_dev, stat.st_ino) in visited:
                continue
            visited.add((stat.st_dev, stat.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            faults.append(UserError(f"the folder cannot be read: {error.strerror or error}", file=here))
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
                continue
            try:
                name = prefix + unicodedata.normalize("NFC", entry.name.encode().decode())
            except UnicodeEncodeError:  # bytes that are not UTF-8; they cannot even be printed
                faults.append(UserError(f"the file name {entry.name!a} is not Unicode; rename it", file=here))
                continue
            # of a link os.path.isdir asks the disk, and answers for one to itself, too; of all else the entry knows
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                waiting.append((here / entry.name, name + "/"))
            elif name in files:
                faults.append(UserError("two files have this name in different Unicode forms", file=files[name]))
            else:
                files[name] = here / entry.name
    return files


def _kinds(files: Mapping[str, Path]) -> str:
    """What a folder holds, for a message: "the folder holds 3 .gif, 1 .zip"."""
    if not files:
        return "the folder is empty"
    counts = Counter(PurePosixPath(name).suffix.lower() or PurePosixPath(name).name for name in files)
    more = f" and {len(counts) - 8} other kinds" if len(counts) > 8 else ""
    return "the folder holds " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common(8)) + more


@dataclass
class _Captions:
    """Gathers what each source says about each image, and finds gaps and contradictions."""

    folder: Path
    files: Mapping[str, Path]
    images: Mapping[str, Path]
    faults: list[UserError]
    allow_missing: bool
    said: dict[str, list[Said]] = field(default_factory=dict)
    lost: bool = False

    def read(self, metadata: Path | None) -> None:
        if metadata is not None:
            self._metadata(metadata, metadata.name, "")
        else:
            wanted = [f"metadata{suffix}" for suffix in METADATA_SUFFIXES]
            for name in sorted(self.files):
                prefix, _, last = name.rpartition("/")
                if last.lower() in wanted:
                    self._metadata(self.files[name], name, f"{prefix}/" if prefix else "")
        self._sidecars()
        for name, sources in self.said.items():
            sources.sort(key=lambda said: not said.text)  # an empty one, where that may be, says nothing
            if len({said.text for said in sources if said.text}) > 1:
                told = " but ".join(f'"{_short(said.text)}" in {said.source}' for said in sources)
                self.faults.append(UserError(f"two captions: {told}", file=self.images[name], hint="keep one of them"))
        self._gaps()

    def _metadata(self, path: Path, source: str, prefix: str) -> None:
        before = len(self.faults)
        rows = read_metadata(path, self.faults, allow_empty=self.allow_missing)
        self.lost |= not rows and len(self.faults) > before
        strangers: dict[str, int] = {}
        for name, caption in rows.items():
            if prefix + name in self.images:
                said = Said(caption.text, path, caption.line, f"{source}:{caption.line}")
                self.said.setdefault(prefix + name, []).append(said)
            else:
                strangers[prefix + name] = caption.line
        if strangers and len(strangers) == len(rows) > 1:
            self.lost = True
            example, line = next(iter(strangers.items()))
            message = f'none of its {len(rows)} names is an image in {self.folder}, the first being "{example}"'
            hint = f'names are relative to that folder, like "{next(iter(self.images))}"'
            self.faults.append(UserError(message, file=path, line=line, hint=hint))
            return
        for name, line in list(strangers.items())[:MANY]:
            message = f'no image "{name}" in {self.folder}'
            self.faults.append(UserError(message, file=path, line=line, hint=self._hint(name)))
        if len(strangers) > MANY:
            self.faults.append(UserError(f"{len(strangers) - MANY} further rows have no image", file=path))

    def _hint(self, name: str) -> str:
        """Which image a row without one may mean."""
        if name in self.files:
            if PurePosixPath(name).suffix.lower() in HEIC:
                return HEIC_MEND
            if name.lower().endswith(_MASK):
                return "remove the row: the file is the mask of a picture"
            return "the file is there, but images are read from jpg, png, webp, avif and bmp: convert it"
        wanted, known = PurePosixPath(name), self._by_likeness
        for likeness in (name.casefold(), wanted.as_posix(), wanted.with_suffix("").as_posix(), wanted.name):
            if likeness in known:
                return f'did you mean "{known[likeness]}"?'
        # Without folders: names that share a long one are alike by that alone.
        near = difflib.get_close_matches(wanted.name, self._by_name, 1, 0.8)
        return f'did you mean "{self._by_name[near[0]]}"?' if near else "remove the row, or add the image"

    @cached_property
    def _by_likeness(self) -> dict[str, str]:
        """Images by their names in small letters, without suffix, and without folder."""
        table: dict[str, str] = {}
        for name in self.images:
            path = PurePosixPath(name)
            for likeness in (name.casefold(), path.with_suffix("").as_posix(), path.name):
                table.setdefault(likeness, name)
        return table

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Images by their names without folder."""
        return {PurePosixPath(name).name: name for name in reversed(list(self.images))}

    def _sidecars(self) -> None:
        sidecars = [name for name in sorted(self.files) if name.lower().endswith(SIDECAR_SUFFIXES)]
        if not sidecars:
            return
        by_stem: dict[str, list[str]] = {}
        for name in self.images:
            by_stem.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
        for name in sidecars:
            owners = by_stem.get(str(PurePosixPath(name).with_suffix("")), [])
            if not owners:
                continue
            try:
                text = read_sidecar(self.files[name], allow_empty=self.allow_missing)
            except UserError as fault:
                self.faults.append(fault)
                for owner in owners:
                    self.said.setdefault(owner, [])  # told once; not as an image without caption, too
                continue
            for owner in owners:
                self.said.setdefault(owner, []).append(Said(text, self.files[name], None, name))

    def _gaps(self) -> None:
        without = [name for name in self.images if name not in self.said]
        if not without or self.allow_missing or self.lost:
            return
        allow = "or set allow_missing_captions: true"
        if len(without) == len(self.images):
            message = (
                f"no captions found for its {len(without)} images: no metadata.csv, no metadata.jsonl, "
                f"no .txt or .caption beside an image; {_kinds(self.files)}"
            )
            tables = [note for note in left_out(self.files, tables=True) if note.kind == "other_table"]
            hint = f"write metadata.csv with the first line filename,prompt, {allow}"
            hint = f"{tables[0].message}: {tables[0].mend}, {allow}" if tables else hint
            self.faults.append(UserError(message, file=self.folder, hint=hint))
            return
        above = folder_above(self.images)
        for name in without[:MANY]:
            hint = f"add one, {allow}"
            if above and name.partition("/")[0] != above[0]:
                hint = _one_deeper(self.folder, above)
            self.faults.append(UserError("has no caption", file=self.images[name], hint=hint))
        if len(without) > MANY:
            self.faults.append(UserError(f"{len(without) - MANY} further images have no caption", file=self.folder))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
