"""Texts before the model, where a large text encoder is asked first: told if they are longer than it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from lora_scripts.events import Note, Sink
from lora_scripts.families.base import CaptionEncoder

SHOWN = 60
"""Letters of the first of them."""


def remember(encoder: CaptionEncoder, asked: Iterable[tuple[Sequence[str], Sequence[Tensor]]], sink: Sink) -> None:
    """Encodes prompts that will be drawn, each once, and tells which are cut off. `asked`: prompts, and what they are
    drawn from as of `Sampling.references`."""
    each = dict[str, None]()
    for texts, shown in asked:
        encoder.remember(texts, shown)
        each |= dict.fromkeys(texts)
    tell_cut(encoder, list(each), "prompt", sink)


def tell_cut(encoder: CaptionEncoder, texts: Sequence[str], what: str, sink: Sink) -> None:
    """One note for all of the texts, each a `what`, whose ends the encoder does not read."""
    cut = [text for text in texts if encoder.excess(text)]
    if cut:
        many = f"{len(cut)} {what}s are longer than the text encoder reads; their ends are cut off, first: "
        one = f"1 {what} is longer than the text encoder reads; its end is cut off: "
        sink(Note(f"note: {one if len(cut) == 1 else many}{cut[0][:SHOWN]}"))
