"""A folder that knows its own files: beside them lies a table of their SHA-256, so that a flipped bit is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

NAME = "manifest.json"
_CHUNK = 1 << 20  # bytes


def with_manifest(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a folder (name -> content), and the manifest of them."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return {**files, NAME: json.dumps({"sha256": digests}, indent=1).encode()}


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
