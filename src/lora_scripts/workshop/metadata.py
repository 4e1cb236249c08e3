"""`lora-scripts metadata`: what a LoRA file says of itself, shown and changed; its tensors stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats import header
from lora_scripts.loras import private
from lora_scripts.workshop import reheader

_COMPUTED = ("sshs_model_hash", "sshs_legacy_hash")


def show(path: Path) -> None:
    """Prints the metadata, key by key; long values are cut."""
    metadata = header.read_header(path).metadata
    if not metadata:
        print(f"{path}: no metadata")
    for key in sorted(metadata):
        value = " ".join(metadata[key].split())
        print(f"{key} = {value[:200]}" + (f"… ({len(value):,} letters)" if len(value) > 200 else ""))


def change(path: Path, output: Path, values: Mapping[str, str], *, strip: bool, make_private: bool) -> None:
    """Writes the file with other metadata, its hashes made true. An empty value takes the key out.

    UserError for a hash that somebody wants to set, and when a file cannot be read or written.
    """
    raise_all(
        [
            UserError(f"--set {key}=…: this hash is computed from the file", hint="leave it out")
            for key in values
            if key in _COMPUTED
        ]
    )
    before = header.read_header(path).metadata
    after = private.strip(before) if strip else before
    after = private.make_private(after) if make_private else after
    reheader.rewrite(path, output, {key: value for key, value in {**after, **values}.items() if value})
    now = header.read_header(output).metadata
    for word, keys in (("removed", before.keys() - now.keys()), ("added", now.keys() - before.keys())):
        if keys:
            print(f"{word}: {', '.join(sorted(keys))}")
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            print(f"changed: {key} = {now[key][:120]}")
    print(f"written: {output}")
