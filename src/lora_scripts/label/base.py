"""What makes captions: the Captioner protocol, the table of captioners, and which of them a model folder is for."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lora_scripts.config.values import PICKLES, did_you_mean, parse_path
from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats.header import read_header
from lora_scripts.label import hub
from lora_scripts.utf8 import read_text

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_MODEL = "Salesforce/blip-image-captioning-base"
MINIATURE = "miniature"
"""The word for the captioner that ships with the package and knows the miniature world of the demo only."""

CAPTIONERS = {
    "blip": "lora_scripts.label.blip",
    "blip2": "lora_scripts.label.blip2",
    "florence2": "lora_scripts.label.florence2",
    "qwen-vl": "lora_scripts.label.qwen_vl",
    "llava": "lora_scripts.label.llava",
    "wd": "lora_scripts.label.wd",
}
"""Name -> module with `load(folder, options) -> Captioner`."""
MODEL_TYPES = {
    "blip": "blip",
    "blip-2": "blip2",
    "florence2": "florence2",
    "qwen2_5_vl": "qwen-vl",
    "qwen3_vl": "qwen-vl",
    "llava": "llava",
}
"""What `model_type` in config.json says -> name. A folder with selected_tags.csv and an .onnx file is "wd"."""
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "blip": (),
    "florence2": ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"),
    "wd": (),
}
"""The instructions that a captioner knows, where it does not take any text."""

TAGS = "selected_tags.csv"
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TAGGER_OPTIONS = ("general_threshold", "character_threshold")
_WRITER_OPTIONS = ("precision", "max_new_tokens", "beams")


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are made."""

    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16"""
    instruction: str | None = None
    """What to write, for captioners that take an instruction; None: their own, for captions of training pictures"""
    max_new_tokens: int = 75
    """A text that is not complete after so many tokens ends with its last complete sentence, or its last whole word."""
    beams: int = 3
    """How many beginnings of a text are followed at once; 1 is quicker."""
    general_threshold: float = 0.35
    """Taggers: the lowest probability of a general tag that is written,"""
    character_threshold: float = 0.85
    """and of a character's name."""


class Captioner(Protocol):
    """A loaded model that writes captions."""

    name: str
    """As told to the person: "BLIP"."""
    limits: str | None
    """What it cannot do, in one line."""
    kind: Literal["sentence", "tags"]
    """Whether its texts are sentences, or tags with commas between."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB pictures of any size -> one line of text each, in their order; "" where it has nothing to say.

        The same pictures give the same texts. UserError when the memory does not suffice for so many at once.
        """
        ...


def require_model(model: str, captioner: str | None) -> tuple[Path, str]:
    """The local folder and the captioner's name for `model`: a folder, a hub name (owner/name), or "miniature".

    A hub name is looked up in the local Hugging Face cache, then downloaded; for a folder no socket is opened. Nothing
    heavy is imported. UserError, or several: no such model, a folder that no captioner fits or that lacks a file,
    damaged or pickled weights, a `captioner` that is not the model's, a library that is not installed.
    """
    if captioner is not None and captioner not in CAPTIONERS:
        near = did_you_mean(captioner, CAPTIONERS)
        raise UserError(
            f'there is no captioner "{captioner}"',
            hint=f"did you mean {near}?" if near else f"known: {', '.join(CAPTIONERS)}",
        )
    if model != MINIATURE and hub.is_hub_name(model):
        return _from_hub(model, captioner)
    folder = _bundled() if model == MINIATURE else _local(model)
    name = _captioner_of(folder, captioner)
    raise_all(_faults(folder, name))
    return folder, name


def check_options(name: str, options: CaptionOptions) -> None:
    """UserError, or several, for options that would do nothing, and for an instruction that `name` does not know."""
    unused = _WRITER_OPTIONS if name == "wd" else _TAGGER_OPTIONS
    faults = [
        UserError(f"{field.name.replace('_', ' ')}: does nothing with the captioner {name}", hint="leave it out")
        for field in fields(options)
        if field.name in unused and getattr(options, field.name) != field.default
    ]
    known = INSTRUCTIONS.get(name)
    if options.instruction is not None and known is not None and options.instruction not in known:
        mend = f"it knows {', '.join(known)}" if known else "leave it out, or use blip2, florence2, qwen-vl or llava"
        faults.append(UserError(f"the captioner {name} does not take this instruction", hint=mend))
    elif options.instruction is not None and not options.instruction.strip():
        faults.append(UserError("the instruction is empty", hint="write one, or leave it out"))
    raise_all(faults)


def load_captioner(name: str, folder: Path, options: CaptionOptions) -> Captioner:
    """Builds the captioner; its module, and with it the heavy libraries, is imported only now.

    UserError for options that do nothing, a device that is not there, and weights that do not fit the config.
    """
    check_options(name, options)
    captioner: Captioner = importlib.import_module(CAPTIONERS[name]).load(folder, options)
    return captioner


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. UserError when it is no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(read_text(path))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError("is not a JSON object", file=path, hint="download it again")
    return config


def _bundled() -> Path:
    return Path(str(resources.files("lora_scripts"))) / "demo" / "assets" / "captioner"


