"""Where a demo writes, and how it goes on after a stop."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

PICTURES, WORDS = Path("output/demo"), Path("output/demo-words")
"""Where the demo of each writes if nothing else is said."""
AGAIN = "the same command"
"""How a demo that was stopped goes on: it knows by itself what it has done."""


def config_text(name: str, usual: Path, output: Path) -> str:
    """A config of the package, its paths in `usual` moved to `output`."""
    text = resources.files("lora_scripts.demo").joinpath("assets", name).read_text(encoding="utf-8")
    written = re.compile(rf'"\./{re.escape(usual.as_posix())}(/[^"]*)?"')
    place = output.as_posix() if output.is_absolute() else f"./{output.as_posix()}"
    return written.sub(lambda found: json.dumps(place + (found[1] or ""), ensure_ascii=False), text)


def is_begun(run: Path) -> bool:
    """Whether there is a state to go on from."""
    return any((run / "state").glob("step-*"))
