"""The proof at the end of a training: the file on the disk, as each program reads it, does what was trained.

What was trained is given as it stood in memory, float32 and not rounded. Two things are told apart: how far the
programs' readings are from what the file means (they should not be), and how far what the file means is from what was
trained (the rounding to the file's precision).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.lycoris import kind_of
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError, raise_all
from lora_scripts.loras.consumers import CONSUMERS
from lora_scripts.loras.consumers.compare import Verdict
from lora_scripts.loras.consumers.rules import Delta
from lora_scripts.loras.embedding import bundled
from lora_scripts.loras.file import open_lora
from lora_scripts.loras.reading import Change
from lora_scripts.loras.verify import Skeleton, check, expected_by
from lora_scripts.units import percent

BOUNDS = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 1e-2}
"""Of |rounding| / |ΔW| of the whole file, by its precision."""
_MODULE = 10
"""How many times that a single module may lose, if it is no trifle."""
_TRIFLE = 1e-3
"""Of the largest module's |ΔW|."""
UNREAD_BY = {
    "dora": ("diffusers", "PEFT", "additional-networks", "kohya"),
    "loha": ("diffusers", "PEFT", "additional-networks", "kohya"),
    "lokr": ("diffusers", "PEFT", "additional-networks", "kohya"),
    "oft": ("diffusers", "PEFT", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"),
    "words": ("diffusers", "additional-networks"),
    "outer": ("InvokeAI", "additional-networks", "kohya"),
    "unasked": ("ComfyUI",),
}
"""What a file may hold -> the programs that leave it out or refuse the file: they are not asked. "outer": layers of
`Names.untrained`, from an earlier LoRA; InvokeAI leaves out published names of them. "unasked": of `Names.unasked`."""


@dataclass(frozen=True)
class Proof:
    """That a file is what was trained."""

    modules: int
    consumers: tuple[str, ...]
    """That read it right."""
    reading: float
    """Largest |ΔW applied - ΔW of the file| in any program, over the largest |ΔW|."""
    rounding: float
    """|ΔW of the file - ΔW trained| / |ΔW trained|, Frobenius norms over all modules."""
    precision: str
    unread_by: dict[str, tuple[str, ...]]
    """What is in the file -> the programs that do not read it."""

    def __str__(self) -> str:
        names, count = ", ".join(self.consumers), f"{self.modules} of {self.modules}"
        lost = f"{percent(self.rounding, 2)} of it lost in" if self.rounding else "no bit of it lost in"
        return f"verified: {count} modules in {names}; ΔW read to {self.reading:.0e}, {lost} {self.precision}"


def prove(
    path: Path, base: Path, trained: Mapping[str, Change], precision: str, consumers: Sequence[str] = CONSUMERS
) -> Proof:
    """Reads the file again and asks every program that knows its kind.

    `trained`: our module path -> the change, float32. UserErrors, naming program and key, or module and figure, where
    the file is not what was trained.
    """
    skeleton = Skeleton.of(base)
    source = open_lora(path, skeleton.facts)
    held = _kinds(trained) | ({"words"} if bundled(source.tensors) else set())
    tables = skeleton.facts.names()
    held |= {"outer"} if tables.untrained.keys() & trained.keys() else set()
    held |= {"unasked"} if tables.unasked & trained.keys() else set()
    unread = {kind: names for kind, names in UNREAD_BY.items() if kind in held}
    asked = [name for name in consumers if not any(name in names for names in unread.values())]
    meant, faults = expected_by(source, skeleton)
    errors = [UserError(f"does not load as trained: {f.key}: {f.why}", file=path) for f in faults]
    verdicts = check(source, skeleton, meant, asked)
    errors += [UserError(f"does not load as trained: {verdict}", file=path) for verdict in verdicts if not verdict.ok]
    odd = [f"{name} is not in it" for name in trained if name not in meant]
    odd += [f"{name} was not trained" for name in meant if name not in trained]
    errors += [UserError(f"does not load as trained: {text}", file=path) for text in odd]
    raise_all(errors[:10])
    rounding, worst = _rounding(trained, meant)
    _require(path, rounding, worst, precision)
    return Proof(len(trained), tuple(v.consumer for v in verdicts), _reading(verdicts), rounding, precision, unread)


def _kinds(trained: Mapping[str, Change]) -> set[str]:
    """What is in the file besides plain LoRA, in the words of UNREAD_BY."""
    kinds = set()
    for change in trained.values():
        if not isinstance(change, LoraWeights):
            kinds.add(kind_of(change))
        elif change.dora is not None:
            kinds.add("dora")
    return kinds


def _reading(verdicts: Sequence[Verdict]) -> float:
    return max((verdict.relative for verdict in verdicts), default=0.0)


def _rounding(trained: Mapping[str, Change], meant: Mapping[str, Delta]) -> tuple[float, tuple[float, str]]:
    """(of all modules together, the largest share of a module that is no trifle and which it is)."""
    sizes, losses = {}, {}
    for name, change in trained.items():
        sizes[name], losses[name] = _loss(change, meant[name].change)
    whole, largest = math.hypot(*sizes.values()), max(sizes.values())
    shares = [(losses[name] / size, name) for name, size in sizes.items() if size > _TRIFLE * largest]
    return math.hypot(*losses.values()) / whole if whole else 0.0, max(shares, default=(0.0, ""))


def _loss(trained: Change, meant: Change) -> tuple[float, float]:
    """(|ΔW trained|, |ΔW of the file - ΔW trained|); infinite where the lengths of a DoRA are others."""
    if isinstance(trained, LoraWeights) and isinstance(meant, LoraWeights):
        own, other = factors.of(trained), factors.of(meant)
        if trained.dora is not None and not (meant.dora is not None and torch.equal(trained.dora, meant.dora.float())):
            return factors.norm(own), math.inf
        return factors.norm(own), 0.0 if Delta(trained).same(Delta(meant)) else factors.distance(own, other)
    exact = Delta(trained).exact()
    return exact.norm().item(), (Delta(meant).exact() - exact).norm().item()


def _require(path: Path, rounding: float, worst: tuple[float, str], precision: str) -> None:
    """UserError where the file's numbers hold less of what was trained than its precision should."""
    share, name = worst
    bound = BOUNDS[precision]
    if rounding <= bound and share <= _MODULE * bound:
        return
    what, lost = ("the file", rounding) if not rounding <= bound else (name, share)
    most = f"{precision} loses {percent(bound, 1)} at most"
    text = f"{what} is off by {percent(lost, 1)} of the ΔW that was trained, where {most}"
    hint = "its weights are too small or too large for that precision; go on with --resume save_precision=fp32"
    raise UserError(text, file=path, hint=hint if precision != "fp32" else "check the disk, and write it again")
