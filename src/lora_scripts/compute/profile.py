"""Where the time of a step goes, and the least that it could take on this machine.

The least is the roofline of each operation (Williams, Waterman, Patterson, "Roofline", 2009): the longest of its
arithmetic at the rate of a large matrix product, of what it reads and writes at the rate of a copy, and of one launch;
summed over the operations of a step. The three rates are measured on the spot. What a machine's caches keep between two
operations makes a step quicker than that, so it is a measure and no proof.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lora_scripts.compute.meter import ran_out

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

LIMITS = ("arithmetic", "memory", "launches")
KINDS = {
    "optimizer": ("foreach", "fused_ada", "fused_sgd"),
    "attention": ("attention",),
    "convolutions": ("conv",),
    "matrix products": ("mm", "matmul", "addmv", "linear"),
    "norms": ("_norm", "softmax"),
    "copies and casts": ("copy", "clone", "cat", "contiguous", "stack", "fill", "zero"),
}
"""Kind -> parts of the names of its operations, asked in this order; what is left works element by element."""
_FREE = {
    *("view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "as_strided"),
    *("_unsafe_view", "detach", "alias", "split", "chunk", "unbind", "_reshape_alias", "split_with_sizes", "unfold"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}
"""Operations that compute nothing."""


@dataclass(frozen=True)
class Speeds:
    """What a machine does, measured."""

    arithmetic: float
    """Operations on numbers a second, in a large matrix product of the run's precision; one multiply-add is two."""
    memory: float
    """Bytes a second, read and written, in a large copy."""
    launch: float
    """Seconds of an operation that has next to nothing to do."""


@dataclass(frozen=True)
class Profile:
    """Of one step of the optimizer."""

    seconds: float
    operations: int
    """Without those that compute nothing, such as views."""
    arithmetic: int
    """Operations on numbers in products, convolutions and attention."""
    bytes: int
    """Read and written by all operations."""
    speeds: Speeds
    least: dict[str, float]
    """Seconds by what an operation's least is decided by, one of LIMITS."""
    kinds: dict[str, float]
    """Seconds by what kind of operation they went to, the longest first."""
    waiting: float
    """Of `seconds`, those in no operation: Python, and whatever else the device waits for."""


def kind_of(name: str) -> str:
    """One of KINDS, or "element by element", for the name of an operation, such as "addmm"."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "element by element")


def speeds_of(device: torch.device, dtype: torch.dtype) -> Speeds:
    """Measures a device for less than a second: each the best of several goes."""
    if device.type == "cpu":
        return _speeds(device, dtype, 1024, 1 << 25)
    try:
        return _speeds(device, dtype, 8192, 1 << 28)
    except RuntimeError as error:
        if not ran_out(error):
            raise
    # The run itself has left little of the card: copies of 64 MiB, which is still more than most caches hold.
    return _speeds(device, dtype, 2048, 1 << 24)


def _speeds(device: torch.device, dtype: torch.dtype, side: int, numbers: int) -> Speeds:
    """By products of side x side numbers, and by copies of so many."""
    a = torch.randn(side, side, device=device).to(dtype)
    source = torch.zeros(numbers, device=device)  # float32
    target, one = torch.zeros_like(source), torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(500):
            one.add_(1)

    product, copy = _best(lambda: a @ a, device), _best(lambda: target.copy_(source), device)
    return Speeds(2 * side**3 / product, 8 * numbers / copy, _best(launches, device) / 500)


def _best(act: Callable[[], object], device: torch.device) -> float:
    """Seconds, without what only the first time takes."""
    taken = []
    for _ in range(6):
        begun = time.perf_counter()
        act()
        _finish(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def _finish(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _Counted(TorchDispatchMode):
    """Arithmetic and bytes of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (name := func.overloadpacket.__name__) not in _FREE:
            told = {(t.data_ptr(), t.nbytes): t.nbytes for t in tree_leaves((args, kwargs, out)) if _real(t)}
            self.each.append((_arithmetic(name, func.overloadpacket, args, kwargs or {}, out), sum(told.values())))
        return out


def _real(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _arithmetic(name: str, packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if name == "_scaled_dot_product_flash_attention_for_cpu":  # torch's table has those of cards only
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    if packet not in flop_registry:
        return 0
    return int(flop_registry[packet](*args, **kwargs, out_val=out))


class Watch:
    """Looks at three steps: one as it is, one counted, one timed by kind. Call `ended` after each."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """`dtype`: that of the products."""
        self.device, self.dtype = device, dtype
        self._seconds, self._steps = 0.0, 0
        self._counted = _Counted()
        self._timed = torch_profile(activities=_activities(device))
        self._within: AbstractContextManager[Any] | None = None

    @property
    def done(self) -> bool:
        return self._steps >= 3

    def ended(self, seconds: float) -> None:
        """A step that took so long is over, and the next begins with what follows."""
        _finish(self.device)
        if self._within is not None:
            self._within.__exit__(None, None, None)
            self._within = None
        self._steps += 1
        if self._steps == 1:
            self._seconds = seconds
        if not self.done:
            self._within = self._counted if self._steps == 1 else self._timed
            self._within.__enter__()

    def told(self) -> Profile:
        """After three steps; measures the machine."""
        speeds, least = speeds_of(self.device, self.dtype), dict.fromkeys(LIMITS, 0.0)
        for arithmetic, moved in self._counted.each:
            times = (arithmetic / speeds.arithmetic, moved / speeds.memory, speeds.launch)
            least[LIMITS[times.index(max(times))]] += max(times)
        by_kind = Counter[str]()
        for row in self._timed.key_averages():
            if row.key.startswith("aten::"):
                own = row.self_device_time_total if self.device.type == "cuda" else row.self_cpu_time_total
                by_kind[kind_of(row.key.removeprefix("aten::"))] += own / 1e6  # microseconds
        within = sum(by_kind.values())
        scale = min(1.0, self._seconds / within) if within else 0.0  # watching makes a step longer
        return Profile(
            self._seconds,
            len(self._counted.each),
            sum(arithmetic for arithmetic, _ in self._counted.each),
            sum(moved for _, moved in self._counted.each),
            speeds,
            least,
            {kind: scale * seconds for kind, seconds in by_kind.most_common()},
            self._seconds - scale * within,
        )


def _activities(device: torch.device) -> list[ProfilerActivity]:
    card = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    return [ProfilerActivity.CPU, *card]
