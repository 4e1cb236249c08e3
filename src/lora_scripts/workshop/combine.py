"""`lora-scripts combine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError, raise_all
from lora_scripts.loras import file as loras
from lora_scripts.loras.file import LoraFile, Source
from lora_scripts.workshop.common import (
    Faults,
    Weighted,
    check_output,
    counting,
    dtype_name,
    dtype_of,
    file_lines,
    file_rows,
    has_conv,
    one_family,
    read_all,
    show,
    table,
)

if TYPE_CHECKING:
    import torch

    from lora_scripts.adapters.algebra.combine import Combined, Method
    from lora_scripts.adapters.algebra.overlap import Overlap, Pair
    from lora_scripts.adapters.weights import LoraWeights


@dataclass(frozen=True)
class CombineOptions:
    """What `lora-scripts combine` was asked for."""

    loras: tuple[Weighted, ...]
    output: Path | None
    """None: only the report."""
    method: str = "concat"
    rank: int | None = None
    energy: float | None = None
    density: float | None = None
    seed: int | None = None
    precision: str = "auto"
    overwrite: bool = False
    json: bool = False


def combine_files(options: CombineOptions) -> None:
    """Tells how the LoRAs get on with each other, then writes them as one. UserError for a person's mistake."""
    paths, faults = [lora.path for lora in options.loras], Faults()
    _check_options(options, faults)
    one_family(paths, faults)
    if options.output is not None:
        output = options.output
        faults.attempt(lambda: check_output(output, paths, overwrite=options.overwrite))
    raise_all(faults.errors)

    files = read_all(paths)
    from lora_scripts.adapters.algebra import combine, overlap

    method = combine.Method(
        options.method,
        options.rank,
        options.energy,
        density=0.5 if options.density is None else options.density,
        seed=1 if options.seed is None else options.seed,
    )
    weights, strengths = [file.weights for file in files], [lora.weight for lora in options.loras]
    combine.check(weights, [str(path) for path in paths], method)
    measured = overlap.measure(weights, strengths)
    values, lines = report(options.loras, files, measured)
    if not options.json:
        print("\n".join(lines), flush=True)
    if options.output is not None:
        more, lines = _write(options, options.output, files, method, measured.together)
        values |= more
        if not options.json:
            print("\n".join(["", *lines]))
    if options.json:
        show(True, values, [])


def report(
    asked: Sequence[Weighted], files: Sequence[LoraFile], measured: Overlap
) -> tuple[dict[str, object], list[str]]:
    """(for machines, for people) how the files overlap, block by block, and which weights to try."""
    names = [lora.words for lora in asked]
    rows = [
        [name, str(file.rank), str(len(file.weights)), f"{norm:.3g}"]
        for name, file, norm in zip(names, files, measured.norms, strict=True)
    ]
    lines = table(("file x weight", "rank", "modules", "|ΔW|"), rows)
    lines.append(f"together |ΔW| {measured.together:.3g}")
    for whole in measured.whole:
        of_pair = [p for p in measured.pairs if (p.a, p.b) == (whole.a, whole.b)]
        lines += ["", f"{names[whole.a]}  and  {names[whole.b]}:"]
        head = ("block", "cosine", "overlap", "|ΔW| first", "second", "")
        lines += table(head, [_cells(p) for p in [*of_pair, whole]])
    lines += ["", *_fights(names, measured)]
    lines.append(_suggestion(asked, measured))
    values: dict[str, object] = {
        "files": [
            {"file": str(a.path), "weight": a.weight, "sha256": f.sha256, "rank": f.rank, "norm": n, "suggested": s}
            for a, f, n, s in zip(asked, files, measured.norms, measured.suggested, strict=True)
        ],
        "together": measured.together,
        "pairs": [_as_dict(p) for p in [*measured.whole, *measured.pairs]],
    }
    return values, lines


def _fights(names: Sequence[str], measured: Overlap) -> list[str]:
    """A line for every two files that fight, with their blocks."""
    lines = []
    for whole in measured.whole:
        blocks = [p.block for p in measured.pairs if (p.a, p.b, p.verdict) == (whole.a, whole.b, "fights")]
        if blocks:
            lines.append(
                f"fights: {names[whole.a]} and {names[whole.b]} in {', '.join(blocks)}: there one takes back what the "
                "other does; leave one out, or try --method ties"
            )
    return lines or ["no block fights"]


def _suggestion(asked: Sequence[Weighted], measured: Overlap) -> str:
    new = [round(s, 2) for s in measured.suggested]
    if all(abs(s - a.weight) < 0.02 for s, a in zip(new, asked, strict=True)):
        return "suggested weights: as given (no two of them pull the same way)"
    told = ", ".join(f"{a.path.name}:{s:g}" for a, s in zip(asked, new, strict=True))
    return f"suggested weights, at which each comes out as strong as it would alone: {told}"


