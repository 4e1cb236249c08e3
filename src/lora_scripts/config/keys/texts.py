"""What a language model learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import ConfigPath, Count, Fault, Keys


class TextKeys(Keys):
    """What a language model learns from."""

    TITLE: ClassVar[str] = "Texts"
    NEEDS: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            "train_file",
            "val_file",
            "train_on",
            "chat_template",
            "max_length",
            "long_records",
            "packing",
            "answer_tokens",
        ),
        "texts",
    )

    train_file: ConfigPath | None = None
    """One file of records (.jsonl, .json, .csv, .tsv, .txt, .md, .parquet), in place of train_data_dir."""
    val_file: ConfigPath | None = None
    """A file of records to measure, so that all of the others are trained; in place of val_data_dir."""
    train_on: Literal["answers", "all"] = "answers"
    """What is learned of a record: the answers, each with the sign that ends it, or every word of it."""
    chat_template: str | None = None
    """chatml, alpaca, or a .jinja file, for a base that has no chat template. Without it, the base's own."""
    max_length: Annotated[int, Field(ge=16, le=1_000_000)] = 2048
    """Tokens of a record, at most as many as the model has places for. Running text comes in pieces of this length."""
    long_records: Literal["cut", "leave_out"] = "cut"
    """What becomes of longer records: their end is cut off, or they are left out; either is counted."""
    packing: Literal["auto", "off"] = "auto"
    """Short records side by side in one row, where a test on the model shows that they leave each other alone."""
    answer_tokens: Count = 256
    """The longest answer to a sample prompt, in tokens."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        file, folder = values.get("train_file"), values.get("train_data_dir")
        if file is not None and folder is not None and Path(folder) != Path(file).parent:
            yield "train_data_dir", "has no effect with train_file, which is taken instead", "leave one of them out"
        if values.get("val_file") is not None:
            for key in ("val_split", "val_data_dir"):
                if values.get(key):
                    yield key, "has no effect with val_file, whose records are taken instead", "leave one out"
