"""Which tokens are trained: for every template what the model would write, and nothing else."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import small_words
from lora_scripts.data.texts.conversations import Completion, Conversation, RecordFault, Text
from lora_scripts.families.causal_lm.encode import Encoder
from lora_scripts.families.causal_lm.template import NAMED, NO_DATE, Template
from lora_scripts.families.sequences import Example, Examples, marked

CALL = [{"type": "function", "id": "abcdefghi", "function": {"name": "forecast", "arguments": {"city": "Paris"}}}]
TOOL = {
    "type": "function",
    "function": {
        "name": "forecast",
        "description": "w",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "c"}},
            "required": ["city"],
        },
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


TALKS = {
    "one": Conversation((user("Hi there"), says("Hello, you!"))),
    "system": Conversation(({"role": "system", "content": "Be brief"}, user("Hi there"), says("Hello, you!"))),
    "three": Conversation(
        (user("Hi there"), says("Hello, you!"), user("What is 2+2?"), says("4"), user("Sure?"), says("Yes.\n"))
    ),
    "thought": Conversation((user("Hi there"), says("Hello, you!", reasoning_content="They greet."))),
    "tools": Conversation(
        (
            user("Weather?"),
            says("", tool_calls=CALL),
            {"role": "tool", "content": "sunny", "name": "forecast", "tool_call_id": "abcdefghi"},
            says("It is sunny."),
        ),
        (TOOL,),
    ),
}


def encoder(tokenizer: Any, source: str | None = None, **more: Any) -> Encoder:
    source = source or tokenizer.chat_template
    template = Template(tokenizer, source) if source else None
    return Encoder(tokenizer, template, frozenset({tokenizer.eos_token_id}), **more)


def shown(tokenizer: Any, source: str | None, talk: Conversation, **more: Any) -> list[str]:
    return [marked(example, tokenizer.decode) for example in encoder(tokenizer, source, **more).encode(talk)]


# --- the rules, on templates of our own -------------------------------------------------------------------------------


def test_answers_and_the_ends_of_their_turns_are_trained() -> None:
    tokenizer = small_words.tokenizer()
    assert shown(tokenizer, None, TALKS["three"]) == [
        "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n⟦Hello, you!<|im_end|>\n⟧"
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>\n⟧"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦Yes.\n<|im_end|>\n⟧"
    ]
    (example,) = encoder(tokenizer, train_on="all").encode(TALKS["one"])
    assert all(example.trained)


def test_tokens_are_those_of_apply_chat_template() -> None:
    tokenizer = small_words.tokenizer(bos="<s>", adds_bos=True, template="{{- bos_token }}" + small_words.CHATML)
    for talk in (TALKS["one"], TALKS["system"], TALKS["three"]):
        (example,) = encoder(tokenizer).encode(talk)
        wanted = tokenizer.apply_chat_template([dict(m) for m in talk.messages], return_dict=True)["input_ids"]
        assert example.ids == wanted
        assert example.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", [small_words.CHATML, *NAMED.values()])
def test_every_answer_ends_with_a_token_at_which_the_model_stops(template: str) -> None:
    for eos in ("<|im_end|>", "</s>"):
        tokenizer = small_words.tokenizer(bos="<s>", eos=eos)
        for example in encoder(tokenizer, template).encode(TALKS["one"]):
            text = tokenizer.decode(example.ids)
            assert example.trained[example.ids.index(tokenizer.eos_token_id, len(example.ids) // 2)], text
            assert text.count("</s>") == (eos == "</s>")


def test_a_turn_that_ends_otherwise_in_the_middle() -> None:
    """As gpt-oss has <|end|> in the history and <|return|> at the end; Phi-3 an end of text at the very end only."""
    signs = ("<|u|>", "<|a|>", "<|end|>", "<|return|>")
    tokenizer = small_words.tokenizer(signs, eos="<|return|>")
    middle = (
        "{%- for m in messages %}{{- ('<|u|>' if m.role == 'user' else '<|a|>') + m.content }}"
        "{{- '<|return|>' if loop.last and m.role != 'user' else '<|end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|a|>' }}{%- endif %}"
    )
    assert shown(tokenizer, middle, TALKS["three"]) == [
        "<|u|>Hi there<|end|><|a|>⟦Hello, you!<|end|>⟧<|u|>What is 2+2?<|end|><|a|>⟦4<|end|>⟧"
        "<|u|>Sure?<|end|><|a|>⟦Yes.\n<|return|>⟧"
    ]
    last = (
        "{%- for m in messages %}{{- ('<|u|>' if m.role == 'user' else '<|a|>') + m.content + '<|end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|a|>' }}{%- else %}{{- eos_token }}{%- endif %}"
    )
    assert shown(tokenizer, last, TALKS["three"]) == [
        "<|u|>Hi there<|end|><|a|>⟦Hello, you!<|end|>⟧<|u|>What is 2+2?<|end|><|a|>⟦4<|end|>⟧"
        "<|u|>Sure?<|end|><|a|>⟦Yes.\n<|end|><|return|>⟧"
    ]


def test_the_next_turn_is_the_end_of_this_one() -> None:
    """As with GLM, whose answers have no sign of their own: the model stops at the one that begins the next turn."""
    tokenizer = small_words.tokenizer(("<|u|>", "<|a|>"), eos="</s>")
    source = (
        "{%- for m in messages %}{{- ('<|u|>' if m.role == 'user' else '<|a|>') + m.content }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|a|>' }}{%- endif %}"
    )
    template, (sign, eos) = Template(tokenizer, source), tokenizer.convert_tokens_to_ids(["<|u|>", "</s>"])
    assert template.end_of_turn == sign
    (example,) = Encoder(tokenizer, template, frozenset({sign, eos})).encode(TALKS["three"])
    assert marked(example, tokenizer.decode) == (
        "<|u|>Hi there<|a|>⟦Hello, you!<|u|>⟧What is 2+2?<|a|>⟦4<|u|>⟧Sure?<|a|>⟦Yes.\n<|u|>⟧"
    )
    base = Encoder(tokenizer, template, frozenset({eos}))
    (example,) = base.encode(TALKS["one"])
    assert marked(example, tokenizer.decode) == "<|u|>Hi there<|a|>⟦Hello, you!</s>⟧"
    assert base.counts.ended == 1


def test_history_that_is_rewritten_comes_in_parts() -> None:
    """As Qwen3's template takes the thoughts out of all answers but the last."""
    tokenizer = small_words.tokenizer()
    source = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.role == 'assistant' and loop.last %}"
        "{{- '<think>' ~ (m.reasoning_content or '') ~ '</think>' }}{%- endif %}"
        "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    coder = encoder(tokenizer, source)
    parts = [marked(example, tokenizer.decode) for example in coder.encode(TALKS["three"])]
    assert [re.findall("⟦(.*?)⟧", part, re.DOTALL) for part in parts] == [
        ["<think></think>Hello, you!<|im_end|>\n"],
        ["<think></think>4<|im_end|>\n"],
        ["<think></think>Yes.\n<|im_end|>\n"],
    ]
    assert "assistant\nHello, you!<|im_end|>\n<|im_start|>user" in parts[2]
    assert coder.counts.split == 1
    assert coder.counts.examples == 3
    assert shown(tokenizer, source, TALKS["thought"])[0].endswith("⟦<think>They greet.</think>Hello, you!<|im_end|>\n⟧")


