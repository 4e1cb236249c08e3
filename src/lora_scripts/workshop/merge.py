"""`lora-scripts merge` and `lora-scripts unmerge`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.formats.header import read_header
from lora_scripts.loras.file import LoraFile
from lora_scripts.workshop.checkpoint import Checkpoint, open_checkpoint
from lora_scripts.workshop.common import (
    Faults,
    Weighted,
    check_output,
    check_space,
    counting,
    one_family,
    read_all,
    show,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lora_scripts.adapters.algebra.merge import Rounding
    from lora_scripts.adapters.weights import LoraWeights
    from lora_scripts.workshop.checkpoint import Place
    from lora_scripts.workshop.stream import Rewrite

MERGED = "lora_scripts.merged"
"""Our key in a checkpoint's metadata: the LoRAs that are in it, by name, SHA-256 and weight."""
_STALE = "modelspec.hash_sha256"  # a hash of the tensors as they were
_PARTS = ("model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.", "conditioner.")
SWALLOWED = 0.2
"""Share of the change that rounding may take before it is advised against; fp16 takes far less of any usual LoRA."""
_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class MergeOptions:
    """What `lora-scripts merge` or `unmerge` was asked for."""

    base: Path
    """Or, of unmerge, the merged model."""
    loras: tuple[Weighted, ...]
    output: Path
    precision: str = "auto"
    overwrite: bool = False
    json: bool = False
    compare: Path | None = None
    """Of unmerge: the base as it was."""


def merge_files(options: MergeOptions) -> None:
    """Adds LoRAs to a base model and writes it as it came. UserError for a person's mistake."""
    base, files = _opened(options)
    records = _records(files, options.loras)
    metadata = {name: _with_record(header.metadata, records) for name, header in base.files.items()}
    rounding = _rewritten(base, files, options, metadata, sign=1.0)
    values, lines = _told(base, files, options, rounding)
    values["rounding_lost"] = rounding.lost
    lines.append(f"rounding: at most {rounding.largest:.1e} in a weight; {rounding.lost:.2%} of what the LoRAs change")
    if rounding.lost > SWALLOWED:
        lines.append(
            "hint: the weights are too coarse for so small a change; merge into the base in fp16, and round after"
        )
    if any(_STALE in header.metadata for header in base.files.values()):
        lines.append(f"left out of the metadata: {_STALE}, which the change made wrong")
    show(options.json, values, lines)


def unmerge_files(options: MergeOptions) -> None:
    """Takes LoRAs out of a model that they were merged into. UserError for a person's mistake."""
    merged, files = _opened(options)
    records, metadata, notes = _records(files, options.loras), dict[str, dict[str, str]](), list[str]()
    for name, header in merged.files.items():
        metadata[name], foreign = _without_record(header.metadata, records)
        notes += [note for note in foreign if note not in notes]
    rounding = _rewritten(merged, files, options, metadata, sign=-1.0)
    values, lines = _told(merged, files, options, rounding)
    values |= {"bound": rounding.bound, "mean_bound": rounding.mean_bound, "notes": notes}
    lines.append(
        f"rounding: no weight is further from the base than {rounding.bound:.1e}, on average {rounding.mean_bound:.1e}"
        ", if it was merged once, in this precision"
    )
    if options.compare is not None:
        far = _compared(options.output, options.compare, {path for file in files for path in file.weights})
        values |= {"compared": far}
        lines.append(
            f"compared with {options.compare.name}: largest difference {far['largest']:.1e}, mean {far['mean']:.1e}, "
            f"{far['equal']:.1%} of the weights are bit for bit the same"
        )
    show(options.json, values, [*lines, *(f"note: {note}" for note in notes)])


