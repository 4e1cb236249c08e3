"""The consumers' readings of one file, held against the change that was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.families.names import Base
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading

_RELATIVE, _ABSOLUTE = 1e-5, 1e-8
_CHUNK = 1 << 17  # numbers at a time: what is compared stays in the processor's cache


@dataclass(frozen=True)
class Verdict:
    """How one consumer took the file."""

    consumer: str
    right: int
    """Layers that it changes as was trained."""
    total: int
    """Layers that were trained, and keys that name none."""
    largest: float
    """Largest |ΔW applied - ΔW trained| of any weight that it changes."""
    relative: float
    """The same, over the largest |ΔW trained|."""
    fault: Fault | None
    """The first key that fails, and why."""
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.fault is None

    def __str__(self) -> str:
        if self.fault is None:
            said = f"{self.consumer}: {self.right} of {self.total} modules, ΔW equal ({self.largest:.0e})"
            return f"{said}; {self.note}" if self.note else said
        key = f"{self.fault.key}: " if self.fault.key else ""
        return f"{self.consumer}: {self.right} of {self.total} modules; {key}{self.fault.why}"


def judge(
    expected: Mapping[str, Delta],
    readings: Mapping[str, Reading],
    base: Base,
    keys: Sequence[str],
    own: Sequence[Fault],
) -> list[Verdict]:
    """A verdict for each consumer, in the order of `readings`.

    `expected` is what was trained, `keys` are the file's, `own` is what is wrong with the file itself.
    """
    sizes, differences = _differences(expected, readings)
    size, names = max(sizes.values(), default=0.0), _Names(base, keys)
    return [
        _verdict(name, reading, expected, differences[name], size, own, names) for name, reading in readings.items()
    ]


def _verdict(
    consumer: str,
    reading: Reading,
    wanted: Mapping[str, Delta],
    differences: Mapping[str, Fault | float],
    size: float,
    own: Sequence[Fault],
    names: _Names,
) -> Verdict:
    wrong = {path: found for path, found in differences.items() if isinstance(found, Fault)}
    right = [path for path in wanted if path in reading.changes and path not in wrong]
    faults = [*reading.faults, *own]
    faults += [Fault(names.of(path), found.why) for path, found in wrong.items()]
    faults += [Fault(names.of(p), "this layer is not changed") for p in wanted if p not in reading.changes]
    faults += [Fault(names.of(p), "changes a layer that was not trained") for p in reading.changes if p not in wanted]
    fault = faults[0] if faults else None
    if fault is not None and not fault.key and own:  # a library does not always say which key it stopped at
        fault = Fault(own[0].key, fault.why)
    strangers = {stranger.key.partition(".")[0] for stranger in own}
    strangers -= {names.of(path).partition(".")[0] for path in wanted} if strangers else set()
    largest = max((found for found in differences.values() if isinstance(found, float)), default=0.0)
    relative = largest / size if size else 0.0
    return Verdict(consumer, len(right), len(wanted) + len(strangers), largest, relative, fault, reading.note)


def _differences(
    wanted: Mapping[str, Delta], readings: Mapping[str, Reading]
) -> tuple[dict[str, float], dict[str, dict[str, Fault | float]]]:
    """(path -> largest |ΔW|, consumer -> path -> largest |difference|, or the fault that it is), layer by layer, so
    that memory stays small.
    """
    rows: dict[str, dict[str, Fault | float]] = {consumer: {} for consumer in readings}
    sizes = {path: 0.0 for path in wanted}
    lost = {path: _rounding(want) for path, want in wanted.items()}
    for path, want in wanted.items():
        distinct: list[Delta] = []  # most consumers take the same numbers
        places: dict[str, int] = {}
        for consumer, reading in readings.items():
            got = reading.changes.get(path)
            if got is None:
                continue
            other = _other_kind(got, want)
            if other is not None:
                rows[consumer][path] = Fault("", other)
                continue
            known = next((n for n, change in enumerate(distinct) if change.same(got)), len(distinct))
            distinct += [got] if known == len(distinct) else []
            places[consumer] = known
        sizes[path], found = _apart(want, distinct)
        for consumer, place in places.items():
            rows[consumer][path] = found[place]
    largest = max((size for size in sizes.values() if math.isfinite(size)), default=0.0)
    for differences in rows.values():
        for path, value in differences.items():
            # Of each module's own size: early in a training all of the changes are small.
            allowed = _RELATIVE * sizes[path] + _ABSOLUTE * largest + lost[path]
            if isinstance(value, float) and not (math.isfinite(sizes[path]) and value <= allowed):
                text = f"ΔW is another one than was trained (off by {value:.1e} of {sizes[path]:.1e})"
                differences[path] = Fault("", text)
    return sizes, rows


def _other_kind(got: Delta, want: Delta) -> str | None:
    """Why the two cannot be the same change, whatever their numbers."""
    if isinstance(got.change, LoraWeights) != isinstance(want.change, LoraWeights):
        return "this is another kind of change than was trained"
    if (got.dora is None) != (want.dora is None):
        text = "dora_scale is left out" if want.dora is not None else "a DoRA is made of a plain LoRA"
        return f"{text}: the change is another one"
    if got.dora is not None and want.dora is not None and not torch.equal(got.dora.float(), want.dora.float()):
        return "the lengths of its DoRA are other ones"
    return None


def _rounding(delta: Delta) -> float:
    """What float32 may lose in up @ down: matters where large products nearly cancel; and of an OFT in R, whose numbers
    are about 1 however little R - I is, and for which a system of equations is solved."""
    w = delta.change
    if not isinstance(w, LoraWeights):
        return 2**-18 if "oft_blocks" in w else 0.0
    up, down = w.up.double().flatten(1), w.down.double().flatten(1)
    lost = 2**-21 * abs(w.alpha / w.rank) * up.norm(dim=1).max().item() * down.norm(dim=0).max().item()
    return lost if math.isfinite(lost) else 0.0


def _apart(want: Delta, readings: Sequence[Delta]) -> tuple[float, list[float]]:
    """(largest |ΔW| of what was trained, largest |difference| of each reading), a few rows of ΔW at a time.

    Infinite where the shapes differ or a reading has a number that is none.
    """
    (out, inner), exact = want.exact_rows()
    given = [reading.rows() for reading in readings]
    fits = [shape == (out, inner) for shape, _ in given]
    size, most = torch.zeros((), dtype=torch.float64), [torch.zeros((), dtype=torch.float64) for _ in given]
    step = max(1, _CHUNK // max(1, inner))
    for first in range(0, out if inner else 0, step):
        rows = slice(first, first + step)
        some = exact(rows)
        size = torch.maximum(size, _largest(some))
        for n, (_, rows_of) in enumerate(given):
            if fits[n]:
                most[n] = torch.maximum(most[n], _largest(rows_of(rows).double() - some))
    far = [value.item() if fit else math.inf for value, fit in zip(most, fits, strict=True)]
    return size.item(), [value if value == value else math.inf for value in far]


def _largest(values: Tensor) -> Tensor:
    """Largest |value|; NaN where there is one."""
    least, most = values.aminmax()
    return torch.maximum(least.abs(), most.abs())


class _Names:
    """A key of the file for one of our paths, to show to a person."""

    def __init__(self, base: Base, keys: Sequence[str]) -> None:
        self.layers = {layer.path: layer for layer in base.layers}
        self.keys = keys

    def of(self, path: str) -> str:
        layer = self.layers.get(path)
        forms = [path] if layer is None else [layer.hf_flat, layer.ldm_flat, layer.hf, path.partition(".")[2]]
        return next((key for form in forms for key in self.keys if form + "." in key), path)
