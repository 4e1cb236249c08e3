"""A conversation with a model and LoRAs on it, and what evaluate finds; through the command line."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import small_words
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.chat import of_file
from lora_scripts.chat.session import Session
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.evaluate.scoring import exact, rouge_l, share
from lora_scripts.families.causal_lm.model import open_model
from lora_scripts.families.texts import Answer, Answering, TextFamily
from lora_scripts.loras import adapter_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_words.write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, draw = open_model(base, torch.device("cpu"), torch.float32), torch.Generator().manual_seed(0)
    weights = {}
    for path in model.usual:
        out, width = model.trainable()[path].weight.shape
        weights[path] = LoraWeights(torch.randn(2, width, generator=draw), torch.randn(out, 2, generator=draw), 1.0)
    folder = tmp_path_factory.mktemp("lora") / "words"
    adapter_folder.write(folder, adapter_folder.files_of(weights, torch.float32, base=str(base)))
    return folder


def talk(base: Path, *more: str) -> list[str]:
    return ["chat", "--base", str(base), "--max-tokens", "12", "--device", "cpu", "--precision", "fp32", *more]


def test_history_system_prompt_and_commands(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "hello",
        "",
        "how are you",
        "/again",
        "/help",
        "/new",
        "hello",
        "/system Be brief",
        "hello",
        "/quit",
        "never",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main([*talk(base), "--json"]) == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    model = open_model(base, torch.device("cpu"), torch.float32)
    one, two = Session(model, Answering(12)), Session(model, Answering(12), "Be brief")
    wanted = [one.ask("hello").text, one.ask("how are you").text]
    wanted += [wanted[1], wanted[0], two.ask("hello").text]  # asked again, the likeliest answer is the same
    assert [turn["answer"] for turn in turns] == wanted
    assert wanted[0] != wanted[4]
    assert [m["role"] for m in one.messages] == ["user", "assistant"] * 2


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the latter where no language is set
def test_piped_messages_of_another_encoding_are_told(
    base: Path, errors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped = io.TextIOWrapper(io.BytesIO("你好\n".encode("gbk")), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", piped)
    assert main(talk(base)) == 2
    told = "error: the messages that are piped in are not utf-8 text; save them as UTF-8, or give a file of them"
    assert capsys.readouterr().err.startswith(told)


def test_again_after_a_new_conversation_keeps_the_system_prompt(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to ask again, and what was said before is not asked."""
    lines = ["hello", "/new", "/again", "how are you"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main([*talk(base), "--system", "Be brief", "--json"]) == 0
    out, err = capsys.readouterr()
    asked = open_model(base, torch.device("cpu"), torch.float32)
    wanted = [Session(asked, Answering(12), "Be brief").ask(text).text for text in ("hello", "how are you")]
    assert [turn["answer"] for turn in json.loads(out)["turns"]] == wanted
    assert "(nothing was answered yet)" in err


def test_what_is_asked_again_and_refused_is_not_lost(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(open_model(base, torch.device("cpu"), torch.float32), Answering(2))
    session.ask("hello")
    said = list(session.messages)

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("the chat template refuses it")

    monkeypatch.setattr(session.model, "answer", refuse)
    with pytest.raises(UserError):
        session.again(seed=1)
    assert session.messages == said


def test_people_see_the_answer_as_it_comes(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*talk(base), "--message", "hello"]) == 0
    shown = capsys.readouterr().out
    answer = open_model(base, torch.device("cpu"), torch.float32).answer(
        [{"role": "user", "content": "hello"}], Answering(12)
    )
    assert shown.startswith(answer.text + "\n")
    assert ("cut off after 12 tokens" in shown) is not answer.stopped


def test_loras_add_up_by_their_weights(base: Path, lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice at a half is once at one, and a weight of zero is a mistake."""

    def said(*loras: str) -> str:
        words = [word for one in loras for word in ("--lora", one)]
        assert main([*talk(base), "--message", "hello", "--json", *words]) == 0
        return str(json.loads(capsys.readouterr().out)["turns"][0]["answer"])

    assert said(f"{lora}:1") == said(f"{lora}:0.5", f"{lora}:0.5") != said()
    assert main([*talk(base), "--message", "hello", "--lora", f"{lora}:0"]) == 2
    assert "weight 0 changes nothing; leave it out" in capsys.readouterr().err


def test_faults_come_at_once(tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*talk(tmp_path), "--message", "x", "--lora", str(tmp_path / "none.safetensors")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all(line.startswith("error: ") for line in told)
    # A folder in which several things are wrong: each is a line, for programs too.
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}')
    assert main([*talk(broken), "--json", "--message", "x", "--lora", str(tmp_path / "none")]) == 2
    errors = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(errors) > 2
    assert {error["file"] for error in errors} >= {str(broken), str(tmp_path / "none")}


def test_a_file_of_prompts(base: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is answered as it would be alone."""
    prompts, more = tmp_path / "prompts.txt", tmp_path / "talks.jsonl"
    prompts.write_text("hello\n\nhow are you, hello\n")
    words = talk(base, "--lora", f"{lora}:1", "--system", "Be brief", "--from-file")
    assert main([*words, str(prompts)]) == 0
    assert "2 prompts answered in" in capsys.readouterr().out
    model = open_model(base, torch.device("cpu"), torch.float32)
    from lora_scripts.loras import on_texts

    on_texts.wear(model, [(lora, 1.0)])
    rows = [json.loads(line) for line in (tmp_path / "prompts-answers.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["hello", "how are you, hello"]
    for row in rows:
        alone = Session(model, Answering(12), "Be brief").ask(row["prompt"])
        assert (row["answer"], row["stopped"]) == (alone.text, alone.stopped)
    assert main([*words, str(prompts)]) == 2
    assert "is there already; add --resume" in capsys.readouterr().err
    asked = [{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}]
    said = {"messages": [*asked, {"role": "assistant", "content": "y"}]}
    lines = [json.dumps(row) for row in ({"prompt": "hello"}, {"messages": asked}, said, [])]
    more.write_text("\n".join([*lines, "{half"]))
    assert main([*words, str(more), "--output", str(tmp_path / "out.jsonl")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("talks.jsonl:")[2][:2] for line in told] == ["3:", "4:", "5:"]
    more.write_text("\n".join(lines[:2]))
    assert main([*words, str(more), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_a_stopped_file_of_prompts_goes_on(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same drawn answers, and never with those to other prompts."""
    prompts, whole, rest = tmp_path / "prompts.txt", tmp_path / "whole.jsonl", tmp_path / "rest.jsonl"
    prompts.write_text("".join(f"hello {number}\n" for number in range(10)))
    words = [*talk(base, "--temperature", "1", "--from-file"), str(prompts), "--output"]
    assert main([*words, str(whole)]) == 0
    lines = whole.read_text().splitlines(keepends=True)
    kept = json.dumps(json.loads(lines[0]) | {"answer": "as it was"}) + "\n"  # is not asked again
    rest.write_text("".join([kept, *lines[1 : of_file.AT_ONCE]]))
    assert main([*words, str(rest), "--resume"]) == 0
    assert rest.read_text() == "".join([kept, *lines[1:]])
    assert main([*words, str(rest), "--resume"]) == 0  # nothing is left to do
    assert "10 prompts answered in" in capsys.readouterr().out
    for wrong in (lines[1], '{"prompt": "hello 0"}\n', "{half"):
        rest.write_text(wrong)
        assert main([*words, str(rest), "--resume"]) == 2
        assert "rest.jsonl:1: " in capsys.readouterr().err
        assert rest.read_text() == wrong
    rest.write_text("".join([*lines, lines[0]]))
    assert main([*words, str(rest), "--resume"]) == 2
    assert "rest.jsonl:11: answers no prompt of the file" in capsys.readouterr().err
    assert main([*talk(base), "--message", "x", "--resume"]) == 2
    assert "--resume does nothing without --from-file" in capsys.readouterr().err


def test_answers_of_others_are_not_gone_on_with(
    base: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another base or LoRA, another strength, system prompt, template or setting; whatever they are called."""
    prompts, output = tmp_path / "prompts.txt", tmp_path / "prompts-answers.jsonl"
    prompts.write_text("hello\nhow are you\n")
    own = ["--lora", f"{lora}:1", "--from-file", str(prompts)]
    assert main([*talk(base), *own]) == 0
    (first, _), whole = output.read_text().splitlines(), output.read_text()
    small_words.write_model(other := tmp_path / "model", rms_norm_eps=1e-3)
    moved = shutil.copytree(lora, tmp_path / "moved")
    template = tmp_path / "other.jinja"
    template.write_text(small_words.CHATML.replace("m.content", "'Well: ' + m.content"))
    words = talk(base)
    for others in (
        [*talk(other), *own],
        [*words, "--lora", f"{lora}:0.5", "--from-file", str(prompts)],
        [*words, "--from-file", str(prompts)],
        [*words, *own, "--system", "Be brief"],
        [*words, *own, "--template", str(template)],
        [*words, *own, "--temperature", "1"],
        [*words, *own, "--max-tokens", "13"],
        [*words, *own, "--precision", "bf16"],
    ):
        for there in (first + "\n", whole):  # a part, and all
            output.write_text(there)
            assert main([*others, "--resume"]) == 2
            told = capsys.readouterr().err
            assert "prompts-answers.jsonl:1: was answered by another base or LoRA, or with another" in told
            assert told.endswith("; give --output another name, or remove it\n")
            assert output.read_text() == there
    output.write_text(first + "\n")
    same = ["--lora", f"{moved}:1", "--from-file", str(prompts), "--seed", "5"]  # nothing is drawn
    assert main([*words, *same, "--resume"]) == 0
    assert output.read_text() == whole


def test_empty_thoughts_are_no_part_of_an_answer(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3's template has them learned; where the prompt for an answer opens the thought, only its end is said."""
    from lora_scripts.families.causal_lm import model

    said = ["<think>\n\n</think>\n\nYes.", "</think>\n\nYes.", "<think>\nhm\n</think>\n\nYes."]
    monkeypatch.setattr(model, "generate", lambda *_: [Answer(text, 3, True) for text in said])
    (tmp_path / "three.txt").write_text("hello\n" * 3)
    assert main([*talk(base), "--from-file", str(tmp_path / "three.txt")]) == 0
    answers = [json.loads(line)["answer"] for line in (tmp_path / "three-answers.jsonl").read_text().splitlines()]
    assert answers == ["Yes.", "Yes.", said[2]]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("<think>\n\n</think>\n\nYes.", "Yes."),
        ("</think>\n\nYes.", "Yes."),
        ("<think>\nhm\n</think>\n\nYes.", None),
        ("</thing> <b>", None),
        (" <th", None),
        ("<think>\n\n</think>\n", ""),
        ("", ""),
    ],
)
def test_an_empty_thought_is_not_told_as_it_comes(said: str, wanted: str | None, size: int) -> None:
    wanted = said if wanted is None else wanted

    class Model:
        def answer(self, talk: object, answering: object, tell: Callable[[str], None], template: object) -> Answer:
            for start in range(0, len(said), size):
                tell(said[start : start + size])
            return Answer(said, 1, True)

    session = Session(cast(TextFamily, Model()), Answering(8))
    told: list[str] = []
    assert session.ask("Well?", told.append).text == "".join(told) == session.messages[-1]["content"] == wanted


def test_one_prompt_asked_often_is_drawn_anew_each_time(base: Path, tmp_path: Path) -> None:
    (tmp_path / "often.txt").write_text("hello\n" * (2 * of_file.AT_ONCE))
    assert main([*talk(base, "--temperature", "1"), "--from-file", str(tmp_path / "often.txt")]) == 0
    answers = [json.loads(line)["answer"] for line in (tmp_path / "often-answers.jsonl").read_text().splitlines()]
    assert len(set(answers)) == len(answers)


def test_prompts_are_records_without_the_answer(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts in parts, tools and turns of tools as a training reads them, and .ndjson as .jsonl."""
    template, prompts = tmp_path / "tools.jinja", tmp_path / "prompts.ndjson"
    template.write_text(
        "{%- for tool in tools or [] %}{{- tool.function.name + '\\n' }}{%- endfor %}" + small_words.CHATML
    )
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    asked = {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}
    rows = [{"messages": [asked]}, {"messages": [asked], "tools": tools}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*talk(base), "--template", str(template), "--from-file", str(prompts)]) == 0
    answers = [json.loads(line) for line in (tmp_path / "prompts-answers.jsonl").read_text().splitlines()]
    model, hello = open_model(base, torch.device("cpu"), torch.float32), [{"role": "user", "content": "hello"}]
    wanted = [model.answer(hello, Answering(12), template=str(template), tools=own).text for own in ((), tools)]
    assert [row["answer"] for row in answers] == wanted
    assert wanted[0] != wanted[1]
    assert [row["prompt"] for row in answers] == ["hello", "hello"]
    without = [*talk(base), "--from-file", str(prompts), "--output", str(tmp_path / "without.jsonl")]
    assert main(without) == 2  # else it was answered as if it had no tools
    assert "prompts.ndjson:2: the chat template leaves the tools out; " in capsys.readouterr().err
    table = tmp_path / "prompts.csv"
    table.write_text("prompt\nhello\n")
    assert main([*talk(base), "--from-file", str(table), "--output", str(tmp_path / "table.jsonl")]) == 2
    assert "prompts.csv: prompts are not read from .csv files; write one a line" in capsys.readouterr().err


def test_each_prompt_that_cannot_be_answered_is_told_before_the_first(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict, prompts = tmp_path / "strict.jinja", tmp_path / "prompts.jsonl"
    strict.write_text(
        "{%- for m in messages %}{%- if m.role == 'system' %}{{ raise_exception('no system prompt') }}{%- endif %}"
        "{%- endfor %}" + small_words.CHATML
    )
    asked = [{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}]
    rows = [{"prompt": "hello"}, {"messages": asked}, {"prompt": "x y " * 300}, {"messages": asked}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*talk(base), "--template", str(strict)]
    assert main([*words, "--from-file", str(prompts)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("prompts.jsonl:")[2].partition(";")[0] for line in told] == [
        "2: the chat template refuses it: no system prompt",
        "3: the prompt is so long that the model has no place for an answer",
        "4: the chat template refuses it: no system prompt",
    ]
    prompts.write_text('{"prompt": "hello \\ud800"}\n')
    assert main([*words, "--from-file", str(prompts)]) == 2
    assert "prompts.jsonl:1: holds half a character" in capsys.readouterr().err
    assert main([*words, "--system", "x", "--message", "hello"]) == 2  # nobody is there to ask otherwise
    assert capsys.readouterr().err.startswith("error: the chat template refuses it: no system prompt")


def test_one_message_is_no_command(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*talk(base), "--message", "/help me", "--json"]) == 0
    assert [turn["asked"] for turn in json.loads(capsys.readouterr().out)["turns"]] == ["/help me"]
    assert main([*talk(base), "--message", " "]) == 2
    assert "error: --message is empty" in capsys.readouterr().err


def test_a_model_without_a_template_says_what_it_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = small_words.write_model(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    prompts = tmp_path / "prompts.jsonl"
    turns = [{"role": role, "content": "hello"} for role in ("user", "assistant", "user")]
    prompts.write_text(json.dumps({"messages": turns}) + "\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/system Be brief\n"))
    assert main(talk(bare)) == 0
    assert capsys.readouterr().out.count("the model has no chat template, so it goes on with each message") == 2
    for words in (["--system", "x", "--message", "hello"], ["--system", "x", "--from-file", str(prompts)]):
        assert main([*talk(bare), *words]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: --system does nothing: the model has no chat template")
        assert told.endswith("; --template names one: chatml, alpaca, or a .jinja file\n")
    assert main([*talk(bare), "--from-file", str(prompts)]) == 2
    assert "prompts.jsonl:1: history that is not seen: the model has no chat template" in capsys.readouterr().err
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    prompts.write_text(json.dumps({"prompt": "hello", "tools": tools}) + "\n")
    assert main([*talk(bare), "--from-file", str(prompts)]) == 2
    assert "prompts.jsonl:1: tools that are not seen: the model has no chat template" in capsys.readouterr().err


def test_a_lora_brings_the_template_that_it_was_trained_with(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a base that has none, as after a training with chat_template: chatml."""
    bare, own = small_words.write_model(tmp_path / "bare"), tmp_path / "words"
    (bare / "chat_template.jinja").unlink()
    own.mkdir()
    for part in lora.iterdir():
        (own / part.name).write_bytes(part.read_bytes())
    (own / adapter_folder.TEMPLATE).write_text(small_words.CHATML)

    def said(*words: str) -> str:
        assert main([*talk(bare), "--message", "hello", "--json", *words]) == 0
        return str(json.loads(capsys.readouterr().out)["turns"][0]["answer"])

    template = str(own / adapter_folder.TEMPLATE)
    assert (
        said("--lora", f"{own}:1") == said("--lora", f"{lora}:1", "--template", template) != said("--lora", f"{lora}:1")
    )


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat", "the cat sat") == 1.0
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)  # Lin 2004, 3.1
    assert rouge_l("the gunman kill police", "police kill the gunman") == pytest.approx(0.5)
    assert rouge_l("", "a") == rouge_l("a", "b") == 0.0
    assert rouge_l("左肾结石", "右肾结石") == pytest.approx(0.75)


@pytest.mark.skipif(importlib.util.find_spec("rouge_score") is None, reason="rouge-score is not installed")
def test_rouge_l_as_rouge_score_has_it() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"]), random.Random(1)
    for _ in range(200):
        said, wanted = (
            " ".join(rng.choices(["a", "b,", "C", "d.", "e-f", "12", "mm"], k=rng.randrange(1, 12))) for _ in "12"
        )
        assert rouge_l(said, wanted) == pytest.approx(scorer.score(wanted, said)["rougeL"].fmeasure)


def test_shares_have_wilsons_interval() -> None:
    s = share([True] * 8 + [False] * 2)
    assert (s.hits, s.count) == (8, 10)
    assert (s.low, s.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998, method 3
    assert exact(" a\n", "a")
    assert not exact("a b", "a  b")


def test_tools_of_a_record_are_asked_with(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without them another prompt would be measured; an answer that is a call has a loss and no text to compare."""
    template = tmp_path / "tools.jinja"
    listed = "{%- for tool in tools or [] %}{{- tool.function.name + '\\n' }}{%- endfor %}"
    called = "{%- set calls %}{%- for c in m.tool_calls or [] %}{{ c.function.name }}{%- endfor %}{%- endset %}"
    said = small_words.CHATML.replace("{{- '<|im_start|>' + m.role", called + "{{- '<|im_start|>' + m.role")
    template.write_text(listed + said.replace("+ m.content", "+ m.content + calls"))
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    asked = {"role": "user", "content": "hello"}
    model = open_model(base, torch.device("cpu"), torch.float32)
    wanted = model.answer([asked], Answering(6), template=str(template), tools=tools).text
    assert wanted != model.answer([asked], Answering(6), template=str(template)).text
    rows = [{"messages": [asked, {"role": "assistant", "content": wanted}], "tools": tools}]
    rows.append({"messages": [asked, call], "tools": tools})
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "--base", str(base), "--data", str(data), "--template", str(template), "--max-tokens", "6"]
    assert main([*words, "--device", "cpu", "--precision", "fp32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["records"], result["answered"], result["base"]["exact"]["hits"]) == (2, 1, 1)


def test_what_is_thought_before_an_answer_is_not_compared(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen3's template writes an empty thought before each answer, which is learned with it."""
    from lora_scripts.families.causal_lm import model

    said = ["<think>\n\n</think>\n\nYes.", "Yes.", "<think>\nhm"]
    monkeypatch.setattr(model, "generate", lambda *_: [Answer(text, 3, True) for text in said])
    data, turn = tmp_path / "test.jsonl", {"role": "user", "content": "hello"}
    wanted = ("Yes.", "<think>\nWell\n</think>\n\nYes.", "Yes.")
    rows = [{"messages": [turn, {"role": "assistant", "content": text}]} for text in wanted]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "--base", str(base), "--data", str(data), "--max-tokens", "8", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["base"]
    assert (result["exact"]["hits"], result["rouge_l"]) == (2, pytest.approx(2 / 3))


def test_evaluate_tells_records_that_are_cut_and_mends_as_its_options(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "test.jsonl"
    rows = [{"instruction": "hello", "output": "hello " * 40}, {"instruction": "hello " * 40, "output": "hello"}]
    data.write_text(json.dumps(rows[0]) + "\n")
    words = ["evaluate", "--base", str(base), "--data", str(data), "--max-tokens", "2", "--device", "cpu"]
    assert main([*words, "--max-length", "24"]) == 0
    assert "note: 1 record longer than 24 tokens: the loss is of what fits; --max-length" in capsys.readouterr().out
    data.write_text(json.dumps(rows[1]) + "\n")
    assert main([*words, "--max-length", "24"]) == 2
    assert capsys.readouterr().err.endswith("that is trained; raise --max-length, shorten the record\n")
    bare = shutil.copytree(base, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert main([*words, "--base", str(bare)]) == 2
    assert "; name one with --template: chatml, alpaca, or a .jinja file" in capsys.readouterr().err


def test_evaluate_finds_what_was_put_there(
    base: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wanted answers are those of the model with the LoRA: it is right in all, and the base in none."""
    model = open_model(base, torch.device("cpu"), torch.float32)
    from lora_scripts.loras import on_texts

    on_texts.wear(model, [(lora, 1.0)])
    rows: list[dict[str, Any]] = []
    for n in range(1, 7):
        messages = [{"role": "user", "content": "hello " * n}]
        said = model.answer(messages, Answering(12)).text
        rows.append({"messages": [*messages, {"role": "assistant", "content": said}]})
    rows.append({"text": "hello how are you"})
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "--base", str(base), "--lora", f"{lora}:1", "--data", str(data), "--max-tokens", "12"]
    words += ["--device", "cpu", "--precision", "fp32", "--batch", "3"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["records"], result["answered"]) == (7, 6)
    assert result["lora"]["exact"]["hits"] == 6
    assert result["base"]["exact"]["hits"] == 0
    assert result["lora"]["rouge_l"] > result["base"]["rouge_l"]
    assert result["compared"]["loss"]["high"] < 0
    assert result["compared"]["exact"]["mean"] == 1.0
    coder = model.encoder()
    from lora_scripts.data.texts.records import read_records
    from lora_scripts.families.sequences import padded

    each = [model.loss(padded(coder.encode(record))) for record in read_records(data)]
    assert result["lora"]["loss"] == pytest.approx(sum(loss.item() / n for loss, n in each) / 7, rel=1e-4)
    assert result["lora"]["perplexity"] == pytest.approx(math.exp(result["lora"]["loss"]))
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "7 records, 6 with an answer" in told
    assert f"{data}:1: hello" in told