def test_a_prompt_that_opens_a_thought_and_answers_without_one() -> None:
    tokenizer = small_words.tokenizer()
    source = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.role == 'assistant' %}{{- '<think>' ~ (m.reasoning_content or '') ~ '</think>' }}{%- endif %}"
        "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>' }}"
        "{%- if enable_thinking is defined and not enable_thinking %}{{- '</think>' }}{%- else %}{{- '\\n' }}"
        "{%- endif %}{%- endif %}"
    )
    coder = encoder(tokenizer, source)
    assert marked(coder.encode(TALKS["one"])[0], tokenizer.decode).endswith("<think></think>⟦Hello, you!<|im_end|>\n⟧")
    assert coder.template is not None
    assert coder.template.beginnings == {"not_thinking": 1}
    coder.encode(TALKS["thought"])
    assert coder.template.beginnings == {"not_thinking": 1, "other": 1}


def test_what_cannot_be_trained_is_refused() -> None:
    tokenizer = small_words.tokenizer()
    with pytest.raises(RecordFault, match="the model's tokenizer has no chat template"):
        encoder(small_words.tokenizer(template=None)).encode(TALKS["one"])
    strict = "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(RecordFault, match="the chat template refuses it: System role not supported") as caught:
        encoder(tokenizer, strict + small_words.CHATML).encode(TALKS["system"])
    assert caught.value.hint == "put the system prompt into the first question"
    with pytest.raises(RecordFault, match="the chat template leaves tool calls out"):
        encoder(tokenizer).encode(TALKS["tools"])
    with pytest.raises(RecordFault, match="24 tokens, and its first 8 hold nothing that is trained"):
        encoder(tokenizer, max_length=8).encode(TALKS["one"])
    silent = "{%- for m in messages %}{{- m.content }}{% generation %}{% endgeneration %}{%- endfor %}"
    with pytest.raises(RecordFault, match="the chat template shows no answer"):
        encoder(tokenizer, silent).encode(TALKS["one"])


