"""Which pictures are held out: a function of a seed and of what the pictures are, not of their names or order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from lora_scripts.data.scan import Sample
from lora_scripts.seeds import lot_of

FEWEST = 6
"""Pictures of a set from which on some are held out without being asked for: of fewer each one is missed."""
LEAST, MOST = 2, 24
"""Pictures that are held out without being asked for how many: a tenth, but `LEAST` below `FEW` and one more above."""
FEW = 12


def share_of(count: int, share: float | None) -> int:
    """How many of `count` pictures are held out: `share` of them, rounded, at least 1; by default as `FEWEST` says."""
    if share is None:
        least = LEAST if count < FEW else LEAST + 1
        return min(max(round(count / 10), least), MOST) if count >= FEWEST else 0
    return min(max(round(count * share), 1), count - 1) if share and count > 1 else 0


def lot(seed: int, digest: str) -> bytes:
    """By which pictures and records are drawn to be held out."""
    return lot_of(f"held out/{seed}/{digest}")


def hold_out(
    samples: Sequence[Sample], count: int, seed: int, copied: Collection[str] = ()
) -> tuple[list[Sample], list[Sample]]:
    """(to train, held out), each in the order of `samples`; at most `count` are held out.

    A picture that is there twice, by its digest or because its name is in `copied`, is never held out: its copy would
    be trained, and its loss would tell nothing.
    """
    times = Counter(sample.digest for sample in samples)
    alone = {s.digest for s in samples if times[s.digest] == 1 and s.name not in copied}
    drawn = sorted(alone, key=lambda digest: lot(seed, digest))
    out = set(drawn[:count])
    return [s for s in samples if s.digest not in out], [s for s in samples if s.digest in out]
