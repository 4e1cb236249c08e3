"""`lora-scripts merge` and `lora-scripts unmerge`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.data.texts.records import read_records
from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Sink, ignore
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.formats.header import read_header
from lora_scripts.loras.file import LoraFile
from lora_scripts.workshop import merge_proof, merge_record
from lora_scripts.workshop.additions import rewrite
from lora_scripts.workshop.checkpoint import BESIDE, Checkpoint, open_checkpoint
from lora_scripts.workshop.common import Weighted, check_output, check_weights, one_family, read_all, tell_words
from lora_scripts.workshop.merge_proof import MergeProof

if TYPE_CHECKING:
    from lora_scripts.adapters.algebra.merge import Rounding

SWALLOWED = 0.2
"""Share of the change that rounding may take before it is advised against; fp16 takes far less of any usual LoRA."""


@dataclass(frozen=True)
class ModelFile:
    """A file of weights that was written."""

    file: Path
    sha256: str
    autov3: str

    @property
    def autov2(self) -> str:
        return self.sha256[:10]


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A model that was written with other weights."""

    output: Path
    changed: int
    """Layers whose weights changed."""
    files: tuple[ModelFile, ...]
    left_out: tuple[str, ...]
    """Of a folder: other copies of the weights, as they were."""
    rounding_largest: float
    """The most that a weight is off by for its type."""


@dataclass(frozen=True, kw_only=True)
class Merged(Rewritten):
    """A base with LoRAs in it."""

    rounding_lost: float
    """|rounding error| / |ΔW|: how much of the LoRAs the type of the weights swallowed."""
    dropped: tuple[str, ...]
    """Keys of the metadata that the change made wrong, and that are left out."""

    proof: MergeProof | None
    """Of a language model: that it says what the base with the LoRAs says."""

    @property
    def too_coarse(self) -> bool:
        """That the type of the weights swallows more of the LoRAs than is advisable."""
        return self.rounding_lost > SWALLOWED


@dataclass(frozen=True)
class Difference:
    """Of the weights that were changed, from those of the base as it was."""

    largest: float
    mean: float
    equal: float
    """Share that is the same bit for bit."""


@dataclass(frozen=True, kw_only=True)
class Unmerged(Rewritten):
    """A model with LoRAs taken out of it."""

    bound: float
    """No weight is further from the base than this, if it was merged once, in this precision."""
    mean_bound: float
    notes: tuple[str, ...]
    """Where the model's own record of its LoRAs says something else."""
    compared_with: Path | None
    compared: Difference | None


def merge(
    base: Path,
    loras: Sequence[Weighted],
    output: Path,
    *,
    text_encoder: Path | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    data: Path | None = None,
    sink: Sink = ignore,
) -> Merged:
    """Adds LoRAs to a base model and writes it as it came. UserErrors for a person's mistakes, all at once and before
    anything is written.

    `text_encoder`: of a base in one file, that of its text encoder, which is written beside the output. A language
    model is then held against its base with the LoRAs on it, on records of `data` if they are given.
    """
    faults = Faults()
    held = None if data is None else faults.attempt(lambda: read_records(data))
    opened = faults.attempt(lambda: _opened(base, loras, output, text_encoder, overwrite=overwrite, data=data))
    raise_all(faults)
    assert opened is not None
    model, files = opened
    placed = [(lora.path, lora.weight) for lora in loras]
    meant = merge_proof.meant(base, placed, held, sink) if "texts" in model.family.features else None
    records = merge_record.of(files, loras)
    metadata = {name: merge_record.added(header.metadata, records) for name, header in model.files.items()}
    beside = model.family.beside_merged
    more = beside(base, [lora.path for lora in loras]) if beside else {}
    added = [(file, lora.weight) for file, lora in zip(files, loras, strict=True)]
    rounding = rewrite(model, output, added, metadata, precision, sink, more)
    tell_words([lora.path for lora in loras], sink)
    return Merged(
        **_as_rewritten(model, files, output, rounding),
        rounding_lost=rounding.lost,
        proof=None if meant is None else merge_proof.prove(meant, output),
        dropped=(merge_record.STALE,)
        if any(merge_record.STALE in header.metadata for header in model.files.values())
        else (),
    )


def unmerge(
    model: Path,
    loras: Sequence[Weighted],
    output: Path,
    *,
    text_encoder: Path | None = None,
    compare: Path | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    sink: Sink = ignore,
) -> Unmerged:
    """Takes LoRAs out of a model that they were merged into; `compare` is the base as it was. UserErrors as `merge`."""
    merged, files = _opened(model, loras, output, text_encoder, overwrite=overwrite, compare=compare, out=True)
    records, metadata, notes = merge_record.of(files, loras), dict[str, dict[str, str]](), list[str]()
    for name, header in merged.files.items():
        metadata[name], foreign = merge_record.taken_out(header.metadata, records)
        notes += [note for note in foreign if note not in notes]
    taken = [(file, -lora.weight) for file, lora in zip(files, loras, strict=True)]
    rounding = rewrite(merged, output, taken, metadata, precision, sink)
    modules = {path for file in files for path in file.mergeable}
    return Unmerged(
        **_as_rewritten(merged, files, output, rounding),
        bound=rounding.bound,
        mean_bound=rounding.mean_bound,
        notes=tuple(notes),
        compared_with=compare,
        compared=_compared(output, compare, modules) if compare is not None else None,
    )


