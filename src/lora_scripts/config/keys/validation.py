"""Pictures that are not trained, to tell when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lora_scripts.config.types import ConfigPath, Count, Fault, Keys, no_effect


class ValidationKeys(Keys):
    """Pictures that are not trained, to tell when to stop."""

    TITLE: ClassVar[str] = "Held-out pictures"

    val_split: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """The share of the pictures that is not trained but measured; 0: none, and no measuring. Without it, a tenth, from
    3 to 24 pictures; 2 of fewer than 12, none of fewer than 6."""
    val_data_dir: ConfigPath | None = None
    """A folder with pictures and captions to measure instead, so that all of train_data_dir is trained."""
    val_every: Count | None = None
    """Measured every so many steps. Without it, ten times a run, fewer in a short one, whose time that would take."""
    patience: Count | None = None
    """End the run after so many measurements without a new lowest loss. Without it, all epochs are trained."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        if values.get("val_split") and values.get("val_data_dir") is not None:
            yield "val_split", "has no effect with val_data_dir, whose pictures are taken instead", "leave one out"
        others = values.get("val_data_dir") or values.get("val_file")
        if values.get("val_split") == 0 and others is None:
            for key in ("val_every", "patience"):
                if values.get(key) is not None:
                    yield no_effect(key, "held-out pictures or records", "val_split: 0.1")
