"""`lora-scripts new`: a config for one's own pictures and base, every line with its reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from lora_scripts.check.verdict import few
from lora_scripts.config.commented import commented, listed, remark
from lora_scripts.config.load import load_config, scalar
from lora_scripts.config.prompt_line import PromptLine
from lora_scripts.data.captions import METADATA_SUFFIXES
from lora_scripts.data.findings import IMAGE_SUFFIXES
from lora_scripts.data.listing import list_data
from lora_scripts.data.loader import folder_above, folders_in_words, numbered, repeats_of
from lora_scripts.data.references import References, pair
from lora_scripts.data.scan import Sample, scan
from lora_scripts.data.trigger import Trigger, holds, label_command, trigger_of
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families import table
from lora_scripts.families.facts import Facts, Recipe, Setting
from lora_scripts.formats import io
from lora_scripts.formats.gguf import packed_types
from lora_scripts.units import typed

FEWEST, MOST = 5, 40
"""Epochs, however many pictures there are."""
MOST_TOLD = 3
"""Faults of one kind among the notes."""
STEP = 64
"""Pixels that a resolution is a multiple of."""
_OF_WINDOWS = re.compile(r"(?:con|prn|aux|nul|com[1-9]|lpt[1-9])(?:\..*)?|.*[. ]", re.IGNORECASE)
"""Names that Windows gives to devices, and ends that it drops: a LoRA is shared with those who have it."""


@dataclass(frozen=True)
class NewConfig:
    """What was written, and what was seen."""

    path: Path
    pictures: int
    base: str
    """What the base is, in words."""
    steps: int
    notes: tuple[str, ...]
    """What is still to be done before it can be trained."""
    samples: str = "pictures"
    """What `pictures` counts."""


def new_config(
    name: str,
    data: Path,
    base: Path,
    purpose: str,
    trigger: str,
    output: Path | None,
    references: Path | None = None,
) -> NewConfig:
    """Looks at pictures and base, and writes configs/NAME.yaml (or `output`). UserErrors for all that is in the way;
    then nothing is written. `references`: for an edit, what the pictures are made from."""
    path = file_for(name, output)
    raise_all(in_the_way(name, data, path))
    facts = table.find(base)
    if "texts" in facts.features:
        others = {"--trigger": trigger, "--for character": purpose == "character", "--references": references}
        for option, given in others.items():
            if given:
                raise UserError(f"{option} is for pictures, and the base is a language model", hint="leave it out")
        return _of_texts(name, data, base, path, facts)
    samples = scan(data, allow_missing_captions=True)
    paired = None
    if references is not None:
        table.require_references(facts, [PromptLine("", references=(references,))])
        paired, purpose = pair(samples, References(references, facts.references)), "edit"
    options = ["--references", references.as_posix()] if references else ["--for", purpose] * (purpose != "style")
    options += ["--trigger", trigger] if trigger else []
    options += ["--output", output.as_posix()] if output else []
    _require_inside(samples, data, ["new", name, "--base", base.as_posix(), *options])
    begins = None if trigger or paired else trigger_of([s.caption for s in samples if s.caption])
    trigger = begins.phrase if begins else " ".join(trigger.split())
    recipe = facts.recipes[purpose]
    if packed_types(base):  # quantised as it is
        kept = tuple(setting for setting in recipe.settings if setting.key != "base_precision")
        recipe = replace(recipe, settings=kept)
    settings = {setting.key: setting for setting in recipe.settings}
    batch = int(settings["batch_size"].value)
    folders = {folder: count for folder, count in numbered(s.name for s in samples).items() if count > 1}
    seen = sum(repeats_of(s.name) for s in samples) if folders else len(samples)
    epochs = min(MOST, max(-(-FEWEST * len(samples) // seen), round(recipe.seen / seen)))
    steps = -(-seen // batch) * epochs
    each = f"seen {seen} times in each of {epochs} epochs" if folders else f"each seen {epochs} times"
    rows = [
        *([Setting("trigger_word", scalar(trigger), _reason(begins))] if trigger else []),
        _size(facts, base, samples),
        *([Setting("folder_repeats", "true", f"{folders_in_words(folders)}: how often")] if folders else []),
        Setting("epochs", str(epochs), f"{len(samples)} pictures, {each}: {steps} steps"),
        *recipe.settings,
        *facts.drawn(base).settings(),
        Setting("save_steps", str(max(20, math.ceil(steps / 50) * 10)), "about five files on the way"),
    ]
    notes = [*_beside(facts, base), *_notes(data, samples, trigger)]
    if paired is not None and references is not None:
        rows.insert(0, Setting("reference_dir", scalar(references), "what each picture is made from, by its name"))
        notes += [*map(str, paired.faults[:MOST_TOLD]), *(f"{note.message}: {note.mend}" for note in paired.notes)]
    text = _text(name, data, base, purpose, trigger, facts, samples, rows, recipe)
    _write(path, text, whole=not notes)
    return NewConfig(path, len(samples), facts.checkpoint.words, steps, tuple(notes))


def _require_inside(samples: Sequence[Sample], data: Path, words: Sequence[str]) -> None:
    """UserError for the folder above that of kohya's trainers; `words`: what was typed, but for the folder."""
    if above := folder_above(s.name for s in samples):
        text = f"this is the folder above {above[0]}, whose numbers, as in 10_name, are not read from here"
        inside = ["lora-scripts", *words[:2], "--data", (data / above[0]).as_posix(), *words[2:]]
        raise UserError(text, file=data, hint=typed(inside))


