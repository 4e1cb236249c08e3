"""`lora-scripts label`: a folder of images gets captions, by a captioner and by rules for words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from lora_scripts.data.captions import METADATA_SUFFIXES, tidy
from lora_scripts.data.image import load_rgb
from lora_scripts.data.scan import Listing, list_data
from lora_scripts.errors import UserError, UserErrors, raise_all
from lora_scripts.label.base import (
    DEFAULT_MODEL,
    Captioner,
    CaptionOptions,
    check_options,
    load_captioner,
    require_model,
)
from lora_scripts.label.progress import Bar
from lora_scripts.label.store import Store, open_store
from lora_scripts.label.words import Kind, WordRules, apply_rules, looks_like_tags, without_own

LONGEST = 2048
"""Pixels. Captioners look at 224 to 1536 or so; scans of 100 million would fill the memory, a batch at a time."""
SHOWN = 3
"""So many changed captions are shown as examples."""


@dataclass(frozen=True)
class LabelOptions:
    """What `lora-scripts label` was asked for."""

    input: Path
    output: str | None = None
    """See `label.store.open_store`."""
    model: str = DEFAULT_MODEL
    captioner: str | None = None
    captions: CaptionOptions = field(default_factory=CaptionOptions)
    rules: WordRules = field(default_factory=WordRules)
    batch_size: int = 4
    overwrite: bool = False
    """Captions that are there are made anew, too."""
    words_only: bool = False
    """No captioner: the rules are applied to the captions that are there."""


Finder = Callable[[LabelOptions], Callable[[], Captioner]]


def find_model(options: LabelOptions) -> Callable[[], Captioner]:
    """Checks the model that is asked for, without loading it, and gives what loads it. UserError if there is none."""
    folder, name = require_model(options.model, options.captioner)
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


def label(options: LabelOptions, find: Finder = find_model) -> None:
    """Writes a caption for each image that has none. UserErrors for what is wrong with the request or the folder.

    Images that cannot be read, or that get no caption, do not stop it: they are told at the end, as UserErrors.
    """
    if not options.input.is_dir():
        what = "is not a folder" if options.input.exists() else "no such folder"
        raise UserError(f"--input: {what}", file=options.input, hint="give the folder with the images")
    _check_tokens(options.rules)
    work = _Work.open(options)
    if options.words_only:
        work.apply_rules()
    elif work.todo():
        work.caption(find(options))
    else:
        print(f"all {len(work.listing.images)} pictures have captions already; --overwrite makes them anew")
    work.tell_others()
    raise_all(work.faults)


def _check_tokens(rules: WordRules) -> None:
    if rules.max_tokens is None:
        return
    used = _count(apply_rules("", replace(rules, max_tokens=None), "tags", _count))
    if used >= rules.max_tokens:
        hint = "give a higher --max-tokens, or shorter words"
        raise UserError(f"--trigger, --prefix and --append alone have {used} of {rules.max_tokens} tokens", hint=hint)


def _count(text: str) -> int:
    """CLIP's tokens, without the two that mark start and end."""
    from lora_scripts.families.clip.tokenizer import clip_tokenizer

    return len(clip_tokenizer()(text, add_special_tokens=False).input_ids)


