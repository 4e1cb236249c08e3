"""What can be wrong with the records of a data set, found in what is kept of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lora_scripts.check.texts import near
from lora_scripts.check.texts.kept import Row, Unfit
from lora_scripts.data.findings import Finding, Severity
from lora_scripts.errors import UserError
from lora_scripts.units import number_of

FEW = 20
"""Records below which a set is small."""
LISTED = 200
"""Places of one finding that are named."""


def of_fault(fault: UserError) -> Finding:
    """A record that cannot be read."""
    place = f"{fault.file}" + (f":{fault.line}" if fault.line else "")
    return _finding(_kind(fault.message), "error", [place], fault.message, fault.hint or "mend or remove it")


def of_unfit(unfit: Sequence[Unfit]) -> Iterator[Finding]:
    """Records of which the model would learn nothing, or which its template refuses; those of one fault together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for one in unfit:
        mend = one.fault.hint or "mend the record, or remove it"
        alike.setdefault((one.fault.message, mend), []).append(one.place)
    for (message, mend), places in alike.items():
        times = f" ({len(places)} records)" if len(places) > 1 else ""
        yield _finding(_kind(message), "error", places, message + times, mend)


def of_notes(notes: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """What stands in the data set and is not learned: keys, files."""
    for text, mend in notes:
        yield _finding("not_read", "note", [], text, mend)


def of_set(rows: Sequence[Row], longest: int | None, *, cut: bool, own: bool) -> Iterator[Finding]:
    """Of all records together; `longest`: the tokens that a record may have, None where they are not known; `own`:
    it is the model that takes no more."""
    yield from _alike(rows)
    yield from _contradictions(rows)
    yield from _answers(rows)
    yield from _secrets(rows)
    yield from _signs(rows)
    if longest is not None:
        yield from _lengths(rows, longest, cut=cut, own=own)
    trained = sum(not row.held_out for row in rows)
    if 0 < trained < FEW:
        text = f"{number_of(trained, 'record')} to learn from"
        yield _finding("few_records", "warning", [], text, "a hundred or more of one kind teach far more")


def _alike(rows: Sequence[Row]) -> Iterator[Finding]:
    """Records that are there twice, exactly or nearly, and those that are both trained and held out."""
    exact: dict[tuple[bytes, bytes], list[Row]] = {}
    for row in rows:
        exact.setdefault(row.both, []).append(row)
    for group in exact.values():
        if len(group) > 1:
            yield _of_group(group, "duplicate", "the same record", "keep one of them")
    single = [group[0] for group in exact.values()]
    for cluster in near.clusters([row.signature for row in single], lambda i: single[i].text):
        members = [single[i] for i in cluster]
        yield _of_group(members, "near_duplicate", "nearly the same record", "keep the best of them")


def _of_group(group: Sequence[Row], kind: str, words: str, mend: str) -> Finding:
    places = [row.place for row in group]
    if len({row.held_out for row in group}) > 1:
        text = f"{words} is trained and held out, so what is measured on it tells nothing: {group[0].words}"
        return _finding("leak", "warning", places, text, "remove it from one of the two")
    return _finding(kind, "warning", places, f"{words} {len(group)} times: {group[0].words}", mend)


def _contradictions(rows: Sequence[Row]) -> Iterator[Finding]:
    """One question, answered in more than one way: which may be meant."""
    asked: dict[bytes, list[Row]] = {}
    for row in rows:
        if row.question:
            asked.setdefault(row.question, []).append(row)
    for group in asked.values():
        answers = len({row.answer for row in group})
        if answers > 1:
            text = f"one question with {answers} different answers: {group[0].words}"
            yield _finding("contradiction", "note", [row.place for row in group], text, "keep the best, unless meant")


def _answers(rows: Sequence[Row]) -> Iterator[Finding]:
    """Answers that all say the same, or repeat the question."""
    answered = [row for row in rows if row.question]
    common = Counter(row.answer for row in answered).most_common(1)
    if len(answered) >= FEW and common and common[0][1] > len(answered) / 2:
        said = next(row.said for row in answered if row.answer == common[0][0])
        text = f"{common[0][1]} of {len(answered)} answers are the same: {said}"
        yield _finding("one_answer", "warning", [], text, "it will be learned for every question; add others")
    yield from _gathered(
        "echo", (r for r in answered if r.answer == r.question), "the answer is the question", "write one"
    )


def _secrets(rows: Sequence[Row]) -> Iterator[Finding]:
    """What should not be learned by heart; it is not shown."""
    held: dict[str, list[tuple[Row, str]]] = {}
    for row in rows:
        for what, begins in row.secrets:
            held.setdefault(what, []).append((row, begins))
    for what, found in held.items():
        times = f", in {len(found)} records" if len(found) > 1 else ""
        text, mend = f"looks like {what} ({found[0][1]}){times}", "take it out: a model may say it to anyone"
        yield _finding("secret", "warning", [row.place for row, _ in found], text, mend)


def _signs(rows: Sequence[Row]) -> Iterator[Finding]:
    """Signs of chat templates in what is said: a model takes them for the end of a turn."""
    signs = dict.fromkeys(row.sign for row in rows if row.sign)
    for sign in signs:
        text = f"holds the sign {sign} of a chat template, which the template writes itself"
        yield from _gathered("template_sign", (row for row in rows if row.sign == sign), text, "take it out")


def _lengths(rows: Sequence[Row], longest: int, *, cut: bool, own: bool) -> Iterator[Finding]:
    """Records that would not be learned as a whole; running text comes in pieces, and is none of them."""
    longer = sorted((row for row in rows if row.length > longest and row.question), key=lambda row: -row.length)
    if longer:
        limit = "more than the model takes at once" if own else "max_length"
        fate = "the end is cut off" if cut else "left out"
        head = f"{number_of(len(longer), 'record')} of more than {longest} tokens ({limit}), at most "
        mend = ("shorten them" if own else "raise max_length, or shorten them") + (
            ", or set long_records: leave_out" if cut else ""
        )
        places = [row.place for row in longer]
        yield _finding("too_long", "warning", places, f"{head}{longer[0].length}: {fate}", mend)


def _gathered(kind: str, rows: Iterable[Row], text: str, mend: str) -> Iterator[Finding]:
    """One finding for all of these records; none for none."""
    places = [row.place for row in rows]
    if places:
        times = f"; so do {number_of(len(places) - 1, 'other')}" if len(places) > 1 else ""
        yield _finding(kind, "warning", places, text + times, mend)


def _finding(kind: str, severity: Severity, places: Sequence[str], message: str, mend: str) -> Finding:
    """The first place is the one that is shown."""
    first, more = (places[0], places[1 : LISTED + 1]) if places else (None, ())
    return Finding(kind, severity, tuple(more), message, mend, source=first)


def _kind(message: str) -> str:
    """What a fault is, without what is said of the one record: "half_a_record"."""
    return re.sub(r"\W+", "_", re.split(r'[:(;"]|, |\d', message)[0].strip().lower()).strip("_") or "record"
