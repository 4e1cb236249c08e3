"""`lora-scripts extract`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError, raise_all
from lora_scripts.loras import file as loras
from lora_scripts.loras.file import Source
from lora_scripts.workshop.checkpoint import Checkpoint, open_checkpoint
from lora_scripts.workshop.common import (
    Faults,
    check_output,
    counting,
    dtype_of,
    file_lines,
    file_rows,
    has_conv,
    show,
    table,
)

if TYPE_CHECKING:
    from lora_scripts.adapters.algebra.extract import Extracted
    from lora_scripts.adapters.weights import LoraWeights

DEFAULT_RANK = 32


@dataclass(frozen=True)
class ExtractOptions:
    """What `lora-scripts extract` was asked for."""

    base: Path
    tuned: Path
    output: Path
    rank: int | None = None
    energy: float | None = None
    conv: bool = False
    precision: str = "auto"
    overwrite: bool = False
    json: bool = False


def extract_file(options: ExtractOptions) -> None:
    """Writes the LoRA that leads from a base to a fine-tuned model. UserError for a person's mistake."""
    base, tuned = _opened(options)
    from lora_scripts.adapters.algebra import extract as extracting
    from lora_scripts.adapters.weights import uniform
    from lora_scripts.workshop import stream

    rank = options.rank
    if rank is None and options.energy is None:
        rank = DEFAULT_RANK
    modules = _modules(base, tuned, options)
    told, rounded = counting("layers"), 0
    found: dict[str, Extracted] = {}
    for number, path in enumerate(modules):
        new, old = stream.read_module(tuned, path), stream.read_module(base, path)
        one = extracting.extract(new, old, rank=rank, energy=options.energy)
        if one is not None:
            found[path] = one
        elif not new.double().equal(old.double()):
            rounded += 1
        told(number + 1, len(modules))
    if not found:
        text = "the two models do not differ in any layer that a LoRA changes by more than their rounding"
        raise UserError(text, file=options.tuned, hint="check the names" + ("" if options.conv else ", or add --conv"))
    weights = {path: one.weights for path, one in found.items()}
    weights |= extracting.missing_attention(weights, {path: base.shape(path) for path in base.places})
    padded = uniform(weights)
    values = _metadata(base, tuned, options, padded)
    written, off = loras.write(options.output, base.family, padded, dtype_of(options.precision), values)
    rows = file_rows(written, off)
    _show(options, rows, found, rounded, _elsewhere(base, tuned, set(modules)))


def _opened(options: ExtractOptions) -> tuple[Checkpoint, Checkpoint]:
    faults = Faults()
    base = faults.attempt(lambda: open_checkpoint(options.base))
    tuned = faults.attempt(lambda: open_checkpoint(options.tuned))
    inputs = [options.base, options.tuned]
    faults.attempt(lambda: check_output(options.output, inputs, overwrite=options.overwrite))
    if base is not None and tuned is not None:
        if base.family is not tuned.family:
            text = f"this is {tuned.family.words}, {options.base} is {base.family.words}"
            faults.errors.append(UserError(text, file=options.tuned, hint="give two models of one kind"))
        else:
            faults.errors += _unlike(base, tuned)
    raise_all(faults.errors)
    assert base is not None and tuned is not None
    return base, tuned


def _unlike(base: Checkpoint, tuned: Checkpoint) -> list[UserError]:
    """A fault when a layer stands in one only, or has another shape."""
    hint = "give the base that it was made from"
    odd = sorted(set(base.places) ^ set(tuned.places))
    if odd:
        text = f"{len(odd)} layers stand in one of the two models only, first {odd[0]}"
        return [UserError(text, file=tuned.path, hint=hint)]
    inside = [path for path in base.places if path != "unet.conv_in"]  # an inpainting model's is wider
    differ = [path for path in inside if _size(base.shape(path)) != _size(tuned.shape(path))]
    if differ:
        path = differ[0]
        text = f"{path} is {list(tuned.shape(path))} here and {list(base.shape(path))} in {base.path.name}"
        return [UserError(text, file=tuned.path, hint=hint)]
    return []


def _size(shape: Sequence[int]) -> tuple[int, ...]:
    """A 1 x 1 convolution and a linear layer are one matrix."""
    return tuple(shape[:2] if set(shape[2:]) <= {1} else shape)


def _modules(base: Checkpoint, tuned: Checkpoint, options: ExtractOptions) -> list[str]:
    """The layers to look at, in the order of LoRA files; 3 x 3 convolutions only if asked for."""
    both = [path for path in base.family.names().kohya if path in base.places and path in tuned.places]
    return [path for path in both if options.conv or _size(base.shape(path))[2:] == ()]


