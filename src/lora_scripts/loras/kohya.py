"""A LoRA with the keys of kohya's tools, whose layer names are the family's: dict -> dict by its table. Nothing here
touches files; reading is `reading.py`.

Leaves of a module: `.lora_down.weight` [rank, in] or [rank, in, k, k], `.lora_up.weight` [out, rank] or [out, rank, 1,
1] and `.alpha`, a scalar; ΔW = (alpha / rank) · up @ down. A DoRA has `.dora_scale` too, [1, in] or [1, in, 1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights, check_shapes, finite, folded, uniform
from lora_scripts.errors import UserError, raise_all
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, UP


def prepared(modules: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """The same changes in the form that all programs read alike: one rank and one alpha (see `uniform`), and of a DoRA
    alpha = rank, since SD.Next, and A1111 before July 2024, multiply a DoRA's change by alpha / rank once more.
    """
    return uniform({path: w if w.dora is None else folded(w) for path, w in modules.items()})


def to_kohya(
    modules: Mapping[str, LoraWeights],
    table: Mapping[str, str],
    *,
    dtype: torch.dtype = torch.float16,
    mixed: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a kohya file: down, up and alpha of every module, one rank and one alpha for all (see `uniform`).

    `table`: our module path -> the stem of its keys, `Names.kohya` or `Names.original`. `mixed=True` leaves ranks and
    alphas as they are, which not every consumer reads right.

    UserError for a module that the table has no name for, and for values that are not finite, also after rounding to
    `dtype`.
    """
    check_named(modules, table)
    result: dict[str, Tensor] = {}
    errors = []
    for path, weights in (modules if mixed else uniform(modules)).items():
        check_shapes(path, weights)
        down, up = (tensor.detach().to("cpu", dtype).contiguous() for tensor in (weights.down, weights.up))
        if not (finite(down) and finite(up)):
            hint = "train again with a lower learning rate" + (", or save in fp32" if dtype == torch.float16 else "")
            errors.append(UserError(f"the LoRA of {path} holds values that are not finite numbers", hint=hint))
        stem = table[path]
        result |= {f"{stem}.{DOWN}": down, f"{stem}.{UP}": up, f"{stem}.{ALPHA}": _alpha(weights.alpha, dtype)}
        if weights.dora is not None:
            # The change is a small difference of W and what these lengths make of it: half precision loses 1 % of it.
            result[f"{stem}.{DORA}"] = weights.dora.detach().to("cpu", torch.float32).contiguous()
    raise_all(errors[:10])
    return result


def to_lycoris(
    modules: Mapping[str, Mapping[str, Tensor]], table: Mapping[str, str], *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a LyCORIS file: kohya's module names, the library's leaves. UserError for values not finite."""
    check_named(modules, table)
    result: dict[str, Tensor] = {}
    errors = []
    for path, leaves in modules.items():
        for leaf, tensor in leaves.items():
            value = _alpha(tensor.item(), dtype) if leaf == ALPHA else tensor.to("cpu", dtype).contiguous()
            if not finite(value):
                hint = "train again with a lower learning rate, or save in fp32"
                errors.append(UserError(f"{leaf} of {path} holds values that are not finite numbers", hint=hint))
            result[f"{table[path]}.{leaf}"] = value
    raise_all(errors[:10])
    return result


def check_named(paths: Mapping[str, object], table: Mapping[str, str]) -> None:
    """UserError for a module that the table has no name for."""
    unnamed = [path for path in paths if path not in table]
    if unnamed:
        few = ", ".join(unnamed[:3]) + (", …" if len(unnamed) > 3 else "")
        text = f"{len(unnamed)} modules have no name in a kohya LoRA file: {few}"
        raise UserError(text, hint="leave them out of the targets")


def _alpha(alpha: float, dtype: torch.dtype) -> Tensor:
    """A scalar in the file's dtype, or in fp32 where that would round it."""
    short = torch.tensor(alpha, dtype=dtype)
    return short if short.item() == alpha else torch.tensor(alpha, dtype=torch.float32)