def _local(model: str) -> Path:
    try:
        path = parse_path(model)
    except ValueError as error:
        raise UserError(f'model "{model}" {error}') from None
    if path.is_dir():
        return path
    if path.suffix.lower() in PICKLES:
        raise UserError(
            "is a pickle file, which can run code when it is opened",
            file=path,
            hint="give a folder with model.safetensors in it",
        )
    if path.exists():
        raise UserError("is a file, not a folder", file=path, hint="give the folder with its config and tokenizer")
    raise UserError(
        "there is no such folder",
        file=path,
        hint=f"give the folder of a captioner, a name on the hub such as {DEFAULT_MODEL}, or {MINIATURE}",
    )


def _from_hub(model: str, captioner: str | None) -> tuple[Path, str]:
    """The folder in the local cache, downloaded as far as it is not there: first what tells the kind, then weights."""
    folder = hub.cached(model) or hub.download(model)
    name = _captioner_of(folder, captioner)
    if _faults(folder, name):
        folder = hub.download(model, "*.onnx" if name == "wd" else "*.safetensors")
        raise_all(_faults(folder, name))
    return folder, name


def _captioner_of(folder: Path, wanted: str | None) -> str:
    """The captioner that the folder is for; UserError if there is none, or if it is not `wanted`."""
    if (folder / TAGS).is_file():
        name, what = "wd", "WD tagger"
    elif not (folder / "config.json").is_file():
        raise _not_a_captioner(folder)
    else:
        config = read_config(folder)
        what = str(config.get("model_type"))
        if what not in MODEL_TYPES:
            raise UserError(
                f'its config.json says model_type "{what}", which no captioner here is for',
                file=folder,
                hint=f"known are {', '.join(MODEL_TYPES)} and WD taggers",
            )
        name = MODEL_TYPES[what]
    if wanted not in (None, name):
        raise UserError(
            f"is a model for the captioner {name} ({what}), not for {wanted}",
            file=folder,
            hint="leave --captioner out: it is found from the model",
        )
    return name


def _not_a_captioner(folder: Path) -> UserError:
    if any(folder.glob("*.onnx")):
        return UserError(f"there is an .onnx file but no {TAGS}", file=folder, hint="copy that beside it")
    if (folder / "model_index.json").is_file():
        return UserError("is a model that paints, not one that captions", file=folder, hint=f"try {DEFAULT_MODEL}")
    return UserError("is no captioner: there is no config.json in it", file=folder, hint="give the model's own folder")


def _faults(folder: Path, name: str) -> list[UserError]:
    """What the folder lacks or has damaged, file by file; the safetensors headers are read, the tensors are not."""
    if name == "wd":
        faults = [] if any(folder.glob("*.onnx")) else [UserError("there is no .onnx file in it", file=folder)]
        if importlib.util.find_spec("onnxruntime") is None:
            faults.append(UserError("WD taggers need onnxruntime", hint="pip install onnxruntime"))
        return faults
    faults = _config_faults(folder, name) + _weight_faults(folder)
    for what, files in (("tokenizer", _TOKENIZERS), ("image preprocessor", _PREPROCESSORS)):
        if not any((folder / file).is_file() for file in files):
            fault = f"its {what} is missing: there is no {' or '.join((files[0], files[1]))}"
            faults.append(
                UserError(fault, file=folder, hint="copy all of the model's small files, not its weights only")
            )
    return faults


def _config_faults(folder: Path, name: str) -> list[UserError]:
    config = read_config(folder)
    vision = config.get("vision_config")
    tower = vision.get("model_type") if isinstance(vision, dict) else None
    faults = []
    if name == "florence2" and "auto_map" in config:  # the first release, whose code came along with the weights
        faults.append(
            UserError(
                "this Florence-2 runs code of its own",
                file=folder,
                hint=f"use the same model for transformers: florence-community/{hub.model_name(folder)}",
            )
        )
    if name == "llava" and tower not in ("clip_vision_model", "siglip_vision_model"):
        hint = "LLaVA with CLIP or SigLIP (JoyCaption) works"
        faults.append(UserError(f'its vision tower "{tower}" is not known', file=folder / "config.json", hint=hint))
    if name == "blip2" and config.get("image_token_index") is None:
        hint = "download the model's current version"
        faults.append(UserError("has no image_token_index", file=folder / "config.json", hint=hint))
    if "quantization_config" in config:
        hint = "give the model's version in fp16 or bf16"
        faults.append(UserError("its weights are quantised, which is not supported", file=folder, hint=hint))
    return faults


def _weight_faults(folder: Path) -> list[UserError]:
    """Missing, pickled and damaged weights; shards are found through their index."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not single.is_file() and not index.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
        if pickles:
            message = f"its weights are a pickle ({pickles[0]}), which can run code when it is opened"
            return [UserError(message, file=folder, hint="download the model's version with model.safetensors")]
        return [UserError("its weights are missing: there is no model.safetensors", file=folder)]
    try:
        files = [single]
        if not single.is_file():
            files = [folder / name for name in sorted(set(json.loads(read_text(index))["weight_map"].values()))]
    except (ValueError, TypeError, KeyError, AttributeError):
        return [UserError("is not an index of weights", file=index, hint="download it again")]
    faults = []
    for file in files:
        try:
            read_header(file)
        except UserError as fault:
            faults.append(fault)
    return faults
