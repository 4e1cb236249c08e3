"""What combine, merge, unmerge, extract and resize share: looking at what was given before anything heavy is loaded,
and what there is to say of a LoRA that was written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Note, Sink
from lora_scripts.families.facts import Facts
from lora_scripts.formats import io
from lora_scripts.loras import file as loras
from lora_scripts.loras.file import LoraFile
from lora_scripts.loras.words import embedding_files

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weighted:
    """A LoRA file and how strong it is meant."""

    path: Path
    weight: float = 1.0

    @property
    def words(self) -> str:
        return f"{self.path.name} x {self.weight:g}"


def check_output(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """UserError unless the output can be written without destroying anything that nobody asked to destroy."""
    for path in inputs:
        if _same(output, path) or (path.is_dir() and path.resolve() in output.resolve().parents):
            raise UserError("would be written over what is read", file=output, hint="give --output another name")
    if output.is_dir():  # a folder may hold anything: it is never replaced
        raise UserError("is a folder that is already there", file=output, hint="give --output another name")
    if output.exists() and not overwrite:
        raise UserError("already exists", file=output, hint="give --output another name, or add --overwrite")
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} does not exist", file=output, hint="make it first")
    io.require_writable(output)


def check_form(output: Path, family: Facts) -> None:
    """UserError unless the name is that of what a LoRA of the family is: a folder, or a .safetensors file."""
    if family.lora.folder and output.suffix == ".safetensors":
        text = f"a LoRA of {family.words} is a folder, as PEFT has it"
        raise UserError(text, file=output, hint=f"write --output {output.with_suffix('')}")
    if not family.lora.folder and output.suffix.lower() != ".safetensors":
        raise UserError("must be a .safetensors file", file=output, hint="add .safetensors")


def check_space(output: Path, size: int) -> None:
    """UserError unless the disk has room for `size` bytes."""
    free = shutil.disk_usage(output.parent).free
    if free < size:
        text = f"needs {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left"
        raise UserError(text, file=output, hint="free some space, or give another folder")


def one_family(paths: Sequence[Path], faults: Faults) -> Facts | None:
    """The family of all the files, by their headers; a fault for each that is no LoRA, and when they differ."""
    families = [(path, family) for path in paths if (family := faults.attempt(partial(loras.family_of, path)))]
    if len({family.name for _, family in families}) > 1:
        each = ", ".join(f"{path.name} is for {family.words}" for path, family in families)
        faults.append(UserError(f"these LoRAs are for different models: {each}", hint="take those of one kind"))
        return None
    return families[0][1] if families else None


def read_all(paths: Sequence[Path], *, dora: bool = False) -> list[LoraFile]:
    """The files, each read once; with `dora` also DoRAs. UserErrors with every fault of all of them."""
    faults, files = Faults(), []
    for path in paths:
        file = faults.attempt(partial(loras.read_plain, path, dora=dora))
        if file is not None:
            files.append(file)
    raise_all(faults)
    return files


def tell_words(paths: Iterable[Path], sink: Sink) -> None:
    """That new words of the LoRAs stay behind, and where they are: without its vectors a word means nothing."""
    for path in dict.fromkeys(paths):
        for word, file in embedding_files(path).items():
            where = f"take its embedding file along: {file}" if file else "its embedding file is not beside the LoRA"
            sink(Note(f"note: the word {word} of {path.name} does not go in; {where}"))


def dtype_of(precision: str, files: Sequence[LoraFile] = ()) -> torch.dtype:
    """The type of a LoRA file: as asked; auto is that of the files it comes from, fp32 where they differ, else fp16."""
    import torch

    from lora_scripts.adapters.algebra.precision import DTYPES

    if precision != "auto":
        return DTYPES[precision]
    dtypes = {w.down.dtype for file in files for w in file.weights.values()}
    if not dtypes or any(dtype.itemsize == 1 for dtype in dtypes):
        return torch.float16
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(DTYPES.values()) else torch.float32


def check_weights(loras: Iterable[Weighted], faults: Faults) -> None:
    """A LoRA at weight 0 would do nothing, which is a mistake."""
    for lora in loras:
        if lora.weight == 0:
            faults.append(UserError(f"{lora.path}: weight 0 changes nothing", hint="leave the file out"))


def made_by(command: str, **settings: object) -> str:
    """The command with the settings that counted, for the metadata: "resize rank=8"."""
    return " ".join([command, *(f"{key}={value}" for key, value in settings.items() if value is not None)])


@dataclass(frozen=True, kw_only=True)
class Written:
    """A LoRA file that was written, as it was read again from the disk."""

    output: Path
    rank: int
    alpha: float
    modules: int
    precision: str
    """fp32, fp16 or bf16"""
    bytes: int
    sha256: str
    autov3: str
    """Empty of a folder: only WebUIs know files by it."""
    rounding: float
    """|ΔW in the file - ΔW meant| / |ΔW meant|"""

    @property
    def autov2(self) -> str:
        return self.sha256[:10]


def as_written(file: LoraFile, rounding: float) -> dict[str, Any]:
    """The fields of `Written`, of a file as `loras.writing.write` gives it."""
    from lora_scripts.adapters.algebra.precision import word_of

    first = next(iter(file.weights.values()))
    return {
        "output": file.path,
        "rank": first.rank,
        "alpha": first.alpha,
        "modules": len(file.weights),
        "precision": word_of(first.down.dtype),
        "bytes": sum(part.stat().st_size for part in (file.path, *file.path.rglob("*")) if part.is_file()),
        "sha256": file.sha256,
        "autov3": file.metadata.get("sshs_model_hash", "")[:12],
        "rounding": rounding,
    }


@dataclass(frozen=True)
class Ranks:
    """Of the modules of one block."""

    least: int
    mean: float
    most: int


def _same(a: Path, b: Path) -> bool:
    try:
        return a.exists() and b.exists() and a.samefile(b)
    except OSError:
        return a.absolute() == b.absolute()
