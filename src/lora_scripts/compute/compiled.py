"""Blocks of a model as one compiled function each: what works element by element becomes one kernel, and the compiler
decides what is kept for the backward pass."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from lora_scripts.errors import UserError

BACKEND = "inductor"
SHAPES = 256
"""Variants that one block may be compiled in: each size of pictures and each width of a level is one. torch's own
limit is 8, beyond which it goes on uncompiled, and a warning is all that tells."""


def check_compiler(device: torch.device) -> None:
    """UserError where nothing can be compiled on a device."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            package = "triton-windows" if sys.platform == "win32" else "triton"
            raise UserError("compile needs the package triton", hint=f"install it: pip install {package}")
        if torch.cuda.get_device_capability(device) < (7, 0):
            raise UserError("compile needs a card of compute capability 7.0 or more", hint="leave compile out")
    elif device.type == "cpu":
        if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("cl") is None:
            raise UserError("compile needs a C++ compiler on a CPU", hint="install one, such as g++, or leave it out")
    else:
        raise UserError(f"compile has no effect on {device.type}", hint="leave compile out")


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """Within it a block that the compiler fails at is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"a block of the base could not be compiled: {first}", hint="leave compile out") from error


def compile_blocks(blocks: Sequence[nn.Module], kept: Path | None = None) -> None:
    """From now on a pass with gradients runs each of the blocks compiled, when it first meets a shape. Without
    gradients all is as before: previews and measurements have other shapes, and strengths of their own.

    `kept`: a folder for what was compiled, so that the next start finds it; else it lies where torch has it, and is
    lost with the system's temporary files.
    """
    if kept is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept.absolute()))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 4 * SHAPES)
    for block in blocks:
        block.__dict__["compiled"] = None
        block.forward = MethodType(forward_of, block)


def forward_of(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the block gives: compiled, if it shall be and gradients are on."""
    if "compiled" in block.__dict__ and torch.is_grad_enabled():
        return (block.__dict__["compiled"] or _compiled(block))(*args, **kwargs)
    return type(block).forward(block, *args, **kwargs)


def _compiled(block: nn.Module) -> Callable[..., Any]:
    """When it is first asked, for its class may have been changed until then."""
    own = MethodType(type(block).forward, block)
    # fullgraph: whatever cannot be compiled is an error, and no silent way round
    made: Callable[..., Any] = torch.compile(own, backend=BACKEND, dynamic=False, fullgraph=True)
    block.__dict__["compiled"] = made
    return made
