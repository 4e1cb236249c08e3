"""A text encoder's tokenizer as a file: tokenizer.json, a Tekken, or one of two that ship with this program.

Files that hold weights alone bring no tokenizer, so Qwen's and T5's are here, as published under the Apache licence 2.0
(NOTICE). Qwen's table is that of Qwen2.5, Qwen3 and Qwen3-VL of every size, kept as merges, of which the
vocabulary follows: 256 bytes, what each merge gives, the signs.
"""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families.clip.tokenizer import byte_characters
from lora_scripts.families.flow import tekken

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ASSETS = Path(str(resources.files("lora_scripts.families"))) / "assets"
QWEN, T5 = _ASSETS / "qwen_tokenizer.txt.gz", _ASSETS / "t5_tokenizer.json.gz"
_ROWS = {QWEN: (151_936, 152_064), T5: (32_128,)}
"""Tokens in the tables of the models that they were published with, of which the last have no name."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts a text before bytes are merged."""


def shipped(tokenizer: Path, rows: int) -> Path | None:
    """`QWEN` or `T5` where a model whose table has so many tokens was published with it; else None."""
    return tokenizer if rows in _ROWS[tokenizer] else None


def signs_of(file: Path) -> set[str]:
    """What the tokenizer reads as a token of its own. UserError for what is none."""
    if file == QWEN:
        return set(_text(QWEN).rpartition("\n\n")[2].splitlines())
    try:
        if tekken.is_one(file):
            return set(tekken.signs(file))
        return {str(row["content"]) for row in _json(file)["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("is no tokenizer", file=file, hint="get the original file") from None


def tokens_in(file: Path) -> int:
    """Of a tokenizer.json the tokens in its table, without the signs that are added; 0 where there is no table."""
    return len(_json(file).get("model", {}).get("vocab", ()))


def bare_tokenizer(file: Path) -> Tokenizer:
    """Without a limit, and without what it would fill up with."""
    from tokenizers import Tokenizer

    if file == QWEN:
        return _qwen()
    made = tekken.tokenizer(file) if tekken.is_one(file) else Tokenizer.from_str(_text(file))
    made.no_padding()
    made.no_truncation()
    return made


def _qwen() -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges, signs = _qwen_table()
    tokens = [*byte_characters(), *(one + other for one, other in merges)]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(sign, special=True, normalized=False) for sign in signs])
    return made


def _qwen_table() -> tuple[list[tuple[str, str]], list[str]]:
    """The merges by rank, and the signs of Qwen3, of which Qwen2.5 lacks the last four."""
    merges, signs = _text(QWEN).split("\n\n")
    return [(one, other) for one, other in (row.split(" ") for row in merges.splitlines())], signs.splitlines()


def _text(file: Path) -> str:
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")


def _json(file: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_text(file))
    return table
