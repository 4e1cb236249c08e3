"""A CLIP text encoder: chunks of tokens to hidden states and a pooled state, and words that it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_scripts.compute.checkpoints import around
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.compute.resting import Resting
from lora_scripts.errors import UserError
from lora_scripts.families.clip import prompts
from lora_scripts.families.clip.word_table import WordTable, numbered
from lora_scripts.families.sd.latents import Remembered, digest_of

Rows = Sequence[Sequence[prompts.Chunk]]
"""The chunks of each of n texts."""


class Encoded(NamedTuple):
    """What n texts are to a model."""

    states: Tensor
    """[n, 77 k, width], chunk beside chunk, as WebUIs read them"""
    pooled: Tensor | None
    """[n, width] of each text's first chunk; None of an encoder without a projection"""


class TextEncoder:
    """A text encoder in float32, frozen but for what is put into it; it goes to the device when it is needed."""

    def __init__(
        self,
        model: Any,
        device: torch.device,
        options: MemoryOptions,
        *,
        pad: int | None = None,
        remembered: Remembered = lambda what, make: make(),
    ) -> None:
        """`model`: one, or a `Unbuilt`; `pad`: the token that chunks are filled up with; None: the one that ends them;
        `remembered`: as of `LoadOptions`."""
        self.device, self.pad, self._checkpointing, self._remembered = device, pad, options.checkpointing, remembered
        self._resting = Resting(model, self._prepare)
        if not options.resting:
            self._resting.wake(torch.device("cpu"))

    def _prepare(self, model: Any) -> None:
        inner = _inner(model)
        # Published configs of CLIP-G say 2, for which transformers takes the largest token as the end: new words are
        # larger.
        inner.eos_token_id = prompts.END
        if self._checkpointing:
            for layer in inner.encoder.layers:
                around(layer)

    @property
    def model(self) -> Any:
        """Built, if it was not."""
        return self._resting.model

    @property
    def inner(self) -> Any:
        """The model without its projection, in which LoRA goes."""
        return _inner(self.model)

    @property
    def width(self) -> int:
        """Of a token's vector, and of a state."""
        width: int = self.inner.config.hidden_size
        return width

    def trainable(self) -> Iterator[tuple[str, nn.Module]]:
        """(path in `inner`, layer) of the linear layers: the exports have names for them."""
        for name, module in self.inner.named_modules():
            if isinstance(module, nn.Linear):
                yield name, module

    def encode(self, rows: Rows, length: int, layer: int, *, normed: bool) -> Encoded:
        """The states after a layer, counted from the last, 1; `normed`: with the final norm after it.

        All rows get `length` chunks; what a row lacks is the empty prompt. Weights count for the states alone.
        UserError for a layer that is not there.
        """
        self.wake()
        empty = prompts.chunks(prompts.plain(""), pad=self.pad)
        flat = [chunk for row in rows for chunk in [*row, *empty * (length - len(row))]]
        ids = torch.tensor([c.ids for c in flat], device=self.device)
        states, pooled = self._read(ids, layer, normed)
        weights = torch.tensor([c.weights for c in flat], device=self.device)
        if (weights != 1).any():
            states = prompts.emphasise(states, weights)
        first = None if pooled is None else pooled.reshape(len(rows), length, -1)[:, 0]
        return Encoded(states.reshape(len(rows), -1, states.shape[-1]), first)

    def _read(self, ids: Tensor, layer: int, normed: bool) -> tuple[Tensor, Tensor | None]:
        if layer == 1 and normed:
            out = self.model(ids)
            return out.last_hidden_state, getattr(out, "text_embeds", None)
        out = self.model(ids, output_hidden_states=True)
        if layer >= len(out.hidden_states):
            raise UserError(f"clip_skip {layer}: this text encoder has {len(out.hidden_states) - 1} layers")
        states = out.hidden_states[-layer]
        return self.inner.final_layer_norm(states) if normed else states, getattr(out, "text_embeds", None)

    def set_words(self, words: Mapping[str, Tensor], columns: slice = slice(None)) -> prompts.Words:
        """Puts words in, each with its vectors [k, ...], and says which tokens they are; {}: none any more.

        `columns`: which of a vector's numbers are this encoder's.
        """
        if words:
            self.wake()
        embeddings = self.inner.embeddings
        table = embeddings.token_embedding
        if isinstance(table, WordTable):
            table = table.base
        with_words = WordTable(table, list(words.values()), columns).to(table.weight.device) if words else table
        embeddings.token_embedding = with_words
        return numbered(words, table.num_embeddings)

    @torch.no_grad()
    def vectors_of(self, text: str) -> Tensor:
        """[n, width] float32 on the CPU: the vectors of the n tokens of a text; of "" the mean."""
        self.wake()
        table = self.inner.embeddings.token_embedding.weight
        (chunk, *_) = prompts.chunks(prompts.plain(text))
        ids = [token for token in chunk.ids[1:-1] if token != chunk.ids[-1]]
        rows: Tensor = table[ids] if ids else table.mean(0, keepdim=True)
        return rows.detach().float().cpu()

    def wake(self) -> None:
        """Somebody will ask it, or put something into it."""
        self._resting.wake(self.device)

    def rest(self) -> None:
        """Nobody needs it for a while."""
        self._resting.rest()

    def digest(self, what: str, *settings: str) -> str:
        """As `digest_of`; `what`: a name for it among those of the base's files."""
        if not self._resting.untouched:  # a LoRA changes what it gives, and no file
            return digest_of(self.model, *settings)
        return self._remembered(" ".join([what, *settings]), lambda: digest_of(self.model, *settings))


def _inner(model: Any) -> Any:
    """What stands around it differs with transformers."""
    return getattr(model, "text_model", model)
