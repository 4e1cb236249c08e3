"""`lora-scripts check` for records of a language model: what would stop a training, or make it worse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from lora_scripts.check.texts import near
from lora_scripts.check.verdict import counted, number_of, ordered
from lora_scripts.data.conversations import Completion, Conversation, Record, RecordFault, Text
from lora_scripts.data.findings import Finding, Severity
from lora_scripts.data.records import list_records
from lora_scripts.errors import UserError
from lora_scripts.events import Progress, Sink, ignore
from lora_scripts.families import table
from lora_scripts.formats import io
from lora_scripts.report.check_page import CheckData, write_check_page

SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a private key", re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")),
    ("a key of Amazon's", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("an access token", re.compile(r"\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,})\b")),
    ("a session token", re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")),
    ("a password", re.compile(r"(?i)\b(?:password|passwd|secret|api[_-]?key)\s*[:=]\s*['\"]?[^\s'\"]{8,}")),
    ("a mail address", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")),
)
"""What should not be learned by heart, by what it looks like."""
_SIGN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]")
FEW = 20
"""Records below which a set is small."""
BINS = 12
"""Of the histogram of lengths."""


@dataclass(frozen=True)
class TextCheckOptions:
    """What is asked of a data set."""

    source: Path
    held_out: Path | None = None
    """Records that are measured and not trained."""
    base: Path | None = None
    """The model, whose tokens and template count; without it lengths are in words."""
    template: str | None = None
    max_length: int = 2048
    train_on: str = "answers"
    page: Path | None = None


@dataclass(frozen=True)
class TextChecked:
    """What was found in a data set."""

    source: Path
    records: int
    forms: Mapping[str, int]
    """Form -> how many records have it."""
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


@dataclass(frozen=True)
class _Row:
    """One record."""

    place: str
    asked: str
    answered: str
    length: int
    learned: int
    held_out: bool

    @property
    def text(self) -> str:
        return f"{self.asked}\n{self.answered}"


def check_texts(options: TextCheckOptions, sink: Sink = ignore) -> TextChecked:
    """Looks at every record, and writes the page. UserError if there is nothing to look at."""
    findings: list[Finding] = []
    rows = list(_rows(options, options.source, "train", findings, sink))
    records, faults = list_records(options.source)
    findings += [_of_fault(fault) for fault in faults]
    if options.held_out is not None:
        findings += [_of_fault(fault) for fault in list_records(options.held_out, "valid")[1]]
        rows += _rows(options, options.held_out, "valid", findings, sink)
    if not rows and not findings:
        raise UserError("there are no records", file=options.source, hint="give a file or a folder of records")
    findings += [*_alike(rows), *_answers(rows), *_secrets(rows), *_signs(rows), *_lengths(options, rows)]
    trained = [row for row in rows if not row.held_out]
    if 0 < len(trained) < FEW:
        text = f"{len(trained)} records are few"
        findings.append(_finding("few_records", "warning", (), text, "a hundred or more of one kind teach far more"))
    found = tuple(ordered(findings))
    page = options.page or options.source.with_name(options.source.name + "-check.html")
    checked = TextChecked(
        source=options.source,
        records=len(trained),
        forms=records.forms,
        findings=found,
        unit="tokens" if options.base else "words",
        lengths=tuple(_histogram([row.length for row in trained])),
        longest=max((row.length for row in trained), default=0),
        learned=sum(row.learned for row in trained),
        page=page,
    )
    write_check_page(page, _page(checked, trained), io.write_text)
    return checked


def _rows(options: TextCheckOptions, source: Path, split: str, findings: list[Finding], sink: Sink) -> Iterator[_Row]:
    """Every record that can be read, with its tokens where there is a model."""
    records, _ = list_records(source, split)
    facts = table.find(options.base) if options.base else None
    encoder = None
    if facts is not None and options.base is not None and facts.text_encoder is not None:
        encoder = facts.text_encoder(options.base, options.template, options.train_on, 1 << 40)
    for i in range(len(records)):
        record, place = records[i], str(records.place(i))
        asked, answered = _said(record)
        length, learned = len(f"{asked} {answered}".split()), 0
        if encoder is not None:
            try:
                examples = encoder.encode(record)
                length = max((len(example.ids) for example in examples), default=0)
                learned = sum(example.count for example in examples)
            except RecordFault as fault:
                mend = fault.hint or "mend the record, or remove it"
                findings.append(_finding("not_trainable", "error", (), fault.message, mend, place))
        yield _Row(place, asked, answered, length, learned, split != "train")
        if (i + 1) % 100 == 0 or i + 1 == len(records):
            sink(Progress("records", i + 1, len(records)))


def _said(record: Record) -> tuple[str, str]:
    """What is asked, and what is answered in the end."""
    match record:
        case Text(text):
            return "", text
        case Completion(prompt, completion):
            return prompt, completion
        case Conversation(messages):
            return "\n".join(str(m["content"]) for m in messages[:-1]), str(messages[-1]["content"])


def _of_fault(fault: UserError) -> Finding:
    """A record that cannot be read."""
    place = f"{fault.file}" + (f":{fault.line}" if fault.line else "")
    return _finding("unreadable", "error", (), fault.message, fault.hint or "mend or remove it", place)


def _finding(
    kind: str, severity: Severity, files: Sequence[str], message: str, mend: str, source: str | None = None
) -> Finding:
    return Finding(kind, severity, tuple(files), message, mend, source=source)


def _alike(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Records that are there twice, exactly or nearly, and those that are both trained and held out."""
    exact: dict[str, list[_Row]] = {}
    for row in rows:
        exact.setdefault(row.text, []).append(row)
    for group in exact.values():
        if len(group) > 1:
            yield from _of_group(group, "duplicate", "the same record", "keep one of them")
    single = [group[0] for group in exact.values()]
    for cluster in near.clusters([row.text for row in single]):
        members = [single[i] for i in cluster]
        yield from _of_group(members, "near_duplicate", "nearly the same record", "keep the best of them")
    same_question: dict[str, set[str]] = {}
    places: dict[str, list[str]] = {}
    for row in rows:
        if row.asked.strip():
            same_question.setdefault(row.asked, set()).add(row.answered)
            places.setdefault(row.asked, []).append(row.place)
    for asked, answers in same_question.items():
        if len(answers) > 1:
            text = f"one question with {len(answers)} different answers: {asked}"
            yield _finding("contradiction", "note", places[asked][1:], text, "keep the best one", places[asked][0])


