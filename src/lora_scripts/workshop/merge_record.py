"""What a checkpoint's metadata says of the LoRAs that are merged into it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_scripts.loras.file import LoraFile
    from lora_scripts.workshop.common import Weighted

MERGED = "lora_scripts.merged"
"""Our key: the LoRAs that are in it, by name, SHA-256 and weight."""
STALE = "modelspec.hash_sha256"
"""A hash of the tensors as they were, which a change makes wrong."""


def of(files: Sequence[LoraFile], loras: Sequence[Weighted]) -> list[dict[str, object]]:
    """A row for each LoRA."""
    return [
        {"name": file.name, "sha256": file.sha256, "weight": lora.weight}
        for file, lora in zip(files, loras, strict=True)
    ]


def added(metadata: Mapping[str, str], records: Sequence[dict[str, object]]) -> dict[str, str]:
    """The metadata after a merge."""
    values = {key: value for key, value in metadata.items() if key != STALE}
    return values | {MERGED: json.dumps([*_merged(metadata), *records], ensure_ascii=False)}


def taken_out(metadata: Mapping[str, str], records: Sequence[dict[str, object]]) -> tuple[dict[str, str], list[str]]:
    """The metadata as before the merge, and a note for each LoRA that the file does not say was merged like that."""
    values, inside, notes = dict(metadata), list(_merged(metadata)), []
    for record in records:
        same = [row for row in inside if all(row.get(key) == record[key] for key in ("sha256", "weight"))]
        name = record["name"]
        if same:
            inside.remove(same[0])
        elif inside:
            notes.append(f"the model does not say that {name}:{record['weight']} is in it; it says {_named(inside)}")
        else:
            notes.append(f"the model does not say whether {name} is in it")
    values.pop(MERGED, None)
    if inside:
        values[MERGED] = json.dumps(inside, ensure_ascii=False)
        notes.append(f"still in it: {_named(inside)}")
    return values, notes


def _named(records: Sequence[Mapping[str, object]]) -> str:
    return ", ".join(f"{row.get('name')}:{row.get('weight')}" for row in records)


def _merged(metadata: Mapping[str, str]) -> list[dict[str, object]]:
    """The record in a checkpoint's metadata; nothing where it is not one of ours."""
    try:
        rows = json.loads(metadata.get(MERGED, "[]"))
    except (ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