def file_for(name: str, output: Path | None) -> Path:
    """Where the config goes."""
    return output or Path("configs") / f"{name}.yaml"


def in_the_way(name: str, data: Path, path: Path) -> list[UserError]:
    """What can be said of a name, its pictures and the file to write before anything is looked into."""
    faults = []
    if path.exists():
        faults.append(UserError("is there already", file=path, hint="choose another name, or move it away"))
    if not name.isprintable() or not name or set(name) & set('<>:"/\\|?*') or _OF_WINDOWS.fullmatch(name):
        faults.append(UserError(f"the name {name!r} cannot be a file's", hint="use letters, digits, - and _"))
    if not data.exists():
        hint = "give the folder of your pictures; for a language model the file or folder of records"
        faults.append(UserError("no such file or folder", file=data, hint=hint))
    return faults


def _of_texts(name: str, data: Path, base: Path, path: Path, facts: Facts) -> NewConfig:
    """For the records of a language model. UserError for a folder of pictures, whose captions are none."""
    if data.is_dir() and any(one.suffix.lower() in IMAGE_SUFFIXES for one in data.rglob("*")):
        hint = "give a base that draws, or a folder with the records alone"
        raise UserError("holds pictures, and the base is a language model", file=data, hint=hint)
    from lora_scripts.run.texts import first_config

    text, records, steps = first_config.text_of(name, data, base)
    _write(path, text, whole=True)
    notes = (f"{note}; {mend}" for note, mend in records.notes)
    return NewConfig(path, len(records), facts.checkpoint.words, steps, tuple(notes), "records")


def _write(path: Path, text: str, *, whole: bool) -> None:
    """Writes it; `whole`: nothing is still to be done, so that it must be what `train` takes."""
    io.make_folder(path.parent)
    io.write_text(path, text)
    if whole:
        try:
            load_config(path)
        except BaseException:
            path.unlink()  # or the next `new` of this name would be refused
            raise


def _reason(begins: Trigger | None) -> str:
    return f"{begins.agreement} captions begin with it" if begins else "calls the LoRA; each caption has to hold it"


