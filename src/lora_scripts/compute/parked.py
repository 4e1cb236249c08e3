"""Weights that nobody needs for a while, in a file instead of RAM."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_scripts.compute.meter import page_out

_LINE = 64
"""Bytes: tensors begin at such addresses, as torch's own do. Products may round otherwise at others."""


def park(model: nn.Module, folder: Path) -> bool:
    """Moves the parameters of a frozen model on the CPU into a mapped file without a name; False where that cannot be.

    Nothing else changes: what is used is read from the file, and the system takes it back when it needs the room. The
    file goes with the process, however that ends.
    """
    if not hasattr(os, "posix_fallocate"):  # Linux and its like; without it a full disk would end the process
        return False
    own = {id(p): p for p in model.parameters() if p.device.type == "cpu" and not p.requires_grad}
    sizes = [-(-p.nbytes // _LINE) * _LINE for p in own.values()]
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, sum(sizes))
            storage: Any = torch.UntypedStorage.from_file(f"/proc/self/fd/{file.fileno()}", True, sum(sizes))
    except (OSError, RuntimeError):  # no room on the disk: then it stays in RAM
        return False
    at = 0
    for p, size in zip(own.values(), sizes, strict=True):
        place = torch.empty(0, dtype=p.dtype).set_(storage, at // p.element_size(), p.shape, p.stride())
        place.copy_(p.detach())
        p.data = place
        at += size
    page_out(storage.data_ptr(), storage.nbytes())
    return True
