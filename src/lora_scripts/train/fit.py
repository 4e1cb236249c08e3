"""Which training pictures a LoRA does not fit, by losses. Pure.

Every picture is measured at the same noise, with the base and after the training; the others of its set are what one is
compared with. The test asks for an outlier by robust deviations (Iglewicz & Hoaglin 1993) and for a size that matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_scripts.train.advise import Advice
from lora_scripts.units import listed, percent

LEAST = 10
"""Pictures of a set in which outliers are looked for."""
GAIN = 0.15
"""Log of the loss: what half of the pictures must have gained before single ones can be said not to fit."""
STRAY = 3.0
"""Deviations by which a stray gained less than the others."""
LEFT = 2.5
"""And by which its loss is above theirs in the end: a picture that the base knew gains little and is no stray."""
MISSED = 0.3
"""And the share of the others' gain that it missed."""
SPREAD = 0.05
"""The least deviation that counts as one."""
SHARE = 0.3
"""Of a set: more outliers are none."""
NAMED = 8

Losses = NDArray[np.float64]


def strays(step: int, names: Sequence[str], before: Losses, after: Losses) -> Advice | None:
    """Pictures that gained far less than the others and stand out in the end; losses [pictures, noise levels]."""
    gained = np.log(after / before).mean(1)
    middle = float(np.median(gained))
    missed = (gained - middle) / abs(middle) if middle else gained * 0
    left = deviations(np.log(after).mean(1), SPREAD)
    bad = (deviations(gained, SPREAD) > STRAY) & (left > LEFT) & (missed > MISSED)
    found = [name for name, out in zip(names, bad, strict=True) if out]
    if len(names) < LEAST or middle > -GAIN or not found or len(found) > SHARE * len(names):
        return None
    share = percent(float(missed[bad].mean()))
    message = (
        f"{listed(found, NAMED)} did not fit: the loss of the others fell by {percent(1 - float(np.exp(middle)))}, "
        f"and they missed {share} of it, so look whether they belong to this set"
    )
    return Advice("never_fit", step, message, "a train_data_dir without them", tuple(found))


def deviations(values: Losses, least: float) -> Losses:
    """How many robust deviations each lies above the median."""
    apart = values - np.median(values)
    return apart / max(1.4826 * float(np.median(np.abs(apart))), least)
