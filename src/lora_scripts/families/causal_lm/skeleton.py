"""The layers of a language model: as all models here have them, and without their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_scripts.errors import UserError
from lora_scripts.families.causal_lm.load import Folder, open_folder
from lora_scripts.families.causal_lm.tokens import quiet


def skeleton(path: Path) -> nn.Module:
    """The model of a folder, its weights not set: only for looking at what a loader puts onto it. UserError for a
    folder that is none."""
    folder = open_folder(path)
    with quiet():
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                model: nn.Module = loader(folder).from_config(config, trust_remote_code=False)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"transformers cannot build it: {reason}", file=path) from None
    straighten(model)
    return model.to_empty(device="cpu")  # memory that nothing is written to costs nothing


def loader(folder: Folder) -> Any:
    """The class of transformers that gives the whole model of a folder, with the names that its LoRAs have."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if folder.sees else AutoModelForCausalLM


def straighten(model: nn.Module) -> list[str]:
    """Makes every layer with its weight [in, out], as GPT-2 has them, an `nn.Linear`; gives their names."""
    from transformers.pytorch_utils import Conv1D

    names = [name for name, layer in model.named_modules() if isinstance(layer, Conv1D)]
    for name in names:
        parent, _, last = name.rpartition(".")
        old: Any = model.get_submodule(name)
        linear = nn.Linear(old.nx, old.nf, bias=True, device="meta")
        linear.weight = nn.Parameter(old.weight.detach().T.contiguous(), requires_grad=False)
        linear.bias = old.bias
        setattr(model.get_submodule(parent), last, linear)
    return names