def _opened(options: MergeOptions) -> tuple[Checkpoint, list[LoraFile]]:
    """The model and the LoRAs, after everything that can be wrong was looked at."""
    paths, faults = [lora.path for lora in options.loras], Faults()
    base = faults.attempt(lambda: open_checkpoint(options.base))
    compared = None if options.compare is None else options.compare
    if compared is not None:
        faults.attempt(lambda: open_checkpoint(compared))
    family = one_family(paths, faults)
    if base is not None and family is not None and base.family is not family:
        text = f"the LoRAs are for {family.words}, this is {base.family.words}"
        faults.errors.append(UserError(text, file=options.base, hint="take LoRAs of the same kind of model"))
    for lora in options.loras:
        if lora.weight == 0:
            faults.errors.append(UserError(f"{lora.path}: weight 0 changes nothing", hint="leave the file out"))
    inputs = [options.base, *paths, *([compared] if compared else [])]
    faults.attempt(lambda: check_output(options.output, inputs, overwrite=options.overwrite))
    if base is not None:
        faults.attempt(lambda: _check_suffix(base, options.output))
    raise_all(faults.errors)
    assert base is not None

    files = read_all(paths)
    from lora_scripts.adapters.algebra import merge as merging

    shapes = {name: base.shape(name) for name in base.places}
    raise_all([fault for file in files for fault in merging.check_fits(file.weights, shapes, str(file.path))])
    return base, files


def _check_suffix(base: Checkpoint, output: Path) -> None:
    if base.is_folder and output.suffix:
        hint = "give --output a folder's name, without an ending; it is written in the layout it came in"
        raise UserError(f"the base is a folder, {output.name} is a file's name", file=output, hint=hint)
    if not base.is_folder and output.suffix.lower() != ".safetensors":
        raise UserError("must be a .safetensors file, as the base is", file=output, hint="add .safetensors")


def _rewritten(
    base: Checkpoint,
    files: Sequence[LoraFile],
    options: MergeOptions,
    metadata: Mapping[str, Mapping[str, str]],
    *,
    sign: float,
) -> Rounding:
    """Writes the model with sign · strength · ΔW added, tensor by tensor."""
    from lora_scripts.adapters.algebra.merge import Rounding
    from lora_scripts.workshop import stream

    rounding, plans = Rounding(), dict[str, stream.Rewrite]()
    targets = _targets(base, files, [sign * lora.weight for lora in options.loras])
    total, told, done = sum(map(len, targets.values())), counting("weights"), 0

    def plan(name: str) -> Rewrite:
        header, here = base.files[name], targets[name]
        types = {key: _type(key, info.dtype, options.precision, name) for key, info in header.tensors.items()}
        changed = {key: t for key, t in types.items() if key in here or t != header.tensors[key].dtype}

        def change(key: str, tensor: Tensor) -> Tensor:
            nonlocal done
            new = _changed(key, tensor, here.get(key, []), stream.DTYPES[changed[key]], rounding)
            done += key in here
            told(done, total)
            return new

        return stream.Rewrite(header, changed, change, metadata[name])

    plans = {name: plan(name) for name in base.files}
    others = list(base.others()) if base.is_folder else []
    size = sum(p.size for p in plans.values()) + sum(base.file(name).stat().st_size for name in others)
    io.remove_stale_temps(options.output.parent)  # of a merge that was killed: as large as the model
    check_space(options.output, size)
    if not base.is_folder:
        io.write_atomic(options.output, plans[""].data(base.path))
        return rounding
    content: dict[str, io.Data] = {name: stream.whole(base.file(name)) for name in others}
    io.write_folder(options.output, content | {name: p.data(base.file(name)) for name, p in plans.items()})
    return rounding


Change = tuple["Place", list[tuple["LoraWeights", float]]]
"""Where in a tensor, and what is added there."""


def _targets(
    base: Checkpoint, files: Sequence[LoraFile], strengths: Sequence[float]
) -> dict[str, dict[str, list[Change]]]:
    """File -> tensor -> what is added to it."""
    found: dict[str, dict[str, list[Change]]] = {name: {} for name in base.files}
    for path in dict.fromkeys(path for file in files for path in file.weights):
        changes = [(f.weights[path], s) for f, s in zip(files, strengths, strict=True) if path in f.weights]
        for place in base.places[path]:
            found[place.file].setdefault(place.key, []).append((place, changes))
    return found


def _changed(key: str, tensor: Tensor, changes: Sequence[Change], dtype: object, rounding: Rounding) -> Tensor:
    """The tensor with its changes, in float64, rounded to the file's type. UserError if that cannot hold it."""
    import torch

    from lora_scripts.adapters.algebra import merge as merging

    assert isinstance(dtype, torch.dtype)
    parts = [(place.rows(len(tensor)), parts) for place, parts in changes]
    try:
        return merging.changed(tensor, parts, dtype, rounding)
    except OverflowError as error:
        raise UserError(f"{key}: {error}", hint="use lower weights, or --precision fp32 or bf16") from None


