"""YAML and overrides -> TrainConfig, every fault at once with file:line and the mend; and the way back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from lora_scripts.config.faults import explain, our_name
from lora_scripts.config.schema import GROUPS, TrainConfig, conflicts
from lora_scripts.config.source import FOREIGN_MEND, MANY, Entry, parse_file, parse_overrides, read_text
from lora_scripts.config.values import base_fault, model_fault, parse_path, part_fault
from lora_scripts.errors import UserError, raise_all

ItemFault = tuple[str, str, str, int | None]
"""(key, what is wrong with it, the mend, which item of its list)"""
FOREIGN_MARKS = frozenset(("job", "LoRA_type", "training_method", "network_module"))
"""Keys that a config of another trainer has, and none of ours."""
Judge = Callable[[Mapping[str, Any], Set[str]], Iterable[ItemFault]]
"""(every key's value or default, the keys that are written) -> what else is wrong with those."""


def load_config(path: Path, overrides: Sequence[str] = (), judge: Judge = lambda values, given: ()) -> TrainConfig:
    """The config in the YAML file `path`, with overrides such as "epochs=3" laid over it.

    `judge` says what this package cannot know: what the base's kind of model has no use for.

    Paths to read must exist, relative ones counted from the current folder. Raises UserError or UserErrors: every
    fault of keys, values and paths at once, in file order; a fault of YAML's syntax alone.
    """
    laid_over = parse_overrides(overrides)
    entries, faults = parse_file(read_text(path), path)
    if FOREIGN_MARKS & {entry.key for entry in entries}:
        raise UserError("is the config of another trainer", file=path, hint=FOREIGN_MEND.format(path))
    overridden = {entry.key for entry in laid_over}
    entries = [entry for entry in entries if entry.key not in overridden] + laid_over
    config, found = _check(entries, path, judge)
    faults += found
    place = {text: number for number, text in enumerate(overrides)}
    faults.sort(key=lambda fault: (place.get(str(fault.file), -1), fault.line is None, fault.line or 0))
    raise_all(faults)
    assert config is not None
    return config


def faults_of(text: str, file: Path, judge: Judge = lambda values, given: ()) -> list[UserError]:
    """Every fault of the text of a config that is to become `file`, as `load_config` would tell it."""
    entries, faults = parse_file(text, file)
    return [*faults, *_check(entries, file, judge)[1]]


def written(path: Path, overrides: Sequence[str] = ()) -> dict[str, object]:
    """What the keys of a config say, right or wrong. UserError or UserErrors where it cannot be read as keys."""
    entries = [*parse_file(read_text(path), path)[0], *parse_overrides(overrides)]
    return {entry.key: entry.value for entry in entries}


def _check(entries: list[Entry], file: Path, judge: Judge) -> tuple[TrainConfig | None, list[UserError]]:
    """The config that the entries give, or None, and every fault in them."""
    fields = TrainConfig.model_fields
    known = {entry.key: entry for entry in entries if entry.key in fields}
    faults: list[UserError] = []
    meant = set()
    unknown = [entry for entry in entries if entry.key not in fields]
    for entry in unknown[:MANY]:
        near = our_name(entry.key, fields)
        meant.add(near)
        hint = f"did you mean {near}?" if near else "remove it"
        faults.append(_unknown(entry, hint, file))
    if len(unknown) > MANY:
        text = f"{len(unknown) - MANY} further unknown keys"
        faults.append(UserError(text, file=file, hint="is it the config of another program?"))
    values = {key: entry.value for key, entry in known.items()}
    config = None
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if not (where := detail["loc"]):
                continue  # conflicts, told below with their lines
            key = str(where[0])
            if detail["type"] != "missing" or len(where) > 1:
                item = next((part for part in where[1:] if isinstance(part, int)), None)
                faults.append(known[key].fault(*_explained(detail), file, item))
                values.pop(key, None)
            elif key not in meant:
                doc = (fields[key].description or "").split(": ")[0].split(". ")[0].rstrip(".")
                faults.append(UserError(f"{key}: missing", file=file, hint=f"add it: {doc[:1].lower() + doc[1:]}"))
    defaults = {key: field.default for key, field in fields.items() if not field.is_required()}
    unset = {key: value for key, value in defaults.items() if key not in known}
    for key, fault, mend in conflicts({**unset, **values}, values.keys()):
        faults.append(known[key].fault(fault, mend, file))
    for key, fault, mend in _path_faults(values):
        faults.append(known[key].fault(fault, mend, file))
    for key, fault, mend, item in judge({**unset, **values}, values.keys()):
        faults.append(known[key].fault(fault, mend, file, item))
    return config, faults


def _explained(detail: Any) -> tuple[str, str | None]:
    """The fault and its mend; of a key in a group in a list, with that key."""
    inner = [str(word) for word in detail["loc"][3:]]
    if not inner:
        return explain(detail)
    if detail["type"] == "missing":
        return f"has no {inner[0]}", f"write {{{inner[0]}: …}}"
    if detail["type"] == "extra_forbidden":
        return f"has an unknown key {inner[0]}", "remove it"
    fault, mend = explain(detail)
    return f"{inner[0]}: {fault}", mend


def _unknown(entry: Entry, hint: str, file: Path) -> UserError:
    if entry.override is not None:
        return UserError(f"unknown key {entry.key}", file=entry.override, hint=hint)
    return entry.fault("unknown key", hint, file)


def _path_faults(values: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, fault, mend) of every path to read that is not there, and of folders that get in each other's way."""
    paths = {key: parse_path(values[key]) for key in _PATHS if isinstance(values.get(key), str | Path)}
    found = []
    several = [("text_encoder", parse_path(path)) for path in _listed(values.get("text_encoder"))]
    for key, path in [*paths.items(), *several]:
        if fault := _PATHS[key](path):
            found.append((key, *fault))
    data = paths.get("train_data_dir")
    if data and "train_file" not in paths and data.is_dir():
        real = _realpath(data)
        # By the folders that links lead to: previews written through one would be trained on just as well.
        found += [row for row in _INSIDE if row[0] in paths and _realpath(paths[row[0]]).is_relative_to(real)]
    return found


def _listed(value: object) -> Sequence[str | Path]:
    """The paths of a list."""
    return [one for one in value if isinstance(one, str | Path)] if isinstance(value, list | tuple) else []


def _realpath(path: Path) -> Path:
    """What it leads to; a path that leads in a circle stays as it is."""
    return Path(os.path.realpath(path))


_INSIDE = (
    (
        "output_dir",
        "lies in train_data_dir, so the previews would be trained on too",
        "choose a folder beside it, for example ./output/my_lora",
    ),
    ("val_data_dir", "lies in train_data_dir, so every picture of it would be trained", "choose a folder beside it"),
    (
        "reference_dir",
        "lies in train_data_dir, so what pictures are made from would be trained on too",
        "choose a folder beside it",
    ),
    ("mask_dir", "lies in train_data_dir, so the masks would be trained on too", "choose a folder beside it"),
)
"""Keys of folders that must not be in the data set, or be it; what would happen; the mend."""


def _data_fault(path: Path) -> tuple[str, str] | None:
    if path.is_dir():
        return None
    if path.exists():
        return f"{path.as_posix()} is a file", "name the folder that the pictures are in"
    where = "" if path.is_absolute() else f" in {Path.cwd().as_posix()}"
    return f"{path.as_posix()} does not exist{where}", "put the pictures there, or change the path"


def _metadata_fault(path: Path) -> tuple[str, str] | None:
    if path.is_file():
        return None
    if path.is_dir():
        return f"{path.as_posix()} is a folder", "name the .csv or .jsonl file in it"
    if path.exists():
        return f"{path.as_posix()} is not a plain file", "name a .csv or .jsonl file"
    return (
        f"{path.as_posix()} does not exist",
        "put the captions there, or remove the line to use those beside the pictures",
    )


def _records_fault(path: Path) -> tuple[str, str] | None:
    if path.is_file():
        return None
    if path.exists() and not path.is_dir():
        return f"{path.as_posix()} is not a plain file", "name a file of records"
    if path.exists():
        return f"{path.as_posix()} is a folder", "name the file in it, or write train_data_dir for the whole folder"
    return f"{path.as_posix()} does not exist", "put the records there, or change the path"


def _prompts_fault(path: Path) -> tuple[str, str]:
    return f"{path.as_posix()} is no file", "write the prompts into it, one a line, or name another"


def _folder_fault(path: Path) -> tuple[str, str] | None:
    above = next((p for p in (path, *path.parents) if os.path.lexists(p)), path)
    return None if above.is_dir() else (f"{above.as_posix()} is no folder", "name a folder")


_PATHS: dict[str, Callable[[Path], tuple[str, str] | None]] = {
    "train_data_dir": _data_fault,
    "metadata_path": _metadata_fault,
    "base_model": base_fault,
    "vae": lambda path: part_fault(path, kind="VAE", folder=True),
    "text_encoder": lambda path: part_fault(path, kind="text encoder", folder=True),
    "init_lora": lambda path: model_fault(path, kind="LoRA", folder=(path / "adapter_config.json").is_file()),
    "training_adapter": lambda path: part_fault(path, kind="LoRA", folder=(path / "adapter_config.json").is_file()),
    "val_data_dir": _data_fault,
    "train_file": _records_fault,
    "val_file": _records_fault,
    "sample_prompts": lambda path: None if path.is_file() else _prompts_fault(path),
    "output_dir": _folder_fault,
    "cache_dir": _folder_fault,
    "mask_dir": _data_fault,
    "reference_dir": _data_fault,
    "class_data_dir": _data_fault,
}


def dump_config(config: TrainConfig, judge: Judge = lambda values, given: ()) -> str:
    """The config as YAML with every key, grouped; `load_config`, with the same `judge`, reads it back to an equal one.

    A key that would do nothing (and so be refused) beside the others stands in it as a comment.
    """
    values = {key: getattr(config, key) for key in TrainConfig.model_fields}
    idle = {key: fault for key, fault, _ in conflicts(values, values.keys())}
    idle |= {key: fault for key, fault, _, _ in judge(values, values.keys())}
    if config.init_lora is not None and "lora_rank" not in config.model_fields_set:
        idle["lora_rank"] = "taken over from init_lora"  # written, it would change the rank
    lines = ["# The config of this run, with every key. Relative paths count from the folder it was started in."]
    for group in GROUPS:
        lines += ["", f"# {group.TITLE}"]
        for key in group.model_fields:
            line = f"{key}: {scalar(values[key])}"
            lines.append(f"# {line}  # {idle[key]}" if key in idle else line)
    return "\n".join(lines) + "\n"


def scalar(value: object) -> str:
    """A value as one line of YAML 1.2."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Path):
        return scalar(value.as_posix())
    if isinstance(value, BaseModel):
        given = {key: each for key, each in value if each is not None}
        return "{" + ", ".join(f"{key}: {scalar(each)}" for key, each in given.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, str):
        return str(yaml.dump(value, default_style='"', allow_unicode=True, width=float("inf"))).strip()
    return repr(value)
