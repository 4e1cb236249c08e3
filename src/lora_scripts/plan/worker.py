"""The process that a run is rehearsed in: `python -m lora_scripts.plan.worker`, see `stage.serve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.compute.meter import ran_out
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.plan.rehearsal import Rehearsal
from lora_scripts.plan.stage import Tell, serve
from lora_scripts.run.preflight import Split


def rehearse(task: Mapping[str, Any], tell: Tell) -> None:
    """Does one task, and tells a `Measured` time and again."""
    config = TrainConfig.model_validate(task["config"])
    trained, held_out = ([Sample.of_row(row) for row in rows] for rows in task["samples"])
    samples = Split(trained, held_out)
    rehearsal = Rehearsal(config, samples, Path(task["scratch"]), task["memory"], lambda m: tell(m.write()))
    try:
        rehearsal.run(profile=task["profile"])
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        rehearsal.leave()
        rehearsal.measured.short = True
        tell(rehearsal.measured.write())


if __name__ == "__main__":
    serve(rehearse)
