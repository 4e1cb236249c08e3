"""The pictures of kohya's trainers: `--dataset_config`, or `train_data_dir` with folders named like 10_name.

`library/config_util.py` of sd-scripts, `dataset/config_utils.py` of musubi-tuner.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lora_scripts.adopt import turns
from lora_scripts.adopt.folders import Folder, is_numbered, put_folders
from lora_scripts.adopt.foreign_file import parsed, text_of
from lora_scripts.adopt.found import NOTHING, Found, Left, Row, brief
from lora_scripts.adopt.turns import count, flag, number, path, some, text, whole
from lora_scripts.errors import UserError

_OF_PICTURES = (
    Row("flip_aug", "flip", flag),
    Row("random_crop", "random_crop", flag),
    Row("caption_dropout_rate", "caption_dropout", number),
    Row("shuffle_caption", "shuffle_tags", flag),
    Row("caption_tag_dropout_rate", "tag_dropout", number),
    Row("resolution", "resolution", turns.size),
    Row("batch_size", "batch_size", count),
    Row("alpha_mask", "mask_alpha", flag),
    Row("validation_split", "val_split", number),
    Row("control_directory", "reference_dir", path),
)
_KNOWN: dict[str, tuple[object, str]] = {
    "color_aug": (False, "colours are not changed here"),
    "face_crop_aug_range": (None, "faces are not looked for here"),
    "keep_tokens_separator": ("", "keep_tags counts the parts that stay in place"),
    "secondary_separator": ("", "captions have one kind of separator here: the comma"),
    "caption_separator": (",", "captions are parted at commas here"),
    "enable_wildcard": (False, "captions are taken as they are: write out {a|b}"),
    "caption_prefix": ("", "lora-scripts label --words-only --trigger WORD puts a word in front of captions"),
    "caption_suffix": ("", "captions are taken as they are: write it into them"),
    "caption_dropout_every_n_epochs": (0, "caption_dropout leaves captions out at random"),
    "token_warmup_min": (1, "all parts of a caption are seen from the start"),
    "token_warmup_step": (0, "all parts of a caption are seen from the start"),
    "custom_attributes": (None, "is not here"),
    "class_tokens": ("", "is the caption of pictures without one there; here every picture needs its own"),
    "conditioning_data_dir": (None, "is not here"),
    "control_resolution": (None, "a reference has as many pixels as resolution here"),
    "no_resize_control": (False, "a reference has as many pixels as resolution here"),
    "multiple_target": (False, "is not here"),
    "resize_interpolation": (None, "pictures are made smaller in one way here"),
    "network_multiplier": (1.0, "is not here"),
    "video_directory": (None, "films are not trained here"),
    "video_jsonl_file": (None, "films are not trained here"),
    "metadata_file": (None, "is not read: write the captions into metadata.csv or .jsonl, or beside the pictures"),
    "image_jsonl_file": (None, "is not read: write file_name and caption into metadata.jsonl in the pictures' folder"),
    "fp_latent_window_size": (9, "is for films"),
}
_DECIDED = re.compile(
    r"enable_bucket|min_bucket_reso|max_bucket_reso|bucket_reso_steps|bucket_no_upscale|cache_info|debug_dataset"
    r"|validation_seed|cache_directory|image_dir|image_directory|num_repeats|is_reg|subsets"
)
READ = (".txt", ".caption")


def carry_pictures(found: Found, data: Path | None, *, musubi: bool = False) -> None:
    """Folders, captions, sizes, by whichever of the two ways the file has."""
    name = found.take("dataset_config", text, "")
    for key, (usual, _) in _KNOWN.items():  # as arguments they mean the same
        if key in found.values and found.values[key] in (usual, *NOTHING):
            found.taken.add(key)
    _captions(found, found.take("caption_extension", text, ""), "caption_extension")
    found.rows(row for row in _OF_PICTURES if row.theirs in found.values)
    _kept(found, found.take("keep_tokens", whole, 0), "keep_tokens")
    if name:
        _sets(found, _toml_beside(found, name), data, musubi=musubi)
    elif "datasets" in found.values:
        _sets(found, {"datasets": found.values.pop("datasets")}, data, musubi=musubi)
    else:
        _of_folders(found, data)
    for key in list(_KNOWN):
        if key in found.values and key not in found.taken:
            found.leave(key, _KNOWN[key][1])


def _of_folders(found: Found, data: Path | None) -> None:
    folder, reg = found.take("train_data_dir", path, ""), found.take("reg_data_dir", path, "")
    metadata = found.take("in_json", path, "")
    repeats = found.take("dataset_repeats", some(count), None) or 1
    folders = [Folder(folder, repeats if metadata else 1, found.tell("train_data_dir"))] if folder else []
    put_folders(found, folders, data)
    if not metadata and data is None and (not Path(folder).is_dir() or is_numbered(Path(folder))):
        found.put("folder_repeats", True, note="pictures in N_name are seen N times")
    if metadata:
        found.leave("in_json", _KNOWN["metadata_file"][1])
    if reg:
        found.put("class_data_dir", reg, "reg_data_dir")
        _matched(found, found.tell("reg_data_dir"))


def _matched(found: Found, told: str) -> None:
    """Class pictures are repeated there until they are as many as the others; `lengths` counts what that takes here."""
    found.length.class_told = told


def _toml_beside(found: Found, name: str) -> dict[str, Any]:
    """The dataset config, by its path from here, or from the file's folder."""
    places = [
        Path(turns.path(name)),
        found.file.parent / turns.path(name),
        found.file.parent / Path(turns.path(name)).name,
    ]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        hint = "put it there, or beside the other file"
        text = f"dataset_config: {name} is not here"
        raise UserError(text, file=found.file, line=found.line("dataset_config"), hint=hint)
    data = parsed(text_of(file), file)
    if not isinstance(data, dict) or not isinstance(data.get("datasets"), list):
        raise UserError("has no [[datasets]]", file=file, hint="name the dataset config of the trainer")
    return data


