"""Memory of this process: what there is for it, what it holds, and its highest use between two looks; in bytes.

On a graphics card or on Apple's chip it is torch's account of the device's memory, elsewhere the process's part of RAM.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GB = 2**30
"""Bytes. Memory is sold by this unit, whatever its name."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CGROUP = Path("/sys/fs/cgroup")


def used_ram() -> int:
    """What this process holds now; where the system does not tell, its highest use so far."""
    return _status("VmRSS") or peak_ram()


def peak_ram() -> int:
    """The highest use since `restart_ram`, or since the process began where that has no effect; 0 if not known."""
    # ru_maxrss counts, on Linux, the parent's memory before the program was started as well: VmHWM does not.
    found = _status("VmHWM")
    if found:
        return found
    if sys.platform == "win32":
        return _windows_peak()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def restart_ram() -> None:
    """Lets `peak_ram` begin anew (Linux; man proc_pid_clear_refs). Elsewhere a peak is that of all so far."""
    try:
        _CLEAR.write_text("5")
    except OSError:  # another system, or a container that forbids it
        return


def free_ram() -> int:
    """What a process can take before the system swaps or a container's limit ends it; 0 if not known."""
    machine = _machine_ram()
    container = _container_ram()
    return min(machine, container) if machine and container is not None else machine or container or 0


def _status(key: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def _machine_ram() -> int:
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        pass
    else:
        return int(psutil.virtual_memory().available)
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _container_ram() -> int | None:
    """By the limit of a container (cgroup v2); None where there is none. File pages that can go count as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        held = int((_CGROUP / "memory.current").read_text())
        rows = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        spare = next(int(value) for key, value in rows if key == "inactive_file")
    except (OSError, ValueError, StopIteration):
        return None
    return max(0, int(limit) - held + spare) if limit.isdigit() else None


def _windows_peak() -> int:
    try:
        import psutil
    except ImportError:
        return 0
    return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out: torch has a class for cards only."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@dataclass(frozen=True)
class Meter:
    """The memory that decides whether a run fits: the device's."""

    device: torch.device

    def limit_to(self, memory: int) -> None:
        """Lets this process take only what a card of `memory` bytes would have; only CUDA can, the rest compares."""
        if self.device.type == "cuda":
            import torch

            from lora_scripts.compute.device import numbered

            free, total = torch.cuda.mem_get_info(self.device)
            # The driver's own part of the card is not torch's: at most 1 GB, and all that is taken on an idle card.
            own = min(total - free, GB)
            share = min(1.0, max(0, memory - own) / total)
            torch.cuda.set_per_process_memory_fraction(share, numbered(self.device))

    def there(self) -> int:
        """What this process can have in all, with what it holds already; 0 if not known."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        if self.device.type == "mps":
            return torch.mps.recommended_max_memory()
        free = free_ram()
        return free + used_ram() if free else 0

    def used(self) -> int:
        """What this process holds now."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return torch.mps.current_allocated_memory() if self.device.type == "mps" else used_ram()

    def peak(self) -> int:
        """The highest use since `restart`. torch keeps none for Apple's chip: what its driver holds stands for it."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return torch.mps.driver_allocated_memory() if self.device.type == "mps" else peak_ram()

    def restart(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu":
            restart_ram()