def _metadata(
    base: Checkpoint, tuned: Checkpoint, options: ExtractOptions, weights: Mapping[str, LoraWeights]
) -> dict[str, str]:
    one = next(iter(weights.values()))
    words = ["extract", *(f"{k}={v}" for k, v in (("rank", options.rank), ("energy", options.energy)) if v is not None)]
    sources = [*_sources(base), *_sources(tuned)]
    values = loras.new_metadata(
        base.family,
        options.output.stem,
        rank=one.rank,
        alpha=one.alpha,
        conv=has_conv(weights),
        made_by=" ".join(words),
        sources=sources,
    )
    values["ss_sd_model_name"] = base.path.name
    if not base.is_folder:
        values["ss_new_sd_model_hash"] = sources[0].sha256
    return values


def _sources(model: Checkpoint) -> list[Source]:
    """A row for each file of weights."""
    from lora_scripts.formats.hashes import model_hashes

    names = {name: f"{model.path.name}/{name}" if name else model.path.name for name in model.files}
    return [Source(told, model_hashes(model.file(name)).sha256) for name, told in names.items()]


def _elsewhere(base: Checkpoint, tuned: Checkpoint, taken: set[str]) -> dict[str, float] | None:
    """Layer -> |difference|² of every weight that differs and is not in the LoRA; None where the layouts differ.

    Biases, norms, the first and the last layer, embeddings, the VAE; convolutions unless they were asked for.
    """
    if base.files.keys() != tuned.files.keys():
        return None
    from lora_scripts.adapters.algebra import merge
    from lora_scripts.workshop import stream

    keys = {(place.file, place.key) for path in taken for place in base.places[path]}
    found = {}
    for name, header in base.files.items():
        other = tuned.files[name]
        with stream.opened(base.file(name)) as old, stream.opened(tuned.file(name)) as new:
            for key, info in header.tensors.items():
                row = other.tensors.get(key)
                if row is None or row.shape != info.shape or (name, key) in keys or key.startswith("model_ema."):
                    continue
                if not {info.dtype, row.dtype} <= stream.DTYPES.keys():
                    continue
                a, b = stream.read_tensor(old, header, key), stream.read_tensor(new, other, key)
                difference = (b.double() - a.double()).abs()
                if (difference > merge.error_bound(a, a.dtype) + merge.error_bound(b, b.dtype)).any():
                    found[f"{name}: {key}" if name else key] = (difference**2).sum().item()
    return found


def _show(
    options: ExtractOptions,
    rows: Mapping[str, object],
    found: Mapping[str, Extracted],
    rounded: int,
    elsewhere: Mapping[str, float] | None,
) -> None:
    from lora_scripts.adapters.algebra.overlap import block_of

    total = sum(one.energy for one in found.values())
    share = sum(one.share * one.energy for one in found.values()) / total
    worst = min(found, key=lambda path: found[path].share)
    blocks: dict[str, list[int]] = {}
    for path, one in found.items():
        blocks.setdefault(block_of(path), []).append(one.effective)
    told = {
        **rows,
        "energy_kept": share,
        "worst_module": worst,
        "worst_energy_kept": found[worst].share,
        "effective_ranks": {path: one.effective for path, one in found.items()},
        "only_rounding": rounded,
        "elsewhere": elsewhere,
    }
    cells = [[b, str(len(r)), str(min(r)), f"{sum(r) / len(r):.1f}", str(max(r))] for b, r in blocks.items()]
    lines = table(("rank of the difference", "layers", "least", "mean", "most"), cells)
    lines.append(f"energy kept: {share:.2%} in all; least {found[worst].share:.2%}, in {worst}")
    if rounded:
        lines.append(f"{rounded} layers differ by no more than rounding; they are left out")
    if elsewhere:
        vae = [key for key in elsewhere if key.startswith("first_stage_model.")]
        others = [key for key in elsewhere if key not in vae]
        if others:
            part = sum(elsewhere[key] for key in others) / (total + sum(elsewhere[key] for key in others))
            lines.append(
                f"note: {len(others)} other weights differ too, with {part:.1%} of the whole difference, which this "
                f"LoRA does not hold; first {others[0]}"
            )
        if vae:
            lines.append("note: the VAE differs too; use that of the fine-tuned model")
    elif elsewhere is None:
        lines.append("note: the two models lie in different layouts, so biases and norms were not compared")
    show(options.json, told, [*lines, *file_lines(rows)])
