"""`lora-scripts combine`: how LoRAs get on with each other, and one LoRA of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Sink, counting, ignore
from lora_scripts.loras import metadata
from lora_scripts.loras.file import LoraFile
from lora_scripts.loras.metadata import Source
from lora_scripts.workshop.common import (
    Weighted,
    Written,
    as_written,
    check_form,
    check_output,
    check_weights,
    dtype_of,
    made_by,
    one_family,
    read_all,
    tell_words,
)

if TYPE_CHECKING:
    import torch

    from lora_scripts.adapters.algebra.combine import Combined, Method
    from lora_scripts.adapters.algebra.overlap import Overlap
    from lora_scripts.adapters.weights import LoraWeights

_METHODS_OF = {
    "rank": ("svd", "ties", "dare"),
    "energy": ("svd", "ties", "dare"),
    "density": ("ties", "dare"),
    "seed": ("dare",),
}
"""Option -> the methods that it does something with."""


@dataclass(frozen=True)
class Part:
    """One of the LoRAs."""

    file: Path
    weight: float
    sha256: str
    rank: int
    modules: int
    norm: float
    """|ΔW|, the weight counted"""
    suggested: float
    """Weight at which it comes out as strong as it would alone."""


@dataclass(frozen=True)
class Meeting:
    """Two of the LoRAs in one block, or, where that is "all", in all of them."""

    a: int
    b: int
    """Numbers of the files."""
    block: str
    cosine: float
    overlap: float
    norms: tuple[float, float]
    """|ΔW| of each in the block, weights counted"""
    modules: int
    """That both have."""
    verdict: str | None
    """ "fights" or "doubles"."""


@dataclass(frozen=True, kw_only=True)
class CombinedFile(Written):
    """The LoRAs as one file."""

    method: str
    energy_kept: float | None
    """Share of |ΔW|² that the method wanted; None of concat and linear, which keep all that they want."""
    worst_module: str | None
    worst_energy_kept: float | None
    off_the_sum: float | None
    """Of linear: |file - Σ weight · ΔW| / |Σ weight · ΔW|"""
    widened: bool
    """That it has a wider type than its parts, so that the sum is exact."""


@dataclass(frozen=True)
class Combination:
    """How the LoRAs get on with each other, and what was made of them."""

    files: tuple[Part, ...]
    together: float
    """|Σ weight · ΔW|"""
    pairs: tuple[Meeting, ...]
    """Of every two files in all blocks together, then of each block."""
    written: CombinedFile | None
    """None where only the report was asked for."""


def combine(
    loras: Sequence[Weighted],
    output: Path | None,
    *,
    method: str = "concat",
    rank: int | None = None,
    energy: float | None = None,
    density: float | None = None,
    seed: int | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    sink: Sink = ignore,
) -> Combination:
    """Measures how the LoRAs get on with each other, then writes them as one, unless `output` is None. `density` is 0.5
    and `seed` 1 where they count and are None. UserErrors for a person's mistakes, before anything is written."""
    paths, faults = [lora.path for lora in loras], Faults()
    _check(loras, method, {"rank": rank, "energy": energy, "density": density, "seed": seed}, faults)
    family = one_family(paths, faults)
    if output is not None:
        faults.attempt(lambda: check_output(output, paths, overwrite=overwrite))
        if family is not None:
            faults.attempt(lambda: check_form(output, family))
    raise_all({str(fault): fault for fault in faults}.values())  # a file that is given twice is told once

    files = read_all(paths)
    from lora_scripts.adapters.algebra import combine as algebra
    from lora_scripts.adapters.algebra import overlap

    how = algebra.Method(
        method, rank, energy, density=0.5 if density is None else density, seed=1 if seed is None else seed
    )
    weights, strengths = [file.weights for file in files], [lora.weight for lora in loras]
    algebra.check(weights, [str(path) for path in paths], how)
    measured = overlap.measure(weights, strengths)
    written = None
    if output is not None:
        written = _write(output, files, strengths, how, precision, measured.together, sink)
        tell_words(paths, sink)
    return Combination(_parts(files, strengths, measured), measured.together, _meetings(measured), written)


