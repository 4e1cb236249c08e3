"""Answers of a language model: token by token with its own cache, told as they come, ended where it ends them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_scripts.families.texts import Answer, Answering

HALF = "\ufffd"
"""What a text ends in while a character is only half there."""


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stops: Collection[int],
    answering: Answering,
    tell: Callable[[str], None] | None = None,
) -> list[Answer]:
    """The continuation of each prompt; of one prompt alone, `tell` gets the text piece by piece.

    Prompts of different lengths are padded on the left, which positions and mask leave out.
    """
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    drawn = answering.temperature > 0
    more: dict[str, Any] = {"temperature": answering.temperature, "top_p": answering.top_p} if drawn else {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(answering.seed)
        out: Tensor = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=answering.max_tokens,
            do_sample=drawn,
            top_k=0 if drawn else None,
            eos_token_id=sorted(stops) or None,
            pad_token_id=0,  # behind an answer's end, which is left out; a tokenizer's own may be none of the model's
            streamer=_Teller(tokenizer, stops, tell) if tell is not None and len(prompts) == 1 else None,
            **({"temperature": None, "top_p": None} | more),
        )
    return [_answer(row, stops, tokenizer) for row in out[:, width:].tolist()]


def _answer(tokens: Sequence[int], stops: Collection[int], tokenizer: Any) -> Answer:
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    said = tokens if end is None else tokens[:end]
    return Answer(tokenizer.decode(said, skip_special_tokens=True), len(said), end is not None)


class _Teller:
    """transformers hands it the prompt and then each token; it tells the text as far as its characters are whole."""

    def __init__(self, tokenizer: Any, stops: Collection[int], tell: Callable[[str], None]) -> None:
        self.tokenizer, self.stops, self.tell = tokenizer, stops, tell
        self.tokens: list[int] = []
        self.told, self.begun = 0, False

    def put(self, tokens: Tensor) -> None:
        if not self.begun:  # the prompt
            self.begun = True
            return
        self.tokens += [token for token in tokens.flatten().tolist() if token not in self.stops]
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if not text.endswith(HALF):
            self._say(text)

    def end(self) -> None:
        self._say(self.tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _say(self, text: str) -> None:
        if len(text) > self.told:
            self.tell(text[self.told :])
            self.told = len(text)
