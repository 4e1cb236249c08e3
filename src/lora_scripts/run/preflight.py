"""What can be known to be wrong before torch is imported: the output folder, the data set, the model files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_scripts.check.quick import quick_findings
from lora_scripts.check.verdict import check_command, lines, shortened
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample, scan
from lora_scripts.errors import UserError, UserErrors, raise_all
from lora_scripts.families import table
from lora_scripts.generate.prompts_file import preview_lines
from lora_scripts.run.folder import RunFolder
from lora_scripts.run.new_words import check_new_words

MOST = 4
"""Lines about the data set before a training, besides the one that names the whole check."""


def check(config: TrainConfig, *, resume: bool | None) -> tuple[RunFolder, list[Sample]]:
    """The output folder and the samples of a run; UserErrors with every fault of them and of the model files.

    `resume` None: whatever lies in the output folder is no fault.
    """
    folder = RunFolder(config.output_dir, config.name)
    samples: list[Sample] = []
    faults: list[UserError] = []

    def attempt(look: Callable[[], object]) -> None:
        try:
            look()
        except UserErrors as e:
            faults.extend(e.errors)
        except UserError as e:
            faults.append(e)

    if resume is not None:
        attempt(lambda: folder.check(resume=resume))
    attempt(lambda: _base(config))
    attempt(lambda: _vae(config))
    attempt(lambda: _initial(config))
    attempt(lambda: preview_lines(config.sample_prompts))
    attempt(
        lambda: samples.extend(
            scan(config.train_data_dir, config.metadata_path, allow_missing_captions=config.allow_missing_captions)
        )
    )
    attempt(lambda: check_new_words(config, samples))
    raise_all(faults)
    return folder, samples


def tell_quick(config: TrainConfig, samples: Sequence[Sample], words: Sequence[str]) -> None:
    """Prints in at most five lines what can be told of the data set in no time; `words`: what the whole check needs."""
    found = lines(quick_findings(samples, config.size))
    for line in found[:MOST]:
        print(f"data {shortened(line)}")
    more = f"{len(found) - MOST} more; " if len(found) > MOST else "" if found else "nothing wrong at first sight; "
    print(f"data: {more}to look closer, with pictures: {check_command(words)}", flush=True)


def _base(config: TrainConfig) -> None:
    table.find(config.base_model).check(config.base_model, config.vae is None)


def _vae(config: TrainConfig) -> None:
    if config.vae is not None:
        table.find(config.base_model).check_vae(config.vae)


def _initial(config: TrainConfig) -> None:
    if config.init_lora is not None:
        table.require_lora(config.init_lora, "give a LoRA as init_lora")
