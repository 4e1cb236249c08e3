"""A LoRA with the keys of kohya's tools, whose layer names are the family's: dict -> dict by its table. Nothing here
touches files; reading is `reading.py`.

Leaves of a module: `.lora_down.weight` [rank, in] or [rank, in, k, k], `.lora_up.weight` [out, rank] or [out, rank, 1,
1] and `.alpha`, a scalar; ΔW = (alpha / rank) · up @ down. A DoRA has `.dora_scale` too, [1, in] or [1, in, 1, 1].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights, check_shapes, finite, folded, halved, uniform
from lora_scripts.adapters.weights import turned as with_turned
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.names import Share
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
    fused: Mapping[str, Mapping[str, Share]] | None = None,
    turned: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors of a kohya file: down, up and alpha of every module, one rank and one alpha for all (see `uniform`).

    `table`: our module path -> the stem of its keys, `Names.kohya` or `Names.original`. `mixed=True` leaves ranks and
    alphas as they are, which not every consumer reads right. `fused`: of a stem that several modules have, as
    `Names.fused`; they are written as one, of the sum of their ranks, or of one rank where their A is the same.
    `turned`: the stems of `Names.turned`.

    UserError for a module that the table has no name for, and for values that are not finite, also after rounding to
    `dtype`.
    """
    check_named(modules, table)
    result: dict[str, Tensor] = {}
    errors = []
    written = modules if mixed else uniform(modules)
    if fused:
        written, table = joined(written, table, fused)
    for path, weights in written.items():
        check_shapes(path, weights)
        if table[path] in turned and halved(weights.up, weights.down):
            weights = with_turned(weights)
        down, up = (tensor.detach().to("cpu", dtype).contiguous() for tensor in (weights.down, weights.up))
        if not (finite(down) and finite(up)):
            errors.append(not_finite(f"the LoRA of {path}", dtype))
        stem = table[path]
        result |= {f"{stem}.{DOWN}": down, f"{stem}.{UP}": up, f"{stem}.{ALPHA}": _alpha(weights.alpha, dtype)}
        if weights.dora is not None:
            # The change is a small difference of W and what these lengths make of it: half precision loses 1 % of it.
            result[f"{stem}.{DORA}"] = weights.dora.detach().to("cpu", torch.float32).contiguous()
    raise_all(errors[:10])
    return result


def joined(
    modules: Mapping[str, LoraWeights], table: Mapping[str, str], fused: Mapping[str, Mapping[str, Share]]
) -> tuple[dict[str, LoraWeights], dict[str, str]]:
    """The same changes with one LoRA for each stem, and the table for them. UserError for a DoRA among those that are
    one: its lengths are of one layer each."""
    result: dict[str, LoraWeights] = {}
    groups: dict[str, dict[str, LoraWeights]] = {}
    for path, weights in modules.items():
        if table[path] in fused:
            groups.setdefault(table[path], {})[path] = weights
        else:
            result[path] = weights
    for stem, parts in groups.items():
        dora = next((path for path, w in parts.items() if w.dora is not None), None)
        if dora is not None:
            raise UserError(
                f"{dora} is a DoRA, and in these names one with its neighbours",
                hint="make a plain LoRA of it: add --bake-dora --base CHECKPOINT",
            )
        result[stem] = _joined(parts, fused[stem])
    return result, {**table, **{stem: stem for stem in groups}}


def _joined(parts: Mapping[str, LoraWeights], shares: Mapping[str, Share]) -> LoraWeights:
    """One LoRA of a layer whose rows are those of several, each with its own; without change where one has none."""
    path, first = next(iter(parts.items()))
    start, stop, of = shares[path]
    rows = len(first.up) * of // (stop - start)
    alike = all(w.alpha == first.alpha and torch.equal(w.down, first.down) for w in parts.values())
    scales = {w.alpha / w.rank for w in parts.values()}
    rank = first.rank if alike else sum(w.rank for w in parts.values())
    up, at = first.up.new_zeros(rows, rank), 0
    for path, w in parts.items():
        columns = slice(None) if alike else slice(at, at + w.rank)
        up[shares[path].rows(rows), columns] = w.up if len(scales) == 1 else folded(w).up
        at += w.rank
    down = first.down if alike else torch.cat([w.down for w in parts.values()])
    return LoraWeights(down, up, rank * (scales.pop() if len(scales) == 1 else 1.0))


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
                errors.append(not_finite(f"{leaf} of {path}", dtype))
            result[f"{table[path]}.{leaf}"] = value
    raise_all(errors[:10])
    return result


def not_finite(what: str, dtype: torch.dtype) -> UserError:
    """Of values that would be written in `dtype`, which may be too narrow for them."""
    hint = "train again with a lower learning rate" + (", or save in fp32" if dtype == torch.float16 else "")
    return UserError(f"{what} holds values that are not finite numbers", hint=hint)


def check_named(paths: Mapping[str, object], table: Mapping[str, str], form: str = "kohya") -> None:
    """UserError for a module that the table has no name for."""
    unnamed = [path for path in paths if path not in table]
    if unnamed:
        few = ", ".join(unnamed[:3]) + (", …" if len(unnamed) > 3 else "")
        text = f"{len(unnamed)} modules have no name in a {form} LoRA file: {few}"
        raise UserError(text, hint="leave them out of the targets")


def _alpha(alpha: float, dtype: torch.dtype) -> Tensor:
    """A scalar in the file's dtype, or in fp32 where that would round it."""
    short = torch.tensor(alpha, dtype=dtype)
    return short if short.item() == alpha else torch.tensor(alpha, dtype=torch.float32)
