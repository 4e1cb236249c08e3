"""Pictures drawn while training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lora_scripts.config.types import CountOrZero, Fault, Keys, Prompts, Size


class PreviewKeys(Keys):
    """Pictures drawn while training."""

    TITLE: ClassVar[str] = "Previews"

    sample_prompts: Prompts = ()
    """Prompts of the preview pictures. Without them, two captions of the data set."""
    sample_every: CountOrZero | None = None
    """Preview pictures every so many steps; 0: none while training. Without it, as often as save_steps."""
    sample_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Denoising steps of a preview picture."""
    sample_cfg: Annotated[float, Field(ge=0, le=100)] = 7.0
    """How closely a preview follows its prompt (classifier-free guidance)."""
    sample_negative: str = ""
    """The negative prompt of the preview pictures."""
    sample_size: Size | None = None
    """The size of the preview pictures. Without it, resolution."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        if values.get("sample_negative") and values.get("sample_cfg") == 1:
            mend = "raise sample_cfg, or leave sample_negative out"
            yield "sample_negative", "has no effect with sample_cfg: 1", mend