def _check(loras: Sequence[Weighted], method: str, given: dict[str, object], faults: Faults) -> None:
    """An option that would do nothing is a mistake."""
    for name, value in given.items():
        methods = _METHODS_OF[name]
        if value is not None and method not in methods:
            text = f"--{name} does nothing with --method {method}"
            faults.append(UserError(text, hint=f"it goes with {', '.join(methods)}"))
    check_weights(loras, faults)
    if len(loras) < 2:
        faults.append(UserError("combine needs two LoRAs or more", hint="for one, see lora-scripts resize --help"))


def _parts(files: Sequence[LoraFile], strengths: Sequence[float], measured: Overlap) -> tuple[Part, ...]:
    return tuple(
        Part(file.path, strength, file.sha256, file.rank, len(file.weights), norm, suggested)
        for file, strength, norm, suggested in zip(files, strengths, measured.norms, measured.suggested, strict=True)
    )


def _meetings(measured: Overlap) -> tuple[Meeting, ...]:
    return tuple(
        Meeting(p.a, p.b, p.block, p.cosine, p.overlap, p.norms, p.modules, p.verdict or None)
        for p in (*measured.whole, *measured.pairs)
    )


def _write(
    output: Path,
    files: Sequence[LoraFile],
    strengths: Sequence[float],
    method: Method,
    precision: str,
    together: float,
    sink: Sink,
) -> CombinedFile:
    from lora_scripts.adapters.algebra import combine as algebra
    from lora_scripts.adapters.weights import uniform
    from lora_scripts.loras.writing import write

    weights = [file.weights for file in files]
    combined = algebra.combine(weights, strengths, method, told=counting(sink, "layers"))
    padded = uniform(combined.weights)
    dtype = dtype_of(precision, files)
    widened = precision == "auto" and method.name == "concat" and not _holds(padded, dtype)
    if widened:
        dtype = dtype_of("fp32")
    sources = [Source(file.name, file.sha256, s) for file, s in zip(files, strengths, strict=True)]
    values = metadata.of_making(files[0].family, output.stem, padded, _command(method), sources)
    values |= metadata.shared([file.metadata for file in files])
    values |= metadata.together([file.metadata for file, s in zip(files, strengths, strict=True) if s > 0])
    written, rounding = write(output, files[0].family, padded, dtype, values, files[0].path)
    cut = method.name not in ("concat", "linear")
    worst_module, worst_share = combined.worst if cut else (None, None)
    return CombinedFile(
        **as_written(written, rounding),
        method=method.name,
        energy_kept=combined.share if cut else None,
        worst_module=worst_module,
        worst_energy_kept=worst_share,
        off_the_sum=_off_the_sum(weights, strengths, combined, together) if method.name == "linear" else None,
        widened=widened,
    )


def _command(method: Method) -> str:
    """The method with the numbers that counted."""
    random = method.name == "dare"
    thinned = random or method.name == "ties"
    return made_by(
        f"combine {method.name}",
        rank=method.rank,
        energy=method.energy,
        density=method.density if thinned else None,
        seed=method.seed if random else None,
    )


def _holds(weights: dict[str, LoraWeights], dtype: torch.dtype) -> bool:
    """Whether the type holds every value as it is."""
    return all(bool((t.to(dtype).double() == t).all()) for w in weights.values() for t in (w.up, w.down))


def _off_the_sum(
    weights: Sequence[dict[str, LoraWeights]], strengths: Sequence[float], combined: Combined, together: float
) -> float:
    """|what was made - Σ strength · ΔW| / |Σ strength · ΔW|."""
    from lora_scripts.adapters.algebra import factors

    total = 0.0
    for path, w in combined.weights.items():
        parts = [factors.of(lora[path], s) for lora, s in zip(weights, strengths, strict=True) if path in lora]
        total += factors.distance(factors.of(w), factors.stack(parts)) ** 2
    return total**0.5 / together if together else 0.0
