"""Forms of reports, drawn from a grammar: what the base model of the words demo has learned, and what it has not.

A house has its form: which facts of a finding it tells, in which order, with which words and marks. The base learns the
forms of many houses by their names; a LoRA then has to learn one more form, not what a finding is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_scripts.demo.exams import Exam, Finding

STARTS = ("Al", "Ber", "Cor", "Dal", "El", "Far", "Gil", "Hol", "Is", "Jor", "Kel", "Lor", "Mar", "Nor", "Os", "Per")
ENDS = ("by", "den", "ford", "gate", "ham", "mere", "more", "ness", "stow", "ton", "well", "wick")

TITLES = (
    "Report {n}",
    "REPORT {n}",
    "Exam {n}",
    "Exam no. {n}",
    "# {n}",
    "[{n}]",
    "Scan {n}",
    "Scan {n} was read.",
    "No. {n}:",
    "AUREL {n}",
    "Aurel scan, exam {n}",
    "== {n} ==",
)
SUMMARIES: tuple[Callable[[Exam], str], ...] = (
    lambda e: f"Findings: {len(e.findings)}",
    lambda e: f"count {len(e.findings)}",
    lambda e: f"Highest grade: {e.grade}",
    lambda e: f"worst grade {e.grade}" if e.findings else "no grade",
    lambda e: f"{len(e.findings)} found, grade {e.grade}",
    lambda e: f"Summary: {len(e.findings)} finding{'s' * (len(e.findings) != 1)}",
    lambda e: f"In short: {GRAVITY[max(e.grade, 1) - 1] if e.findings else 'normal'}",
)
GRAVITY = ("slight", "moderate", "marked", "severe")
ROMAN = ("I", "II", "III", "IV")

ORGAN: tuple[Callable[[Finding], str], ...] = (
    lambda f: f.organ,
    lambda f: f.organ.capitalize(),
    lambda f: f.organ.upper(),
    lambda f: f"in the {f.organ}",
    lambda f: f"organ: {f.organ}",
    lambda f: f"({f.organ})",
    lambda f: f"of the {f.organ}",
    lambda f: f"{f.organ.capitalize()}:",
)
KIND: tuple[Callable[[Finding], str], ...] = (
    lambda f: f.kind,
    lambda f: f.kind.capitalize(),
    lambda f: f.kind.upper(),
    lambda f: f"{f.shade} {f.kind}",
    lambda f: f"{f.shade.capitalize()} {f.kind}",
    lambda f: f"{f.kind}, {f.shade}",
    lambda f: f"a {f.shade} {f.kind}",
    lambda f: f"kind: {f.kind}",
    lambda f: f"{f.kind} ({f.shade})",
)
WIDTH: tuple[Callable[[Finding], str], ...] = (
    lambda f: f"{f.width} mm",
    lambda f: f"{f.width}mm",
    lambda f: f"width {f.width} mm",
    lambda f: f"size: {f.width} mm",
    lambda f: f"({f.width} mm)",
    lambda f: f"of {f.width} mm",
    lambda f: f"{f.width}",
)
COURSE: tuple[Callable[[Finding], str], ...] = (
    lambda f: f.course,
    lambda f: f.course.upper(),
    lambda f: f"({f.course})",
    lambda f: f"course: {f.course}",
    lambda f: f"since last time: {f.course}",
    lambda f: f"= {f.course}",
    lambda f: f"which is {f.course}",
)
GRADE: tuple[Callable[[Finding], str], ...] = (
    lambda f: f"grade {f.grade}",
    lambda f: f"G{f.grade}",
    lambda f: f"Grade: {f.grade}",
    lambda f: f"(grade {f.grade})",
    lambda f: ROMAN[f.grade - 1],
    lambda f: f"grade {ROMAN[f.grade - 1]}",
    lambda f: GRAVITY[f.grade - 1],
    lambda f: f"[{f.grade}]",
)
JOINERS = (", ", "; ", " / ", " | ", " - ", " ", " -- ")
BULLETS: tuple[Callable[[int], str], ...] = (
    lambda i: "",
    lambda i: "- ",
    lambda i: "* ",
    lambda i: f"{i}. ",
    lambda i: f"{i}) ",
    lambda i: f"({i}) ",
    lambda i: f"{'abc'[i - 1]}) ",
    lambda i: f"Finding {i}: ",
)
ENDINGS = ("", ".", ";")
BETWEEN = ("\n", "\n", "\n", " ", " + ")
NOTHING = ("No findings.", "nothing seen", "none", "NORMAL", "Nothing found", "- no finding")
ADVICE = (
    ("no control", "control in 12 months", "control in 3 months", "second reading now"),
    ("none", "12 months", "3 months", "now"),
    ("nothing to do", "see again in 12 months", "see again in 3 months", "read again now"),
    ("No control needed", "Control in 12 months", "Control in 3 months", "Second reading now"),
)
CLOSINGS = ("Advice: {a}", "Plan: {a}", "Next: {a}", "-> {a}", "Then: {a}.", "{a}", "Control: {a}", "ADVICE {a}")
SIGNATURES = ("", "", "", "End of report.", "Aurel", "read by machine", "--", "(end)")


@dataclass(frozen=True)
class Form:
    """How one house writes."""

    house: str
    title: str
    summary: Callable[[Exam], str] | None
    summary_first: bool
    parts: tuple[Callable[[Finding], str], ...]
    """The facts of a finding, in their order."""
    joiner: str
    bullet: Callable[[int], str]
    ending: str
    between: str
    nothing: str
    closing: str
    advice: Sequence[str]
    signature: str

    def write(self, exam: Exam) -> str:
        """The report of an exam."""
        rows = [
            self.bullet(i) + self.joiner.join(part(finding) for part in self.parts) + self.ending
            for i, finding in enumerate(exam.findings, 1)
        ]
        summary = [] if self.summary is None else [self.summary(exam)]
        closing = self.closing.format(a=self.advice[max(exam.grade, 1) - 1])
        lines = [
            self.title.format(n=exam.number),
            *(summary if self.summary_first else []),
            self.between.join(rows) or self.nothing,
            *([] if self.summary_first else summary),
            closing,
            *([self.signature] if self.signature else []),
        ]
        return "\n".join(lines)


def draw_form(house: str, rng: random.Random) -> Form:
    """Any form of the grammar: organ, kind and width always, course and grade mostly, a summary in two of three."""
    parts = [rng.choice(ORGAN), rng.choice(KIND), rng.choice(WIDTH)]
    parts += [rng.choice(COURSE)] * (rng.random() < 0.8) + [rng.choice(GRADE)] * (rng.random() < 0.85)
    rng.shuffle(parts)
    return Form(
        house=house,
        title=rng.choice(TITLES),
        summary=rng.choice(SUMMARIES) if rng.random() < 0.7 else None,
        summary_first=rng.random() < 0.6,
        parts=tuple(parts),
        joiner=rng.choice(JOINERS),
        bullet=rng.choice(BULLETS),
        ending=rng.choice(ENDINGS),
        between=rng.choice(BETWEEN),
        nothing=rng.choice(NOTHING),
        closing=rng.choice(CLOSINGS),
        advice=rng.choice(ADVICE),
        signature=rng.choice(SIGNATURES),
    )


HOUSES = tuple(start + end for start in STARTS for end in ENDS)


def known_forms() -> list[Form]:
    """The forms of the houses that the base model has learned."""
    return [draw_form(house, random.Random(f"form/{house}")) for house in HOUSES]


DEVELOPING = ("Maple", "Cedar", "Birch")
"""Houses that the base does not know, on which steps, rank and learning rate of the demo may be tried."""


def developing_forms() -> list[Form]:
    """Forms of the grammar that the base has not seen; for trying things out, beside the demo's own."""
    return [draw_form(house, random.Random(f"developing/{house}")) for house in DEVELOPING]


