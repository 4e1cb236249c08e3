"""Pictures drawn while training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import Count, CountOrZero, Fault, Keys, Prompts, Size


class PreviewKeys(Keys):
    """Pictures drawn while training."""

    TITLE: ClassVar[str] = "Previews"
    NEEDS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("sample_steps", "sample_cfg", "sample_size", "report"), "pictures"),
        "sample_negative": "negative",
    }

    sample_prompts: Prompts = ()
    """Prompts of the preview pictures, or a .txt file of them, one a line; each may end in --n negative --w width
    --h height --d seed --l cfg --s steps --ref picture (a reference, of a model that edits). Without them, two captions
    of the data set."""
    sample_every: CountOrZero | None = None
    """Preview pictures every so many steps; 0: none while training. Without it, as often as save_steps, and less often
    in a short run, whose time they would take."""
    sample_every_epochs: Count | None = None
    """Preview pictures every so many epochs, in place of sample_every."""
    sample_first: bool = False
    """Preview pictures before the first step, too: what the base model makes of the prompts."""
    sample_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps of a preview picture. Without it, as many as the base is usually drawn in (docs/generate.md)."""
    sample_cfg: Annotated[float, Field(ge=0, le=100)] | None = None
    """How closely a preview follows its prompt (classifier-free guidance, or what a distilled model is told of it).
    Without it, as the base is usually drawn."""
    sample_negative: str | None = None
    """The negative prompt of the preview pictures. Without it, the base's usual one, if it has any."""
    sample_size: Size | None = None
    """The size of the preview pictures. Without it, resolution."""
    report: Literal["auto", "full", "short", "one"] = "auto"
    """What the page in the end draws. short: the previews without the LoRA and with it, and no more: no strengths
    compared, no search for copies, no look at what else the LoRA changes. one: the first of them alone. auto: full
    where all that a run does besides training then takes at most 15 % of its time, else short, or one where no
    sample_prompts are given."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        if values.get("sample_negative") and values.get("sample_cfg") == 1:
            mend = "raise sample_cfg, or leave sample_negative out"
            yield "sample_negative", "has no effect with sample_cfg: 1", mend
        if values.get("sample_every") is not None and values.get("sample_every_epochs") is not None:
            yield "sample_every_epochs", "says again what sample_every says", "leave one of them out"
