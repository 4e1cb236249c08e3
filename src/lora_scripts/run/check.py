"""What can be known to be wrong before torch is imported: the output folder, the data set, the model files."""

from __future__ import annotations

from collections.abc import Callable

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample, scan
from lora_scripts.errors import UserError, UserErrors, raise_all
from lora_scripts.formats import header
from lora_scripts.run.folder import RunFolder


def check(config: TrainConfig, *, resume: bool) -> tuple[RunFolder, list[Sample]]:
    """The output folder and the samples of a run; UserErrors with every fault of them and of the model files."""
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

    attempt(lambda: folder.check(resume=resume))
    attempt(lambda: _base(config))
    attempt(lambda: _vae(config))
    attempt(lambda: _initial(config))
    attempt(
        lambda: samples.extend(
            scan(config.train_data_dir, config.metadata_path, allow_missing_captions=config.allow_missing_captions)
        )
    )
    raise_all(faults)
    return folder, samples


def _base(config: TrainConfig) -> None:
    if config.base_model.is_file():
        header.require_sd1(config.base_model, vae=config.vae is None)


def _vae(config: TrainConfig) -> None:
    if config.vae is not None and config.vae.is_file():
        header.require_vae(config.vae)


def _initial(config: TrainConfig) -> None:
    if config.init_lora is not None:
        kind = header.identify(config.init_lora)
        if kind is not header.Kind.LORA:
            raise UserError(f"this is {kind.words}, not a LoRA", file=config.init_lora, hint="give a LoRA as init_lora")
