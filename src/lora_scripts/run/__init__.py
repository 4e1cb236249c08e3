"""One training run. Heavy modules are imported by the function that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.events import Note, Sink, ignore

if TYPE_CHECKING:
    from lora_scripts.config.schema import TrainConfig
    from lora_scripts.run.story import TrainResult
    from lora_scripts.run.texts.story import TextTrainResult


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    check_with: Sequence[str] = (),
    sink: Sink = ignore,
    again: str = "--resume",
) -> TrainResult | TextTrainResult:
    """Runs a training as the config says, to its proved LoRA file and its report. UserError for a person's mistake.

    `check_with` is what `lora-scripts check` needs to look at the same data, `again` how a run that was stopped goes
    on: both as told to the person.
    """
    if of_texts(config):
        from lora_scripts.run.texts import preflight as texts

        known = texts.preflight(config, resume=resume, sink=sink)
        from lora_scripts.run.texts import story as text_story

        return text_story.train(config, known.folder, known.split, resume=resume, sink=sink, again=again)
    from lora_scripts.run.preflight import preflight, tell_idle, tell_quick, tell_trigger

    ready = preflight(config, resume=resume, sink=sink)  # before torch is imported: mistakes are told within a second
    if not resume:
        for note in ready.notes:
            sink(Note(f"data note: {note.message}; {note.mend}"))
        tell_quick(config, ready.scanned, check_with or [str(config.train_data_dir)], sink)
    tell_trigger(config, ready.scanned, sink)
    tell_idle(config, ready.scanned, sink)
    from lora_scripts.run import story

    return story.train(config, ready.folder, ready.samples, resume=resume, sink=sink, again=again)


def of_texts(config: TrainConfig) -> bool:
    """Whether the base of a run is a language model, or the data are its records where the base is none of ours: what
    it is then is told by whoever looks closer."""
    from lora_scripts.data.texts.records import holds_records
    from lora_scripts.errors import UserError
    from lora_scripts.families import table

    try:
        return "texts" in table.find(config.base_model).features
    except UserError:
        return config.train_file is not None or (config.base_model.is_dir() and holds_records(config.train_data_dir))