def _sets(found: Found, data: dict[str, Any], given: Path | None, *, musubi: bool) -> None:
    general = data.get("general")
    common = general if isinstance(general, dict) else {}
    sets = turns.groups(data["datasets"])
    subsets = [{**common, **_plain(one), **_plain(part)} for one in sets for part in _subsets(one)]
    if not subsets:
        raise UserError("has no folder of pictures", file=found.file, hint="say where they are: --data DIR")
    name = "image_directory" if musubi else "image_dir"
    own = [one for one in subsets if not one.get("is_reg")]
    of_class = [one for one in subsets if one.get("is_reg")]
    folders = [
        Folder(turns.path(str(one[name])), _repeats(found, one), _told(one, name)) for one in own if one.get(name)
    ]
    if musubi and "resolution" not in (own or subsets)[0]:
        found.put("resolution", [960, 544], note="their default (resolution)")
    put_folders(found, folders, given)
    for number_, one in enumerate(own):
        _settings(found, one, first=number_ == 0)
    for one in of_class[:1]:
        found.put("class_data_dir", turns.path(str(one.get(name, ""))), note=_told(one, name))
        if one.get("class_tokens"):
            found.put("class_prompt", str(one["class_tokens"]), note=f"class_tokens = {one['class_tokens']}")
        _matched(found, _told(one, name))
    for one in of_class[1:]:
        found.left.append(Left(_told(one, name), "one folder of class pictures is trained here"))


def _subsets(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    return turns.groups(dataset.get("subsets")) or [{}]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "subsets"}


def _repeats(found: Found, one: dict[str, Any]) -> int:
    try:
        return max(1, whole(one.get("num_repeats", 1)))
    except ValueError as error:
        found.faults.append(UserError(f"num_repeats: {error}", file=found.file))
        return 1


def _told(one: dict[str, Any], name: str) -> str:
    repeats = one.get("num_repeats", 1)
    return f"{name} = {brief(one.get(name, ''))}" + (f", num_repeats = {repeats}" if repeats != 1 else "")


def _settings(found: Found, one: dict[str, Any], *, first: bool) -> None:
    """The settings of one set: of the first all, of another those that differ."""
    inner = Found(found.trainer, found.file, found.text, one)
    if first:
        inner.rows(_OF_PICTURES)
        _captions(inner, inner.take("caption_extension", text, ""), "caption_extension")
        if "keep_tokens" in one or "shuffle_tags" in inner.puts:
            _kept(inner, inner.take("keep_tokens", whole, 0), "keep_tokens")
        found.puts.update(inner.puts)
    else:
        for row in _OF_PICTURES:
            value = inner.take(row.theirs, row.turn, None)
            if value is not None and (row.ours not in found.puts or found.puts[row.ours].value != value):
                inner.leave(row.theirs, f"of another set; {row.ours} counts for all pictures here")
        inner.taken |= {"keep_tokens", "caption_extension"}
    inner.taken |= {key for key in one if _DECIDED.fullmatch(key)}
    for key in list(one):
        if key not in inner.taken and one[key] not in NOTHING:
            usual, reason = _KNOWN.get(key, (None, "is not known here"))
            if one[key] != usual:
                inner.leave(key, reason)
    found.left += inner.left
    found.faults += inner.faults


def _captions(found: Found, suffix: str, key: str) -> None:
    if suffix and f".{suffix.lstrip('.').lower()}" not in READ:
        found.leave(key, "captions are read from .txt and .caption files: rename them")


def _kept(found: Found, keep: int, key: str) -> None:
    """keep_tags, where something is shuffled or left out."""
    if found.values.get("shuffle_caption") in NOTHING and found.values.get("caption_tag_dropout_rate") in NOTHING:
        if keep:
            found.leave(key, "has no effect without shuffle_caption")
        return
    if key in found.values:
        found.put("keep_tags", keep, key)
    else:
        found.usual("keep_tags", keep, key)


def is_alone(data: dict[str, Any]) -> bool:
    """Whether a file's keys are those of a dataset config alone."""
    return "datasets" in data and not {"network_module", "pretrained_model_name_or_path", "dit"} & data.keys()