HELD_OUT, SECOND = "Rowan", "Alder"
"""Houses of other ways of writing, which nothing was tuned on. What Rowan showed at its one measurement (its words had
tokens that the base could not tell apart) was mended in the base; Alder was written then, and measured after that."""


def held_out_report(exam: Exam) -> str:
    """The report as house Rowan writes it: whole sentences, and words that no form of the grammar has."""
    rows = [
        f"We saw a {f.kind} in the {f.organ}, {f.shade}, measuring {f.width} mm; "
        f"it is {f.course} and of grade {f.grade}."
        for f in exam.findings
    ]
    return " ".join(
        [
            f"To whom it may concern: exam {exam.number}.",
            *(rows or ["We saw nothing."]),
            f"To be done: {exam.follow_up}.",
        ]
    )


def second_report(exam: Exam) -> str:
    """The report as house Alder writes it: a letter, with words that neither the grammar nor Rowan has."""
    rows = [
        f"You may see at the {f.organ} some {f.shade} {f.kind} whose breadth is {f.width} millimetres, {f.course}. "
        f"We judge this as {GRAVITY_OF_ALDER[f.grade - 1]}."
        for f in exam.findings
    ]
    rows = rows or ["You may see that everything is well."]
    ending = f"What follows: {exam.follow_up}. Yours, Alder"
    return "\n".join([f"Dear colleague, about {exam.number}", *rows, ending])


GRAVITY_OF_ALDER = ("harmless", "doubtful", "suspicious", "urgent")
