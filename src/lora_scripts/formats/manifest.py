"""A folder that knows its own files: beside them lies a table of their SHA-256, so that a flipped bit is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from lora_scripts.formats.io import Buffer

NAME = "manifest.json"


def with_manifest(files: Mapping[str, list[Buffer]]) -> dict[str, list[Buffer]]:
    """The files of a folder (name -> content, in pieces), and the manifest of them."""
    digests = {name: _digest(pieces) for name, pieces in files.items()}
    return {**files, NAME: [json.dumps({"sha256": digests}, indent=1).encode()]}


def damage(folder: Path) -> str:
    """What is wrong with a folder that was written `with_manifest`, in a few words; "" if every file is as it was.

    Files that the manifest does not name are none of its business.
    """
    try:
        digests = json.loads((folder / NAME).read_text("utf-8"))["sha256"]
        for name, digest in digests.items():
            if _sha256(folder / name) != digest:
                return f"{name} is not as it was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} is not as it was written"
    return ""


def _digest(pieces: Iterable[Buffer]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
