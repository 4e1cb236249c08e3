"""`lora-scripts new NAME --from FILE`: the config of another trainer as one of ours, with the same meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.adopt import ai_toolkit, kohya_args, kohya_gui, kohya_sets, noise_levels, onetrainer
from lora_scripts.adopt.foreign_file import NETWORK, flat, parsed, text_of
from lora_scripts.adopt.found import Found, Left
from lora_scripts.adopt.lengths import put_length
from lora_scripts.chinese.terminal import AsItIs, noted
from lora_scripts.config.commented import commented, listed, remark
from lora_scripts.config.load import ItemFault, faults_of, scalar
from lora_scripts.config.schema import GROUPS, TrainConfig
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families import download, table
from lora_scripts.families.elsewhere import ALSO_BY_KOHYA, FUSED_BY_KOHYA, UNLIKE_OF_KOHYA, by_their_word
from lora_scripts.families.facts import Facts
from lora_scripts.formats import io
from lora_scripts.run import configs
from lora_scripts.run.first_config import file_for, in_the_way

PATHS = {
    *(
        "train_data_dir",
        "class_data_dir",
        "val_data_dir",
        "mask_dir",
        "reference_dir",
        "metadata_path",
        "sample_prompts",
    ),
    *("base_model", "vae", "text_encoder", "init_lora", "training_adapter"),
}
"""Keys of what has to be there when the training begins, and need not be here now."""
DECIDED = "Always so, or decided by the program here"
IDLE = "Says nothing beyond the lines above"
INSTALL = "install it:"
"""How the mend of a missing package begins."""


@dataclass(frozen=True)
class Adopted:
    """What was written, and what was not carried over."""

    path: Path
    trainer: str
    """Whose config it was."""
    settings: Mapping[str, str]
    """Our keys -> where each comes from."""
    left: tuple[Left, ...]
    decided: tuple[str, ...]
    """Settings that are always so here, or decided by the program."""
    idle: tuple[str, ...]
    """Settings that stand in no other list: they say nothing beside the others."""
    steps: int | None
    """Of the run; None where the pictures are not here to be counted."""
    notes: tuple[str, ...]
    """What is still to be done before it can be trained."""


def adopt(name: str, file: Path, data: Path | None, base: Path | None, output: Path | None) -> Adopted:
    """Reads the other trainer's config and writes configs/NAME.yaml (or `output`). UserErrors for all that is in the
    way; then nothing is written."""
    path = file_for(name, output)
    raise_all(in_the_way(name, data or Path(), path))
    found, finish = _read(file, data)
    facts = _facts(found, base)
    finish(found, facts)
    if "base_model" not in found.puts:
        found.faults.append(UserError("names no base model", file=file, hint="say which: --base FILE"))
    raise_all(found.faults)
    _output(found, name)
    steps = put_length(found)
    notes = _fit(found, facts, path)
    io.make_folder(path.parent)
    idle = found.unsaid()
    io.write_text(path, _text(found, name, idle))
    settings = {key: put.why for key, put in found.puts.items()}
    return Adopted(path, found.trainer, settings, tuple(found.left), tuple(found.decided), idle, steps, tuple(notes))


Finish = Callable[[Found, Facts | None], None]


def _read(file: Path, given: Path | None) -> tuple[Found, Finish]:
    """What the file holds, by whose it is, and what is still to be done when the kind of base is known."""
    text = text_of(file)
    data = parsed(text, file)
    if isinstance(data, list) or kohya_sets.is_alone(data):
        mend = "give the config that names it, with the trainer's arguments"
        raise UserError("holds data sets alone, and says nothing of the training", file=file, hint=mend)
    if ai_toolkit.is_of_ai_toolkit(data):
        return ai_toolkit.carry(data, file, text, given), ai_toolkit.finish
    if kohya_gui.is_of_gui(data):
        return _kohya(kohya_gui.arguments(data, file, text), given)
    if onetrainer.is_of_onetrainer(data):
        return onetrainer.carry(data, file, text, given), onetrainer.finish
    values = data.get("", data) if set(data) == {""} else _sections(data)
    if set(data) == {""} and isinstance(values.get("config_file"), str):
        inner = _beside(file, values["config_file"])
        more = text_of(inner)
        values, text = {**_sections(parsed(more, inner)), **values}, text + more
    if not {"network_module", "pretrained_model_name_or_path", "dit", "script"} & values.keys():
        mend = "files of kohya's sd-scripts, kohya_ss, ai-toolkit, OneTrainer and musubi-tuner are"
        raise UserError("is no config of a trainer that is read here", file=file, hint=mend)
    script = str(values.pop("script", ""))
    musubi = "dit" in values
    trainer = "musubi-tuner" if musubi else "kohya's sd-scripts"
    words = (str(values.get("model_type") or ""), script)
    found = Found(trainer, file, text, values, base_words=tuple(word for word in words if word))
    if (script and not NETWORK.fullmatch(script)) or "network_module" not in values:
        what = f"{script}.py trains" if script and not NETWORK.fullmatch(script) else "without network_module it trains"
        mend = "only what train_network.py trains is read, and lora-scripts new without --from begins anew"
        raise UserError(f"{what} something else than a LoRA", file=file, hint=mend)
    return _kohya(found, given, musubi=musubi)


def _kohya(found: Found, given: Path | None, *, musubi: bool = False) -> tuple[Found, Finish]:
    if musubi:
        found.values["pretrained_model_name_or_path"] = found.values.pop("dit")
        found.shown = {**found.shown, "pretrained_model_name_or_path": "dit"}
    kohya_args.carry(found, musubi=musubi)
    kohya_sets.carry_pictures(found, given, musubi=musubi)

    def finish(found: Found, facts: Facts | None) -> None:
        noise_levels.carry_levels(found, facts, musubi=musubi)
        if facts is not None:
            _of_family(found, facts, musubi=musubi)
        found.rest(kohya_args.KNOWN, kohya_args.DECIDED)

    return found, finish


def _of_family(found: Found, facts: Facts, *, musubi: bool) -> None:
    """What kohya's trainers do with one family alone."""
    for key, value in () if musubi else UNLIKE_OF_KOHYA.get(facts.name, ()):
        if not found.has(key):
            found.left.append(Left(found.why(key, value), kohya_args.KNOWN[key][1]))
    if "adapter" in found.puts:
        return
    also = () if musubi or "targets" in found.puts else ALSO_BY_KOHYA.get(facts.name, ())
    if also:
        found.put("targets", ["attention", "feed_forward", *also], "network_module", note="what it trains there")
    if facts.name in FUSED_BY_KOHYA and str(found.values.get("network_args.split_qkv")).lower() != "true":
        found.put("fused_qkv", True, note="q, k and v have one A there")


