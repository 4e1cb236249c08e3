"""Tekken, the tokenizer of Mistral's models: as tekken.json, or as a tensor of bytes in a text encoder's file.

Facts: transformers' `MistralConverter`, which the tests hold this against (it has another form in every other release,
so it is not called), and ComfyUI's `tekken_model`. Bytes are joined by their rank in the table; the numbers of special
tokens come before it.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEY = "tekken_model"
"""The tensor."""
FILE = "tekken.json"


def is_one(path: Path) -> bool:
    """Whether a file is to be read so: tekken.json, or a file of weights."""
    return path.name == FILE or path.suffix not in (".json", ".gz")


def signs(path: Path) -> list[str]:
    """The special tokens, by number. KeyError, ValueError, TypeError and OSError for what is none."""
    return _signs(_table(path))


def tokenizer(path: Path) -> Tokenizer:
    """Of a file that `signs` takes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    table = _table(path)
    special, config = _signs(table), table["config"]
    size = config.get("default_vocab_size")
    rows = table["vocab"][: None if size is None else size - len(special)]
    ranks = {base64.b64decode(row["token_bytes"]): rank for rank, row in enumerate(rows)}
    letters = _letters()

    def word(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {sign: number for number, sign in enumerate(special)}
    vocabulary |= {word(token): len(special) + rank for token, rank in ranks.items()}
    merges: list[tuple[str, str]] = []
    for token in ranks:  # in their order
        cuts = ((token[:n], token[n:]) for n in range(1, len(token)))
        pairs = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        merges += [(word(a), word(b)) for _, _, a, b in pairs]
    made = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(sign, special=True) for sign in special])
    return made


def _table(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(path.read_bytes() if path.name == FILE else _inside(path))
    return table


def _inside(path: Path) -> bytes:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        tensor: bytes = file.get_tensor(KEY).tobytes()
    return tensor


def _signs(table: dict[str, Any]) -> list[str]:
    """With those that only fill the numbers up to where the table begins."""
    rows = sorted(table["special_tokens"], key=lambda row: row["rank"])
    told = [str(row["token_str"]) for row in rows]
    if [row["rank"] for row in rows] != list(range(len(rows))):
        raise ValueError("the special tokens are not numbered from 0 on")
    count = table["config"].get("default_num_special_tokens") or len(told)
    return [*told, *(f"<SPECIAL_{number}>" for number in range(len(told), count))]


def _letters() -> list[str]:
    """Of each byte the printable letter that stands for it: itself, or one behind them (GPT-2's `bytes_to_unicode`)."""
    own, spare = {*range(33, 127), *range(161, 173), *range(174, 256)}, iter(range(256, 512))
    return [chr(byte if byte in own else next(spare)) for byte in range(256)]
