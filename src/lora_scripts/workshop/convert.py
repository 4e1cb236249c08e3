"""`lora-scripts convert`: one LoRA in other names, another precision, one rank, or without its DoRA."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lora_scripts.adapters.algebra import bake as dora
from lora_scripts.adapters.algebra import precision
from lora_scripts.adapters.weights import LoraWeights, uniform
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Progress, Sink, ignore
from lora_scripts.families.facts import Facts
from lora_scripts.formats import io
from lora_scripts.loras import adapter_folder, dialects, kohya
from lora_scripts.loras.alphas import ALPHA_KEY, DIFFUSERS_KEY
from lora_scripts.loras.embedding import BUNDLE, bundled
from lora_scripts.loras.file import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Contents, open_lora, plain, save
from lora_scripts.loras.naming import Naming
from lora_scripts.loras.unfused import unfused
from lora_scripts.loras.verify import MATCHERS
from lora_scripts.workshop.checkpoint import open_checkpoint
from lora_scripts.workshop.common import check_output
from lora_scripts.workshop.stream import read_module

_NOT_CARRIED = (ALPHA_KEY, DIFFUSERS_KEY, "format", "modelspec.hash_sha256")
"""What belongs to the naming that it came in: diffusers' text encoder fails on its own key beside kohya's alphas; and
(the last) a hash of the tensors as they were."""
Folding = Literal["exact", "rounds the smallest", "rounds all"]
"""What it costs to fold alpha / rank into the weights: nothing, digits of the smallest of them (alpha / rank is a power
of two), or the last bit of all."""


@dataclass(frozen=True)
class Sizes:
    """Every rank and alpha that there is in a file, ascending."""

    ranks: tuple[int, ...]
    alphas: tuple[float, ...]


@dataclass(frozen=True)
class BakedDora:
    """DoRA modules as plain ones."""

    modules: int
    rank: int
    mean_kept: float
    """Share of |ΔW|² that is kept, a mean over the modules."""
    least_kept: float
    worst_module: str


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A LoRA that was written in other names, and what that cost."""

    file: Path
    output: Path
    modules: int
    naming: str
    """Of `file`: a word of `Naming`, or "unknown"."""
    to: str
    sizes: Sizes
    """Of `file`."""
    baked: BakedDora | None
    padded: Sizes | None
    """One rank and alpha that all modules were padded to; None where that changed nothing."""
    dtype: str | None
    """The precision that was asked for."""
    loss: precision.Loss
    folding: Folding | None
    """Of diffusers' form."""
    read_by: tuple[str, ...]
    """Programs that read every key."""
    parts: tuple[str, ...]
    """Of PEFT's form: the folders, each for one part of a pipeline."""


def convert(
    file: Path,
    to: str,
    *,
    output: Path | None = None,
    dtype: str | None = None,
    keep_ranks: bool = False,
    bake_dora: bool = False,
    base: Path | None = None,
    rank: int | None = None,
    overwrite: bool = False,
    sink: Sink = ignore,
) -> Converted:
    """Writes a LoRA in the names `to`, a word of `Naming`; `dtype` is a word of `precision.DTYPES`, None: as it is.

    With `bake_dora`, what is a DoRA becomes a plain LoRA on `base`, of `rank` or its own. UserErrors for a mistake;
    then nothing is written.
    """
    output = _output(file, to, output, dtype, overwrite=overwrite)
    source, naming = open_lora(file), Naming(to)
    family = source.require_family()
    if family.lora.folder and naming is not Naming.PEFT:
        text = f"a LoRA of {family.words} has no {to} names: what reads those draws pictures"
        raise UserError(text, file=file, hint="PEFT's folder is read by PEFT, transformers and vLLM as it is")
    modules = plain(source.modules(), file, dora=True)
    sizes, baked, padded = _sizes(modules), None, None
    if bake_dora:
        assert base is not None
        modules, baked = _baked(modules, base, rank, file, sink)
    number_type = _main_dtype(modules) if dtype is None else precision.DTYPES[dtype]
    if naming is not Naming.PEFT and not keep_ranks:
        of_one_rank = uniform(modules)
        if any(of_one_rank[path] is not w for path, w in modules.items()):
            padded = _sizes(of_one_rank)
        modules = of_one_rank
    modules, loss = precision.cast(modules, number_type)
    carried = {key: value for key, value in source.metadata.items() if key not in _NOT_CARRIED}
    if family.lora.folder:
        io.write_folder(output, adapter_folder.like(file, modules, number_type, carried))
        form = _Form(read_by=("PEFT",))
    else:
        words = _words(source, naming, sink)
        form = _write(output, naming, modules, number_type, _renumbered(carried, modules), family, words)
    return Converted(
        file=file,
        output=output,
        modules=len(modules),
        naming=source.naming.value if source.naming else "unknown",
        to=to,
        sizes=sizes,
        baked=baked,
        padded=padded,
        dtype=dtype,
        loss=loss,
        folding=form.folding,
        read_by=form.read_by,
        parts=form.parts,
    )


@dataclass(frozen=True)
class _Form:
    """What is particular to the form that was written; see `Converted`."""

    folding: Folding | None = None
    read_by: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


def _words(source: Contents, naming: Naming, sink: Sink) -> dict[str, torch.Tensor]:
    """The words that are bundled in a file, as far as they go along; what does not is told."""
    words = {key: tensor for key, tensor in source.tensors.items() if key.startswith(BUNDLE)}
    if not words or naming not in (Naming.DIFFUSERS, Naming.PEFT):
        return words
    lost, names = ", ".join(bundled(words)), naming.value
    sink(Note(f"note: the words in {source.path.name} ({lost}) do not go in: no program takes words in {names} names"))
    return {}


