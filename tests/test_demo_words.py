"""`demo words`, shortened, and the small language model that the package brings for it. The figures in docs/demo.md are
taken by benchmarks/miniature_words/measure.py."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import torch
from benchmarks.miniature_words import forms

from lora_scripts.cli import demo
from lora_scripts.cli.show import People
from lora_scripts.config.load import load_config
from lora_scripts.demo import exams, reports
from lora_scripts.families.causal_lm.model import LanguageModel, open_model
from lora_scripts.families.texts import Answering

BASE = Path(str(resources.files("lora_scripts.demo"))) / "assets" / "words"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return open_model(BASE, torch.device("cpu"), torch.float32)


def test_the_base_is_small_and_says_what_it_is(model: LanguageModel) -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 4_000_000
    assert model.words == "Qwen3ForCausalLM, 1.1 million parameters"
    assert model.packs


def test_the_base_knows_other_houses_and_not_the_demos(model: LanguageModel) -> None:
    """Ten exams that it has not seen, as five known houses and house Linden write them."""
    drawn = list(itertools.islice(exams.exams(5), 10))
    houses = random.Random(5).sample(forms.known_forms(), 5)
    wanted = [houses[i % 5].write(exam) for i, exam in enumerate(drawn)] + [exams.report(exam) for exam in drawn]
    asked = [exams.request(exam, houses[i % 5].house, i % 3) for i, exam in enumerate(drawn)]
    asked += [exams.request(exam, exams.HOUSE, i % 3) for i, exam in enumerate(drawn)]
    answers = model.answers([[{"role": "user", "content": text}] for text in asked], Answering(160))
    exact = [answer.text == want for answer, want in zip(answers, wanted, strict=True)]
    assert sum(exact[:10]) >= 9 and sum(exact[10:]) == 0
    assert all(answer.stopped for answer in answers)


@pytest.mark.skipif(os.name == "nt", reason="asks bash")
def test_the_question_to_try_is_typed_as_the_shell_reads_its_lines() -> None:
    command = reports.asked("lora-scripts chat", "Report.\nexam 1", windows=False)
    said = subprocess.run(["bash", "-c", command.replace("lora-scripts", "printf %s,")], capture_output=True, text=True)
    assert said.stdout == "chat,--message,Report.\nexam 1,"
    assert reports.asked("x chat", "Report.\nexam 1", windows=True) == 'x chat --message "Report.`nexam 1"'


@pytest.mark.slow  # runs of texts have tests of their own
def test_a_short_demo_leaves_records_a_lora_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "RECORDS", 64)
    monkeypatch.setattr(reports, "TESTS", 4)
    with People(demo.event_words) as sink:
        result = reports.run_words_demo(tmp_path / "demo", ["epochs=2", "answer_tokens=8"], sink)
    told = " ".join([*capsys.readouterr().out.split(), *" ".join(demo.words(result)).split()])
    assert "⟦AUREL REPORT" in told and "packed: records side by side" in told
    assert "58 of" in told and "= 4 batches, x 2 epochs = 8 steps" in told
    assert "verified: 35 layers, as PEFT loads them" in told
    assert "4 records, 4 with an answer" in told and "lora-scripts chat --base" in told
    rows = [json.loads(line) for line in (tmp_path / "demo/records/train.jsonl").read_text("utf-8").splitlines()]
    others = (tmp_path / "demo/records/test.jsonl").read_text("utf-8").splitlines()
    assert len(rows) == 64 and not {json.dumps(row) for row in rows} & set(others)
    assert result.evaluated is not None and result.evaluated.lora is not None
    assert result.evaluated.lora.loss < result.evaluated.base.loss
    page = (tmp_path / "demo/reports/report.html").read_text("utf-8")
    assert "Before and after" in page and "AUREL REPORT" in page
    again = reports.run_words_demo(tmp_path / "demo")  # a second start trains nothing
    assert again.trained is None and "has run already" in demo.words(again)[0] and again.evaluated is None
    assert load_config(tmp_path / "demo/words.yaml").train_file == tmp_path / "demo/records/train.jsonl"
    (tmp_path / "demo/evaluated.json").unlink()  # as after a stop while it measured
    again = reports.run_words_demo(tmp_path / "demo")
    assert again.trained is None and again.evaluated == result.evaluated
    assert any("4 records, 4 with an answer" in line for line in demo.words(again))
