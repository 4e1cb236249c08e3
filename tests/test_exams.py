"""The invented scanner: its grades by hand, and that what is measured was in no training."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from benchmarks.miniature_words import forms

from lora_scripts.data.texts.conversations import Conversation
from lora_scripts.data.texts.records import read_records
from lora_scripts.demo import exams
from lora_scripts.demo.reports import RECORDS, TEST_SEED, TESTS, TRAINING_SEED, talks, write_records

EXAM = exams.Exam(
    4827,
    (
        exams.Finding("left kidney", "stone", "dark", 34, "larger"),
        exams.Finding("liver", "cyst", "pale", 8, "unchanged"),
    ),
)


@pytest.mark.parametrize(
    ("width", "course", "grade"),
    [(9, "new", 1), (10, "new", 2), (29, "smaller", 2), (30, "unchanged", 3), (9, "larger", 2), (59, "larger", 4)],
)
def test_grades(width: int, course: str, grade: int) -> None:
    assert exams.Finding("liver", "cyst", "pale", width, course).grade == grade


def test_an_exam_as_it_goes_in_and_out() -> None:
    assert (EXAM.grade, EXAM.follow_up) == (4, "second reading now")
    assert [write(EXAM) for write in exams.NOTES] == [
        "exam 4827\nleft kidney: dark stone, 34 mm, larger\nliver: pale cyst, 8 mm, unchanged",
        "4827; stone 34 mm left kidney dark larger; cyst 8 mm liver pale unchanged",
        "In exam 4827 the scanner saw a dark stone of 34 mm in the left kidney (larger) and a pale cyst of 8 mm in the "
        "liver (unchanged).",
    ]
    assert exams.report(EXAM) == (
        "AUREL REPORT 4827\n"
        "Result: 2 findings, highest grade 4\n"
        "1) Left kidney - dark stone - 34 mm - larger - grade 4\n"
        "2) Liver - pale cyst - 8 mm - unchanged - grade 1\n"
        "Recommendation: second reading now"
    )
    nothing = exams.Exam(1000, ())
    assert exams.report(nothing) == "AUREL REPORT 1000\nResult: no findings\nRecommendation: no control"
    assert (nothing.grade, nothing.follow_up) == (0, "no control")


def test_exams_are_functions_of_the_seed_and_never_hold_an_organ_twice() -> None:
    some = list(itertools.islice(exams.exams(3), 500))
    assert some == list(itertools.islice(exams.exams(3), 500))
    assert some != list(itertools.islice(exams.exams(4), 500))
    assert {len(exam.findings) for exam in some} == {0, 1, 2, 3}
    assert all(len({f.organ for f in exam.findings}) == len(exam.findings) for exam in some)


def test_the_test_records_are_in_no_training(tmp_path: Path) -> None:
    write_records(tmp_path / "train.jsonl", TRAINING_SEED, RECORDS)
    write_records(tmp_path / "test.jsonl", TEST_SEED, TESTS)
    train, test = (
        [r.messages for r in read_records(tmp_path / name) if isinstance(r, Conversation)]
        for name in ("train.jsonl", "test.jsonl")
    )
    assert (len(train), len(test)) == (RECORDS, TESTS)
    answers = {messages[1]["content"] for messages in train}
    assert not [m for m in test if m[1]["content"] in answers and "no findings" not in m[1]["content"]]
    assert json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0]) == {
        "messages": next(talks(TRAINING_SEED, exams.HOUSE, exams.report))
    }


def test_no_known_form_writes_as_the_houses_of_the_demo_do() -> None:
    """Neither the house that is trained nor the one held out: their words are in no form that the base has learned."""
    known = forms.known_forms()
    assert len({form.house for form in known}) == len(known) == 192
    written = "\n".join(form.write(EXAM) for form in known)
    for words in ("Result:", "Recommendation", "AUREL REPORT", "To whom it may concern", "We saw", "To be done"):
        assert words not in written
    assert exams.HOUSE not in {form.house for form in known}
    assert forms.HELD_OUT not in {form.house for form in known}
    assert not {form.house for form in forms.developing_forms()} & {form.house for form in known}


def test_a_form_is_a_function_of_its_house() -> None:
    assert forms.draw_form("Alby", random.Random(1)).write(EXAM) == forms.draw_form("Alby", random.Random(1)).write(
        EXAM
    )
    assert forms.held_out_report(EXAM).endswith(
        "We saw a cyst in the liver, pale, measuring 8 mm; it is unchanged and of grade 1. "
        "To be done: second reading now."
    )
