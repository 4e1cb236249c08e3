"""`lora-scripts demo words`: a LoRA that writes reports as one house does, on the bundled small language model."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import run
from lora_scripts.demo import exams
from lora_scripts.demo.place import AGAIN, WORDS, config_text, is_begun
from lora_scripts.events import Note, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.report.usage import chat_command
from lora_scripts.run.configs import load_config

if TYPE_CHECKING:
    from lora_scripts.evaluate.command import Evaluated
    from lora_scripts.run.story import TrainResult
    from lora_scripts.run.texts.story import TextTrainResult

TRAINING_SEED, TEST_SEED = 71, 72
"""Seeds of the exams; those that the base has learned have 61."""
RECORDS, TESTS = 480, 100
"""Reports that are trained, some of them held out; and reports of exams that nobody has seen, for the end."""


@dataclass(frozen=True)
class WordsDemoResult:
    """What the demo leaves."""

    report: Path
    trained: TrainResult | TextTrainResult | None
    """None: it had run already."""
    evaluated: Evaluated | None
    """On exams that are in no training data; None: they had been measured already, see evaluated.json."""
    command: str
    """To talk to the LoRA."""


def run_words_demo(output: Path, overrides: Sequence[str] = (), sink: Sink = ignore) -> WordsDemoResult:
    """Draws up records, copies the base, trains as words.yaml says, and measures base and LoRA, all in `output`."""
    data, base, result = output / "records", output / "base", output / "reports"
    assets = resources.files("lora_scripts.demo").joinpath("assets")
    trained, evaluated, figures = None, None, output / "evaluated.json"
    if not (result / "report.html").exists():
        sink(Note(f"drawing up {RECORDS} reports of house {exams.HOUSE}, and {TESTS} more to measure with, in {data}"))
        io.make_folder(data)
        write_records(data / "train.jsonl", TRAINING_SEED, RECORDS)
        write_records(data / "test.jsonl", TEST_SEED, TESTS)
        files = {file.name: file.read_bytes() for file in assets.joinpath("words").iterdir()}
        io.write_folder(base, files)
        io.write_text(output / "words.yaml", config_text("words.yaml", WORDS, output))
        config = load_config(output / "words.yaml", overrides)
        trained = run.train(config, resume=is_begun(result), sink=sink, again=AGAIN)
    if trained is not None or not figures.exists():
        from lora_scripts.evaluate.command import evaluate

        sink(Note(f"measuring base and LoRA on {TESTS} exams that are in no training data"))
        adapter = [(result / result.name, 1.0)]
        evaluated = evaluate(base, adapter, data / "test.jsonl", batch=25, max_tokens=160, sink=sink)
        io.write_text(figures, json.dumps(asdict(evaluated), indent=1, ensure_ascii=False) + "\n")
    exam = next(exams.exams(TEST_SEED + 1))
    command = asked(chat_command(base, result / result.name), exams.request(exam, exams.HOUSE, 0))
    return WordsDemoResult(result / "report.html", trained, evaluated, command)


def asked(command: str, message: str, *, windows: bool = os.name == "nt") -> str:
    """The command with a message of several plain lines, as bash and zsh read them, on Windows PowerShell."""
    if windows:
        return f'{command} --message "{message.replace(chr(10), "`n")}"'
    return f"{command} --message $'{message.replace(chr(10), chr(92) + 'n')}'"


def write_records(
    path: Path, seed: int, count: int, house: str = exams.HOUSE, write: Callable[[exams.Exam], str] = exams.report
) -> None:
    """A file of messages, one record a line; a function of the seed."""
    lines = (json.dumps({"messages": talk}) + "\n" for talk in itertools.islice(talks(seed, house, write), count))
    io.write_text(path, "".join(lines))


def talks(seed: int, house: str, write: Callable[[exams.Exam], str]) -> Iterator[list[dict[str, str]]]:
    """Requests for a report, with the report as that house writes it, without end; no exam comes twice."""
    rng, seen = random.Random(f"talks/{seed}"), set[exams.Exam]()
    for exam in exams.exams(seed):
        if exam in seen:
            continue
        seen.add(exam)
        asked = exams.request(exam, house, rng.randrange(len(exams.NOTES)))
        yield [{"role": "user", "content": asked}, {"role": "assistant", "content": write(exam)}]