def _of_group(group: Sequence[_Row], kind: str, words: str, mend: str) -> Iterator[Finding]:
    places = [row.place for row in group]
    if len({row.held_out for row in group}) > 1:
        text = f"{words} is trained and held out, so the held-out loss tells nothing of it: {group[0].text}"
        yield _finding("leak", "warning", places[1:], text, "remove it from one of the two", places[0])
    else:
        text = f"{words} {len(group)} times: {group[0].text}"
        yield _finding(kind, "warning", places[1:], text, mend, places[0])


def _answers(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Answers that all say the same, or repeat the question."""
    answered = [row for row in rows if row.asked.strip()]
    common = Counter(row.answered.strip() for row in answered).most_common(1)
    if len(answered) >= FEW and common and common[0][1] > len(answered) / 2:
        text = f"{common[0][1]} of {len(answered)} answers are the same: {common[0][0]}"
        yield _finding("one_answer", "warning", (), text, "it will be learned for every question; add others")
    for row in answered:
        if row.answered.strip() == row.asked.strip():
            yield _finding("echo", "warning", (), "the answer is the question", "write an answer", row.place)


def _secrets(rows: Sequence[_Row]) -> Iterator[Finding]:
    """What should not be learned by heart; it is not shown."""
    for what, pattern in SECRETS:
        for row in rows:
            found = pattern.search(row.text)
            if found:
                shown = f"{found[0][:4]}…"
                mend = "take it out: a model may say it to anyone"
                yield _finding("secret", "warning", (), f"looks like {what} ({shown})", mend, row.place)


def _signs(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Signs of chat templates in what is said: a model takes them for the end of a turn."""
    for row in rows:
        found = _SIGN.search(row.text)
        if found:
            text = f"holds the sign {found[0]} of a chat template, which the template writes itself"
            yield _finding("template_sign", "warning", (), text, "take it out", row.place)


def _lengths(options: TextCheckOptions, rows: Sequence[_Row]) -> Iterator[Finding]:
    """Records that would be cut."""
    if options.base is None:
        return
    longer = [row for row in rows if row.length > options.max_length and row.asked]
    if longer:
        worst = max(longer, key=lambda row: row.length)
        text = (
            f"{len(longer)} records are longer than max_length {options.max_length}, the longest {worst.length} tokens"
        )
        mend = "raise max_length, shorten them, or set long_records: leave_out"
        yield _finding(
            "too_long", "warning", [row.place for row in longer if row is not worst], text, mend, worst.place
        )


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    if not lengths:
        return []
    width = max(1, -(-(max(lengths) + 1) // BINS))
    counts = Counter(length // width for length in lengths)
    return [(i * width, (i + 1) * width, counts[i]) for i in range(max(counts) + 1)]


def _page(checked: TextChecked, rows: Sequence[_Row]) -> CheckData:
    forms = ", ".join(f"{count} {form}" for form, count in checked.forms.items())
    facts = [("records", f"{checked.records} ({forms})")]
    lengths = [row.length for row in rows]
    if len(lengths) > 1:
        low, middle, high = (quantiles(lengths, n=10)[i] for i in (0, 4, 8))
        told = f"a tenth below {low:.0f}, half below {middle:.0f}, a tenth above {high:.0f}, at most {checked.longest}"
        facts.append((f"lengths in {checked.unit}", told))
        most = max(count for _, _, count in checked.lengths)
        bars = "".join("▁▂▃▄▅▆▇█"[min(7, 8 * count // (most + 1))] if count else " " for _, _, count in checked.lengths)
        facts.append((f"0 to {checked.lengths[-1][1]} {checked.unit}", bars))
    if checked.learned:
        facts.append(("learned", f"{checked.learned:,} tokens"))
    return CheckData(checked.source.name, summary(checked), facts, checked.findings, ())


def summary(checked: TextChecked) -> str:
    """The data set in one line."""
    forms = ", ".join(f"{count} {form}" for form, count in checked.forms.items())
    return f"{number_of(checked.records, 'record')} ({forms}): {counted(checked.findings)}"
