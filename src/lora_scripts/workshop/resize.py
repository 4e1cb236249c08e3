"""`lora-scripts resize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_scripts.errors import UserError, raise_all
from lora_scripts.loras import file as loras
from lora_scripts.loras.file import LoraFile, Source
from lora_scripts.workshop.common import (
    Faults,
    check_output,
    counting,
    dtype_of,
    file_lines,
    file_rows,
    has_conv,
    one_family,
    read_all,
    show,
    table,
)

# Of the old file and no longer true, or (the last) what diffusers' loader stumbles over in a kohya file.
_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata")


@dataclass(frozen=True)
class ResizeOptions:
    """What `lora-scripts resize` was asked for."""

    lora: Path
    output: Path
    rank: int | None = None
    energy: float | None = None
    precision: str = "auto"
    overwrite: bool = False
    json: bool = False


def resize_file(options: ResizeOptions) -> None:
    """Writes a LoRA at another rank and tells what was kept. UserError for a person's mistake."""
    faults = Faults()
    if options.rank is None and options.energy is None:
        faults.errors.append(UserError("resize to what?", hint="give --rank 8, or --energy 0.95, or both"))
    one_family([options.lora], faults)
    faults.attempt(lambda: check_output(options.output, [options.lora], overwrite=options.overwrite))
    raise_all(faults.errors)

    (file,) = read_all([options.lora])
    from lora_scripts.adapters.algebra import resize
    from lora_scripts.adapters.weights import uniform

    made = resize.resize(file.weights, rank=options.rank, energy=options.energy, told=counting("resized"))
    padded = uniform(made.weights)
    one = next(iter(padded.values()))
    values = _metadata(file, options, one.rank, one.alpha, has_conv(padded))
    written, off = loras.write(options.output, file.family, padded, dtype_of(options.precision, [file]), values)
    blocks = resize.ranks_by_block(made)
    path, worst = made.worst
    rows = file_rows(written, off)
    told = {
        **rows,
        "rank_before": file.rank,
        "energy_kept": made.share,
        "worst_module": path,
        "worst_energy_kept": worst,
        "blocks": {block: {"least": r[0], "mean": r[1], "most": r[2]} for block, r in blocks.items()},
    }
    cells = [[block, str(r[0]), f"{r[1]:.1f}", str(r[2])] for block, r in blocks.items()]
    lines = table(("rank kept", "least", "mean", "most"), cells)
    lines.append(f"energy kept: {made.share:.2%} in all; least {worst:.2%}, in {path}")
    lines.append(f"rank {file.rank} before, {one.rank} now: every module has the largest, padded with zeros")
    if options.rank is not None and options.rank > file.rank:
        lines.append(f"note: rank {file.rank} already held all of it; a larger rank adds nothing")
    show(options.json, told, [*lines, *file_lines(rows)])


def _metadata(file: LoraFile, options: ResizeOptions, rank: int, alpha: float, conv: bool) -> dict[str, str]:
    """All that the file said of itself, with the new rank and where it came from."""
    words = ["resize", *(f"{k}={v}" for k, v in (("rank", options.rank), ("energy", options.energy)) if v is not None)]
    new = loras.new_metadata(
        file.family,
        options.output.stem,
        rank=rank,
        alpha=alpha,
        conv=conv,
        made_by=" ".join(words),
        sources=[Source(file.name, file.sha256)],
    )
    kept = {key: value for key, value in file.metadata.items() if key not in _STALE}
    fresh = ("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_output_name", "modelspec.title")
    return new | kept | {key: new[key] for key in (*fresh, loras.MADE_BY, loras.MADE_FROM)}