def _size(facts: Facts, base: Path, samples: Sequence[Sample]) -> Setting:
    """The base's own, or less where the pictures are smaller."""
    native = math.isqrt(math.prod(facts.made_for(base)))
    side = int(median(math.isqrt(s.width * s.height) for s in samples)) // STEP * STEP
    if side >= native or side < max(STEP, facts.least_share * native):
        return Setting("resolution", str(native), "what the base was made for")
    return Setting("resolution", str(side), f"the base was made for {native}, but half of the pictures are smaller")


def _beside(facts: Facts, base: Path) -> list[str]:
    """Of a base in separate files: the keys for what it has not in it."""
    if facts.check_text is None or base.is_dir():
        return []
    looks = {"text_encoder:": partial(facts.check_text, base, ()), "vae:": partial(facts.check, base, True)}
    keys = [key for key, look in looks.items() if not _is_whole(look)]
    return [f"add {' and '.join(keys)} to it, for the files that this base comes without"] if keys else []


def _is_whole(look: Callable[[], None]) -> bool:
    try:
        look()
    except UserError:
        return False
    return True


def _notes(data: Path, samples: Sequence[Sample], trigger: str) -> list[str]:
    listing = list_data(data, allow_missing_captions=True)
    # An empty row is what label leaves of a picture of which its captioner says nothing: it would say nothing again.
    empty = [s.name for s in samples if not s.caption and s.name in listing.said]
    bare = sum(not s.caption for s in samples) - len(empty)
    label = ["lora-scripts", "label", "--input", data.as_posix()]
    word = ["--trigger", trigger] if trigger else []
    notes = [f"{note.message}: {note.mend}" for note in listing.notes]
    if empty:
        notes.append(f"{len(empty)} of {len(samples)} pictures have an empty caption: write it yourself ({few(empty)})")
    if bare:
        notes.append(f"{bare} of {len(samples)} pictures have no caption: {typed([*label, *word])}")
    elif trigger and not empty:
        without = sum(not holds(s.caption, trigger) for s in samples)
        if without:
            notes.append(
                f"{without} of {len(samples)} captions {'lacks' if without == 1 else 'lack'} the word {trigger}: "
                f"{label_command(data, listing, trigger)}"
            )
    if len(samples) < 15:
        notes.append(f"{len(samples)} pictures are few: 50 to 200 of one theme teach far more")
    return notes


def _text(
    name: str,
    data: Path,
    base: Path,
    purpose: str,
    trigger: str,
    facts: Facts,
    samples: Sequence[Sample],
    rows: Sequence[Setting],
    recipe: Recipe,
) -> str:
    sides = sorted((s.width, s.height) for s in samples)
    small, large = (f"{w} x {h}" for w, h in (sides[0], sides[-1]))
    seen = f"{len(samples)} pictures" + (f" of {small} px" if small == large else f" from {small} to {large} px")
    words = f", called by the word {trigger}" if trigger else ""
    tables = [data / f"metadata{suffix}" for suffix in METADATA_SUFFIXES]
    metadata = next((path for path in tables if path.is_file()), None)
    paths = [
        Setting("train_data_dir", scalar(data), seen),
        *([Setting("metadata_path", scalar(metadata), "the captions")] if metadata else []),
        Setting("base_model", scalar(base), facts.checkpoint.words),
        Setting("output_dir", scalar(f"output/{name}"), f"the LoRA is named after this folder: <lora:{name}:0.8>"),
    ]
    what = f"{'An' if purpose == 'edit' else 'A'} {purpose}{words}"
    lines = [remark(f"{what}. Train it: lora-scripts train --config …; every key stands in docs/keys.md."), ""]
    for group in (paths, rows):
        lines += [commented(*setting) for setting in group]
        lines.append("")
    if not recipe.prompts:
        prompt = scalar("make it night --ref street.jpg")
        lines.append(remark(f"previews are made from the first two pairs; another: {prompt}"))
        return "\n".join(lines) + "\n"
    front = f"{trigger}, " if trigger else ""
    lines += listed("sample_prompts", [front + prompt for prompt in recipe.prompts], "previews on the way")
    return "\n".join(lines) + "\n"