def _opened(
    model: Path,
    loras: Sequence[Weighted],
    output: Path,
    text_encoder: Path | None,
    *,
    overwrite: bool,
    compare: Path | None = None,
    data: Path | None = None,
    out: bool = False,
) -> tuple[Checkpoint, list[LoraFile]]:
    """The model and the LoRAs, after everything that can be wrong was looked at. `out`: to take them out of it."""
    paths, faults = [lora.path for lora in loras], Faults()
    checkpoint = faults.attempt(lambda: open_checkpoint(model, text_encoder))
    if compare is not None:
        faults.attempt(lambda: open_checkpoint(compare))
    family = one_family(paths, faults)
    if checkpoint is not None and family is not None and checkpoint.family is not family:
        text = f"the LoRAs are for {family.words}, this is {checkpoint.family.words}"
        faults.append(UserError(text, file=model, hint="take LoRAs of the same kind of model"))
    if checkpoint is not None and data is not None and "texts" not in checkpoint.family.features:
        faults.append(UserError("--data is for language models", hint="leave it out"))
    check_weights(loras, faults)
    inputs = [model, *paths, *([compare] if compare else [])]
    if text_encoder is not None:
        inputs.append(text_encoder)
    faults.attempt(lambda: check_output(output, inputs, overwrite=overwrite))
    if checkpoint is not None and (beside := checkpoint.beside) is not None:
        written = checkpoint.written(BESIDE, output)
        faults.attempt(lambda: check_output(written, inputs, overwrite=overwrite))
        if out and compare is not None:
            text = "tells the difference of the base alone, without its text encoder's file"
            faults.append(UserError(f"--compare {text}", file=beside, hint="leave --compare out"))
    if checkpoint is not None:
        faults.attempt(lambda: _check_suffix(checkpoint, output))
    raise_all(faults)
    assert checkpoint is not None

    files = read_all(paths, dora=True)
    from lora_scripts.adapters.algebra import merge as algebra

    hint = "keep the base that it was merged into; a merge can be made again"
    text = "a DoRA scales weights, and what they were cannot be told from what they are"
    doras = [file for file in files if any(w.dora is not None for w in file.mergeable.values())]
    raise_all([UserError(text, file=file.path, hint=hint) for file in doras if out])
    raise_all([fault for file in files for fault in _texts_elsewhere(checkpoint, file)])
    shapes = {name: checkpoint.shape(name) for name in checkpoint.places}
    raise_all([fault for file in files for fault in algebra.check_fits(file.mergeable, shapes, str(file.path))])
    return checkpoint, files


def _texts_elsewhere(base: Checkpoint, lora: LoraFile) -> Iterator[UserError]:
    """For a LoRA of a text encoder that is no part of the base."""
    held = {module.partition(".")[0] for module in base.places}
    lacking = {path.partition(".")[0] for path in lora.modules if base.family.inside_text(path)} - held
    if lacking:
        text = f"this LoRA changes the text encoder, too, and there is none in {base.path.name}"
        hint = "add --text-encoder with the file that it is in, or take a diffusers folder, which has both"
        yield UserError(text, file=lora.path, hint=hint)


def _check_suffix(base: Checkpoint, output: Path) -> None:
    if base.is_folder and output.suffix:
        hint = "give --output a folder's name, without an ending; it is written in the layout it came in"
        raise UserError(f"the base is a folder, {output.name} is a file's name", file=output, hint=hint)
    if not base.is_folder and output.suffix.lower() != ".safetensors":
        raise UserError("must be a .safetensors file, as the base is", file=output, hint="add .safetensors")


def _as_rewritten(model: Checkpoint, files: Sequence[LoraFile], output: Path, rounding: Rounding) -> dict[str, Any]:
    """The fields of `Rewritten`; every file's header is read once more."""
    rows = []
    for name in model.files:
        path = model.written(name, output)
        read_header(path)
        hashes = model_hashes(path)
        rows.append(ModelFile(path, hashes.sha256, hashes.autov3))
    return {
        "output": output,
        "changed": len({path for file in files for path in file.mergeable}),
        "files": tuple(rows),
        "left_out": tuple(model.left_out),
        "rounding_largest": rounding.largest,
    }


def _compared(output: Path, base: Path, modules: set[str]) -> Difference:
    """The true difference of the changed weights."""
    from lora_scripts.workshop import stream

    largest = total = equal = count = 0.0
    ours, theirs = open_checkpoint(output), open_checkpoint(base)
    for module in sorted(modules):
        weight, before = stream.read_module(ours, module), stream.read_module(theirs, module)
        if weight.shape != before.shape:
            raise UserError("has other shapes than the model", file=base, hint="give the base it was merged into")
        difference = (weight.double() - before.double()).abs()
        largest = max(largest, difference.max().item())
        total += difference.sum().item()
        equal += (difference == 0).sum().item()
        count += difference.numel()
    return Difference(largest, total / count, equal / count)