def _type(key: str, dtype: str, precision: str, file: str) -> str:
    """The type of a tensor in the new file. Schedules and other loose tensors stay: they need their digits."""
    if precision == "auto" or dtype not in ("F64", *_TYPES.values()):
        return dtype
    return _TYPES[precision] if file or key.startswith(_PARTS) else dtype


def _records(files: Sequence[LoraFile], asked: Sequence[Weighted]) -> list[dict[str, object]]:
    return [{"name": f.name, "sha256": f.sha256, "weight": a.weight} for f, a in zip(files, asked, strict=True)]


def _with_record(metadata: Mapping[str, str], records: Sequence[dict[str, object]]) -> dict[str, str]:
    values = {key: value for key, value in metadata.items() if key != _STALE}
    return values | {MERGED: json.dumps([*_merged(metadata), *records], ensure_ascii=False)}


def _without_record(
    metadata: Mapping[str, str], records: Sequence[dict[str, object]]
) -> tuple[dict[str, str], list[str]]:
    """The metadata as before the merge, and a note for each LoRA that the file does not say was merged like that."""
    values, there, notes = dict(metadata), list(_merged(metadata)), []
    for record in records:
        same = [r for r in there if (r.get("sha256"), r.get("weight")) == (record["sha256"], record["weight"])]
        if same:
            there.remove(same[0])
        elif there:
            told = ", ".join(f"{r.get('name')}:{r.get('weight')}" for r in there)
            notes.append(f"the model does not say that {record['name']}:{record['weight']} is in it; it says {told}")
        else:
            notes.append(f"the model does not say whether {record['name']} is in it")
    values.pop(MERGED, None)
    if there:
        values[MERGED] = json.dumps(there, ensure_ascii=False)
        told = ", ".join(f"{r.get('name')}:{r.get('weight')}" for r in there)
        notes.append(f"still in it: {told}")
    return values, notes


def _merged(metadata: Mapping[str, str]) -> list[dict[str, object]]:
    """The record in a checkpoint's metadata; nothing where it is not one of ours."""
    try:
        rows = json.loads(metadata.get(MERGED, "[]"))
    except ValueError:
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _told(
    base: Checkpoint, files: Sequence[LoraFile], options: MergeOptions, rounding: Rounding
) -> tuple[dict[str, object], list[str]]:
    """What is said of both: what was written, and its hashes."""

    modules = {path for file in files for path in file.weights}
    told, lines = list[dict[str, str]](), [f"written: {options.output} ({len(modules)} weights changed)"]
    for name in base.files:
        path = options.output / name if name else options.output
        read_header(path)
        hashes = model_hashes(path)
        told.append({"file": str(path), "sha256": hashes.sha256, "autov3": hashes.autov3})
        lines.append(f"{name or path.name}: sha256 {hashes.sha256} (AutoV2 {hashes.autov2}, AutoV3 {hashes.autov3})")
    if base.left_out:
        lines.append(f"left out, because they hold the weights as they were: {', '.join(base.left_out)}")
    values: dict[str, object] = {
        "output": str(options.output),
        "changed": len(modules),
        "files": told,
        "left_out": base.left_out,
        "rounding_largest": rounding.largest,
    }
    return values, lines


def _compared(output: Path, base: Path, modules: set[str]) -> dict[str, float]:
    """The true difference of the changed weights: largest, mean, and the share that is equal."""
    from lora_scripts.workshop import stream

    largest = total = equal = count = 0.0
    ours, theirs = open_checkpoint(output), open_checkpoint(base)
    for module in sorted(modules):
        one, other = stream.read_module(ours, module), stream.read_module(theirs, module)
        if one.shape != other.shape:
            raise UserError("has other shapes than the model", file=base, hint="give the base it was merged into")
        difference = (one.double() - other.double()).abs()
        largest = max(largest, difference.max().item())
        total += difference.sum().item()
        equal += (difference == 0).sum().item()
        count += difference.numel()
    return {"largest": largest, "mean": total / count, "equal": equal / count}
