"""Lines to stdout and stderr. A pipe that nobody reads any more (`… | head -1`) ends the telling, not the work."""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Prints to stdout, or stderr, at once. It goes on silently where nobody reads any more."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, end=end, flush=True)
    except OSError as fault:
        if not is_closed_pipe(fault):
            raise
        mute(stream)


def is_closed_pipe(error: OSError) -> bool:
    """Of one that a write to stdout or stderr raised: that nobody reads it. Windows says so with another number."""
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


def mute(stream: TextIO) -> None:
    """What is written to `stream` from now on goes nowhere, also what waits in its buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
