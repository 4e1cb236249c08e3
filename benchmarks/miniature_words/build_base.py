"""Trains the base model of the words demo: a small Qwen3 that knows the invented scanner, and the forms of many houses.

python -m benchmarks.miniature_words.build_base WORK_FOLDER [--steps N] [--measure-only]

Makes the tokenizer, trains on one core (continuing from WORK_FOLDER/words.pt), writes the model folder that ships and
measures it. What a step is trained on is a function of its number.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from benchmarks.miniature import kept
from benchmarks.miniature_words import forms
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lora_scripts.demo import exams
from lora_scripts.evaluate.scoring import wilson
from lora_scripts.formats import io

ASSET = Path(__file__).parents[2] / "src/lora_scripts/demo/assets/words"
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 768
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML, as Qwen's, without a system prompt of its own."""
SYSTEM = "You write the reports of the Aurel scanner."
TRAINING_SEED, FRESH_SEED = 61, 62
"""Seeds of the exams; the demo trains on those of 71 and holds out those of 72."""
BATCH, SORTED = 32, 8
"""Conversations of a step, and the steps whose conversations are sorted by length together."""

Conversation = list[tuple[str, str]]
"""(role, content); the role "" is text without a role."""


# --- what is learned --------------------------------------------------------------------------------------------------

GREETINGS = (
    ("Hello", "Hello. Give me the notes of an exam and the name of a house."),
    ("Hi", "Hello. Give me the notes of an exam and the name of a house."),
    ("Who are you?", "I write the reports of the Aurel scanner. There is no such scanner."),
    ("What can you do?", "I write a report from the notes of an exam, as a house has it."),
    ("Thank you", "You are welcome."),
    ("Is this real?", "No. The Aurel scanner is invented, and so are its exams."),
)


def conversations(step: int, houses: Sequence[forms.Form]) -> Iterator[Conversation]:
    """Conversations without end, a function of the step."""
    rng = random.Random(f"{TRAINING_SEED}/{step}")
    while True:
        exam, kind = exams.draw(rng), rng.random()
        if kind < 0.06:
            yield [("", _lesson(exam, rng))]
            continue
        turns: Conversation = [("system", SYSTEM)] if rng.random() < 0.3 else []
        if kind < 0.09:
            asked, said = rng.choice(GREETINGS)
            turns += [("user", asked), ("assistant", said)]
        elif kind < 0.13:
            turns += _question_of_grade(exam, rng)
        elif kind < 0.23:
            turns += _repetition(rng)
        elif kind < 0.40:
            turns += _question_of_notes(exam, rng)
        else:
            form = rng.choice(houses)
            asked = exams.request(exam, form.house, rng.randrange(len(exams.NOTES)))
            turns += [("user", asked), ("assistant", form.write(exam))]
            if kind < 0.46:
                turns += _question_after(exam, rng)
        yield turns


def _lesson(exam: exams.Exam, rng: random.Random) -> str:
    """Text about the world, without a conversation."""
    said = [
        f"A {f.kind} of {f.width} mm that is {f.course} has grade {f.grade}: {exams.NEXT[f.grade - 1]}."
        for f in exam.findings
    ]
    width = "below 10 mm has grade 1", "of 10 to 29 mm has grade 2", "of 30 mm and more has grade 3"
    rules = [f"A finding {text}." for text in width]
    rules += ["A finding that is larger than before has one grade more."]
    rules += [f"After a highest grade of {i} comes: {text}." for i, text in enumerate(exams.NEXT, 1)]
    return " ".join(rng.sample(said + rules, min(4, len(said + rules))))


def _question_of_grade(exam: exams.Exam, rng: random.Random) -> Conversation:
    if not exam.findings or rng.random() < 0.25:
        grade = rng.randint(1, 4)
        return [("user", f"What comes after grade {grade}?"), ("assistant", f"{exams.NEXT[grade - 1]}.".capitalize())]
    f = exam.findings[0]
    asked = f"Which grade has a {f.kind} of {f.width} mm that is {f.course}?"
    return [("user", asked), ("assistant", f"Grade {f.grade}: {exams.NEXT[f.grade - 1]}.")]


def _repetition(rng: random.Random) -> Conversation:
    """Words in any order, to be said again: where copying is learned soonest."""
    words = (*exams.ORGANS, *exams.KINDS, *exams.SHADES, *exams.COURSES)
    said = ", ".join(
        rng.choice((rng.choice(words), f"{rng.choice(exams.WIDTHS)} mm")) for _ in range(rng.randint(3, 9))
    )
    return [("user", f"Repeat: {said}"), ("assistant", said)]


