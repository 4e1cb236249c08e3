"""Whether a file or folder is a FLUX.2 dev, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.families.black_forest.flux2_files import TAPPED, files, guided, guided_folder
from lora_scripts.families.black_forest.flux2_layout import Flux2Layout
from lora_scripts.families.flow import llm
from lora_scripts.families.flow.llm import MISTRAL3, Source
from lora_scripts.families.kinds import Shapes
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("a FLUX.2 dev checkpoint")
TAPS = (10, 20, 30)
"""Behind which layers of the text encoder the states are taken."""
_SIGNS = ("<s>", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")


def _text(own: Flux2Layout, base: Path, given: Sequence[Path]) -> Source:
    """As `Transformer.text` asks. Of the 40 layers published files for drawing have the first 30, which are read."""
    source = llm.find(MISTRAL3, base, given, own.text_width // TAPPED, _SIGNS)
    if (layers := source.layout.layers) < TAPS[-1]:
        text = f"this text encoder has {layers} layers, the base reads the states behind {TAPS[-1]}"
        raise UserError(text, file=source.path, hint=f"give {MISTRAL3.file}")
    return source


FILES = files("FLUX.2 dev", _text)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is."""
    return CHECKPOINT if guided(shapes) else None


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and its index."""
    return CHECKPOINT if guided_folder(path) else None
