"""The CLIP tokenizer, from the merges file that ships with the package: no folder, no hub."""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

VOCABULARY, MAX_LENGTH = 49408, 77


def byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of the vocabulary (OpenAI CLIP, `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> number, and the merges in the order of their rank."""
    packed = resources.files("lora_scripts.families").joinpath("assets/clip_merges.txt.gz").read_bytes()
    rows = gzip.decompress(packed).decode("utf-8").splitlines()
    merges = [(one, other) for one, other in (row.split(" ") for row in rows)]
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *(one + other for one, other in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer: 49408 tokens, 77 positions, padded with <|endoftext|> as SD 1.x wants."""
    from transformers import CLIPTokenizer

    vocabulary, merges = _vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
    if len(tokenizer) != VOCABULARY:
        raise RuntimeError(f"the CLIP tokenizer has {len(tokenizer)} tokens instead of {VOCABULARY}")
    return tokenizer


@cache
def clip_counter() -> Tokenizer:
    """The same encoding, bare: no start and end, no limit. It needs no transformers, whose import takes seconds."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
