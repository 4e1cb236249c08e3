"""What combine, merge, unmerge, extract and resize share: looking at what was given before anything heavy is loaded,
and telling what came out.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lora_scripts.errors import UserError, UserErrors, raise_all
from lora_scripts.families.facts import Facts
from lora_scripts.loras import file as loras
from lora_scripts.loras.file import LoraFile

if TYPE_CHECKING:
    import torch

    from lora_scripts.adapters.weights import LoraWeights

T = TypeVar("T")


@dataclass(frozen=True)
class Weighted:
    """A LoRA file and how strong it is meant."""

    path: Path
    weight: float = 1.0

    @property
    def words(self) -> str:
        return f"{self.path.name} x {self.weight:g}"


class Faults:
    """Collects what is wrong, so that a person is told all of it at once."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    def attempt(self, look: Callable[[], T]) -> T | None:
        """What `look` gives, or None when it raises a UserError, which is kept."""
        try:
            return look()
        except UserErrors as e:
            self.errors.extend(e.errors)
        except UserError as e:
            self.errors.append(e)
        return None


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


def check_space(output: Path, size: int) -> None:
    """UserError unless the disk has room for `size` bytes."""
    free = shutil.disk_usage(output.parent).free
    if free < size:
        text = f"needs {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left"
        raise UserError(text, file=output, hint="free some space, or give another folder")


def one_family(paths: Sequence[Path], faults: Faults) -> Facts | None:
    """The family of all the files, by their headers; a fault for each that is no LoRA, and when they differ."""
    found = [(path, family) for path in paths if (family := faults.attempt(partial(loras.family_of, path)))]
    if len({family.name for _, family in found}) > 1:
        told = ", ".join(f"{path.name} is for {family.words}" for path, family in found)
        faults.errors.append(UserError(f"these LoRAs are for different models: {told}", hint="take those of one kind"))
        return None
    return found[0][1] if found else None


def read_all(paths: Sequence[Path]) -> list[LoraFile]:
    """The files, each read once. UserErrors with every fault of all of them."""
    faults, files = Faults(), []
    for path in paths:
        file = faults.attempt(partial(loras.read, path))
        if file is not None:
            files.append(file)
    raise_all(faults.errors)
    return files


def dtype_of(precision: str, files: Sequence[LoraFile] = ()) -> torch.dtype:
    """The type of a LoRA file: as asked; auto is that of the files it comes from, fp32 where they differ, else fp16."""
    import torch

    named = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision != "auto":
        return named[precision]
    found = {w.down.dtype for file in files for w in file.weights.values()}
    if not found or any(dtype.itemsize == 1 for dtype in found):
        return torch.float16
    return found.pop() if len(found) == 1 and found <= set(named.values()) else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, fp16 or bf16; else torch's own name."""
    name = str(dtype).removeprefix("torch.")
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(name, name)


def has_conv(weights: Mapping[str, LoraWeights]) -> bool:
    """Whether a convolution larger than 1 x 1 carries a LoRA."""
    return any(w.down.dim() == 4 and w.down.shape[-1] > 1 for w in weights.values())


def counting(what: str) -> Callable[[int, int], None]:
    """Shows "what 12 of 264" on a terminal, and nothing where output is kept."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def told(done: int, total: int) -> None:
        end = "\r" if done < total else "\n"
        print(f"{what} {done} of {total}", end=end, file=sys.stderr, flush=True)

    return told


def file_rows(written: LoraFile, off: float) -> dict[str, object]:
    """What is told of a LoRA that was written."""
    one = next(iter(written.weights.values()))
    return {
        "output": str(written.path),
        "rank": one.rank,
        "alpha": one.alpha,
        "modules": len(written.weights),
        "precision": dtype_name(one.down.dtype),
        "bytes": written.path.stat().st_size,
        "sha256": written.sha256,
        "autov3": written.metadata["sshs_model_hash"][:12],
        "rounding": off,
    }


def file_lines(rows: Mapping[str, object]) -> list[str]:
    """`file_rows` for people."""
    size = int(str(rows["bytes"])) / 1e6
    return [
        f"written: {rows['output']} (rank {rows['rank']}, alpha {rows['alpha']:g}, {rows['modules']} modules, "
        f"{rows['precision']}, {size:.1f} MB)",
        f"read again: ΔW as meant to {rows['rounding']:.1e} of its size",
        f"sha256 {rows['sha256']} (AutoV2 {str(rows['sha256'])[:10]}, AutoV3 {rows['autov3']})",
    ]


def show(as_json: bool, values: Mapping[str, object], lines: Iterable[str]) -> None:
    """One JSON object, or lines for people."""
    if as_json:
        print(json.dumps(values, ensure_ascii=False, indent=2))
    else:
        print("\n".join(lines))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns one under the other: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _same(a: Path, b: Path) -> bool:
    try:
        return a.exists() and b.exists() and a.samefile(b)
    except OSError:
        return a.absolute() == b.absolute()
