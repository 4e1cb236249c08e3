"""The CLIP tokenizer, from the merges file that ships with the package: no folder, no hub."""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources

from transformers import CLIPTokenizer

VOCABULARY, MAX_LENGTH = 49408, 77


def _byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of the vocabulary (OpenAI CLIP, `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer: 49408 tokens, 77 positions, padded with <|endoftext|> as SD 1.x wants."""
    packed = resources.files("lora_scripts.families").joinpath("assets/clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").splitlines()
    characters = _byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m.split(" ")) for m in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(m.split(" ")) for m in merges], model_max_length=MAX_LENGTH
    )
    if len(tokenizer) != VOCABULARY:
        raise RuntimeError(f"the CLIP tokenizer has {len(tokenizer)} tokens instead of {VOCABULARY}")
    return tokenizer