def _cells(p: Pair) -> list[str]:
    cosine = round(p.cosine, 2) + 0.0  # no -0.00
    return [p.block, f"{cosine:.2f}", f"{p.overlap:.2f}", f"{p.norms[0]:.3g}", f"{p.norms[1]:.3g}", p.verdict]


def _as_dict(p: Pair) -> dict[str, object]:
    return {
        "a": p.a, "b": p.b, "block": p.block, "cosine": p.cosine, "overlap": p.overlap, "norms": list(p.norms),
        "modules": p.modules, "verdict": p.verdict or None,
    }  # fmt: skip


def _check_options(options: CombineOptions, faults: Faults) -> None:
    """An option that would do nothing is a mistake."""
    of = {
        "--rank": (options.rank, ("svd", "ties", "dare")),
        "--energy": (options.energy, ("svd", "ties", "dare")),
        "--density": (options.density, ("ties", "dare")),
        "--seed": (options.seed, ("dare",)),
    }
    for name, (value, methods) in of.items():
        if value is not None and options.method not in methods:
            text = f"{name} does nothing with --method {options.method}"
            faults.errors.append(UserError(text, hint=f"it goes with {', '.join(methods)}"))
    for lora in options.loras:
        if lora.weight == 0:
            faults.errors.append(UserError(f"{lora.path}: weight 0 adds nothing", hint="leave the file out"))
    if len(options.loras) < 2:
        faults.errors.append(
            UserError("combine needs two LoRAs or more", hint="for one, see lora-scripts resize --help")
        )


def _write(
    options: CombineOptions, output: Path, files: Sequence[LoraFile], method: Method, together: float
) -> tuple[dict[str, object], list[str]]:
    """Combines and writes; (for machines, for people) what became of it."""
    from lora_scripts.adapters.algebra import combine
    from lora_scripts.adapters.weights import uniform

    strengths = [lora.weight for lora in options.loras]
    weights = [file.weights for file in files]
    made = combine.combine(weights, strengths, method, told=counting("combined"))
    padded = uniform(made.weights)
    dtype = dtype_of(options.precision, files)
    exact = _holds(padded, dtype)
    if options.precision == "auto" and method.name == "concat" and not exact:
        dtype = dtype_of("fp32")
    one = next(iter(padded.values()))
    sources = [Source(f.name, f.sha256, a.weight) for f, a in zip(files, options.loras, strict=True)]
    values = loras.new_metadata(
        files[0].family,
        output.stem,
        rank=one.rank,
        alpha=one.alpha,
        conv=has_conv(padded),
        made_by=_words(method),
        sources=sources,
    )
    file, off = loras.write(output, files[0].family, padded, dtype, values | loras.shared_metadata(files))
    rows = file_rows(file, off)
    told = {"method": method.name, **rows}
    lines = file_lines(rows)
    if method.name not in ("concat", "linear"):
        path, worst = made.worst
        told |= {"energy_kept": made.share, "worst_module": path, "worst_energy_kept": worst}
        lines.append(f"energy kept: {made.share:.2%} in all; least {worst:.2%}, in {path}")
    if method.name == "linear":
        told["off_the_sum"] = wrong = _off_the_sum(weights, strengths, made, together)
        lines.append(
            f"note: linear adds the matrices, not the changes; this differs from the sum of the LoRAs by {wrong:.0%} "
            "of that sum. concat and svd keep the sum"
        )
    if method.name == "concat" and options.precision == "auto" and not exact:
        lines.append(
            f"in {dtype_name(dtype)}, so that the sum is exact; --precision fp16 halves the file and rounds it"
        )
    return told, lines


def _words(method: Method) -> str:
    """The method with the numbers that counted."""
    numbers: dict[str, object] = {"rank": method.rank, "energy": method.energy}
    if method.name in ("ties", "dare"):
        numbers["density"] = method.density
    if method.name == "dare":
        numbers["seed"] = method.seed
    return " ".join(["combine", method.name, *(f"{k}={v}" for k, v in numbers.items() if v is not None)])


def _holds(weights: dict[str, LoraWeights], dtype: torch.dtype) -> bool:
    """Whether the type holds every value as it is."""
    return all(bool((t.to(dtype).double() == t).all()) for w in weights.values() for t in (w.up, w.down))


def _off_the_sum(
    weights: Sequence[dict[str, LoraWeights]], strengths: Sequence[float], made: Combined, together: float
) -> float:
    """|what was made - Σ strength · ΔW| / |Σ strength · ΔW|."""
    from lora_scripts.adapters.algebra import factors

    total = 0.0
    for path, w in made.weights.items():
        parts = [factors.of(lora[path], s) for lora, s in zip(weights, strengths, strict=True) if path in lora]
        total += factors.distance(factors.of(w), factors.stack(parts)) ** 2
    return total**0.5 / together if together else 0.0
