"""Any causal language model that transformers has, as what a training needs of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.compute.checkpoints import around
from lora_scripts.compute.memory import layers_of
from lora_scripts.compute.meter import ran_out
from lora_scripts.compute.quantised import quantise_layers
from lora_scripts.data.texts.conversations import Message, RecordFault
from lora_scripts.errors import UserError
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.causal_lm import trainable
from lora_scripts.families.causal_lm.answers import generate
from lora_scripts.families.causal_lm.encode import Encoder
from lora_scripts.families.causal_lm.facts import FACTS
from lora_scripts.families.causal_lm.leak import LEAK, leak
from lora_scripts.families.causal_lm.load import Folder, open_folder
from lora_scripts.families.causal_lm.names import ROOT
from lora_scripts.families.causal_lm.output import head_of
from lora_scripts.families.causal_lm.sight import blind
from lora_scripts.families.causal_lm.skeleton import loader, straighten
from lora_scripts.families.causal_lm.template import NOT_THINKING, Template, nothing_left_out, template_of
from lora_scripts.families.causal_lm.tokens import NOT_ITS_OWN, load_tokenizer, places_of, quiet, stops_of, unknown_sign
from lora_scripts.families.facts import Facts
from lora_scripts.families.sequences import TextBatch
from lora_scripts.families.texts import BEGINNING, Answer, Answering, LongRecords, TrainOn
from lora_scripts.losses.language import IGNORED, cross_entropy, token_losses
from lora_scripts.units import listed


@dataclass
class LanguageModel:
    """A causal language model, its weights frozen."""

    folder: Folder
    model: Any
    """transformers' own module."""
    tokenizer: Any
    device: torch.device
    transposed: frozenset[str] = frozenset()
    """Layers whose weights lie [in, out] in the files, as GPT-2's."""
    elsewhere: frozenset[str] = frozenset()
    """Layers of the model that are not loaded here, of one that sees: whoever loads all of it has them, too."""
    facts: Facts = FACTS
    _packs: bool | None = field(default=None, init=False)

    @property
    def words(self) -> str:
        """What it is, for people: its architecture and size."""
        count = self.folder.parameters
        size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
        seeing = ", trained on texts: what sees is not loaded" if self.folder.sees else ""
        return f"{self.folder.architecture}, {size} parameters{seeing}"

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        return {ROOT: self.model}

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        size: int = self.model.config.get_text_config().vocab_size
        return size

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer, by the model's configs and its tokenizer."""
        return stops_of(self.folder, self.tokenizer)

    @property
    def places(self) -> int | None:
        """How many tokens it can take at once, by its config; None: it names no limit."""
        return places_of(self.model.config)

    def trainable(self) -> dict[str, nn.Module]:
        return trainable.trainable(self.model)

    @property
    def layer_names(self) -> list[str]:
        """Paths of all layers of the whole model; see `TextFamily`."""
        return [*self.trainable(), *(f"{ROOT}.{name}" for name in sorted(self.elsewhere))]

    @property
    def usual(self) -> list[str]:
        """The paths that are trained unless a config names others: all but the output layer."""
        head = self.model.get_output_embeddings()
        return [path for path, layer in self.trainable().items() if layer is not head]

    @property
    def transposes(self) -> bool:
        """Whether its weights lie [in, out] in its files."""
        return bool(self.transposed)

    @torch.no_grad()
    def as_peft_loads(self, adapter: Path, batch: TextBatch) -> Tensor:
        """The logits of the model with a PEFT adapter on it that PEFT itself has loaded; afterwards it is as before."""
        from peft import PeftModel

        with quiet(), self._evaluating():
            # Layers of GPT-2 are linear layers here, whose weights lie as all others do: PEFT sees that by itself.
            worn = PeftModel.from_pretrained(self.model, str(adapter))
            try:
                logits: Tensor = self._run(worn, batch.to(self.device)).logits.float().cpu()
            finally:
                worn.unload()
        return logits

    def refusal(self, pattern: str, matches: Callable[[str], bool]) -> str | None:
        return trainable.refusal(self.model, pattern, matches)

    # --- the loss -----------------------------------------------------------------------------------------------------

    def loss(self, batch: TextBatch) -> tuple[Tensor, int]:
        """The sum of the losses of all trained tokens, with gradient, and their number."""
        batch = batch.to(self.device)
        head = self.head
        trained = [] if head is None else list(self.model.get_output_embeddings().parameters())
        if head is None:
            return cross_entropy(self._run(self.model, batch).logits, batch.targets, _as_is)
        return cross_entropy(self._hidden(batch), batch.targets, head, trained)

    @torch.no_grad()
    def losses(self, batch: TextBatch) -> Tensor:
        """The loss of each place, float32 [rows, width]; 0 where nothing is trained."""
        batch = batch.to(self.device)
        if self.head is None:
            return token_losses(self._run(self.model, batch).logits, batch.targets, _as_is)
        return token_losses(self._hidden(batch), batch.targets, self.head)

    @torch.no_grad()
    def logits(self, batch: TextBatch) -> Tensor:
        """[rows, width, vocabulary] float32, on the CPU."""
        out: Tensor = self._run(self.model, batch.to(self.device)).logits
        return out.float().cpu()

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor] | None:
        """From hidden states to logits; None where the model does more there than we know: then logits are whole."""
        if self.model.get_output_embeddings() is None:
            return None
        probe = self._probe()
        with torch.no_grad(), self._evaluating():
            return head_of(self.model, self._hidden(probe), self._run(self.model, probe).logits)

    # --- packing ------------------------------------------------------------------------------------------------------

    @property
    def packs(self) -> bool:
        """Whether sequences in one row leave each other alone, as a test on the loaded model finds."""
        if self._packs is None:
            self._packs = self._positions and self.leak() <= LEAK
        return self._packs

    def leak(self) -> float:
        """As `leak.leak`, of the model as it stands."""

        def logits(ids: Tensor, positions: Tensor) -> Tensor:
            batch = TextBatch(ids, torch.full_like(ids, IGNORED), positions, None, ())
            out: Tensor = self._run(self.model, batch.to(self.device)).logits
            return out.cpu()

        with self._evaluating():
            return leak(logits, self.vocabulary)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, signs and all."""
        text: str = self.tokenizer.decode(list(tokens))
        return text

    def template_text(self, template: str | None = None) -> str | None:
        """The chat template as text; None where there is none."""
        found = self.template(template)
        return found.source if found else None

    # --- records and answers ------------------------------------------------------------------------------------------

    def template(self, named: str | None = None) -> Template | None:
        """As `template.template_of`."""
        return template_of(named, self.tokenizer)

    def encoder(
        self,
        *,
        template: str | None = None,
        train_on: TrainOn = "answers",
        max_length: int = 2048,
        long_records: LongRecords = "cut",
    ) -> Encoder:
        """What turns records into tokens; see `TextFamily`."""
        length = min(max_length, self.places or max_length)
        own = self.template(template)
        return Encoder(self.tokenizer, own, self.stops, train_on, length, long_records, self.places, self.vocabulary)

    def answer(
        self,
        messages: Sequence[Message],
        answering: Answering,
        tell: Callable[[str], None] | None = None,
        *,
        template: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Answer:
        """The next turn of a conversation; see `TextFamily`."""
        prompt = self._prompt(messages, answering, template, tools)
        return self._generate([prompt], answering, template, tell)[0]

    def answers(
        self,
        talks: Sequence[Sequence[Message]],
        answering: Answering,
        *,
        template: str | None = None,
        tools: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    ) -> list[Answer]:
        """The next turn of each conversation, worked out together."""
        given = zip(talks, tools or [()] * len(talks), strict=True)
        prompts = [self._prompt(messages, answering, template, own) for messages, own in given]
        if self.places is not None and max(map(len, prompts)) + answering.max_tokens > self.places:
            # The longest would end the others, too.
            return [self._generate([prompt], answering, template)[0] for prompt in prompts]
        return self._generate(prompts, answering, template)

    def room(
        self, messages: Sequence[Message], *, template: str | None = None, tools: Sequence[Mapping[str, Any]] = ()
    ) -> int | None:
        """How many tokens an answer may have; None: no limit is known. See `TextFamily`."""
        asked = len(self._prompt(messages, Answering(), template, tools))
        return None if self.places is None else self.places - asked

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        answering: Answering,
        template: str | None,
        tell: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """The continuation of each prompt. UserError where one leaves no place for an answer."""
        longest = max(map(len, prompts))
        if self.places is not None:
            if longest >= self.places:
                message = f"what is asked has {longest} tokens, and the model takes {self.places} at once"
                raise UserError(message, hint="ask for less, or begin a new conversation")
            answering = replace(answering, max_tokens=min(answering.max_tokens, self.places - longest))
        with self._evaluating():
            return generate(self.model, self.tokenizer, prompts, self._ends(template), answering, tell)

    def _prompt(
        self,
        messages: Sequence[Message],
        answering: Answering,
        named: str | None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Tokens up to where the answer begins. UserError where the template refuses it or leaves a part out."""
        template = self.template(named)
        if template is None or messages[-1]["role"] == BEGINNING:  # what was said last is gone on with
            ids: list[int] = self.tokenizer(messages[-1]["content"])["input_ids"]
            return self._known(ids or [self._beginning])
        try:
            text = template.render(messages, tools, prompt=True, **({} if answering.think else NOT_THINKING))
            nothing_left_out(messages, tools, text)
        except RecordFault as fault:
            raise UserError(fault.message, hint=fault.hint) from None
        return self._known(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _known(self, ids: list[int]) -> list[int]:
        """The tokens, if the model has them all. UserError where not."""
        if message := unknown_sign(ids, self.vocabulary, self.tokenizer):
            raise UserError(message, file=self.folder.path, hint=NOT_ITS_OWN)
        return ids

    @property
    def _beginning(self) -> int:
        """What stands before a text that has yet to begin, where the tokenizer puts nothing there: the end of the one
        before it, as GPT-2 is asked for a text of its own."""
        eos: int | None = self.tokenizer.eos_token_id
        return eos if eos is not None else min(self.stops, default=0)

    def _ends(self, named: str | None) -> frozenset[int]:
        """Where an answer ends: where the model stops, and at the sign that the template puts behind answers."""
        template = self.template(named)
        sign = template.end_of_turn if template else None
        return self.stops | ({sign} if sign is not None else set())

    # --- inside -------------------------------------------------------------------------------------------------------

    @cached_property
    def _positions(self) -> bool:
        """Whether the model is told the places of tokens."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    @cached_property
    def _in_space(self) -> bool:
        """Whether a place is told four times, as of Qwen2-VL and its heirs: in text, in time, in height and width."""
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None)
        return self.folder.sees and isinstance(rope, dict) and "mrope_section" in rope

    def _hidden(self, batch: TextBatch) -> Tensor:
        out: Tensor = self._run(self.model.base_model, batch).last_hidden_state
        return out

    def _run(self, module: Any, batch: TextBatch) -> Any:
        places = batch.positions.expand(4, -1, -1) if self._in_space else batch.positions
        more = {"position_ids": places} if self._positions else {}
        return module(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **more)

    def _probe(self) -> TextBatch:
        ids = torch.arange(8)[None] % self.vocabulary
        places = torch.arange(8)[None]
        return TextBatch(ids, torch.full_like(ids, IGNORED), places, torch.ones_like(ids), ()).to(self.device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout. Afterwards each layer is as it was: a LoRA is trained in a base that is not."""
        training = [layer for layer in self.model.modules() if layer.training]
        self.model.eval()
        try:
            yield
        finally:
            for layer in training:
                layer.training = True


def _as_is(logits: Tensor) -> Tensor:
    return logits


def load(path: Path, options: LoadOptions) -> LanguageModel:
    """A model as a run wants it: its blocks rounded or computed again, where the options say so. UserError as below."""
    memory = options.memory
    # What is to be stored in fewer bits becomes so in RAM: the whole of it may be more than a card holds.
    model = open_model(path, torch.device("cpu") if memory.storage else options.device, options.dtype)
    blocks = layers_of(model.model)
    if memory.storage is not None:
        quantise_layers(model.model, blocks, memory.storage, options.dtype)
        model.model.to(options.device)
        model.device = options.device
    if memory.checkpointing:
        for block in blocks:
            around(block)
    return model


def open_model(path: Path, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Loads a model and its tokenizer from a folder, without a network and without running code of its own.

    UserError for a folder that is none, or whose weights do not fit its config.
    """
    folder = open_folder(path)
    tokenizer = load_tokenizer(path)
    with quiet():
        from transformers import GenerationConfig

        try:
            model, told = loader(folder).from_pretrained(
                path,
                dtype=dtype,
                # That of the folder changes what is likeliest (repetition_penalty) or how answers come (num_beams).
                generation_config=GenerationConfig(),
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            if ran_out(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"transformers cannot load it: {reason}", file=path) from None
    missing = sorted(told["missing_keys"])
    if missing or told.get("mismatched_keys"):
        names = listed([*map(str, missing)], 4) or "tensors of other shapes"
        raise UserError(f"the weights do not fit config.json: {names}", file=path, hint="download it again")
    gone = blind(model) if folder.sees else []
    model.requires_grad_(False).eval().to(device)
    return LanguageModel(folder, model, tokenizer, device, frozenset(straighten(model)), frozenset(gone))
