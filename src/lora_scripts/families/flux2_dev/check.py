"""Whether a file or folder is a FLUX.2 dev, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.families.black_forest.flux2_files import TAPPED, files, guided, guided_folder
from lora_scripts.families.flow.llm import MISTRAL3, finder
from lora_scripts.families.kinds import Shapes
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("a FLUX.2 dev checkpoint")
TAPS = (10, 20, 30)
"""Behind which layers of the text encoder the states are taken."""
_SIGNS = ("<s>", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")


# Of the text encoder's 40 layers published files for drawing have the first 30, which are read.
FILES = files("FLUX.2 dev", finder(lambda own: own.text_width // TAPPED, _SIGNS, MISTRAL3, TAPS[-1]))


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is."""
    return CHECKPOINT if guided(shapes) else None


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    return CHECKPOINT if guided_folder(path) else None