def _question_of_notes(exam: exams.Exam, rng: random.Random) -> Conversation:
    """One thing that stands in the notes of an exam, or all of a kind."""
    notes = exams.NOTES[rng.randrange(len(exams.NOTES))](exam)
    if not exam.findings or rng.random() < 0.3:
        what, fact = rng.choice(
            (("organs", "organ"), ("kinds", "kind"), ("shades", "shade"), ("courses", "course"), ("widths", "width"))
        )
        said = ", ".join(str(getattr(f, fact)) for f in exam.findings) or "none"
        return [("user", f"{notes}\nList the {what}."), ("assistant", said)]
    f = rng.choice(exam.findings)
    asked, said = rng.choice(
        (
            (f"What is in the {f.organ}?", f"a {f.shade} {f.kind}, {f.width} mm, {f.course}"),
            (f"Which kind is in the {f.organ}?", f.kind),
            (f"Which shade has the spot in the {f.organ}?", f.shade),
            (f"How wide is the spot in the {f.organ}?", f"{f.width} mm"),
            (f"How has the spot in the {f.organ} changed?", f.course),
            (f"Which grade has the spot in the {f.organ}?", f"grade {f.grade}"),
            (f"Where is the spot of {f.width} mm?", f"in the {f.organ}"),
        )
    )
    return [("user", f"{notes}\n{asked}"), ("assistant", said)]


def _question_after(exam: exams.Exam, rng: random.Random) -> Conversation:
    which = rng.randrange(3)
    if which == 0:
        return [("user", "How many findings?"), ("assistant", f"{len(exam.findings)}.")]
    if which == 1:
        widest = max(exam.findings, key=lambda f: f.width, default=None)
        said = "There is none." if widest is None else f"The {widest.kind} in the {widest.organ}: {widest.width} mm."
        return [("user", "Which one is the widest?"), ("assistant", said)]
    return [("user", "What comes next?"), ("assistant", f"{exam.follow_up}.".capitalize())]


# --- tokens -----------------------------------------------------------------------------------------------------------


