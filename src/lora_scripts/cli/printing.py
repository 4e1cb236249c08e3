"""Lines to stdout and stderr. A pipe that nobody reads any more (`… | head -1`) ends the telling, not the work."""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

from lora_scripts.chinese.terminal import told
from lora_scripts.errors import UserError


def supply_streams() -> None:
    """Where whoever started the program closed a stream, Python has none in its place, and so has pythonw.exe, which a
    scheduled task on Windows may use: then nothing is read, and what is told goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Prints to stdout, or stderr, at once. It goes on silently where nobody reads any more. Where a file that stdout
    goes to takes no more, as on a full disk, stderr says so once: no long work ends for what it tells."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, end=end, flush=True)
    except OSError as fault:
        mute(stream)
        if not error and not is_closed_pipe(fault):
            say(told(f"note: {_unwritten(fault)}; the work goes on without being told"), error=True)


def say_whole(text: str) -> None:
    """Prints a result to stdout. UserError where it cannot be written: there is nothing else to go on with."""
    try:
        print(text, flush=True)
    except OSError as fault:
        mute(sys.stdout)
        if not is_closed_pipe(fault):
            raise UserError(_unwritten(fault), hint="send it to a disk with room") from None


def _unwritten(fault: OSError) -> str:
    return f"what stdout goes to cannot be written ({fault.strerror or fault})"


def is_closed_pipe(error: OSError) -> bool:
    """Of one that a write to stdout or stderr raised: that nobody reads it. Windows says so with another number."""
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


def mute(stream: TextIO) -> None:
    """What is written to `stream` from now on goes nowhere, also what waits in its buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
