"""`lora-scripts extract`: the LoRA between two models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.dtypes import FLOATS
from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Progress, Sink, ignore
from lora_scripts.loras import metadata
from lora_scripts.loras.metadata import Source
from lora_scripts.units import number_of
from lora_scripts.workshop.checkpoint import Checkpoint, open_checkpoint
from lora_scripts.workshop.common import (
    Ranks,
    Written,
    as_written,
    check_form,
    check_output,
    dtype_of,
    made_by,
)

if TYPE_CHECKING:
    from lora_scripts.adapters.algebra.extract import Extracted
    from lora_scripts.adapters.weights import LoraWeights

DEFAULT_RANK = 32


@dataclass(frozen=True, kw_only=True)
class ExtractedLora(Written):
    """The LoRA, and how much of the difference of the two models is in it."""

    energy_kept: float
    """Share of |difference|² of its layers, 1: all of it."""
    worst_module: str
    worst_energy_kept: float
    effective_ranks: Mapping[str, int]
    """Layer -> rank of the difference, above what rounding gives."""
    blocks: Mapping[str, BlockRanks]
    """The same by block."""
    only_rounding: int
    """Layers that differ by no more than rounding."""
    elsewhere: Mapping[str, float] | None
    """Weight -> |difference|² of every weight that differs and is not in the LoRA; None where the layouts differ."""
    elsewhere_share: float
    """Of the whole |difference|², what `others` have."""

    @property
    def others(self) -> list[str]:
        """Weights of `elsewhere` that are not the VAE's."""
        return _without_vae(self.elsewhere or {})

    @property
    def vae_differs(self) -> bool:
        return len(self.others) < len(self.elsewhere or {})


@dataclass(frozen=True)
class BlockRanks(Ranks):
    """Of the layers of one block that differ."""

    layers: int


def _without_vae(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not key.startswith("first_stage_model.")]


def extract(
    base: Path,
    tuned: Path,
    output: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    conv: bool = False,
    precision: str = "auto",
    overwrite: bool = False,
    sink: Sink = ignore,
) -> ExtractedLora:
    """Writes the LoRA that leads from a base to a fine-tuned model, of at most `rank`, no more of each layer than the
    share `energy` needs; with `conv` of 3 x 3 convolutions too. UserErrors for a person's mistakes."""
    before, after = _opened(base, tuned, output, overwrite=overwrite)
    most = DEFAULT_RANK if rank is None and energy is None else rank
    names = _modules(before, after, conv=conv)
    layers, only_rounding = _extracted(before, after, names, most, energy, sink)
    if not layers:
        text = "the two models do not differ in any layer that a LoRA changes by more than their rounding"
        raise UserError(text, file=tuned, hint="check the names" + ("" if conv else ", or add --conv"))

    from lora_scripts.adapters.algebra.extract import missing_attention
    from lora_scripts.adapters.weights import uniform
    from lora_scripts.loras.writing import write

    weights = {path: layer.weights for path, layer in layers.items()}
    weights |= missing_attention(weights, {path: before.shape(path) for path in before.places})
    padded = uniform(weights)
    told = _metadata(before, after, output, padded, made_by("extract", rank=rank, energy=energy))
    written, rounding = write(output, before.family, padded, dtype_of(precision), told, base)
    total = sum(layer.energy for layer in layers.values())
    worst = min(layers, key=lambda path: layers[path].share)
    elsewhere = _elsewhere(before, after, set(names))
    outside = sum((elsewhere or {})[key] for key in _without_vae(elsewhere or {}))
    return ExtractedLora(
        **as_written(written, rounding),
        energy_kept=sum(layer.share * layer.energy for layer in layers.values()) / total,
        worst_module=worst,
        worst_energy_kept=layers[worst].share,
        effective_ranks={path: layer.effective for path, layer in layers.items()},
        blocks=_blocks(layers),
        only_rounding=only_rounding,
        elsewhere=elsewhere,
        elsewhere_share=outside / (total + outside),
    )


def _opened(base: Path, tuned: Path, output: Path, *, overwrite: bool) -> tuple[Checkpoint, Checkpoint]:
    faults = Faults()
    before = faults.attempt(lambda: open_checkpoint(base))
    after = faults.attempt(lambda: open_checkpoint(tuned))
    faults.attempt(lambda: check_output(output, [base, tuned], overwrite=overwrite))
    if before is not None and after is not None:
        if before.family is not after.family:
            text = f"this is {after.family.words}, {base} is {before.family.words}"
            faults.append(UserError(text, file=tuned, hint="give two models of one kind"))
        else:
            faults += _unlike(before, after)
            faults.attempt(lambda: check_form(output, before.family))
    raise_all(faults)
    assert before is not None and after is not None
    return before, after


