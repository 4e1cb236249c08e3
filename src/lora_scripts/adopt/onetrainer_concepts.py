"""OneTrainer's concepts and samples (`ConceptConfig.py`, `SampleConfig.py`): pictures, captions, prompts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lora_scripts.adopt import turns
from lora_scripts.adopt.folders import Folder, put_folders
from lora_scripts.adopt.foreign_file import flat, parsed, text_of
from lora_scripts.adopt.found import Found, Left, brief
from lora_scripts.adopt.turns import flag, number, path, text, whole
from lora_scripts.errors import UserError


def carry_concepts(found: Found, data: dict[str, Any], given: Path | None) -> None:
    """The concepts in the file, or in the one that it names, as our one folder of pictures."""
    concepts = data.get("concepts")
    name = found.take("concept_file_name", path, "training_concepts/concepts.json")
    if not isinstance(concepts, list):
        places = [
            Path(name),
            found.file.parent / name,
            found.file.parent / Path(name).name,
            found.file.parent.parent / name,
        ]
        file = next((place for place in places if place.is_file()), None)
        concepts = parsed(text_of(file), file) if file else []
        if file is None and given is None:
            text_ = f"names its pictures in {name}, which is not here"
            raise UserError(text_, file=found.file, hint="put it beside this file, or say where they are: --data DIR")
    concepts = (
        [one for one in concepts if isinstance(one, dict) and one.get("enabled", True)]
        if isinstance(concepts, list)
        else []
    )
    of = {
        kind: [one for one in concepts if str(one.get("type", "STANDARD")) == kind]
        for kind in ("STANDARD", "VALIDATION", "PRIOR_PREDICTION")
    }
    put_folders(found, [_folder(found, one) for one in of["STANDARD"] if one.get("path")], given)
    for index, one in enumerate(of["STANDARD"]):
        _concept(found, one, first=index == 0)
    for one in of["VALIDATION"][:1]:
        found.put("val_data_dir", turns.path(str(one.get("path", ""))), note="a concept of type VALIDATION")
    for one in [*of["PRIOR_PREDICTION"], *of["VALIDATION"][1:]]:
        found.left.append(
            Left(
                f"concept {brief(one.get('path', ''))}", "class_data_dir keeps the class here, with captions of its own"
            )
        )


def _folder(found: Found, one: dict[str, Any]) -> Folder:
    kind, told = str(one.get("balancing_strategy", "REPEATS")), f"concept path = {brief(one['path'])}"
    repeats = Found(found.trainer, found.file, found.text, one, faults=found.faults).take("balancing", number, 1.0)
    count = repeats if kind == "REPEATS" else 1
    if kind != "REPEATS" or count != int(count) or count < 1:
        found.left.append(
            Left(f"{told}, balancing = {repeats} {kind.lower()}", "pictures are repeated a whole number of times here")
        )
    whole_times = max(1, round(count))
    return Folder(
        turns.path(str(one["path"])), whole_times, told + (f", balancing = {whole_times}" if whole_times > 1 else "")
    )


def _concept(found: Found, one: dict[str, Any], *, first: bool) -> None:
    """Captions and pictures of one concept: of the first, as one of ours has all pictures."""
    inner = Found(found.trainer, found.file, found.text, dict(flat(one)))
    told = f"concept {brief(one.get('path', ''))}"
    if first:
        jitter = inner.take("image.enable_crop_jitter", flag, True)
        if inner.take("image.enable_random_flip", flag, False):
            inner.put("flip", True, "image.enable_random_flip")
        if jitter:
            inner.put("random_crop", True, "image.enable_crop_jitter")
        if inner.take("text.enable_tag_shuffling", flag, False):
            inner.put("shuffle_tags", True, "text.enable_tag_shuffling")
            inner.put_or_usual("keep_tags", "text.keep_tags_count", whole, 1)
        if inner.take("text.tag_dropout_enable", flag, False):
            inner.put(
                "tag_dropout", inner.take("text.tag_dropout_probability", number, 0.0), "text.tag_dropout_probability"
            )
        found.puts.update(inner.puts)
    source = str(inner.values.get("text.prompt_source", "sample"))
    if source != "sample":
        inner.leave("text.prompt_source", "captions stand in text files beside the pictures, or in metadata.csv here")
    known: dict[str, tuple[object, str]] = {
        f"image.{key}": (False, "pictures are not changed so here") for key in _CHANGES
    }
    known |= {"image.enable_resolution_override": (False, "one resolution counts for all pictures here")}
    known |= {
        "loss_weight": (1.0, "pictures of one folder count the same here"),
        "text.caps_randomize_enable": (False, "is not here"),
    }
    inner.rest(known, re.compile(r".*"))
    found.left += [Left(f"{told}: {what}", why) for what, why in inner.left]
    found.faults += inner.faults


_CHANGES = tuple(
    f"enable_{way}_{what}"
    for way in ("random", "fixed")
    for what in ("rotate", "brightness", "contrast", "saturation", "hue")
)


def carry_samples(found: Found, data: dict[str, Any]) -> None:
    """Prompts of previews, in the file or in the one that it names, and how often they are drawn."""
    samples = data.get("samples")
    name = found.take("sample_definition_file_name", path, "training_samples/samples.json")
    if not isinstance(samples, list):
        file = next((p for p in (Path(name), found.file.parent / Path(name).name) if p.is_file()), None)
        samples = parsed(text_of(file), file) if file else []
    prompts = [
        str(one["prompt"]).strip()
        for one in samples
        if isinstance(one, dict) and one.get("enabled", True) and str(one.get("prompt", "")).strip()
    ]
    if prompts:
        found.put("sample_prompts", prompts, note="samples")
    after, unit = found.take("sample_after", number, 10.0), found.take("sample_after_unit", text, "MINUTE")
    if unit == "EPOCH":
        found.put("sample_every_epochs", max(1, round(after)), "sample_after", "sample_after_unit")
    elif unit == "STEP":
        found.put("sample_every", max(1, round(after)), "sample_after", "sample_after_unit")
    elif unit == "NEVER":
        found.put("sample_every", 0, "sample_after_unit")
    elif "sample_after_unit" in found.values:
        found.leave("sample_after_unit", "previews come every so many steps or epochs here")
