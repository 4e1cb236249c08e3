"""WD taggers: Danbooru's tags with probabilities, from an ONNX model (SmilingWolf/wd-…-tagger-v3)."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state
from PIL import Image

from lora_scripts.errors import UserError
from lora_scripts.label.base import TAGS, CaptionOptions
from lora_scripts.utf8 import read_text

GENERAL, CHARACTER = 0, 4
"""Categories of tags; 9 is the rating, which is no part of a caption."""
_LOADING_ERRORS = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NoModel, state.NotImplemented)
_WORD = re.compile(r"[^\W\d_]{2}")


@dataclass(frozen=True)
class Tag:
    """One row of the list, which is one output of the model."""

    text: str
    category: int


def read_tags(path: Path) -> list[Tag]:
    """The rows of selected_tags.csv (`tag_id,name,category,count`), in order. UserError, with the line."""
    lines = csv.reader(read_text(path).splitlines())
    header = next(lines, [])
    if not {"name", "category"} <= set(header):
        raise UserError("has no columns name and category", file=path, line=1, hint="download it again")
    name_at, category_at = header.index("name"), header.index("category")
    tags = []
    for row in lines:
        if len(row) != len(header) or not row[category_at].isdecimal():
            raise UserError("the row is damaged", file=path, line=lines.line_num, hint="download it again")
        tags.append(Tag(spaced(row[name_at]), int(row[category_at])))
    return tags


def spaced(tag: str) -> str:
    """A tag with spaces for underscores, but for a face such as ^_^ or o_o: a tag without two letters in a row."""
    return tag.replace("_", " ") if _WORD.search(tag) else tag


class WdTagger:
    """Tags above the thresholds, the most probable first."""

    name = "WD tagger"
    limits: str | None = "knows the tags of anime pictures; of photos it finds little"
    kind: Literal["sentence", "tags"] = "tags"

    def __init__(self, folder: Path, options: CaptionOptions) -> None:
        self.tags = read_tags(folder / TAGS)
        path = min(folder.glob("*.onnx"), key=lambda path: (path.name != "model.onnx", path.name))
        self.session = _session(path, options.device)
        source, *others = self.session.get_inputs()
        self.input, self.batch, side = source.name, source.shape[0], source.shape[1:]
        if others or len(side) != 3 or not isinstance(side[0], int) or side != [side[0], side[0], 3]:
            raise UserError(f"wants {source.shape} instead of [n, side, side, 3]", file=path, hint="is it a WD tagger?")
        outputs = self.session.get_outputs()[0].shape
        if len(outputs) != 2 or outputs[1] != len(self.tags):
            raise UserError(
                f"gives {outputs}, but {TAGS} has {len(self.tags)} tags", file=path, hint="take both from one model"
            )
        self.side = side[0]
        thresholds = {GENERAL: options.general_threshold, CHARACTER: options.character_threshold}
        self.lowest = np.array([thresholds.get(tag.category, np.inf) for tag in self.tags], np.float32)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        pixels = np.stack([prepare(image, self.side) for image in images])
        # Some exports take one picture at a time.
        batches = [pixels[i : i + 1] for i in range(len(pixels))] if self.batch == 1 else [pixels]
        answers = np.concatenate([self.session.run(None, {self.input: batch})[0] for batch in batches])  # [n, tags]
        return [self._text(row) for row in answers]

    def _text(self, probabilities: NDArray[np.float32]) -> str:
        order = np.argsort(-probabilities, kind="stable")
        return ", ".join(self.tags[i].text for i in order if probabilities[i] >= self.lowest[i])


def prepare(image: Image.Image, side: int) -> NDArray[np.float32]:
    """float32 [side, side, 3] in 0 … 255, blue first: the RGB picture in the middle of a white square."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), (255, 255, 255))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    if edge != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def _session(path: Path, device: str) -> onnxruntime.InferenceSession:
    """The model on the CPU, or on a CUDA card where onnxruntime has been built for one."""
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device.startswith("cuda") and not cuda:
        raise UserError("this onnxruntime has no CUDA", hint="pip install onnxruntime-gpu, or use --device cpu")
    if device == "mps":
        raise UserError("WD taggers do not run on mps", hint="use --device cpu")
    number = int(device.split(":")[1]) if ":" in device else 0
    providers: list[object] = ["CPUExecutionProvider"]
    if cuda and device != "cpu":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=providers)
    except _LOADING_ERRORS as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"cannot be loaded: {reason}", file=path, hint="download it again") from error
    if device.startswith("cuda") and "CUDAExecutionProvider" not in session.get_providers():  # it falls back silently
        raise UserError(f"device {device}: onnxruntime found none", hint="use --device auto, or cpu")
    return session


def load(folder: Path, options: CaptionOptions) -> WdTagger:
    """From a folder with an .onnx file and selected_tags.csv. Raises UserError."""
    return WdTagger(folder, options)
