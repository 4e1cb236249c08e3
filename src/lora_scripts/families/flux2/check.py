"""Whether a file or folder is a FLUX.2 klein, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.families.black_forest.flux2_files import TAPPED, files, guided, guided_folder
from lora_scripts.families.flow.llm import finder
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import index_of
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("a FLUX.2 klein checkpoint")
DISTILLED = Kind(
    "a FLUX.2 klein distilled to few steps", "give FLUX.2 klein base, 4B or 9B; a LoRA of that works on it, too"
)
TAPS = (9, 18, 27)
"""Behind which layers of the text encoder the states are taken."""
_SIGNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>")
FILES = files("FLUX.2 klein", finder(lambda own: own.text_width // TAPPED, _SIGNS, layers=TAPS[-1]))


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is."""
    return CHECKPOINT if guided(shapes) is False else None


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    if guided_folder(path) is not False:
        return None
    return DISTILLED if index_of(path).get("is_distilled") is True else CHECKPOINT
