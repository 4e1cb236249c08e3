"""Names of pictures that are written: one's own as it is given, the usual one never twice."""

from __future__ import annotations

import re
from pathlib import Path

USUAL = Path("output/generated.png")
_NUMBER = re.compile(re.escape(USUAL.stem) + r"-(\d+)", re.IGNORECASE)


def picture_path(given: Path | None, number: int, count: int) -> Path:
    """Of the picture `number` (from 0) of `count`. Without a given name the usual one, with a number behind all there
    are: asked before each is written, so that two that draw at once seldom meet."""
    if given is not None:
        return given if count == 1 else given.with_name(f"{given.stem}-{number + 1}{given.suffix}")
    if count == 1 and not USUAL.exists():
        return USUAL
    found = [_NUMBER.fullmatch(path.stem) for path in USUAL.parent.glob("*.png")]
    last = max([count == 1, *(int(name[1]) for name in found if name)])
    return USUAL.with_name(f"{USUAL.stem}-{last + 1}{USUAL.suffix}")
