"""The `datasets` of ai-toolkit (`DatasetConfig` in `toolkit/config_modules.py`) as our one folder of pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lora_scripts.adopt import turns
from lora_scripts.adopt.folders import Folder, put_folders
from lora_scripts.adopt.found import Found, Left, Row, brief
from lora_scripts.adopt.sizes import put_resolution
from lora_scripts.adopt.turns import flag, number, one_folder, path, whole

_OF_SET = (
    Row("caption_dropout_rate", "caption_dropout", number),
    Row("shuffle_tokens", "shuffle_tags", flag),
    Row("token_dropout_rate", "tag_dropout", number),
    Row("flip_x", "flip", flag),
    Row("random_crop", "random_crop", flag),
    Row("alpha_mask", "mask_alpha", flag),
    Row("mask_path", "mask_dir", path),
    Row("mask_min_value", "mask_background", number),
    Row("control_path", "reference_dir", one_folder),
)
_CONTROLS = ("control_path_1", "control_path_2", "control_path_3")
"""As its page writes them: together they stand in place of `control_path`."""
_OF_SET_KNOWN: dict[str, tuple[object, str]] = {
    "default_caption": (None, "is not put in place of a missing caption here: write captions"),
    "flip_y": (False, "pictures are not turned upside down here"),
    "augments": ([], "pictures are not changed otherwise here"),
    "augmentations": (None, "pictures are not changed otherwise here"),
    "network_weight": (1.0, "is not here"),
    "loss_multiplier": (1.0, "is not here; prior_weight weighs class pictures"),
    "invert_mask": (False, "white is what is trained here: invert the masks"),
    "trigger_word": (None, "trigger_word names the word; captions have to hold it"),
    "random_scale": (False, "is not here"),
    "square_crop": (False, "pictures keep their shape here"),
    "inpaint_path": (None, "parts of pictures are not filled in here"),
    **dict.fromkeys(("num_frames", "shrink_video_to_frames"), (1, "films are not trained here")),
}
_SET_DECIDED = re.compile(
    r"caption_ext|caption_type|cache_\w+|buckets|bucket_tolerance|num_workers|prefetch_factor|type|debug|is_reg|prior_reg"
    r"|resolution|folder_path|num_repeats|keep_tokens|load_image_when\w+|fast_image_size|fps|do_i2v|replay_transforms"
)


def _with_controls(one: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A set with `control_path` as its page means it, and what that is called there."""
    folders = [one[key] for key in _CONTROLS if one.get(key)]
    rest = {key: value for key, value in one.items() if key not in _CONTROLS}
    if not folders:
        return rest, {}
    told = {"control_path": ", ".join(key for key in _CONTROLS if one.get(key))}
    return {**rest, "control_path": folders[0] if len(folders) == 1 else folders}, told


def carry_sets(found: Found, sets: list[dict[str, Any]], given: Path | None) -> None:
    """Folders, captions and sizes: of the first set, as one of ours has all pictures; of others what is otherwise."""
    own = [one for one in sets if not one.get("is_reg")]
    folders = [_folder(one) for one in own if _folder(one).path]
    put_folders(found, folders, given)
    for number_, one in enumerate(own):
        inner = Found(found.trainer, found.file, found.text, *_with_controls(one))
        if number_ == 0:
            inner.rows(_OF_SET)
            sizes = one.get("resolution", 512)
            put_resolution(
                inner,
                "resolution",
                inner.take(
                    "resolution",
                    lambda value: [turns.size(size) for size in (value if isinstance(value, list) else [value])],
                    [512],
                ),
            )
            if "resolution" not in one:
                inner.usual("resolution", sizes, "resolution")
            if any(key in inner.puts and inner.puts[key].value for key in ("shuffle_tags", "tag_dropout")):
                inner.put_or_usual("keep_tags", "keep_tokens", whole, 0)
            found.puts.update(inner.puts)
        inner.taken |= {"folder_path", "dataset_path", "num_repeats", "type", "is_reg", "keep_tokens"}
        suffix = str(one.get("caption_ext") or "txt").lstrip(".").lower()
        if suffix not in ("txt", "caption"):
            inner.leave("caption_ext", "captions are read from .txt and .caption files: rename them")
        inner.taken |= {row.theirs for row in _OF_SET}
        inner.rest(_OF_SET_KNOWN, _SET_DECIDED)
        found.decided += inner.decided if number_ == 0 else []
        found.left += [Left(f"datasets[{number_}] {told}", why) for told, why in inner.left]
        found.faults += inner.faults
    for one in (one for one in sets if one.get("is_reg")):
        if "class_data_dir" in found.puts:
            found.left.append(Left(_folder(one).told, "one folder of class pictures is trained here"))
        else:
            found.put("class_data_dir", _folder(one).path, note=_folder(one).told)


def _folder(one: dict[str, Any]) -> Folder:
    where = turns.path(str(one.get("folder_path") or one.get("dataset_path") or ""))
    repeats = one.get("num_repeats", 1)
    repeats = repeats if isinstance(repeats, int) and repeats > 0 else 1
    return Folder(
        where, repeats, f"folder_path = {brief(where)}" + (f", num_repeats = {repeats}" if repeats > 1 else "")
    )
