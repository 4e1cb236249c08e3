"""A base model on the disk, written again with LoRAs added to its weights: what merge and unmerge share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lora_scripts.dtypes import WORDS, in_torch
from lora_scripts.errors import UserError
from lora_scripts.events import Progress, Sink
from lora_scripts.formats import io
from lora_scripts.loras.file import LoraFile
from lora_scripts.workshop.checkpoint import Checkpoint
from lora_scripts.workshop.common import check_space

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lora_scripts.adapters.algebra.merge import Rounding
    from lora_scripts.adapters.weights import LoraWeights
    from lora_scripts.workshop.checkpoint import Place
    from lora_scripts.workshop.stream import Rewrite

_PARTS = ("model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.", "conditioner.")
_ROUNDED = ("F64", "F32", "F16", "BF16")
"""Types that are written as another one, where that is asked for."""

Addition = tuple["Place", list[tuple["LoraWeights", float]]]
"""Where in a tensor, and what is added there: LoRAs with their strengths."""
Additions = dict[str, dict[str, list[Addition]]]
"""File -> tensor -> what is added to it."""


def _additions(model: Checkpoint, loras: Sequence[tuple[LoraFile, float]]) -> Additions:
    """LoRAs as what is added to each tensor of the model, in the layout of its files."""
    from lora_scripts.adapters.weights import turned

    additions: Additions = {name: {} for name in model.files}
    held = [(file.mergeable, strength) for file, strength in loras]
    for path in dict.fromkeys(path for own, _ in held for path in own):
        parts = [(own[path], strength) for own, strength in held if path in own]
        for place in model.places[path]:
            turn = _flipped if place.flipped else turned if place.swapped else None
            here = parts if turn is None else [(turn(w), s) for w, s in parts]
            additions[place.file].setdefault(place.key, []).append((place, here))
    return additions


def _flipped(w: LoraWeights) -> LoraWeights:
    """The LoRA of a weight that lies the other way round: (B A)ᵀ = Aᵀ Bᵀ."""
    from lora_scripts.adapters.weights import LoraWeights

    return LoraWeights(w.up.T, w.down.T, w.alpha, None if w.dora is None else w.dora.T)


def rewrite(
    model: Checkpoint,
    output: Path,
    loras: Sequence[tuple[LoraFile, float]],
    metadata: Mapping[str, Mapping[str, str]],
    precision: str,
    sink: Sink,
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> Rounding:
    """Writes the model with strength · ΔW of each LoRA added, tensor by tensor; `more`: files besides, or in place of
    the base's. UserError for a disk without room and for what the type of the weights cannot hold."""
    from lora_scripts.adapters.algebra.merge import Rounding
    from lora_scripts.workshop import stream

    additions, rounding = _additions(model, loras), Rounding()
    done, total = 0, sum(map(len, additions.values()))

    def plan(name: str) -> Rewrite:
        header, here = model.files[name], additions[name]
        types = {key: _type(key, info.dtype, precision, name) for key, info in header.tensors.items()}
        changed = {key: t for key, t in types.items() if key in here or t != header.tensors[key].dtype}

        def change(key: str, tensor: Tensor) -> Tensor:
            nonlocal done
            new = _added(key, tensor, here.get(key, []), in_torch(changed[key]), rounding)
            if key in here:
                done += 1
                sink(Progress("weights", done, total))
            return new

        return stream.Rewrite(header, changed, change, metadata[name], lambda key: model.family.unread(key, True))

    plans = {name: plan(name) for name in model.files}
    others = list(model.others()) if model.is_folder else []
    size = sum(plan.size for plan in plans.values()) + sum(model.file(name).stat().st_size for name in others)
    io.remove_stale_temps(output.parent)  # of a merge that was killed: as large as the model
    check_space(output, size)
    if not model.is_folder:
        for name, one in reversed(plans.items()):  # the base last: where that is there, all is
            io.write_atomic(model.written(name, output), one.data(model.file(name)))
        return rounding
    content: dict[str, io.Data] = {name: stream.whole(model.file(name)) for name in others}
    io.write_folder(output, {**content, **more, **{name: plan.data(model.file(name)) for name, plan in plans.items()}})
    return rounding


def _added(key: str, tensor: Tensor, additions: Sequence[Addition], dtype: torch.dtype, rounding: Rounding) -> Tensor:
    """The tensor with what is added to it, in float64, rounded to the file's type. UserError if that cannot hold it."""
    from lora_scripts.adapters.algebra import merge as algebra

    parts = [(place.rows(len(tensor)), parts) for place, parts in additions]
    try:
        return algebra.changed(tensor, parts, dtype, rounding)
    except OverflowError as error:
        raise UserError(f"{key}: {error}", hint="use lower weights, or --precision fp32 or bf16") from None


def _type(key: str, dtype: str, precision: str, file: str) -> str:
    """The type of a tensor in the new file. Schedules and other loose tensors stay: they need their digits."""
    if precision == "auto" or dtype not in _ROUNDED:
        return dtype
    return WORDS[precision] if file or key.startswith(_PARTS) else dtype