def _write(
    path: Path,
    naming: Naming,
    modules: Mapping[str, LoraWeights],
    dtype: torch.dtype,
    carried: dict[str, str],
    family: Facts,
    words: Mapping[str, torch.Tensor],
) -> _Form:
    if naming is Naming.PEFT:
        io.write_folder(path, _peft_files(modules, family.wrapped(), dtype, carried))
        return _Form(parts=tuple(sorted({module.partition(".")[0] for module in modules})))
    folding: Folding | None = None
    names = family.names()
    if naming is Naming.DIFFUSERS:
        folded = dialects.to_diffusers(modules, names, dtype)
        tensors, carried = folded.tensors, carried | folded.metadata | {"format": "pt"}
        folding = "exact" if folded.exact else _why_inexact(modules)
    else:
        table = names.original if naming is Naming.ORIGINAL else names.in_kohyas
        if not table:
            text = f"files of {family.words} have no {naming.value} names"
            raise UserError(text, hint="write --to diffusers, which most programs read")
        tensors = kohya.to_kohya(modules, table, dtype=dtype, mixed=True, fused=names.fused, turned=names.turned)
        tensors |= words
    save(path, tensors, carried)
    base = family.base(None)
    known = [(name, read) for name, read in MATCHERS.items() if name not in family.lora.unread_by]
    read_by = tuple(name for name, read in known if not read(unfused(tensors, names), base).faults)
    return _Form(folding, read_by)


def _why_inexact(modules: Mapping[str, LoraWeights]) -> Folding:
    powers_of_two = all(math.frexp(w.alpha / w.rank)[0] == 0.5 for w in modules.values())
    return "rounds the smallest" if powers_of_two else "rounds all"


def _peft_files(
    modules: Mapping[str, LoraWeights], prefixes: Mapping[str, str], dtype: torch.dtype, carried: dict[str, str]
) -> dict[str, io.Data]:
    """A folder for each part, as PeftModel.from_pretrained reads it."""
    files: dict[str, io.Data] = {}
    for part, adapter in dialects.to_peft(modules, prefixes, dtype).items():
        header, buffers = io.safetensors_parts(adapter.tensors, carried | {"format": "pt"})
        files[f"{part}/{ADAPTER_WEIGHTS}"] = [header, *buffers]
        files[f"{part}/{ADAPTER_CONFIG}"] = (json.dumps(adapter.config, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def _baked(
    modules: Mapping[str, LoraWeights], base: Path, rank: int | None, file: Path, sink: Sink
) -> tuple[dict[str, LoraWeights], BakedDora]:
    """Every DoRA module as a plain LoRA; the plain ones stay as they are."""
    with_dora = [path for path, w in modules.items() if w.dora is not None]
    if not with_dora:
        raise UserError("no module of this file is a DoRA", file=file, hint="leave out --bake-dora, --base and --rank")
    model = open_checkpoint(base)
    baked, shares = dict(modules), dict[str, float]()
    for number, path in enumerate(with_dora, 1):
        if path not in model.places:
            raise UserError(f"the base has no layer {path}", file=base, hint="this LoRA is for another base model")
        layer = dora.bake(modules[path], read_module(model, path), rank or modules[path].rank)
        baked[path], shares[path] = layer.weights, layer.energy
        sink(Progress("layers", number, len(with_dora)))
    worst = min(shares, key=lambda path: shares[path])
    most = rank or max(modules[path].rank for path in with_dora)
    return baked, BakedDora(len(with_dora), most, sum(shares.values()) / len(shares), shares[worst], worst)


def _renumbered(carried: dict[str, str], modules: Mapping[str, LoraWeights]) -> dict[str, str]:
    """Rank and alpha in kohya's metadata, where the file now has one of each and has said another."""
    ranks, alphas = {w.rank for w in modules.values()}, {w.alpha for w in modules.values()}
    changed = dict(carried)
    for key, values in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
        if key in changed and len(values) == 1 and not _says(changed[key], next(iter(values))):
            changed[key] = str(next(iter(values)))
    return changed


def _says(text: str, value: float) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def _output(file: Path, to: str, output: Path | None, dtype: str | None, *, overwrite: bool) -> Path:
    """Where to write: asked for, or beside the file. UserError as `check_output`, and for a name of another form."""
    word = f"-{dtype}" if dtype else ""
    name = f"{file.stem if file.suffix == '.safetensors' else file.name}-{to}{word}"
    suffix = "" if to == Naming.PEFT.value else ".safetensors"
    output = output or file.parent / f"{name}{suffix}"
    if bool(suffix) != (output.suffix == ".safetensors"):
        hint = "PEFT's form is a folder" if not suffix else "the name must end in .safetensors"
        raise UserError(f"--output {output} does not fit --to {to}", hint=hint)
    check_output(output, [file], overwrite=overwrite)
    return output


def _main_dtype(modules: Mapping[str, LoraWeights]) -> torch.dtype:
    return Counter(w.down.dtype for w in modules.values()).most_common(1)[0][0]


def _sizes(modules: Mapping[str, LoraWeights]) -> Sizes:
    return Sizes(
        ranks=tuple(sorted({w.rank for w in modules.values()})),
        alphas=tuple(sorted({w.alpha for w in modules.values()})),
    )