@dataclass
class _Work:
    """One labelling, and what went wrong with single pictures."""

    options: LabelOptions
    listing: Listing
    store: Store
    elsewhere: dict[str, str]
    """Image name -> the file that has its caption, where that is not in `store`. These images are left alone."""
    faults: list[UserError] = field(default_factory=list)

    @classmethod
    def open(cls, options: LabelOptions) -> _Work:
        """UserErrors with every fault of the captions that are there, and of the output."""
        listing = _list(options)
        faults, store = list(listing.faults), None
        with _collected(faults):
            store = open_store(options.output, options.input, listing.images)
        raise_all(list({(fault.message, fault.line): fault for fault in faults}.values()))
        assert store is not None
        elsewhere = {
            name: said.source
            for name, sources in listing.said.items()
            for said in sources
            if said.text and not store.holds(said.file)
        }
        return cls(options, listing, store, elsewhere)

    def todo(self) -> list[str]:
        """Images to caption, in the order of their names."""
        return [
            name
            for name in self.listing.images
            if name not in self.elsewhere and (self.options.overwrite or not self.store.captions.get(name))
        ]

    def caption(self, load: Callable[[], Captioner]) -> None:
        """Captions what is to do, batch after batch. What was made is on the disk, however this ends."""
        captioner = load()
        print(captioner.name + (f": {captioner.limits}" if captioner.limits else ""), flush=True)
        if self.options.rules.whitelist and captioner.kind == "sentence":
            hint = "use --remove, or a WD tagger"
            raise UserError(f"--whitelist keeps whole tags, and {captioner.name} writes sentences", hint=hint)
        todo, done, written = self.todo(), 0, 0
        if any(self.store.captions.get(name) for name in todo):
            print(f"the captions as they were are in {self.store.backup()}")
        try:
            with Bar(len(todo)) as bar:
                for batch in _loaded(todo, self.listing, self.options.batch_size):
                    written += self._batch(batch, captioner)
                    self.store.save()
                    done += len(batch)
                    bar.tell(done)
        except KeyboardInterrupt:
            again = "" if self.options.overwrite else "; the same command goes on from here"
            print(f"{written} captions are written{again}")
            raise
        finally:
            self.store.flush()
        self._tell(written)

    def _batch(self, batch: list[tuple[str, Image.Image | UserError]], captioner: Captioner) -> int:
        """Captions one batch; the number of captions written."""
        names = [name for name, image in batch if isinstance(image, Image.Image)]
        images = [image for _, image in batch if isinstance(image, Image.Image)]
        self.faults += [image for _, image in batch if isinstance(image, UserError)]
        written = 0
        for name, text in zip(names, _texts(captioner, images) if images else [], strict=True):
            caption = apply_rules(text, self.options.rules, captioner.kind, _count) if text.strip() else ""
            if caption:
                written += self.store.put(name, caption)
                continue
            what = f'the rules leave nothing of "{tidy(text)}"' if text.strip() else "the captioner says nothing of it"
            self.faults.append(UserError(what, file=self.listing.images[name], hint="write its caption yourself"))
        return written

    def _tell(self, written: int) -> None:
        """Counts what is on the disk now against the pictures; one without a caption has been told, or is told here."""
        images = self.listing.images
        there = open_store(self.options.output, self.options.input, images).captions
        missing = [name for name in images if name not in self.elsewhere and not there.get(name)]
        told = {fault.file for fault in self.faults}
        hint = "start the same command again"
        self.faults += [
            UserError("has no caption after all", file=images[name], hint=hint)
            for name in missing
            if images[name] not in told
        ]
        have = len(images) - len(missing)
        print(f"{written} captions written to {self.store.path}; {have} of {len(images)} pictures have one now")

    def apply_rules(self) -> None:
        """Applies the rules to the captions that are there."""
        rules, changes = self.options.rules, dict[str, tuple[str, str]]()
        for name, text in self.store.captions.items():
            image = self.listing.images.get(name)
            if not text or image is None:
                continue
            kind: Kind = "tags" if looks_like_tags(without_own(text, rules, "sentence")) else "sentence"
            if rules.whitelist and kind == "sentence":
                fault = "--whitelist keeps whole tags, and its caption is a sentence"
                self.faults.append(UserError(fault, file=image, hint="use --remove"))
                continue
            new = apply_rules(text, rules, kind, _count)
            if not new:
                hint = "write its caption yourself"
                self.faults.append(UserError(f'the rules leave nothing of "{text}"', file=image, hint=hint))
            elif new != text:
                changes[name] = text, new
        if changes:
            print(f"the captions as they were are in {self.store.backup()}")
        for name, (_, new) in changes.items():
            self.store.put(name, new)
        self.store.flush()
        for name, (old, new) in list(changes.items())[:SHOWN]:
            print(f"{name}: {old}\n{' ' * len(name)}→ {new}")
        count = sum(1 for text in self.store.captions.values() if text)
        print(f"{len(changes)} of {count} captions changed in {self.store.path}")

    def tell_others(self) -> None:
        """Which captions were left alone because they are in other files."""
        if self.elsewhere:
            example = next(iter(self.elsewhere.values()))
            print(f"captions in other files, such as {example}, are not touched: {len(self.elsewhere)}")


def _list(options: LabelOptions) -> Listing:
    """The images, and the captions that a training with this output would read."""
    path = Path(options.output).expanduser() if options.output else options.input / "metadata.csv"
    if path.suffix.lower() not in METADATA_SUFFIXES or path.is_dir():
        return list_data(options.input, allow_missing_captions=True)
    if path.stem.lower() == "metadata" and path.parent.resolve() == options.input.resolve():
        return list_data(options.input, allow_missing_captions=True)
    if path.exists():
        return list_data(options.input, path, allow_missing_captions=True)
    # A new file under another name: a training that is told of it reads no metadata.csv, but sidecars all the same.
    listing = list_data(options.input, allow_missing_captions=True)
    said = {name: [one for one in sources if one.line is None] for name, sources in listing.said.items()}
    faults = [fault for fault in listing.faults if Path(str(fault.file)).suffix.lower() not in METADATA_SUFFIXES]
    return Listing(listing.images, said, faults, lost=False)


@contextmanager
def _collected(faults: list[UserError]) -> Iterator[None]:
    try:
        yield
    except UserErrors as error:
        faults.extend(error.errors)
    except UserError as error:
        faults.append(error)


def _loaded(names: Sequence[str], listing: Listing, size: int) -> Iterator[list[tuple[str, Image.Image | UserError]]]:
    """Batches of decoded images, or what is wrong with each; one batch is read ahead while another is captioned."""

    def load(name: str) -> tuple[str, Image.Image | UserError]:
        try:
            image = load_rgb(listing.images[name])
        except UserError as fault:
            return name, fault
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        return name, image

    batches = [names[start : start + size] for start in range(0, len(names), size)]
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(load, name) for name in batches[0]]
        for following in [*batches[1:], ()]:
            here, ahead = ahead, [pool.submit(load, name) for name in following]
            yield [one.result() for one in here]


def _texts(captioner: Captioner, images: Sequence[Image.Image]) -> list[str]:
    try:
        return captioner.caption(images)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "out of memory" not in str(error).lower():
            raise
        hint = f"use --batch-size {len(images) // 2}" if len(images) > 1 else "use a smaller model"
        raise UserError(f"the memory is too small for {len(images)} pictures at once", hint=hint) from None
