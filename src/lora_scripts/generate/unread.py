"""What of prompts a base does not read, told before it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_scripts.events import Note, Sink
from lora_scripts.families.facts import Drawing, Facts

_WEIGHT = re.compile(r"[(（]([^()（）:：]+)[:：]\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*[)）]")
"""A weight, whether in the brackets that count or in those of an input method."""


def tell_unread(facts: Facts, prompts: Iterable[tuple[str, Drawing]], sink: Sink) -> None:
    """A line for negative prompts at cfg 1, and one for weights that are words; `prompts`, each as it is drawn."""
    each = list(prompts)
    if any(how.negative and how.cfg == 1 for _, how in each):
        sink(Note("note: at cfg 1 the negative prompt is not read"))
    texts = "\n".join(text for prompt, how in each for text in (prompt, how.negative))
    wide = next((m for m in _WEIGHT.finditer(texts) if set("（）：") & set(m[0])), None)
    if wide and "clip" in facts.features:  # elsewhere no weight is one
        meant = f"({wide[1].strip()}:{wide[2]})"
        sink(Note(f"note: {wide[0]} is read as words, as WebUIs do; a weight has half-width signs: {meant}"))
