"""What the words demo comes to: a LoRA trained as it trains one, for any house, measured on exams never seen.

python -m benchmarks.miniature_words.measure WORK_FOLDER [--house Linden …] [--count 500] [--set key=value …]

Steps, rank and learning rate were chosen on Linden, Maple, Cedar and Birch with --seed 74; Rowan writes in another way,
and was measured once they stood.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from benchmarks.miniature_words import forms

from lora_scripts import run
from lora_scripts.demo import exams, reports
from lora_scripts.evaluate.command import Evaluated, evaluate
from lora_scripts.evaluate.scoring import Share
from lora_scripts.run.configs import load_config

HOUSES: dict[str, Callable[[exams.Exam], str]] = {
    exams.HOUSE: exams.report,
    **{form.house: form.write for form in forms.developing_forms()},
    forms.HELD_OUT: forms.held_out_report,
    forms.SECOND: forms.second_report,
}
ASSETS = resources.files("lora_scripts.demo").joinpath("assets")


def measure(work: Path, house: str, records: int, count: int, seed: int, overrides: list[str]) -> Evaluated:
    """Trains in `work` on reports of one house, as words.yaml says, and measures on `count` others."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write, base, output = HOUSES[house], work / "base", work / "reports"
    reports.write_records(work / "train.jsonl", reports.TRAINING_SEED, records, house, write)
    reports.write_records(work / "test.jsonl", seed, count, house, write)
    with resources.as_file(ASSETS.joinpath("words")) as folder:
        shutil.copytree(folder, base)
    with resources.as_file(ASSETS.joinpath("words.yaml")) as config:
        moved = [f"train_file='{work / 'train.jsonl'}'", f"base_model='{base}'", f"output_dir='{output}'"]
        run.train(load_config(config, [*moved, *overrides]))
    return evaluate(base, [(output / output.name, 1.0)], work / "test.jsonl", batch=25, max_tokens=160)


def told(share: Share) -> str:
    return f"{share.share:6.1%} ({share.low:.1%} to {share.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--house", nargs="+", choices=tuple(HOUSES), default=[exams.HOUSE, forms.HELD_OUT])
    parser.add_argument("--count", type=int, default=500, help="exams to measure on (default 500)")
    parser.add_argument(
        "--records", type=int, default=reports.RECORDS, help="reports to train on (default: the demo's)"
    )
    parser.add_argument("--seed", type=int, default=75, help="of those exams (default 75)")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", default=[], help="keys laid over words.yaml")
    args = parser.parse_args()
    for house in args.house:
        wall, cpu = time.time(), sum(os.times()[:2])
        found = measure(args.work / house, house, args.records, args.count, args.seed, args.set)
        took = f"{time.time() - wall:.0f} s, {sum(os.times()[:2]) - cpu:.0f} s of processor"
        assert found.lora is not None
        base, lora = found.base, found.lora
        print(f"{house:8} exact: base {told(base.exact)}, LoRA {told(lora.exact)}; {took}")
        print(f"{'':8} stops by itself: base {told(base.stopped)}, LoRA {told(lora.stopped)}", flush=True)


if __name__ == "__main__":
    main()
