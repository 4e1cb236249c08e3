"""The only place where a config becomes objects. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_scripts.config.schema import TrainConfig
    from lora_scripts.generate.prompt import GenerateOptions


def train(config: TrainConfig, *, resume: bool = False, check_with: Sequence[str] = ()) -> None:
    """Runs a training as the config says, to its proved LoRA file and its report. UserError for a person's mistake.

    `check_with` is what `lora-scripts check` needs to look at the same data, as told to the person.
    """
    from lora_scripts.run.preflight import check, tell_quick

    folder, samples = check(config, resume=resume)  # before torch is imported: mistakes are told within a second
    if not resume:
        tell_quick(config, samples, check_with or [str(config.train_data_dir)])
    from lora_scripts.run.story import Run

    Run(config, folder, samples, resume=resume).start()


def generate(options: GenerateOptions) -> None:
    """Draws the pictures that were asked for. UserError for a person's mistake."""
    from lora_scripts.generate.command import generate_pictures

    generate_pictures(options)
