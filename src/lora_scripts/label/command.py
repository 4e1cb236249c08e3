"""A folder of pictures gets captions, by a captioner or from the prompts they carry, and by rules for words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.events import Note, Saved, Sink, ignore
from lora_scripts.label import hub
from lora_scripts.label.base import (
    DEFAULT_MODEL,
    Captioner,
    CaptionOptions,
    check_options,
    load_captioner,
    require_model,
)
from lora_scripts.label.captioning import Said, Writer, from_captioner, from_prompts
from lora_scripts.label.label_folder import Folder, open_folder
from lora_scripts.label.store import Store, open_store
from lora_scripts.label.wording import Kind, WordRules, apply_rules, looks_like_tags, without_own


@dataclass(frozen=True)
class LabelOptions:
    """What is asked for a folder of pictures."""

    input: Path
    output: str | None = None
    """See `label.store.open_store`."""
    model: str | None = None
    """Folder, hub name or word; None: the usual one."""
    captioner: str | None = None
    captions: CaptionOptions = field(default_factory=CaptionOptions)
    rules: WordRules = field(default_factory=WordRules)
    batch_size: int = 4
    overwrite: bool = False
    """Captions that are there are made anew, too."""
    from_prompts: bool = False
    """No captioner: each picture gets the prompt that its file carries."""


@dataclass(frozen=True)
class Labelled:
    """What became of a folder."""

    path: Path
    """Where the captions lie."""
    pictures: int
    captioned: int
    """Pictures that have a caption now, wherever it lies."""
    asked: int
    """Pictures that were to get a caption."""
    written: int
    """Captions that were written."""
    elsewhere: Mapping[str, str]
    """Picture -> the file that has its caption, which was left alone."""
    faults: tuple[UserError, ...]
    """Of single pictures, that have no caption therefore."""


@dataclass(frozen=True)
class Change:
    """A caption as it was and as it is."""

    name: str
    """Of the picture."""
    before: str
    after: str


@dataclass(frozen=True)
class Reworded:
    """What became of the captions that were there."""

    path: Path
    """Where they lie."""
    captions: int
    changes: tuple[Change, ...]
    elsewhere: Mapping[str, str]
    """As in `Labelled`."""
    faults: tuple[UserError, ...]
    """Of single captions, that were left as they are."""


Finder = Callable[[LabelOptions], Callable[[], Captioner]]


def find_model(options: LabelOptions) -> Callable[[], Captioner]:
    """Checks the model that is asked for, without loading it, and gives what loads it. UserError if there is none."""
    folder, name = require_model(options.model or DEFAULT_MODEL, options.captioner)
    captions = options.captions
    if name != "wd":
        asked, plain = ((c.general_threshold, c.character_threshold) for c in (captions, CaptionOptions()))
        if asked != plain:
            hint = f"leave them out for {name}"
            raise UserError("--threshold and --character-threshold are for WD taggers", hint=hint)
        # A caption is written whole and then shortened, so that it ends with a word that may end it.
        captions = replace(captions, max_new_tokens=max(captions.max_new_tokens, options.rules.max_tokens or 0))
    check_options(name, captions)
    return lambda: load_captioner(name, folder, captions)


def label(options: LabelOptions, sink: Sink = ignore, find: Finder = find_model) -> Labelled:
    """Writes a caption for each picture that has none. UserErrors for what is wrong with the request or the folder.

    Pictures that cannot be read, or that get no caption, do not stop it: they are faults of the result.
    """
    folder = open_folder(options.input, options.output)
    for note in folder.notes:
        sink(Note(f"note: {note.message}; {note.mend}"))
    _check_tokens(options.rules)
    names = [
        name
        for name in folder.images
        if name not in folder.elsewhere and (options.overwrite or not folder.store.captions.get(name))
    ]
    written, faults = 0, list[UserError]()
    if not names and options.model is not None and not hub.is_hub_name(options.model):
        find(options)  # a mistyped one is told now; for one on the hub nothing is fetched
    if not names and options.rules and _reworded(folder, options.rules)[0]:
        sink(Note("note: captions that are there stay as they are; to put your words on them, add --words-only"))
    if names:
        said = _said(names, folder, options, sink, find)
        if any(folder.store.captions.get(name) for name in names):
            _back_up(folder.store, sink)
        writer = Writer(folder, options.rules, clip_tokens, options.overwrite)
        written, faults = writer.write(said, len(names), sink)
    missing = _without_caption(folder, options)
    faulty = {fault.file for fault in faults}
    hint = "start the same command again"
    faults += [
        UserError("has no caption after all", file=folder.images[name], hint=hint)
        for name in missing
        if names and folder.images[name] not in faulty
    ]
    return Labelled(
        path=folder.store.path,
        pictures=len(folder.images),
        captioned=len(folder.images) - len(missing),
        asked=len(names),
        written=written,
        elsewhere=folder.elsewhere,
        faults=tuple(faults),
    )


def _said(
    names: Sequence[str], folder: Folder, options: LabelOptions, sink: Sink, find: Finder
) -> Iterator[list[Said]]:
    """What is said of these pictures; a captioner is loaded now, and asked later."""
    if options.from_prompts:
        sink(Note("prompts say what was asked for, not always what came of it: look through the captions"))
        return from_prompts(names, folder, options.rules)
    captioner = find(options)()
    sink(Note(captioner.name + (f": {captioner.limits}" if captioner.limits else "")))
    if options.rules.whitelist and captioner.kind == "sentence":
        hint = "use --remove, or a WD tagger"
        raise UserError(f"--whitelist keeps whole tags, and {captioner.name} writes sentences", hint=hint)
    return from_captioner(captioner, names, folder.images, options.batch_size)


def reword(path: Path, output: str | None, rules: WordRules, sink: Sink = ignore) -> Reworded:
    """Applies the rules to the captions that are there. UserErrors for what is wrong with the request or the folder.

    `path` is the folder, `output` see `store.open_store`. A caption that the rules do not fit stays, and is a fault of
    the result.
    """
    folder = open_folder(path, output)
    _check_tokens(rules)
    changes, faults = _reworded(folder, rules)
    if changes:
        _back_up(folder.store, sink)
    for change in changes:
        folder.store.put(change.name, change.after)
    folder.store.flush()
    count = sum(1 for text in folder.store.captions.values() if text)
    return Reworded(folder.store.path, count, tuple(changes), folder.elsewhere, tuple(faults))


def _reworded(folder: Folder, rules: WordRules) -> tuple[list[Change], list[UserError]]:
    """What the rules would change, and captions that they do not fit."""
    changes, faults = list[Change](), list[UserError]()
    for name, text in folder.store.captions.items():
        if not text or name not in folder.images:
            continue
        kind: Kind = "tags" if looks_like_tags(without_own(text, rules, "sentence")) else "sentence"
        if rules.whitelist and kind == "sentence":
            what = "--whitelist keeps whole tags, and its caption is a sentence"
            faults.append(UserError(what, file=folder.images[name], hint="use --remove"))
            continue
        new = apply_rules(text, rules, kind, clip_tokens)
        if not new:
            hint = "write its caption yourself"
            faults.append(UserError(f'the rules leave nothing of "{text}"', file=folder.images[name], hint=hint))
        elif new != text:
            changes.append(Change(name, text, new))
    return changes, faults


def clip_tokens(text: str) -> int:
    """CLIP's tokens of a text, without the two that mark start and end."""
    from lora_scripts.families.clip.tokenizer import clip_tokenizer

    return len(clip_tokenizer()(text, add_special_tokens=False).input_ids)


def _check_tokens(rules: WordRules) -> None:
    if rules.max_tokens is None:
        return
    used = clip_tokens(apply_rules("", replace(rules, max_tokens=None), "tags", clip_tokens))
    if used >= rules.max_tokens:
        hint = "give a higher --max-tokens, or shorter words"
        raise UserError(f"--trigger, --prefix and --append alone have {used} of {rules.max_tokens} tokens", hint=hint)


def _back_up(store: Store, sink: Sink) -> None:
    sink(Saved("the captions as they were", store.backup()))


def _without_caption(folder: Folder, options: LabelOptions) -> list[str]:
    """Counts what is on the disk now against the pictures."""
    there = open_store(options.output, options.input, folder.images).captions
    return [name for name in folder.images if name not in folder.elsewhere and not there.get(name)]
