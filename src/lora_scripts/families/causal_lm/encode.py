"""Records -> tokens, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lora_scripts.data.texts.conversations import Completion, Conversation, Record, RecordFault, Text, is_learned
from lora_scripts.errors import UserError
from lora_scripts.families.causal_lm.load import open_folder
from lora_scripts.families.causal_lm.template import Rendered, Template, template_of
from lora_scripts.families.causal_lm.tokens import (
    NOT_ITS_OWN,
    load_tokenizer,
    places_of,
    quiet,
    stops_of,
    unknown_sign,
)
from lora_scripts.families.sequences import Example
from lora_scripts.families.texts import Counts, LongRecords, TrainOn


@dataclass
class Encoder:
    """Turns the records of a run into tokens. Everything about a record that cannot be trained is a RecordFault."""

    tokenizer: Any
    template: Template | None
    """None: the model has none, and the config names none; then a conversation is refused."""
    stops: frozenset[int]
    """The tokens at which the model stops, by its generation config and its tokenizer."""
    train_on: TrainOn = "answers"
    max_length: int = 2048
    long_records: LongRecords = "cut"
    places: int | None = None
    """How many tokens the model can take at once; None: it names no limit."""
    vocabulary: int | None = None
    """How many tokens the model has; None: not known."""
    counts: Counts = field(default_factory=Counts)

    def encode(self, record: Record) -> list[Example]:
        """The sequences of one record: one, or more for a long text or where the template rewrites the history."""
        match record:
            case Text():
                examples = self._of_text(record)
            case Completion():
                examples = self._fitting([self._of_completion(record)])
            case Conversation():
                if self.template is None:
                    hint = "name one with chat_template: chatml, alpaca, or a .jinja file; or train on plain text"
                    raise RecordFault("the model's tokenizer has no chat template", hint)
                parts = self.template.divide(record)
                self.counts.split += len(parts) > 1
                self.counts.thoughtless += _leaves_thoughts_out(record, parts)
                examples = self._fitting([self._of_rendered(part) for part in parts])
        for example in examples:
            if self.vocabulary and (message := unknown_sign(example.ids, self.vocabulary, self.tokenizer)):
                raise RecordFault(message, NOT_ITS_OWN)
        self.counts.examples += len(examples)
        self.counts.tokens += sum(len(example.ids) for example in examples)
        self.counts.trained += sum(example.count for example in examples)
        return examples

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, signs and all."""
        text: str = self.tokenizer.decode(list(tokens))
        return text

    @property
    def end_of_text(self) -> int | None:
        """The tokenizer's own, or else the first of the model's stops."""
        token: int | None = self.tokenizer.eos_token_id
        return token if token is not None else min(self.stops, default=None)

    def _of_rendered(self, part: Rendered) -> Example:
        ids, places = self._tokens(part.text)
        trained = [any(first < end and last > start for start, end in part.answers) for first, last in places]
        if self.train_on == "all":
            trained = [True] * len(ids)
        start = part.answers[-1][0] if part.answers else 0
        last_answer = [token for token, (_, end) in zip(ids, places, strict=True) if end > start]
        if part.answers and part.answers[-1][1] == len(part.text) and not self.stops & set(last_answer):
            end_of_turn = self.template.end_of_turn if self.template else None
            sign = end_of_turn if end_of_turn in self.stops else self.end_of_text
            if sign is not None:
                ids, trained = [*ids, sign], [*trained, True]
                self.counts.ended += 1
        return Example(ids, trained)

    def _of_completion(self, record: Completion) -> Example:
        """A beginning and how it goes on: with the beginning-of-text token once, and the end of text at the end."""
        text = record.prompt + record.completion
        ids, places = self._tokens(text)
        trained = [last > len(record.prompt) for _, last in places]
        return self._whole(Example(ids, [True] * len(ids) if self.train_on == "all" else trained))

    def _of_text(self, record: Text) -> list[Example]:
        """A document in pieces of `max_length`, all of which is trained."""
        ids, _ = self._tokens(record.text)
        whole = self._whole(Example(ids, [True] * len(ids)), begins=record.begins, ends=record.ends)
        pieces = range(0, len(whole.ids), self.max_length)
        examples = [
            Example(whole.ids[at : at + self.max_length], whole.trained[at : at + self.max_length]) for at in pieces
        ]
        return [example for example in examples if example.count]

    def _whole(self, example: Example, *, begins: bool = True, ends: bool = True) -> Example:
        """With what the tokenizer puts before a text, unless it stands there already, and the end of text behind it."""
        opening = self._opening if begins and example.ids[: len(self._opening)] != self._opening else []
        end = self.end_of_text
        closing = [] if end is None or not ends or example.ids[-1:] == [end] else [end]
        ids = [*opening, *example.ids, *closing]
        return Example(ids, [False] * len(opening) + example.trained + [True] * len(closing))

    @property
    def _opening(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("")["input_ids"][:1] == [bos] else []

    def _fitting(self, examples: Sequence[Example]) -> list[Example]:
        """Those that fit, and of those that do not as much as does. RecordFault where nothing trained is left."""
        out: list[Example] = []
        too_long = False
        for example in examples:
            if len(example.ids) <= self.max_length:
                out.append(example)
                continue
            too_long = True
            cut = Example(example.ids[: self.max_length], example.trained[: self.max_length])
            if self.long_records == "leave_out":
                continue
            if not cut.count:
                message = f"{len(example.ids)} tokens, and its first {self.max_length} hold nothing that is trained"
                raise RecordFault(message, "raise max_length, shorten the record, or set long_records: leave_out")
            out.append(cut)
        self.counts.cut += too_long and self.long_records == "cut"
        self.counts.left_out += too_long and self.long_records == "leave_out"
        if not too_long and not any(example.count for example in out):
            raise RecordFault("no token of it would be trained", "write an answer, or remove the record")
        return out

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens, and for each the characters that it stands for: from one, up to but without another.

        Some tokenizers leave blanks out of a token's place; as tokens follow one another without a gap, the blanks
        before a token are its own.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places: list[tuple[int, int]] = []
        reached = 0
        for first, last in encoded["offset_mapping"]:
            places.append((min(first, reached), max(last, reached)))
            reached = places[-1][1]
        return list(encoded["input_ids"]), places


def _leaves_thoughts_out(conversation: Conversation, parts: Sequence[Rendered]) -> bool:
    """Whether the template writes none of what the model thought before an answer (`reasoning_content`)."""
    thoughts = [str(m.get("reasoning_content") or "").strip() for m in conversation.messages if is_learned(m)]
    return any(thought and not any(thought in part.text for part in parts) for thought in thoughts)


def encoder_of(path: Path, template: str | None, train_on: str, max_length: int) -> Encoder:
    """UserError for a folder that is none, or a template that does not fit."""
    folder, tokenizer = open_folder(path), load_tokenizer(path)
    own = template_of(template, tokenizer)
    if train_on not in ("answers", "all"):
        raise UserError(f"train_on: {train_on} is neither answers nor all")
    with quiet():
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            places, vocabulary = places_of(config), config.get_text_config().vocab_size
        except (ValueError, OSError, KeyError):  # an architecture that is not known: told by whoever loads it
            places = vocabulary = None
    stops, trained = stops_of(folder, tokenizer), cast("TrainOn", train_on)
    return Encoder(tokenizer, own, stops, trained, max_length, places=places, vocabulary=vocabulary)
