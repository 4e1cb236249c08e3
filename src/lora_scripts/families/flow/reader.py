"""A language model as text encoder: prompts in its template, hidden states of some of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.families.flow import llm
from lora_scripts.families.flow.llm import Source
from lora_scripts.families.flow.pieces import lend_scaled, take_blocks
from lora_scripts.families.flow.standby import Standby, require_numbers
from lora_scripts.families.flow.token_files import bare_tokenizer
from lora_scripts.families.sd.rows import Row, from_rows

FILL = "<|endoftext|>"
"""What texts are filled up with."""
DESCRIBED = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
"""What stands before and after a caption that Qwen reads as a picture's description."""
DESCRIBED_BY = 34
"""How many tokens what stands before it has in its publisher's tokenizer: by number, whatever they are."""


@dataclass(frozen=True)
class Reading:
    """How a family reads texts."""

    before: str
    """Of the template: what stands before a text."""
    after: str
    taps: Callable[[int], tuple[int, ...]]
    """Of a model of so many layers: behind which of them the states are taken, 0 being the embeddings and the last
    those behind the norm, too; side by side."""
    most: int
    """Tokens; the rest of a longer text is cut off."""
    filled: bool
    """Whether every text is filled up to `most`, and what fills it is read, too."""
    window: int = 0
    """Then not to `most`, but to a whole number of so many tokens; what fills a text stands where its second token
    stands."""
    least: int = 0
    """Tokens, without the template's, of the texts that the base was made for."""
    fill: str = FILL
    """What with."""
    fill_first: bool = False
    """Whether that stands before the text. Then it sees nothing, and is the same for every text."""
    empty: str = ""
    """What stands in place of an empty text."""
    unread: str = ""
    """A sign that is taken out of texts, for the model was made for more than texts."""
    dropped: int | str = 0
    """Of the first tokens, whose states are not read though those behind have seen them: so many, or those of this
    beginning of `before`; they count in `most`."""
    ending: int = 0
    """Of `most`, so many are for what stands after a text, which is then never cut off; 0: it is cut with the text."""


class LanguageEncoder(Standby):
    """A frozen language model, in the run's precision: {"states": [n, tokens, width], zeros behind the shorter ones,
    "lengths": [n]}."""

    def __init__(self, reading: Reading, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.reading = source, reading
        self.taps = reading.taps(source.layout.layers)
        self.tokens = bare_tokenizer(source.tokenizer)
        read = f"{reading.before!r} {reading.after!r} {self.taps} {reading.most} {dtype}"
        read += f" {reading.dropped}" if reading.dropped else ""
        read += f" or {reading.empty!r}" if reading.empty else ""
        read += f" ends with {reading.ending}" if reading.ending else ""
        read += f" behind {reading.fill}" if reading.fill_first else ""
        read += f" in windows of {reading.window}" if reading.window else ""
        super().__init__(tuple(dict.fromkeys((*source.files, source.tokenizer))), read, device, dtype)

    def excess(self, text: str) -> int:
        """How many tokens of a text in its template are cut off."""
        return max(0, len(self._ids(text)) - self.reading.most + self.reading.ending)

    def is_short(self, text: str) -> bool:
        return len(self._encoded(text)) < self.reading.least

    def _read(self, text: str) -> dict[str, Tensor]:
        states = self._states(text)
        return {"states": states, "lengths": torch.tensor(len(states))}

    def _ids(self, text: str) -> list[int]:
        """All that may be cut off."""
        text = text.replace(self.reading.unread, "") or self.reading.empty
        return self._encoded(f"{self.reading.before}{text}{'' if self.reading.ending else self.reading.after}")

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self.tokens.encode(text, add_special_tokens=False).ids
        return ids

    @torch.no_grad()
    def _states(self, text: str) -> Tensor:
        """[tokens, width]. UserError where they are no numbers."""
        ids = self._ids(text)[: self.reading.most - self.reading.ending]
        ids += self._encoded(self.reading.after) if self.reading.ending else []
        own = [True] * len(ids)
        if self.reading.filled:
            fill = self.tokens.token_to_id(self.reading.fill)
            assert fill is not None  # `llm.find` has looked
            more = self._room(len(ids)) - len(ids)
            ids, own = self._filled(ids, fill, more), self._filled(own, False, more)
        mask = torch.tensor(own, device=self.device)
        places = torch.arange(len(ids), device=self.device).where(mask, 1)
        model = self._loaded()
        out = model(
            input_ids=torch.tensor([ids], device=self.device),
            attention_mask=mask[None] if self.reading.filled else None,
            position_ids=places[None] if self.reading.window else None,
            output_hidden_states=True,
            use_cache=False,
        )
        states = torch.cat([out.hidden_states[tap][0] for tap in self.taps], -1)
        require_numbers(states, "the text encoder's", self.source.path)
        dropped = self.reading.dropped
        return states[len(self._encoded(dropped)) if isinstance(dropped, str) else dropped :]

    def _room(self, length: int) -> int:
        """How many tokens a text of so many is filled up to."""
        most, window = self.reading.most, self.reading.window
        return min(most, -(-length // window) * window) if window else most

    def _filled(self, own: list[Any], fill: Any, more: int) -> list[Any]:
        return [fill] * more + own if self.reading.fill_first else own + [fill] * more

    def _build(self) -> Any:
        return build(self.source, max(self.taps), self.dtype, mapped=self.device.type != "cpu")


def build(source: Source, layers: int, dtype: torch.dtype, *, mapped: bool = False) -> Any:
    """transformers' model with no more than its first layers; where those are not all, without the norm behind them.

    `mapped`: what the file has in that type already, or in float8 with a scale, stays there, and takes no RAM.
    """
    import transformers

    layout, name = source.layout, source.layout.kind.model
    config = getattr(transformers, f"{name}Config")(**llm.config_of(layout, layers))
    with torch.device("meta"):
        model = getattr(transformers, f"{name}Model")(config)
    if not llm.ends(layout, layers):
        model.norm = nn.Identity()
    model.rotary_emb = type(model.rotary_emb)(config)  # its numbers are computed, and stand in no file
    fill(model, source, llm.rows(layout, layers), dtype, mapped=mapped)
    return model.requires_grad_(False).eval()


def fill(model: Any, source: Source, table: Sequence[Row], dtype: torch.dtype, *, mapped: bool) -> None:
    """Gives a model on the meta device its weights, a row each; `mapped`: as of `build`."""
    pieces = source.pieces()
    blocks, left = take_blocks(model, pieces, table, lambda key: dtype)
    if mapped:
        scaled, left = lend_scaled(model, pieces, left, dtype)
        blocks |= scaled
    # Else copied: on a CPU products may round differently where a matrix does not begin at a round address.
    state = {key: t.to(dtype, copy=not mapped) for key, t in from_rows(pieces, left, dtype=dtype).items()}
    state |= {key: t if mapped else t.clone() for key, t in blocks.items()}
    model.load_state_dict(state, strict=True, assign=True)
