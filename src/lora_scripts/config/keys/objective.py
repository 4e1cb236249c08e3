"""What is asked of the model: noise, weights, loss."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from lora_scripts.config.types import Fraction, Keys


class ObjectiveKeys(Keys):
    """What is asked of the model: noise, weights, loss."""

    TITLE: ClassVar[str] = "Objective"

    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Min-SNR loss weighting (arXiv:2303.09556); 5 is usual. Without it, every noise level counts the same."""
    noise_offset: Fraction = 0.0
    """Noise that is the same all over a picture, for darker darks and brighter lights; 0.0357 is usual."""
