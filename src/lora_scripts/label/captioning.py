"""From what is said of pictures to captions on the disk, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_scripts.compute.meter import ran_out
from lora_scripts.data.captions import tidy
from lora_scripts.data.image import load_rgb
from lora_scripts.errors import UserError
from lora_scripts.events import Progress, Sink
from lora_scripts.label.base import Captioner
from lora_scripts.label.carried import carried_prompt
from lora_scripts.label.label_folder import Folder
from lora_scripts.label.unweighted import caption_of
from lora_scripts.label.wording import Kind, WordRules, apply_rules, looks_like_tags, without_own

LONGEST = 2048
"""Pixels. Captioners look at 224 to 1536 or so; scans of 100 million would fill the memory, a batch at a time."""

Loaded = tuple[str, Image.Image | UserError]
"""Name of a picture, and its pixels or what is wrong with it."""


PROMPTS_AT_ONCE = 64
"""Files whose prompts are read before what was read is written."""


@dataclass(frozen=True)
class Said:
    """What is said of a picture before the rules, or what is wrong with it."""

    name: str
    text: str | UserError
    kind: Kind = "sentence"


@dataclass(frozen=True)
class Writer:
    """Writes what is said of pictures, by rules, into the store of a folder."""

    folder: Folder
    rules: WordRules
    count: Callable[[str], int]
    """Tokens of a text."""
    overwrite: bool
    """That captions which are there are made anew, so that the same command would begin from the start."""

    def write(self, batches: Iterable[Sequence[Said]], total: int, sink: Sink) -> tuple[int, list[UserError]]:
        """Captions these pictures, `total` in all; gives the number of captions written, and a fault for each picture
        without one.

        What was written is on the disk, however this ends.
        """
        store, done, written = self.folder.store, 0, 0
        faults: list[UserError] = []
        try:
            for batch in batches:
                written += sum(self._put(said, faults) for said in batch)
                store.save()
                done += len(batch)
                sink(Progress("pictures", done, total))
        except KeyboardInterrupt as stop:
            again = "" if self.overwrite else "; the same command goes on from here"
            stop.args = (f"stopped: captions written: {written}{again}",)
            raise
        finally:
            store.flush()
        return written, faults

    def _put(self, said: Said, faults: list[UserError]) -> bool:
        """Whether a caption was written; what went wrong is added to `faults`."""
        if isinstance(said.text, UserError):
            faults.append(said.text)
            return False
        caption = apply_rules(said.text, self.rules, said.kind, self.count) if said.text.strip() else ""
        if caption:
            return self.folder.store.put(said.name, caption)
        text = tidy(said.text)
        what = f'the rules leave nothing of "{text}"' if text else "the captioner says nothing"
        place = self.folder.store.leave_room(said.name)
        faults.append(UserError(what, file=self.folder.images[said.name], hint=f"write it yourself, into {place}"))
        return False


def from_captioner(
    captioner: Captioner, names: Sequence[str], images: Mapping[str, Path], size: int
) -> Iterator[list[Said]]:
    """What a captioner says of pictures, `size` of them at once."""
    for batch in _loaded(names, images, size):
        pictures = [image for _, image in batch if isinstance(image, Image.Image)]
        texts = iter(_texts(captioner, pictures) if pictures else [])
        yield [
            Said(name, next(texts) if isinstance(image, Image.Image) else image, captioner.kind)
            for name, image in batch
        ]


def from_prompts(names: Sequence[str], folder: Folder, rules: WordRules) -> Iterator[list[Said]]:
    """The prompts that pictures carry. Without rules they stay in their order, whatever they are."""

    def read(name: str) -> Said:
        path = folder.images[name]
        try:
            text = caption_of(carried_prompt(path))
        except UserError as fault:
            return Said(name, fault)
        if not text:
            there = "its caption stays" if folder.store.captions.get(name) else "label the rest without --from-prompts"
            return Said(name, UserError("no prompt in the file", file=path, hint=there))
        tags = bool(rules) and looks_like_tags(without_own(text, rules, "sentence"))
        if rules.whitelist and not tags:
            what = "--whitelist keeps whole tags, and its prompt is a sentence"
            return Said(name, UserError(what, file=path, hint="use --remove"))
        return Said(name, text, "tags" if tags else "sentence")

    for start in range(0, len(names), PROMPTS_AT_ONCE):
        yield [read(name) for name in names[start : start + PROMPTS_AT_ONCE]]


def _loaded(names: Sequence[str], images: Mapping[str, Path], size: int) -> Iterator[list[Loaded]]:
    """Batches of decoded pictures; one batch is read ahead while another is captioned."""

    def load(name: str) -> Loaded:
        try:
            image = load_rgb(images[name])
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
        if not ran_out(error):
            raise
        hint = f"use --batch-size {len(images) // 2}" if len(images) > 1 else "use a smaller model, or --device cpu"
        many = f"{len(images)} pictures at once" if len(images) > 1 else "one picture"
        raise UserError(f"the memory is too small for {many}", hint=hint) from None
