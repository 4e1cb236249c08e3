"""`lora-scripts metadata`: what a LoRA file says of itself, shown and changed; its tensors stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats import header
from lora_scripts.loras import private
from lora_scripts.workshop import reheader

_COMPUTED = ("sshs_model_hash", "sshs_legacy_hash")


@dataclass(frozen=True)
class FileMetadata:
    """What a file says of itself."""

    file: Path
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class ChangedMetadata:
    """What it says now that it did not, and no longer."""

    file: Path
    output: Path
    removed: Mapping[str, str]
    added: Mapping[str, str]
    changed: Mapping[str, str]
    """With the new values."""


def show(file: Path) -> FileMetadata:
    """The metadata, sorted by key. UserError when the file cannot be read."""
    return FileMetadata(file, dict(sorted(header.read_header(file).metadata.items())))


def change(
    file: Path, output: Path, values: Mapping[str, str], *, strip: bool = False, make_private: bool = False
) -> ChangedMetadata:
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
    before = show(file).metadata
    wanted = private.strip(before) if strip else before
    wanted = private.make_private(wanted) if make_private else wanted
    reheader.rewrite(file, output, {key: value for key, value in {**wanted, **values}.items() if value})
    after = show(output).metadata
    return ChangedMetadata(
        file,
        output,
        removed={key: value for key, value in before.items() if key not in after},
        added={key: value for key, value in after.items() if key not in before},
        changed={key: value for key, value in after.items() if before.get(key, value) != value},
    )