def _sections(data: Any) -> dict[str, Any]:
    """The keys of a TOML, whose sections mean nothing there."""
    values: dict[str, Any] = {}
    for key, value in data.items() if isinstance(data, dict) else ():
        if isinstance(value, dict):
            values |= dict(flat(value))
        else:
            values[key] = value
    return values


def _beside(file: Path, name: str) -> Path:
    name = name if name.endswith(".toml") else f"{name}.toml"
    name = name.replace("\\", "/")
    return next((path for path in (Path(name), file.parent / name) if path.is_file()), file.parent / Path(name).name)


def _facts(found: Found, base: Path | None) -> Facts | None:
    """The family of the base, by the base itself if it is here, else by what the file calls it."""
    if base is not None:
        found.put("base_model", base.as_posix(), note="given by --base")
    put = found.puts.get("base_model")
    place = download.place(Path(str(put.value))) if put else None
    if place and place.exists():
        return table.find(place)
    for word in found.base_words:
        try:
            if facts := by_their_word(word):
                return facts
        except LookupError:
            text = f"trains on {word}, which is no model that is trained here"
            raise UserError(text, file=found.file, hint="docs/models.md names those that are") from None
    return None


def _output(found: Found, name: str) -> None:
    theirs = [
        key
        for key in ("output_dir", "output_name", "training_folder", "output_model_destination")
        if found.values.get(key)
    ]
    found.decided = [key for key in found.decided if key not in theirs]
    told = ", ".join(found.tell(key) for key in theirs)
    found.put("output_dir", f"output/{name}", note=told or f"the LoRA is named after this folder: <lora:{name}:0.8>")


def _fit(found: Found, facts: Facts | None, path: Path) -> list[str]:
    """Takes back each key that would be refused, with the reason, until the rest is a config that is taken. Notes on
    what is only not here yet."""

    def judge(values: Mapping[str, Any], given: Set[str]) -> Iterator[ItemFault]:
        return configs.judge(values, given, facts)

    while True:
        lines = [f"{key}: {_yaml(put.value)}" for key, put in found.puts.items()]
        faults = faults_of("\n".join(lines) + "\n", path, judge)
        notes: list[str] = []
        refused: dict[str, str] = {}
        for fault in faults:
            key, _, message = fault.message.partition(": ")
            waits = key in PATHS and _is_missing(message)
            if waits or (fault.hint or "").startswith(INSTALL):
                notes.append(f"{fault.message}; {fault.hint}" if fault.hint else fault.message)
            elif key in found.puts and key not in ("train_data_dir", "base_model", "output_dir"):
                refused.setdefault(key, message)
            else:
                told = f"{found.puts[key].why}: {message}" if key in found.puts else fault.message
                raise UserError(told, file=found.file, hint=fault.hint)
        if not refused:
            return notes
        for key, message in refused.items():
            if found.puts[key].value == TrainConfig.model_fields[key].default:
                del found.puts[key]  # it is so without it
            else:
                found.drop(key, message)


def _is_missing(message: str) -> bool:
    return (
        "does not exist" in message
        or "no such file" in message
        or "is no file" in message
        or "no such picture" in message
    )


def _text(found: Found, name: str, idle: Sequence[str]) -> str:
    """The YAML: our keys by group, each with where it comes from, and at the end what was not carried over."""
    lines = [remark(f"{name}, from {found.file.name} of {found.trainer}. Every key stands in docs/keys.md."), ""]
    for group in GROUPS:
        rows = [(key, found.puts[key]) for key in group.model_fields if key in found.puts]
        for key, put in rows:
            why = [*(AsItIs(_one_line(one)) for one in put.theirs), *([_one_line(put.note)] if put.note else [])]
            if key == "sample_prompts" and isinstance(put.value, list):
                lines += listed(key, put.value, *why)
            else:
                lines.append(commented(key, _yaml(put.value), *why))
        lines += [""] if rows else []
    if found.left:
        lines.append(remark("Not carried over:"))
        lines += [f"#   {noted(_one_line(left.theirs))}: {noted(_one_line(left.reason))}" for left in found.left]
    lists = ((DECIDED, found.decided), (IDLE, idle), ("Off, and not known here", found.off))
    for head, names in lists:
        if names:
            lines.append(remark(f"{head}: {_one_line(', '.join(sorted(set(names))))}"))
    return "\n".join(lines).rstrip() + "\n"


def _yaml(value: object) -> str:
    """A value of YAML; 16 for 16.0."""
    return scalar(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e9 else value)


def _one_line(text: str) -> str:
    """A comment is one line, and holds nothing that would end it."""
    return "".join(c if c.isprintable() else " " for c in text)
