"""The process that a run is rehearsed in: `python -m lora_scripts.plan.worker`, started by `stage`.

It reads a task from its input as JSON, and tells what it measured so far in lines, each a `Measured` as JSON: should
the system end it for want of memory, the last line says where. A person's mistake comes as {"faults": …}.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from lora_scripts.compute.meter import ran_out
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.plan.rehearsal import Rehearsal
from lora_scripts.run.preflight import Split


def rehearse(task: dict[str, Any], out: TextIO) -> None:
    """Does one task, as `stage` writes it."""

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    config = TrainConfig.model_validate(task["config"])
    trained, held_out = ([Sample(Path(path), *rest) for path, *rest in rows] for rows in task["samples"])
    samples = Split(trained, held_out)
    rehearsal = Rehearsal(config, samples, Path(task["scratch"]), task["memory"], lambda m: tell(m.write()))
    try:
        rehearsal.run(profile=task.get("profile", False))
    except UserError as error:
        tell({"faults": [one.as_dict() for one in error.errors]})
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        rehearsal.leave()
        rehearsal.measured.short = True
        tell(rehearsal.measured.write())


if __name__ == "__main__":
    with suppress(OSError):  # should Linux run out of memory, it is to end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no message
    rehearse(json.load(sys.stdin), told)
