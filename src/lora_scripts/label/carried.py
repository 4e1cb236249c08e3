"""The prompt in the file of a generated picture, as the program that drew it wrote it there. Without torch.

Where each program puts it was read in its source: A1111's WebUI and Forge (`modules/images.py`, `infotext_utils.py`;
they read NovelAI's files, too), SD.Next (`modules/images.py`, `infotext.py`), ComfyUI (`nodes.py`,
`comfy_api/latest/_ui.py`), InvokeAI (`image_files_disk.py`, `import_images.py`, `pngwriter.py`) and Fooocus
(`modules/meta_parser.py`).
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lora_scripts.data.image import DECODER_ERRORS, FORMATS, load_rgb
from lora_scripts.errors import UserError
from lora_scripts.formats.comfy_graph import prompts_of
from lora_scripts.utf8 import load_json, read_bytes

_EXIF_IFD, _MODEL, _COMMENT = 0x8769, 0x0110, 0x9286
_END = re.compile(r"^\s*(?:Negative prompt:|Steps: *\d)", re.MULTILINE)
"""Where the prompt of an infotext ends."""
_RAW = re.compile(r'\bRaw prompt: *("(?:\\.|[^"\\])*"|[^,\n]*)')
"""What a person wrote, where Fooocus has put words of its styles around it."""
_DREAM = re.compile(r'"(.*)" -s\d', re.DOTALL)
_UNWANTED = re.compile(r"\[[^\[\]]+\]")
"""A negative prompt of InvokeAI before version 3, which stands in the prompt."""
_COMPEL = re.compile(r"(?<=\))(?:[+-]+|\d+\.?\d*|\.\d+)|(?<=\w)(?:\++|-+)(?=[\s,.)]|$)")
"""Weights of InvokeAI: (golden light)1.2, (golden light)++, trees+, fog-."""
_CLAUSES = re.compile(r"\)\.(?:and|blend)\([^()]*\)")


def carried_prompt(path: Path) -> str:
    """The prompt that the picture at `path` was drawn with, unchanged; "" where its file has none that is known here.

    UserError for what is no picture, and for a workflow that draws from several prompts.
    """
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd EXIF
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                found = next((prompts for prompts in _found(image) if any(prompts)), [""])
    except DECODER_ERRORS:
        load_rgb(path)  # which tells what is wrong, if it is the picture
        return ""
    if len(found) > 1:
        what = "its ComfyUI workflow draws from several prompts"
        raise UserError(what, file=path, hint="write its caption yourself")
    return found[0]


def _found(image: Image.Image) -> Iterator[list[str]]:
    """What each place says, the likeliest first; more than one text where it is not certain which."""
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    yield [_parameters(texts.get("parameters", ""))]
    yield prompts_of(_object(texts.get("prompt", "")))
    yield [_invoke(texts)]
    if texts.get("Software") == "NovelAI":
        yield [texts.get("Description", "").strip()]
    if not isinstance(image.info.get("exif"), bytes):
        return
    exif = Image.Exif()
    exif.load(image.info["exif"])
    comment = exif.get_ifd(_EXIF_IFD).get(_COMMENT) or exif.get(_COMMENT)  # Fooocus puts it outside the Exif part
    text = _comment(comment) if isinstance(comment, bytes) else str(comment or "")
    # A camera or a phone writes remarks there, too.
    yield [_parameters(text) if _END.search(text) or _object(text) else ""]
    model = str(exif.get(_MODEL) or "")
    yield prompts_of(_object(model.removeprefix("prompt:"))) if model.startswith("prompt:") else []


def _parameters(text: str) -> str:
    """The prompt of an infotext, or of Fooocus' JSON."""
    if said := _object(text):
        return _string(said.get("prompt"))
    end = _END.search(text)
    raw = _RAW.search(text, end.start()) if end else None
    if raw is None:
        return text[: end.start() if end else None].strip()
    try:
        return str(json.loads(raw[1])).strip() if raw[1].startswith('"') else raw[1].strip()
    except ValueError:
        return raw[1].strip('" ')


def _invoke(texts: Mapping[str, str]) -> str:
    """InvokeAI's prompt without its weights and clauses."""
    prompt = _string(_object(texts.get("invokeai_metadata", "")).get("positive_prompt"))
    if not prompt:
        drawn = _object(texts.get("sd-metadata", "")).get("image")
        said = drawn.get("prompt") if isinstance(drawn, dict) else None
        first = said[0] if isinstance(said, list) and said else None
        dream = _DREAM.match(texts.get("Dream", ""))
        old = _string(first.get("prompt") if isinstance(first, dict) else said) or (dream[1] if dream else "")
        prompt = _UNWANTED.sub("", old)
    if _CLAUSES.search(prompt):
        prompt = _CLAUSES.sub(")", prompt).replace('"', "")
    return _COMPEL.sub("", prompt).strip()


def _comment(data: bytes) -> str:
    """An EXIF comment, by the eight bytes that name its letters. UNICODE is UTF-16 in either order: A1111 writes big
    endian whatever the EXIF around it is, others as that is."""
    head, body = data[:8], data[8:]
    if head == b"UNICODE\0":
        # Of Latin letters, which every infotext has, the high byte is 0.
        big = body.startswith(b"\xfe\xff") or body[::2].count(0) >= body[1::2].count(0)
        return body.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\ufeff\0")
    return (body if head in (b"ASCII\0\0\0", bytes(8)) else data).decode("utf-8", "replace").strip("\0")


def _object(text: str) -> dict[str, Any]:
    """A JSON object; {} for all else."""
    if text.lstrip()[:1] != "{":
        return {}
    try:
        value = load_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _string(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""
