"""The pictures that are to be labelled, and where their captions lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.config.values import at_home
from lora_scripts.data.captions import METADATA_SUFFIXES
from lora_scripts.data.findings import Finding
from lora_scripts.data.listing import Listing, list_data
from lora_scripts.data.texts.records import holds_records
from lora_scripts.data.unquoted import told_once
from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.label.store import Store, open_store


@dataclass(frozen=True)
class Folder:
    """A folder of pictures with the captions that are there."""

    images: Mapping[str, Path]
    """Name -> path, sorted by name."""
    store: Store
    elsewhere: Mapping[str, str]
    """Name -> the file that has its caption, where that is not in `store`. These pictures are left alone."""
    notes: Sequence[Finding] = ()
    """On files that are not read."""


def open_folder(folder: Path, output: str | None) -> Folder:
    """`output`: see `store.open_store`. UserErrors with every fault of the captions that are there, and of `output`."""
    if holds_records(folder):
        text = "these are records of a language model, which need no captions"
        raise UserError(text, file=folder, hint="look at them with lora-scripts check")
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such folder"
        raise UserError(f"--input: {what}", file=folder, hint="give the folder with the images")
    listing = _listing(folder, output)
    faults = Faults(listing.faults)
    store = faults.attempt(lambda: open_store(output, folder, listing.images))
    raise_all(told_once(list({(fault.message, fault.line): fault for fault in faults}.values())))
    assert store is not None
    elsewhere = {
        name: said.source
        for name, sources in listing.said.items()
        for said in sources
        if said.text and not store.holds(said.file)
    }
    return Folder(listing.images, store, elsewhere, listing.notes)


def _listing(folder: Path, output: str | None) -> Listing:
    """The pictures, and the captions that a training with this output would read."""
    path = at_home(output) if output else folder / "metadata.csv"
    if path.suffix.lower() not in METADATA_SUFFIXES or path.is_dir():
        return list_data(folder, allow_missing_captions=True)
    if path.stem.lower() == "metadata" and path.parent.resolve() == folder.resolve():
        return list_data(folder, allow_missing_captions=True)
    if path.exists():
        return list_data(folder, path, allow_missing_captions=True)
    # A new file under another name: a training that is told of it reads no metadata.csv, but sidecars all the same.
    listing = list_data(folder, allow_missing_captions=True)
    sidecars = {name: [one for one in sources if one.line is None] for name, sources in listing.said.items()}
    faults = [fault for fault in listing.faults if Path(str(fault.file)).suffix.lower() not in METADATA_SUFFIXES]
    return Listing(listing.images, sidecars, faults, lost=False, notes=listing.notes)