def test_answers_of_no_weight_are_read_and_not_learned() -> None:
    """OpenAI's `weight`, axolotl's `train`; with marks in the template as without."""
    tokenizer = small_words.tokenizer()
    start, end = "{{- '<|im_start|>' + m.role + '\\n' }}", "{{- m.content + '<|im_end|>\\n' }}"
    marks = (
        f"{{%- if m.role == 'assistant' %}}{{% generation %}}{end}{{% endgeneration %}}{{%- else %}}{end}{{%- endif %}}"
    )
    prompt = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    marked_one = f"{{%- for m in messages %}}{start}{marks}{{%- endfor %}}{prompt}"
    one, said, two, other, three, last = TALKS["three"].messages
    whole = tokenizer.apply_chat_template(list(TALKS["three"].messages), tokenize=False)
    for source in (None, marked_one):
        for unlearned in ({"weight": 0}, {"train": False}, {"train": 0}):
            talk = Conversation((one, said | unlearned, two, other, three, last | unlearned))
            wanted = whole[: whole.index("4<|im_end|>")] + "⟦4<|im_end|>\n⟧"
            assert shown(tokenizer, source, talk) == [wanted]
            talk = Conversation((one, said, two, other | unlearned, three, last | {"weight": 1}))
            text = shown(tokenizer, source, talk)[0]
            assert text.replace("⟦", "").replace("⟧", "") == whole
            assert re.findall("⟦(.*?)⟧", text, re.DOTALL) == ["Hello, you!<|im_end|>\n", "Yes.\n<|im_end|>\n"]


def test_what_a_template_leaves_out_is_told() -> None:
    """A system prompt and tools are refused, thoughts are counted: of all three trl says nothing."""
    tokenizer = small_words.tokenizer()
    deaf = small_words.CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    with pytest.raises(RecordFault, match="the chat template leaves the system prompt out"):
        encoder(tokenizer, deaf).encode(TALKS["system"])
    talk = Conversation(TALKS["one"].messages, (TOOL,))
    with pytest.raises(RecordFault, match="the chat template leaves the tools out"):
        encoder(tokenizer).encode(talk)
    coder = encoder(tokenizer)
    for kind in ("thought", "one"):
        coder.encode(TALKS[kind])
    assert coder.counts.thoughtless == 1
    thinking = small_words.CHATML.replace("+ m.content", "+ (m.reasoning_content or '') + m.content")
    coder = encoder(tokenizer, thinking)
    coder.encode(TALKS["thought"])
    assert coder.counts.thoughtless == 0


def test_the_date_does_not_change_the_tokens() -> None:
    tokenizer = small_words.tokenizer()
    dated = "{{- 'Today: ' + strftime_now('%d %b %Y') + ' ' + strftime_now('%Y-%m-%d') + '\\n' }}" + small_words.CHATML
    assert shown(tokenizer, dated, TALKS["one"])[0].startswith("Today: 01 Jan 2025 2025-01-01\n<|im_start|>user")


def test_many_examples_in_little_memory() -> None:
    rows = [Example([1, 2, 300_000], [False, True, True]), Example([7], [True]), Example([], [])]
    store = Examples()
    for i, row in enumerate(rows):
        store.add(row, f"x:{i}")
    assert list(store) == rows
    assert store[-1] == rows[-1]
    assert store.lengths == [3, 1, 0]
    assert store.places == ["x:0", "x:1", "x:2"]
    other = Examples()
    for row in rows[:2]:
        other.add(row, "")
    assert other.digest != store.digest


# --- text, and what follows a prompt ----------------------------------------------------------------------------------


def test_prompt_and_completion() -> None:
    tokenizer = small_words.tokenizer(bos="<s>", eos="</s>", adds_bos=True)
    (example,) = encoder(tokenizer).encode(Completion("what is 2+2?", " 4 é"))
    assert marked(example, tokenizer.decode) == "<s>what is 2+2?⟦ 4 é</s>⟧"
    (example,) = encoder(tokenizer).encode(Completion("<s>what is 2+2?", " 4</s>"))
    assert marked(example, tokenizer.decode) == "<s>what is 2+2?⟦ 4</s>⟧"
    (example,) = encoder(tokenizer, train_on="all").encode(Completion("what", " is"))
    assert marked(example, tokenizer.decode) == "<s>⟦what is</s>⟧"


def test_text_comes_in_pieces_with_one_beginning_and_one_end() -> None:
    tokenizer = small_words.tokenizer(bos="<s>", eos="</s>", adds_bos=True)
    coder = encoder(tokenizer, max_length=10)
    text = "hello how are you " * 8
    pieces = coder.encode(Text(text))
    assert all(len(piece.ids) <= 10 for piece in pieces)
    assert "".join(tokenizer.decode(piece.ids) for piece in pieces) == f"<s>{text}</s>"
    inner = coder.encode(Text("hello", begins=False, ends=False))
    assert [tokenizer.decode(piece.ids) for piece in inner] == ["hello"]


