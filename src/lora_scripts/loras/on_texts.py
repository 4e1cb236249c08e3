"""A language model with LoRAs on it: what chat, evaluate and a merge's proof begin with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.families import table
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.texts import TextFamily
from lora_scripts.loras import file as loras
from lora_scripts.loras.on_model import apply, check_fits

if TYPE_CHECKING:
    import torch

    from lora_scripts.adapters.layer import Adapter


def check(base: Path, adapters: Sequence[tuple[Path, float]]) -> None:
    """Looks at what was given before anything heavy is loaded. UserErrors with all that is wrong."""
    faults = Faults()
    facts = faults.attempt(partial(table.require_texts, base))
    if facts is not None:
        faults.attempt(partial(facts.check, base, False))
    for path, strength in adapters:
        if strength == 0:
            faults.append(UserError("weight 0 changes nothing", file=path, hint="leave it out"))
        own = faults.attempt(partial(loras.family_of, path))
        if own not in (None, facts) and facts is not None:
            text = f"this LoRA is for {own.words}"
            faults.append(UserError(text, file=path, hint="take one of a language model"))
    raise_all(faults)


def template_of(named: str | None, adapters: Sequence[tuple[Path, float]]) -> str | None:
    """The chat template that was asked for, else the file of the one that the last of the LoRAs was trained with; None:
    the model's own."""
    from lora_scripts.loras import adapter_folder

    files = [path / adapter_folder.TEMPLATE for path, _ in adapters]
    return named or next((str(file) for file in reversed(files) if file.is_file()), None)


def load(base: Path, options: LoadOptions) -> TextFamily:
    """The model alone. UserError for a base that answers nothing."""
    return cast("TextFamily", table.load_family(table.require_texts(base), base, options))


def load_on(base: Path, device: str, precision: str) -> TextFamily:
    """As `load`, on a device and in a precision as commands name them."""
    from lora_scripts.compute.device import DTYPES

    where, exact = place(device, precision)
    return load(base, LoadOptions(where, DTYPES[exact]))


def place(device: str, precision: str) -> tuple[torch.device, str]:
    """The device and the precision that `auto` stands for."""
    from lora_scripts.compute.device import choose_device, choose_precision

    where = choose_device(device)
    return where, choose_precision(precision, where)


def wear(model: TextFamily, adapters: Sequence[tuple[Path, float]]) -> list[dict[str, Adapter]]:
    """Puts LoRAs on, each with its strength; they add up. What `adapters.inject.remove` takes off, the last first."""
    worn = []
    for path, strength in adapters:
        weights = loras.read(path, model.facts).modules
        check_fits(weights, model, path)
        worn.append(apply(model, weights, strength))
    return worn
