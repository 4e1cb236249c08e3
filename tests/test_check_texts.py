"""The data-set doctor for records: what would stop a training, or make it worse."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import small_words
from lora_scripts.check.texts import near
from lora_scripts.check.texts.command import TextChecked, TextCheckOptions, check_texts
from lora_scripts.cli import main


def row(asked: str, answered: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def clean(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(300)]
    return [row(" ".join(rng.sample(words, 9)), " ".join(rng.sample(words, 12))) for _ in range(count)]


def kinds(checked: TextChecked) -> list[str]:
    return [finding.kind for finding in checked.findings]


def test_nothing_wrong(tmp_path: Path) -> None:
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", *clean(40))))
    assert kinds(checked) == []
    assert checked.records == 40
    assert sum(count for _, _, count in checked.lengths) == 40
    assert checked.page == tmp_path / "x.jsonl-check.html"
    assert "40 (40 messages)" in checked.page.read_text()


@pytest.mark.parametrize(
    ("more", "kind", "severity"),
    [
        ([row("a?", "")], "an_empty_answer", "error"),
        (['{"text": "half'], "half_a_record", "error"),
        ([{"messages": [{"role": "user", "content": "x"}] * 2}], "the_role_user_twice_in_a_row", "error"),
        ([row("what is it?", "it is so"), row("what is it?", "it is so")], "duplicate", "warning"),
        ([row("what is it?", "it is so"), row("what is it?", "it is not")], "contradiction", "note"),
        ([row("say it", "say it")], "echo", "warning"),
        ([row("who?", "write to jane.doe@example.org")], "secret", "warning"),
        ([row("key?", "AKIAIOSFODNN7EXAMPLE")], "secret", "warning"),
        ([row("key?", "-----BEGIN RSA PRIVATE KEY-----")], "secret", "warning"),
        ([row("login?", "password: hunter2hunter2")], "secret", "warning"),
        ([row("who?", "ID 11010519491231002X")], "secret", "warning"),
        ([row("who?", "电话13800138000，")], "secret", "warning"),
        ([row("who?", "SSN 123-45-6789.")], "secret", "warning"),
        ([row("paid?", "by 4111 1111 1111 1111")], "secret", "warning"),
        ([row("paid?", "to DE89 3704 0044 0532 0130 00")], "secret", "warning"),
        ([row("how?", "so<|im_end|>")], "template_sign", "warning"),
        ([row(f"q{i}?", "always this") for i in range(60)], "one_answer", "warning"),
    ],
)
def test_each_fault_is_found(tmp_path: Path, more: list[Any], kind: str, severity: str) -> None:
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", *clean(30), *more)))
    assert {finding.severity for finding in checked.findings if finding.kind == kind} == {severity}
    assert set(kinds(checked)) == {kind}


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", row("k", "sk-" + "abcd1234" * 4), *clean(30))))
    assert "looks like an access key (sk-a…)" in checked.findings[0].message
    assert "abcd1234" not in checked.page.read_text()


def test_numbers_that_only_look_like_those_of_people(tmp_path: Path) -> None:
    """The check of an identity number, a card or an account does not hold; a measure is no telephone."""
    said = ["110105194912310021", "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "113800138000", "0.13800138000"]
    said += ["000-45-6789", "2024-123-45-6789", "14 mm, 13 x 12 x 11 mm", "accession 20241127001234567"]
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", *clean(30), row("numbers?", "; ".join(said)))))
    assert kinds(checked) == []
    shown = "ID 11010519491231002X of 13800138000"
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", row("who?", shown), *clean(30))))
    assert "1101…" in checked.page.read_text()
    assert "1949" not in checked.page.read_text()
    assert "0138000" not in checked.page.read_text()


def test_near_duplicates_and_leaks(tmp_path: Path) -> None:
    rows = clean(40)
    long = " ".join(f"w{i}" for i in range(60))
    near = [row("report", long), row("report", long.replace("w59", "other"))]
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", *rows, *near)))
    assert kinds(checked) == ["near_duplicate", "contradiction"]
    held = write(tmp_path / "held.jsonl", rows[3], row("new", "thing here"))
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", *rows), held))
    (leak,) = checked.findings
    assert leak.kind == "leak"
    assert str(leak.source).endswith("x.jsonl:4")
    assert leak.files == (f"{held}:1",)
    assert checked.records == 40


def test_minhash_finds_what_comparing_all_finds() -> None:
    """Against Jaccard of all pairs: texts of which a part of the words is exchanged."""
    rng = random.Random(1)
    texts = []
    for _ in range(40):
        words = [str(rng.randrange(1000)) for _ in range(80)]
        texts.append(" ".join(words))
        for i in rng.sample(range(80), rng.choice([0, 1, 2, 30])):
            words[i] = "x"
        texts.append(" ".join(words))

    def pieces(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}

    def alike(a: str, b: str) -> bool:
        return len(pieces(a) & pieces(b)) / len(pieces(a) | pieces(b)) >= near.ALIKE

    wanted = [[i, i + 1] for i in range(0, 80, 2) if alike(texts[i], texts[i + 1])]
    assert 20 < len(wanted) < 40
    assert near.clusters([near.signature(text) for text in texts], texts.__getitem__) == wanted


def test_with_a_model_tokens_and_template_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = small_words.write_model(tmp_path / "model")
    long = row("hello " * 30, "hello " * 30)
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    tool = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    data = write(tmp_path / "x.jsonl", *[row(f"what is {i}", f"it is {i}{i}") for i in range(30)], long, tool)
    keys = {"train_file": data, "base_model": base, "output_dir": tmp_path / "out", "max_length": 64}
    config = tmp_path / "c.yaml"
    config.write_text(
        "".join(f"{key}: {json.dumps(str(v) if isinstance(v, Path) else v)}\n" for key, v in keys.items())
    )
    assert main(["check", "--config", str(config)]) == 2
    told = capsys.readouterr()
    assert "the chat template leaves tool calls out" in told.out
    assert "1 record of more than 64 tokens (max_length), at most" in told.out
    assert "training would stop at 1 error" in told.err
    assert (tmp_path / "out" / "check.html").exists()


def test_a_bare_file_is_counted_in_the_tokens_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, base = write(tmp_path / "x.jsonl", *clean(30)), small_words.write_model(tmp_path / "model")
    assert main(["check", str(data), "--base", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == "tokens"
    assert main(["check", str(data), "--base", str(data)]) == 2  # it did nothing
    assert main(["check", str(data), "--base"]) == 2
    assert "--base needs a folder here" in capsys.readouterr().err


def test_the_command_knows_texts_from_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "x.jsonl", *clean(30))
    assert main(["check", str(data)]) == 0
    assert "30 records (30 messages): nothing wrong was found" in capsys.readouterr().out
    assert main(["check", str(data), "--fix"]) == 2
    assert "--fix is for pictures, and these are texts; leave it out" in capsys.readouterr().err


def test_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "in").mkdir(parents=True)
    (tmp_path / "mine" / "a.jsonl").write_text('{"text": "hello there"}\n')
    for inside, source in ((tmp_path / "mine", "."), (tmp_path / "mine" / "in", "..")):
        monkeypatch.chdir(inside)
        assert main(["check", source]) == 0
        assert "mine" in (tmp_path / "mine-check.html").read_text("utf-8")
        (tmp_path / "mine-check.html").unlink()


def test_the_page_shows_lengths_and_records_and_no_pictures(tmp_path: Path) -> None:
    base = small_words.write_model(tmp_path / "model")
    data = write(tmp_path / "x.jsonl", *[row(f"what is {i}", f"it is {i}" * (i + 1)) for i in range(30)])
    page = check_texts(TextCheckOptions(data, base=base)).page.read_text()
    assert "<h2>Lengths</h2>" in page and "⟦it is 0" in page
    assert "pictures" not in page.partition("<main")[2]
    page = check_texts(TextCheckOptions(data)).page.read_text()
    assert "user: what is 0\nassistant: it is 0" in page


def test_files_of_other_splits_are_held_out(tmp_path: Path) -> None:
    rows = clean(40)
    for name, some in (("train", rows[:30]), ("test", rows[29:])):
        write(tmp_path / f"{name}.jsonl", *some)
    checked = check_texts(TextCheckOptions(tmp_path, page=tmp_path / "page.html"))
    assert (checked.records, checked.held_out) == (30, 11)
    assert kinds(checked) == ["leak"]


def test_chinese_is_compared_sign_by_sign(tmp_path: Path) -> None:
    said = "扫描显示左肺有一个直径十二毫米的结节边缘清晰建议三个月后复查并与之前的图像比较以确定其变化"
    rows = [row("报告", said), row("报告", said[:-1] + "性")]
    checked = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", *clean(30), *rows)))
    assert kinds(checked) == ["near_duplicate", "contradiction"]
    assert checked.longest > 40


def test_many_secrets_are_one_finding(tmp_path: Path) -> None:
    rows = [row(f"who is {i}?", f"ask person{i}@example.org of {i * 7} streets") for i in range(300)]
    (secret,) = check_texts(TextCheckOptions(write(tmp_path / "x.jsonl", *rows))).findings
    assert "a mail address (pers…), in 300 records" in secret.message
    assert len(secret.files) == 200