def _extracted(
    base: Checkpoint, tuned: Checkpoint, names: Sequence[str], rank: int | None, energy: float | None, sink: Sink
) -> tuple[dict[str, Extracted], int]:
    """(layer -> its difference, how many layers differ by no more than rounding)."""
    from lora_scripts.adapters.algebra import extract as algebra
    from lora_scripts.workshop import stream

    layers, only_rounding = dict[str, algebra.Extracted](), 0
    for number, path in enumerate(names, 1):
        new, old = stream.read_module(tuned, path), stream.read_module(base, path)
        layer = algebra.extract(new, old, rank=rank, energy=energy)
        if layer is not None:
            layers[path] = layer
        elif not new.double().equal(old.double()):
            only_rounding += 1
        sink(Progress("layers", number, len(names)))
    return layers, only_rounding


def _blocks(layers: Mapping[str, Extracted]) -> dict[str, BlockRanks]:
    from lora_scripts.adapters.algebra.overlap import block_of

    ranks: dict[str, list[int]] = {}
    for path, layer in layers.items():
        ranks.setdefault(block_of(path), []).append(layer.effective)
    return {block: BlockRanks(min(r), sum(r) / len(r), max(r), len(r)) for block, r in ranks.items()}


def _unlike(base: Checkpoint, tuned: Checkpoint) -> list[UserError]:
    """A fault when a layer stands in one only, or has another shape."""
    hint = "give the base that it was made from"
    alone = sorted(set(base.places) ^ set(tuned.places))
    if alone:
        text = f"one of the two models alone has {number_of(len(alone), 'layer')}, first {alone[0]}"
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


def _modules(base: Checkpoint, tuned: Checkpoint, *, conv: bool) -> list[str]:
    """The layers to look at, in the order of LoRA files; 3 x 3 convolutions only if asked for."""
    names = base.family.names()
    table = names.written or [path for path in base.places if path in names.stems]  # names without a table: as they lie
    both = [path for path in table if path in base.places and path in tuned.places]
    return [path for path in both if conv or _size(base.shape(path))[2:] == ()]


def _metadata(
    base: Checkpoint, tuned: Checkpoint, output: Path, weights: Mapping[str, LoraWeights], command: str
) -> dict[str, str]:
    sources = [*_sources(base), *_sources(tuned)]
    values = metadata.of_making(base.family, output.stem, weights, command, sources)
    values["ss_sd_model_name"] = base.path.name
    if not base.is_folder:
        values["ss_new_sd_model_hash"] = sources[0].sha256
    return values


def _sources(model: Checkpoint) -> list[Source]:
    """A row for each file of weights."""
    from lora_scripts.formats.hashes import model_hashes

    names = {name: f"{model.path.name}/{name}" if name else model.path.name for name in model.files}
    return [Source(shown, model_hashes(model.file(name)).sha256) for name, shown in names.items()]


def _elsewhere(base: Checkpoint, tuned: Checkpoint, taken: set[str]) -> dict[str, float] | None:
    """Layer -> |difference|² of every weight that differs and is not in the LoRA; None where the layouts differ.

    Biases, norms, the first and the last layer, embeddings, the VAE; convolutions unless they were asked for.
    """
    if base.files.keys() != tuned.files.keys():
        return None
    from lora_scripts.adapters.algebra.merge import error_bound
    from lora_scripts.workshop import stream

    keys = {(place.file, place.key) for path in taken for place in base.places[path]}
    differences = {}
    for name, header in base.files.items():
        other = tuned.files[name]
        with stream.opened(base.file(name)) as old, stream.opened(tuned.file(name)) as new:
            for key, info in header.tensors.items():
                row = other.tensors.get(key)
                if row is None or row.shape != info.shape or (name, key) in keys or key.startswith("model_ema."):
                    continue
                if not {info.dtype, row.dtype}.issubset(FLOATS):
                    continue
                a, b = stream.read_tensor(old, header, key), stream.read_tensor(new, other, key)
                difference = (b.double() - a.double()).abs()
                if (difference > error_bound(a, a.dtype) + error_bound(b, b.dtype)).any():
                    differences[f"{name}: {key}" if name else key] = (difference**2).sum().item()
    return differences
