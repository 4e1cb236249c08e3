"""What is seen of the pictures and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import Count, Fault, Fraction, Keys, Size, no_effect


class DataKeys(Keys):
    """What is seen of the pictures and captions."""

    TITLE: ClassVar[str] = "Data"

    resolution: Size = 512
    """Pixels of a side, or [width, height]; pictures of other shapes get buckets of the same area."""
    flip: bool = False
    """Mirror pictures left to right, half of the time. Not for text, or faces with a mark on one side."""
    random_crop: bool = False
    """Move the crop about at random instead of taking the middle."""
    repeats: Count = 1
    """How often each picture is seen in one epoch."""
    caption_dropout: Fraction = 0.0
    """The share of steps that see an empty caption."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated parts of a caption anew each time."""
    keep_tags: Annotated[int, Field(ge=0, le=1000)] = 1
    """How many first parts of a caption stay in place. Only with shuffle_tags."""
    caption_tokens: Literal[75, 150, 225] = 75
    """Where captions are cut off, in tokens; more than 75 are read in chunks, as WebUIs do."""
    clip_skip: Annotated[int, Field(ge=1, le=12)] = 1
    """The text encoder's layer that is read, from the end: 2 for bases of the anime kind, else 1."""
    allow_missing_captions: bool = False
    """Train pictures that have no caption with an empty one, instead of refusing them."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        if values.get("shuffle_tags") is False:
            yield no_effect("keep_tags", "shuffle_tags", "shuffle_tags: true")
        if values.get("shuffle_tags") is True and values.get("caption_dropout") == 1:
            yield "shuffle_tags", "has no effect, because caption_dropout: 1 drops every caption", "lower it"
