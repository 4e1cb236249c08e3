"""`lora-scripts resize`: a LoRA at another rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Sink, counting, ignore
from lora_scripts.loras import metadata
from lora_scripts.loras.alphas import ALPHA_KEY, DIFFUSERS_KEY
from lora_scripts.loras.file import LoraFile
from lora_scripts.loras.metadata import Source
from lora_scripts.workshop.common import (
    Ranks,
    Written,
    as_written,
    check_form,
    check_output,
    dtype_of,
    made_by,
    one_family,
    read_all,
)

# Of the old file and no longer true, or (the last) what diffusers' loader stumbles over in a kohya file.
_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", ALPHA_KEY, DIFFUSERS_KEY)


@dataclass(frozen=True, kw_only=True)
class Resized(Written):
    """The smaller LoRA, and how much of the old one is in it."""

    rank_before: int
    rank_asked: int | None
    energy_kept: float
    """Share of |ΔW|², 1: all of it."""
    worst_module: str
    worst_energy_kept: float
    blocks: Mapping[str, Ranks]
    """Block -> ranks that its modules needed."""


def resize(
    lora: Path,
    output: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    sink: Sink = ignore,
) -> Resized:
    """Writes a LoRA at a rank of at most `rank`, no more of each layer than the share `energy` needs. UserErrors for a
    person's mistakes, before anything is written."""
    faults = Faults()
    if rank is None and energy is None:
        faults.append(UserError("resize to what?", hint="give --rank 8, or --energy 0.95, or both"))
    family = one_family([lora], faults)
    faults.attempt(lambda: check_output(output, [lora], overwrite=overwrite))
    if family is not None:
        faults.attempt(lambda: check_form(output, family))
    raise_all(faults)

    (file,) = read_all([lora])
    from lora_scripts.adapters.algebra import resize as algebra
    from lora_scripts.adapters.weights import uniform
    from lora_scripts.loras.writing import write

    smaller = algebra.resize(file.weights, rank=rank, energy=energy, told=counting(sink, "layers"))
    padded = uniform(smaller.weights)
    command, sources = made_by("resize", rank=rank, energy=energy), [Source(file.name, file.sha256)]
    new = metadata.of_making(file.family, output.stem, padded, command, sources)
    written, rounding = write(output, file.family, padded, dtype_of(precision, [file]), _metadata(file, new), lora)
    worst_module, worst_share = smaller.worst
    return Resized(
        **as_written(written, rounding),
        rank_before=file.rank,
        rank_asked=rank,
        energy_kept=smaller.share,
        worst_module=worst_module,
        worst_energy_kept=worst_share,
        blocks={block: Ranks(*ranks) for block, ranks in algebra.ranks_by_block(smaller).items()},
    )


def _metadata(file: LoraFile, new: dict[str, str]) -> dict[str, str]:
    """All that the file said of itself, with the new rank and where it came from."""
    old = {key: value for key, value in file.metadata.items() if key not in _STALE}
    fresh = ("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_output_name", "modelspec.title")
    return new | old | {key: new[key] for key in (*fresh, metadata.MADE_BY, metadata.MADE_FROM)}
