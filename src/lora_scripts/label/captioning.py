"""From pictures to captions on the disk, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from lora_scripts.label.label_folder import Folder
from lora_scripts.label.wording import WordRules, apply_rules

LONGEST = 2048
"""Pixels. Captioners look at 224 to 1536 or so; scans of 100 million would fill the memory, a batch at a time."""

Loaded = tuple[str, Image.Image | UserError]
"""Name of a picture, and its pixels or what is wrong with it."""


@dataclass(frozen=True)
class Writer:
    """Writes what a captioner says of pictures, by rules, into the store of a folder."""

    captioner: Captioner
    folder: Folder
    rules: WordRules
    count: Callable[[str], int]
    """Tokens of a text."""
    overwrite: bool
    """That captions which are there are made anew, so that the same command would begin from the start."""

    def write(self, names: Sequence[str], batch_size: int, sink: Sink) -> tuple[int, list[UserError]]:
        """Captions these pictures; gives the number of captions written, and a fault for each picture without one.

        What was written is on the disk, however this ends.
        """
        store, done, written = self.folder.store, 0, 0
        faults: list[UserError] = []
        try:
            for batch in _loaded(names, self.folder.images, batch_size):
                written += self._batch(batch, faults)
                store.save()
                done += len(batch)
                sink(Progress("pictures", done, len(names)))
        except KeyboardInterrupt as stop:
            again = "" if self.overwrite else "; the same command goes on from here"
            stop.args = (f"stopped: captions written: {written}{again}",)
            raise
        finally:
            store.flush()
        return written, faults

    def _batch(self, batch: Sequence[Loaded], faults: list[UserError]) -> int:
        """The number of captions written; what went wrong is added to `faults`."""
        names = [name for name, image in batch if isinstance(image, Image.Image)]
        images = [image for _, image in batch if isinstance(image, Image.Image)]
        faults += [image for _, image in batch if isinstance(image, UserError)]
        written = 0
        for name, text in zip(names, _texts(self.captioner, images) if images else [], strict=True):
            caption = apply_rules(text, self.rules, self.captioner.kind, self.count) if text.strip() else ""
            if caption:
                written += self.folder.store.put(name, caption)
                continue
            what = f'the rules leave nothing of "{tidy(text)}"' if text.strip() else "the captioner says nothing"
            place = self.folder.store.leave_room(name)
            faults.append(UserError(what, file=self.folder.images[name], hint=f"write it yourself, into {place}"))
        return written


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
