"""What a run does besides training, timed: `python benchmarks/besides.py [--epochs 15,20] [--style blueprint]`.

The bundled base (128 px), 50 pictures of a style, batches of 4, a file every 100 steps, and all else as it comes, by
the code of `lora-scripts train`. Processor seconds with one thread, from the first measurement to the end of the
report; what is loaded and encoded before is not counted. A part's time is its own: without those of the parts within.

Told are the shares of the whole, beside what the table before the first step says of held-out loss, previews and
report, which are forecast and kept below a limit; saves and the proof are beside that.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from time_to_loss import BASE, BATCH, PICTURES, SIDE, make_pictures

from lora_scripts.config.load import load_config
from lora_scripts.events import Event, Table
from lora_scripts.run import story
from lora_scripts.run.heldout import Measuring
from lora_scripts.run.preflight import preflight
from lora_scripts.run.stepping import Saver

STEPS, HELD, PREVIEWS, REPORT, SAVES, PROOF = "steps", "held-out loss", "previews", "report", "saves", "proof"


class Spent:
    """Processor seconds by what took them."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.inside: list[str] = []
        self.last = 0.0

    def turn(self) -> None:
        """What has passed belongs to the innermost part."""
        now = time.process_time()
        if self.inside:
            self.seconds[self.inside[-1]] += now - self.last  # type: ignore[assignment]
        self.last = now

    def of(self, what: str, where: Any, name: str) -> None:
        """From now on a function's time belongs to `what`."""
        function: Callable[..., Any] = getattr(where, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self.inside.append(what)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self.inside.pop()

        setattr(where, name, timed)


def timed() -> Spent:
    """Watches all runs of this process."""
    spent = Spent()
    for what, where, name in (
        (STEPS, story, "train_steps"),
        (HELD, Measuring, "_take"),
        (HELD, Measuring, "conclude"),
        (PREVIEWS, story, "show"),
        (REPORT, story, "finish"),
        (PROOF, story, "prove"),
        (SAVES, Saver, "save"),
        (SAVES, story.PictureSaver, "write"),
    ):
        spent.of(what, where, name)
    return spent


def run(data: Path, epochs: int, spent: Spent) -> tuple[int, dict[str, float], str]:
    """Steps, seconds by part, and what the table said."""
    spent.seconds.clear()
    said = ""

    def sink(event: Event) -> None:
        nonlocal said
        if isinstance(event, Table):
            said = said or dict(event.rows).get("besides training", "")

    with tempfile.TemporaryDirectory() as folder:
        values = {
            "train_data_dir": data, "base_model": BASE, "output_dir": Path(folder) / "lora", "resolution": SIDE,
            "batch_size": BATCH, "epochs": epochs, "learning_rate": 4e-3, "device": "cpu",
        }  # fmt: skip
        config = Path(folder) / "config.yaml"
        config.write_text("".join(f"{key}: {value}\n" for key, value in values.items()), "utf-8")
        loaded = load_config(config)
        ready = preflight(loaded, resume=False)
        result = story.train(loaded, ready.folder, ready.samples, resume=False, sink=sink)
        return result.steps, dict(spent.seconds), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", default="15", help="of runs, by commas")
    parser.add_argument("--style", default="blueprint")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spent = timed()
    parts = (HELD, PREVIEWS, REPORT, SAVES, PROOF)
    print(f"| steps | CPU s | {' | '.join(parts)} | the first three | all | forecast of the first three |")
    print("|---" * (len(parts) + 5) + "|")
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), options.style, 1)
        for _ in range(options.rounds):
            for epochs in map(int, options.epochs.split(",")):
                steps, seconds, said = run(Path(folder) / "ours", epochs, spent)
                whole = sum(seconds.values())
                shares = [seconds.get(what, 0.0) / whole for what in parts]
                forecast = re.search(r"about ([\d.]+) %", said)
                cells = [f"{100 * share:.1f} %" for share in (*shares, sum(shares[:3]), sum(shares))]
                told = f"{forecast[1]} %" if forecast else said
                print(f"| {steps} | {whole:.0f} | {' | '.join(cells)} | {told} |", flush=True)
    print(f"\n{PICTURES} pictures, torch {torch.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
