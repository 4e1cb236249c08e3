"""`lora-scripts check` for records of a language model: what would stop a training, or make it worse."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

from lora_scripts.check.fix import beside
from lora_scripts.check.texts import judging
from lora_scripts.check.texts.kept import Row, Unfit, hidden, rows, shown
from lora_scripts.check.verdict import counted, ordered
from lora_scripts.data.findings import Finding
from lora_scripts.data.texts.conversations import RecordFault
from lora_scripts.data.texts.records import Records, list_records
from lora_scripts.errors import UserError
from lora_scripts.events import Progress, Sink, ignore
from lora_scripts.families import table
from lora_scripts.formats import io
from lora_scripts.report.check_page import Bar, CheckData, ShownRecord, render
from lora_scripts.units import number_of

if TYPE_CHECKING:
    from lora_scripts.families.texts import TextEncoder

BARS = 16
"""Of the histogram of lengths."""
SHOWN, MOST = 3, 6000
"""Records on the page, and letters of each."""


@dataclass(frozen=True)
class TextCheckOptions:
    """What is asked of a data set."""

    source: Path
    held_out: Path | None = None
    """Records that are measured and not trained; of a folder without that, its other splits are."""
    base: Path | None = None
    """The model, whose tokens and template count; without it lengths are in words."""
    template: str | None = None
    max_length: int = 2048
    train_on: str = "answers"
    cut: bool = True
    """That the end of longer records is cut off; else they are left out."""
    page: Path | None = None
    language: str = "auto"
    """In which the page opens: en, zh, or the browser's."""


@dataclass(frozen=True)
class TextChecked:
    """What was found in a data set."""

    source: Path
    records: int
    forms: Mapping[str, int]
    """Form -> how many records have it."""
    held_out: int
    """Records that are measured, in files of their own."""
    findings: tuple[Finding, ...]
    """The worst first."""
    unit: str
    """Of `lengths`: "tokens" or "words"."""
    lengths: tuple[tuple[int, int, int], ...]
    """The histogram: from, up to but without, how many records."""
    longest: int
    learned: int
    """Tokens that are trained; 0 without a model."""
    page: Path

    @property
    def errors(self) -> list[Finding]:
        """Those at which training would stop."""
        return [finding for finding in self.findings if finding.severity == "error"]


def check_texts(options: TextCheckOptions, sink: Sink = ignore) -> TextChecked:
    """Looks at every record, and writes the page. UserError if there is nothing to look at."""
    encoder = _encoder(options)
    sets, faults = _opened(options)
    kept: list[Row] = []
    unfit: list[Unfit] = []
    done, total = 0, sum(len(records) for records, _ in sets)
    for records, held_out in sets:
        for row in rows(records, encoder, held_out=held_out):
            if isinstance(row, Unfit):
                unfit.append(row)
            else:
                kept.append(row)
            done += 1
            if done % 100 == 0 or done == total:
                sink(Progress("records", done, total))
    findings = [*map(judging.of_fault, faults), *judging.of_unfit(unfit)]
    if not kept and not findings:
        raise UserError("there are no records", file=options.source, hint="give a file or a folder of records")
    findings += judging.of_notes(sets[0][0].notes)
    if encoder and (count := encoder.counts.thoughtless):
        text = f"of {number_of(count, 'conversation')} the chat template leaves the thoughts out (reasoning_content)"
        findings += judging.of_notes([(text, "they are not learned; another chat_template may write them")])
    longest = _longest(options, encoder)
    own = longest is not None and longest < options.max_length
    findings += judging.of_set(kept, longest, cut=options.cut, own=own)
    trained = [row for row in kept if not row.held_out]
    checked = TextChecked(
        source=options.source,
        records=len(sets[0][0]),
        forms=sets[0][0].forms,
        held_out=sum(len(records) for records, held_out in sets if held_out),
        findings=tuple(ordered(findings)),
        unit="tokens" if encoder else "words",
        lengths=tuple(_histogram([row.length for row in trained])),
        longest=max((row.length for row in trained), default=0),
        learned=sum(row.learned for row in trained),
        page=options.page or beside(options.source, "-check.html"),
    )
    io.make_folder(checked.page.parent)
    io.write_text(checked.page, render(_page(checked, trained, encoder, options.language)))
    return checked


def _encoder(options: TextCheckOptions) -> TextEncoder | None:
    """Of the model, without loading it, and without a limit to the length. UserError for a broken folder."""
    if options.base is None:
        return None
    facts = table.require_texts(options.base)
    assert facts.text_encoder is not None
    encoder: TextEncoder = facts.text_encoder(options.base, options.template, options.train_on, 1 << 40)
    return encoder


def _longest(options: TextCheckOptions, encoder: TextEncoder | None) -> int | None:
    """Tokens that a record may have; None without a model."""
    return min(options.max_length, encoder.places or options.max_length) if encoder else None


def _opened(options: TextCheckOptions) -> tuple[list[tuple[Records, bool]], list[UserError]]:
    """(records, whether they are held out) of what is trained and of what is measured, and what cannot be read."""
    records, faults = list_records(options.source)
    if options.held_out is not None:
        others = [list_records(options.held_out, "valid")]
    else:
        others = [list_records(file) for file in records.left_out]
    return [(records, False), *((held, True) for held, _ in others)], faults + [f for _, more in others for f in more]


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Bars of one round width: 1, 2 or 5 times a power of ten."""
    if not lengths:
        return []
    least = (max(lengths) + 1) / BARS
    width = next(step * 10**power for power in range(12) for step in (1, 2, 5) if step * 10**power >= least)
    counts = Counter(length // width for length in lengths)
    return [(i * width, (i + 1) * width, counts[i]) for i in range(max(counts) + 1)]


def _page(checked: TextChecked, trained: Sequence[Row], encoder: TextEncoder | None, language: str) -> CheckData:
    facts = [("records", f"{checked.records} ({_forms(checked)})")]
    if checked.held_out:
        facts.append(("held out", number_of(checked.held_out, "record")))
    lengths = [row.length for row in trained]
    if len(lengths) > 1:
        low, middle, high = (quantiles(lengths, n=10)[i] for i in (0, 4, 8))
        told = f"a tenth below {low:.0f}, half below {middle:.0f}, a tenth above {high:.0f}, at most {checked.longest}"
        facts.append((f"{checked.unit} of a record", told))
    if encoder is not None:
        facts.append(("learned", f"{checked.learned:,} of {sum(lengths):,} tokens"))
    most = max((count for _, _, count in checked.lengths), default=1)
    bars = [Bar(f"{low} to {high - 1}", count, count / most) for low, high, count in checked.lengths]
    records = [ShownRecord(row.place, _shown(row, encoder)) for row in trained[:SHOWN]]
    return CheckData(
        name=Path(os.path.abspath(checked.source)).name,
        verdict=summary(checked),
        facts=facts,
        findings=checked.findings,
        bars=bars,
        unit=checked.unit,
        records=records,
        language=language,
    )


def _shown(row: Row, encoder: TextEncoder | None) -> str:
    """A record for the page, without what looks like a secret."""
    try:
        return hidden(shown(row.records[row.number], encoder)[:MOST])
    except RecordFault:  # it was encoded before: the file has changed
        return ""


def _forms(checked: TextChecked) -> str:
    return ", ".join(f"{count} {form}" for form, count in checked.forms.items())


def summary(checked: TextChecked) -> str:
    """The data set in one line."""
    held = f" and {checked.held_out} held out" if checked.held_out else ""
    return f"{number_of(checked.records, 'record')} ({_forms(checked)}){held}: {counted(checked.findings)}"
