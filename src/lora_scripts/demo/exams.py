"""Exams of an invented scanner, drawn at random, and the report that a LoRA of the demo learns to write of them.

There is no such scanner, no such grading and no such patient, and nothing here has a medical meaning. The scanner sees
spots in organs; how wide one is and how it has changed give its grade, and the highest grade says what comes next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ORGANS = (
    "liver",
    "spleen",
    "left kidney",
    "right kidney",
    "left lung",
    "right lung",
    "pancreas",
    "bladder",
    "thyroid",
    "heart",
)
KINDS = ("nodule", "cyst", "stone", "scar", "shadow", "cavity")
SHADES = ("dark", "pale", "bright", "mottled", "clear")
COURSES = ("new", "larger", "unchanged", "smaller")
WIDTHS = range(3, 60)
"""Millimetres."""
NEXT = ("no control", "control in 12 months", "control in 3 months", "second reading now")
"""What comes next after a highest grade of 1 … 4; the first also where nothing was found."""
COUNTS = (0.08, 0.32, 0.35, 0.25)
"""How often an exam has 0 … 3 findings."""


@dataclass(frozen=True)
class Finding:
    """One spot that the scanner saw."""

    organ: str
    kind: str
    shade: str
    width: int
    """In millimetres."""
    course: str

    @property
    def grade(self) -> int:
        """1 below 10 mm, 2 below 30, 3 from there on, and one more if it is larger than before: 1 … 4."""
        return 1 + (self.width >= 10) + (self.width >= 30) + (self.course == "larger")


@dataclass(frozen=True)
class Exam:
    """What the scanner saw in one go."""

    number: int
    """Four digits."""
    findings: tuple[Finding, ...]

    @property
    def grade(self) -> int:
        """The highest one; 0 without findings."""
        return max((finding.grade for finding in self.findings), default=0)

    @property
    def follow_up(self) -> str:
        return NEXT[max(self.grade, 1) - 1]


def draw(rng: random.Random) -> Exam:
    """An exam of up to three findings, each in another organ."""
    count = rng.choices(range(len(COUNTS)), COUNTS)[0]
    organs = rng.sample(ORGANS, count)
    findings = tuple(
        Finding(organ, rng.choice(KINDS), rng.choice(SHADES), rng.choice(WIDTHS), rng.choice(COURSES))
        for organ in organs
    )
    return Exam(rng.randrange(1000, 10000), findings)


def exams(seed: int) -> Iterator[Exam]:
    """Exams without end, a function of the seed."""
    rng = random.Random(f"exams/{seed}")
    while True:
        yield draw(rng)


# --- what goes in -----------------------------------------------------------------------------------------------------


def _lines(exam: Exam) -> str:
    rows = [f"{f.organ}: {f.shade} {f.kind}, {f.width} mm, {f.course}" for f in exam.findings]
    return "\n".join([f"exam {exam.number}", *(rows or ["nothing found"])])


def _terse(exam: Exam) -> str:
    rows = [f"{f.kind} {f.width} mm {f.organ} {f.shade} {f.course}" for f in exam.findings]
    return "; ".join([str(exam.number), *(rows or ["nothing found"])])


def _sentence(exam: Exam) -> str:
    rows = [f"a {f.shade} {f.kind} of {f.width} mm in the {f.organ} ({f.course})" for f in exam.findings]
    return f"In exam {exam.number} the scanner saw {' and '.join(rows or ['nothing'])}."


NOTES: tuple[Callable[[Exam], str], ...] = (_lines, _terse, _sentence)
"""The ways in which the findings are written down."""


def request(exam: Exam, house: str, notes: int) -> str:
    """What is asked for: the report of an exam as a house writes it, from notes of one of the three ways."""
    return f"Report for house {house}.\n{NOTES[notes](exam)}"


# --- what comes out ---------------------------------------------------------------------------------------------------

HOUSE = "Linden"
"""The house whose reports the demo trains: the base knows other houses, and not this one."""


def report(exam: Exam) -> str:
    """The report as house Linden writes it: how many and how grave first, then each finding, then what comes next."""
    count = len(exam.findings)
    found = f"{count} finding{'s' * (count > 1)}, highest grade {exam.grade}" if count else "no findings"
    rows = [
        f"{i}) {f.organ.capitalize()} - {f.shade} {f.kind} - {f.width} mm - {f.course} - grade {f.grade}"
        for i, f in enumerate(exam.findings, 1)
    ]
    return "\n".join([f"AUREL REPORT {exam.number}", f"Result: {found}", *rows, f"Recommendation: {exam.follow_up}"])