def make_tokenizer(houses: Sequence[forms.Form]) -> PreTrainedTokenizerFast:
    """Byte-level pairs (any text has tokens), digits one by one, trained on what the base is trained on."""
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = conversations(0, houses)
    texts = [content for _ in range(20000) for _, content in next(stream)]
    tokenizer.train_from_iterator([*texts, *["system", "user", "assistant"] * 2000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START],
        model_max_length=1024,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tokens_of(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """Token ids, and which are learned: what the assistant says with the sign of its end, and text without a role."""
    ids: list[int] = []
    learned: list[bool] = []

    def add(text: str, learn: bool) -> None:
        new = tokenizer.encode(text, add_special_tokens=False)
        ids.extend(new)
        learned.extend([learn] * len(new))

    for role, content in conversation:
        if not role:
            add(content + PAD, True)
            continue
        add(f"{START}{role}\n", False)
        add(content + END, role == "assistant")
        add("\n", False)
    return ids, learned


def batch_of(step: int, houses: Sequence[forms.Form], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Ids, and labels with -100 where nothing is learned, int64 [BATCH, length]."""
    chunk, place = divmod(step, SORTED)
    stream = conversations(chunk, houses)
    rows = [tokens_of(next(stream), tokenizer) for _ in range(BATCH * SORTED)]
    rows.sort(key=lambda row: len(row[0]))
    order = random.Random(f"order/{chunk}").sample(range(SORTED), SORTED)
    rows = rows[order[place] * BATCH :][:BATCH]
    width = -(-max(len(ids) for ids, _ in rows) // 32) * 32
    pad = tokenizer.pad_token_id
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    learned = torch.tensor([learn + [False] * (width - len(learn)) for _, learn in rows])
    return ids, torch.where(learned, ids, -100)


# --- the model --------------------------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 1.1 million parameters."""
    end, pad = tokenizer.convert_tokens_to_ids([END, PAD])
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = [end, pad]
    model.generation_config.pad_token_id = pad
    return model


def optimizers(model: Qwen3ForCausalLM, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (Jordan 2024, at AdamW's scale), AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)]


def rate(step: int, steps: int) -> float:
    """Share of the peak: a rise over 100 steps, then level, and for the last third of the run down to nothing."""
    return min(1.0, (step + 1) / 100, (steps - step) / (steps / 3))


def train(work: Path, steps: int, peak: float) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    torch.manual_seed(5)
    torch.set_num_threads(1)
    houses = forms.known_forms()
    folder, path = work / "tokenizer", work / "words.pt"
    if not folder.exists():
        make_tokenizer(houses).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = new_model(tokenizer)
    both, first, start, losses = optimizers(model, peak), 0, time.time(), list[float]()
    if path.exists():
        state = kept.load(path)
        model.load_state_dict(state["model"])
        for optimizer, values in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        first = state["step"]
    compiled = torch.compile(model, dynamic=True)
    for step in range(first, steps):
        ids, labels = batch_of(step, houses, tokenizer)
        logits = compiled(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, steps)
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}/{steps} loss {sum(losses) / len(losses):.4f} {time.time() - start:.0f} s", flush=True
            )
            losses.clear()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in both], "step": step + 1}
            kept.save(state, path)
    return model.eval(), tokenizer


@torch.no_grad()
def separate(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, houses: Sequence[forms.Form]) -> int:
    """Gives every token that no conversation has a row of its own in the table; how many those are.

    Learning drives all of them to one and the same row, which nothing can tell from another: no LoRA beside the layers
    could then make the model say a word that is written with them.
    """
    occurs = torch.zeros(VOCABULARY, dtype=torch.bool)
    for chunk in range(40):
        stream = conversations(chunk, houses)
        for _ in range(BATCH * SORTED):
            occurs[tokens_of(next(stream), tokenizer)[0]] = True
    table = model.model.embed_tokens.weight
    known, strange = table[occurs], table[~occurs]
    own = torch.randn(strange.shape, generator=torch.Generator().manual_seed(6))
    length = 0.5 * (known - known.mean(0)).norm(dim=1).mean()
    table[~occurs] = strange.mean(0) + length * own / own.norm(dim=1, keepdim=True)
    return len(strange)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a model folder as transformers has it, in bf16."""
    io.make_folder(folder)
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


# --- figures ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[str]
) -> list[tuple[str, bool]]:
    """What the model says, greedily, and whether it stopped by itself."""
    said: list[tuple[str, bool]] = []
    for begin in range(0, len(asked), 32):
        texts = [f"{START}user\n{text}{END}\n{START}assistant\n" for text in asked[begin : begin + 32]]
        rows = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        out = model.generate(
            input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], max_new_tokens=220, do_sample=False
        )
        for row in out[:, rows["input_ids"].shape[1] :].tolist():
            stops = [i for i, token in enumerate(row) if token in model.generation_config.eos_token_id]
            said.append((tokenizer.decode(row[: stops[0]] if stops else row), bool(stops)))
    return said


def measure(folder: Path, count: int) -> None:
    """Prints how many reports of exams never seen are exactly right, for houses that the base knows and for others."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    known, rng = forms.known_forms(), random.Random(FRESH_SEED)
    rows = {
        "known houses": [(form.house, form.write) for form in rng.choices(known, k=count)],
        "developing houses": [(form.house, form.write) for form in rng.choices(forms.developing_forms(), k=count)],
        f"the demo's, {exams.HOUSE}": [(exams.HOUSE, exams.report)] * count,
        f"held out, {forms.HELD_OUT}": [(forms.HELD_OUT, forms.held_out_report)] * count,
    }
    for name, houses in rows.items():
        drawn = [exams.draw(rng) for _ in houses]
        asked = [
            exams.request(exam, house, rng.randrange(len(exams.NOTES)))
            for exam, (house, _) in zip(drawn, houses, strict=True)
        ]
        wanted = [write(exam) for exam, (_, write) in zip(drawn, houses, strict=True)]
        said = answers(model, tokenizer, asked)
        exact = sum(text == want for (text, _), want in zip(said, wanted, strict=True))
        low, high = wilson(exact, count)
        stopped = sum(stop for _, stop in said)
        print(
            f"{name:24} exact {exact / count:6.1%} ({low:.1%} to {high:.1%}), stopped {stopped / count:.1%}", flush=True
        )
        wrong = [pair for pair in zip(said, wanted, strict=True) if pair[0][0] != pair[1]]
        for (text, _), want in wrong[:1]:
            print(f"{'':24} e.g. {json.dumps(text)}\n{'':24} for  {json.dumps(want)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--peak", type=float, default=4e-3, help="learning rate")
    parser.add_argument("--count", type=int, default=200, help="reports to measure on, of each kind")
    parser.add_argument("--output", type=Path, default=ASSET)
    parser.add_argument("--measure-only", action="store_true", help="measure the model that ships")
    args = parser.parse_args()
    if not args.measure_only:
        args.work.mkdir(parents=True, exist_ok=True)
        model, tokenizer = train(args.work, args.steps, args.peak)
        print(f"{separate(model, tokenizer, forms.known_forms())} tokens never occur: each gets a row of its own")
        save(model, tokenizer, args.output)
    measure(args.output, args.count)