def test_long_records_are_cut_or_left_out_and_counted() -> None:
    tokenizer = small_words.tokenizer()
    whole = encoder(tokenizer).encode(TALKS["three"])[0]
    coder = encoder(tokenizer, max_length=30)
    (cut,) = coder.encode(TALKS["three"])
    assert cut == Example(whole.ids[:30], whole.trained[:30])
    assert coder.counts.cut == 1
    coder = encoder(tokenizer, max_length=30, long_records="leave_out")
    assert coder.encode(TALKS["three"]) == []
    assert coder.counts.left_out == 1


# --- trl's pairs of templates: the stock one, and one with marks for what is trained ----------------------------------


def _pairs() -> list[tuple[str, str, str]]:
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "chat_templates"
    pairs = []
    for path in sorted(folder.glob("*_training.jinja")):
        name = path.stem.removesuffix("_training")
        if "message['content'] | selectattr" not in path.read_text() or name in ("smolvlm", "idefics3"):
            pairs.append((name, (folder / f"{name}.jinja").read_text(), path.read_text()))
    return pairs


PAIRS = _pairs()
_SIGN = re.compile(
    r"<\|[^|<>]{1,40}\|>|<｜[^｜]{1,40}｜>|</?(?:start_of_turn|end_of_turn|end_of_utterance|s|think)>|<turn\|>|<\|turn>"
)
ENDS = (
    "<|im_end|>",
    "<|end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<|eot|>",
    "<|return|>",
)
ENDS += ("<|call|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>")
BROADER = {  # trl marks the prompt for the answer, or a part of it, as the answer, too
    "deepseek_r1_distill",
    "deepseekv3",
    "gptoss",
    "muse_glimmer",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "qwen2_5",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
}
REWRITES = {"qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}
"""Stock templates that rewrite the history; trl's training templates do not."""


def _as_trl(tokenizer: Any, source: str, talk: Conversation) -> tuple[list[int], list[bool]] | None:
    """Tokens and mask as trl's SFTTrainer takes them from transformers; None where the template refuses."""
    source = NO_DATE + source if "strftime_now" in source else source
    try:
        out = tokenizer.apply_chat_template(
            [dict(m) for m in talk.messages],
            tools=list(talk.tools) or None,
            chat_template=source,
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
    except Exception:
        return None
    return out["input_ids"], [bool(flag) for flag in out["assistant_masks"]]


@pytest.mark.skipif(not PAIRS, reason="trl is not installed")
@pytest.mark.parametrize(("name", "stock", "training"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_tokens_and_masks_as_trl_has_them(name: str, stock: str, training: str) -> None:
    signs = sorted(set(_SIGN.findall(stock + training)) | {"<bos>"})
    tokenizer = small_words.tokenizer(signs, bos="<bos>", eos="<eos>")
    ends = [sign for sign in (*ENDS, *(["<|user|>"] if name == "glm4moe" else [])) if sign in signs]
    stops = frozenset([tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(ends)])
    seen = 0
    for kind, talk in TALKS.items():
        theirs = _as_trl(tokenizer, training, talk)
        if theirs is None:
            continue
        try:
            (marked_one,) = Encoder(tokenizer, Template(tokenizer, training), stops).encode(talk)
        except RecordFault as fault:  # it passes over what trl then trains without
            assert (kind, fault.message.split(" leaves ")[1]) in (
                ("tools", "the tools out"),
                ("system", "the system prompt out"),
            )
            continue
        assert (marked_one.ids, marked_one.trained) == theirs, kind
        try:
            ours = Encoder(tokenizer, Template(tokenizer, stock), stops).encode(talk)
        except RecordFault as fault:  # the stock template drops or breaks on tool calls; trl's mends that, or is silent
            assert kind == "tools", fault
            continue
        seen += 1
        if name in REWRITES and kind in ("three", "tools") and len(ours) > 1:
            continue
        (example,) = ours
        assert example.ids == theirs[0], kind
        if name in BROADER:
            assert all(flag or not our for our, flag in zip(example.trained, theirs[1], strict=True)), kind
            ends_of = [
                i
                for i, pair in enumerate(zip(theirs[1], [*theirs[1][1:], False], strict=True))
                if pair == (True, False)
            ]
            assert all(example.trained[i] for i in ends_of), kind
        elif (name, kind) != ("diffusion_gemma", "tools"):  # the response is a part of the turn there
            assert example.trained == theirs[1], kind
    assert seen >= 3
