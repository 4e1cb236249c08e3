"""Text data sets: the forms, the index, and every fault at once with its file and line."""

from __future__ import annotations

import csv
import json
import os
import random
import tracemalloc
from pathlib import Path, PurePath
from typing import Any

import pytest

from lora_scripts.data.texts import record_index
from lora_scripts.data.texts.conversations import Completion, Conversation, Text, is_learned
from lora_scripts.data.texts.records import HINT, list_records, read_records
from lora_scripts.errors import UserError, UserErrors

CHAT = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}
ASKED = ({"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."})


def lines(path: Path, *rows: Any) -> Path:
    """Writes JSON lines; text goes in as it stands."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows))
    return path


def told(path: Path) -> list[str]:
    """What is wrong with a data set, without the folder's name."""
    folder = path if path.is_dir() else path.parent
    return [str(fault).replace(f"{folder}{os.sep}", "") for fault in list_records(path)[1]]


# --- forms ------------------------------------------------------------------------------------------------------------


def test_five_forms_say_the_same(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b."}]
    rows = [CHAT, {"conversations": turns}, {"instruction": "a?", "input": "", "output": "b."}]
    records = read_records(lines(tmp_path / "x.jsonl", *rows, {"prompt": "a?", "completion": " b."}, {"text": "a b"}))
    assert [r.messages for r in records[:3] if isinstance(r, Conversation)] == [ASKED] * 3
    assert records[3:] == [Completion("a?", " b."), Text("a b")]
    assert records.forms == {"messages": 1, "conversations": 1, "instruction": 1, "prompt": 1, "text": 1}


def test_instruction_with_input_system_and_history(tmp_path: Path) -> None:
    row = {"instruction": "Sum up", "input": "x y", "output": "z", "system": "Be brief", "history": [["hi", "hello"]]}
    record = read_records(lines(tmp_path / "x.jsonl", row))[0]
    assert isinstance(record, Conversation)
    said = [(m["role"], m["content"]) for m in record.messages]
    assert said == [
        ("system", "Be brief"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "Sum up\nx y"),
        ("assistant", "z"),
    ]


def test_other_spellings_of_the_same(tmp_path: Path) -> None:
    """Dolly's context, names in capital letters, an input alone, a system prompt beside the turns: none is dropped."""
    told: dict[str, Any] = {"messages": [{"role": "system", "content": "s"}, *ASKED]}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"instruction": "a?", "context": "c", "response": "b."}, {"instruction": "a?", "input": "c", "output": "b."}),
        ({"Question": "a?", "Response": "b."}, CHAT),
        ({"input": "a?", "output": "b."}, CHAT),
        ({**CHAT, "system": "s"}, told),
        ({**told, "system": "s"}, told),
    ]
    for row, wanted in pairs:
        one, other = read_records(lines(tmp_path / "x.jsonl", row, wanted))
        assert one == other
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b.", "weight": 0}]
    shared = {"conversations": [*turns, turns[0], {"from": "gpt", "value": "c."}]}
    (record,) = read_records(lines(tmp_path / "x.jsonl", shared))
    assert isinstance(record, Conversation)
    assert [is_learned(m) for m in record.messages if m["role"] == "assistant"] == [False, True]


def test_what_is_not_learned_is_told(tmp_path: Path) -> None:
    """Keys of no use, and files of other kinds; not what has a use, nor what is about the set."""
    rows = [CHAT | {"id": 3, "source": ""}, {"instruction": "a?", "output": "b.", "response": "c.", "input": ""}]
    lines(tmp_path / "x.jsonl", *rows, {"prompt": "a", "completion": "b", "label": True})
    for name in ("a.docx", "b.docx", "c.pdf", "README.md", "dataset_info.json", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "State of the art.txt").write_text("about nothing but itself")
    records = read_records(tmp_path)
    assert [mend for _, mend in records.notes] == [
        "rename what is to be learned",
        f"save documents as .txt, UTF-8; {HINT}",
    ]
    assert [note for note, _ in records.notes] == [
        "nothing is learned of these keys of records: id (1), response (1)",
        "files of the folder that are not read: 2 .docx, 1 .pdf",
    ]
    assert Text("about nothing but itself") in records
    assert read_records(lines(tmp_path / "y.jsonl", CHAT)).notes == []


def test_calls_of_every_spelling_become_one(tmp_path: Path) -> None:
    call = {"name": "add", "arguments": {"a": 1}}
    wanted = [{"type": "function", "function": call}]
    as_text = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    user, done = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}
    for calls in ([call], [as_text], [{"type": "function", **as_text}]):
        messages = [user, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "2"}]
        record = read_records(lines(tmp_path / "x.jsonl", {"messages": [*messages, done], "tools": "[]"}))[0]
        assert isinstance(record, Conversation)
        assert record.messages[1]["tool_calls"] == wanted
    turns = [("human", "1+1"), ("function_call", json.dumps(call)), ("observation", "2"), ("gpt", "2")]
    sharegpt = {"conversations": [{"from": who, "value": what} for who, what in turns], "tools": [{"name": "add"}]}
    record = read_records(lines(tmp_path / "x.jsonl", sharegpt))[0]
    assert isinstance(record, Conversation)
    assert [m["role"] for m in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert record.messages[1]["tool_calls"] == wanted
    assert record.tools == ({"name": "add"},)


def test_content_in_parts_is_put_together(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "?"}]
    record = read_records(lines(tmp_path / "x.jsonl", {"messages": [ASKED[0] | {"content": parts}, ASKED[1]]}))[0]
    assert isinstance(record, Conversation)
    assert record.messages == ASKED


def _in_parts(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}, ASKED[1]]}


def _nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth - 1):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": [ASKED[0], ASKED[0], ASKED[1]]}, "the role user twice in a row"),
        ({"messages": [*ASKED, ASKED[1]]}, "the role assistant twice in a row"),
        ({"messages": [*ASKED, ASKED[0]]}, "ends with the user's turn"),
        ({"messages": [ASKED[0]]}, "nothing is answered"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": [ASKED[0], {"role": "assistant", "content": "  "}]}, "an empty answer"),
        ({"messages": [ASKED[0], {"role": "assistant"}]}, "an empty answer"),
        ({"messages": [{"role": "user", "content": ""}, ASKED[1]]}, "an empty question"),
        ({"messages": [{"role": "bot", "content": "x"}]}, 'nobody has the role "bot"'),
        ({"messages": [*ASKED, {"role": "system", "content": "x"}]}, "a system prompt in the middle"),
        ({"messages": [{"role": "system", "content": "x"}, *ASKED], "system": "y"}, "a system prompt in the middle"),
        ({"messages": [ASKED[0], {"role": "tool", "content": "2"}, ASKED[1]]}, "a tool answers, but was not called"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ASKED[1]]}, "a message with pictures"),
        ({"messages": "hello"}, '"messages" is not JSON'),
        ({"messages": {"a": 1}}, '"messages" is a list of turns, not an object'),
        ({"messages": [ASKED[0], {"role": "assistant", "content": 3}]}, '"content" is a number, not text'),
        ({"conversations": [{"from": "pope", "value": "x"}]}, 'nobody is called "pope"'),
        ({"instruction": "a", "output": ""}, "an empty answer"),
        ({"instruction": "a"}, "instruction without an answer"),
        ({"instruction": "", "output": "b"}, "the instruction is empty"),
        ({"prompt": "a", "completion": ""}, "the completion is empty"),
        ({"prompt": "a"}, '"completion" is nothing, not text'),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference record"),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, "a preference record"),
        ({"prompt": "a", "completion": "b", "label": False}, "an answer that is rated as bad (label: false)"),
        ({**CHAT, "kto_tag": False}, "an answer that is rated as bad (kto_tag: false)"),
        ({"messages": [ASKED[0], ASKED[1] | {"weight": 0}]}, "no answer of it is to be learned"),
        ({"messages": [ASKED[0], ASKED[1] | {"weight": 2}]}, '"weight" of a turn is 2; write 0 or 1'),
        ({"messages": [ASKED[0], ASKED[1] | {"train": "no"}]}, "\"train\" of a turn is 'no'; write true or false"),
        ({"text": " "}, "the text is empty"),
        ({"text": 5}, '"text" is a number, not text'),
        ({"content": "x", "id": 3}, "keys of no known form: content, id"),
        ([1], "a record is an object with keys, not a list"),
        ({"text": "\ud83d"}, "holds half a character"),
        ({"instruction": "a", "output": "b", "history": [[None, "x"]]}, '"history" is a list of pairs of texts'),
        ({"instruction": "a", "output": "b", "history": [["q", 5]]}, '"history" is a list of pairs of texts'),
        (_in_parts({"type": "text", "text": None}), '"text" is nothing, not text'),
        (_in_parts({"type": "text"}), '"text" is nothing, not text'),
        (_in_parts({"type": ["text"], "text": "a"}), "a message with pictures or sounds"),
        (_in_parts("a"), "a message with pictures or sounds"),
        ({"text": "a", "more": _nested(101)}, "lists or objects nested too deeply"),
        ({"messages": json.dumps(_nested(101))}, '"messages" is not JSON: lists or objects nested too deeply'),
    ],
)
def test_each_fault_of_a_record_has_its_line(tmp_path: Path, row: Any, wanted: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(CHAT) + "\n\n" + json.dumps(row) + "\n")
    assert [line.startswith(f"x.jsonl:3: {wanted}") for line in told(tmp_path / "x.jsonl")] == [True], told(tmp_path)


def test_json_that_ends_python_is_a_fault_of_its_line(tmp_path: Path) -> None:
    """And nesting that no reader minds is none."""
    deep, number = "[" * 100_000, "1" * 5000
    rows = (f'{{"text": {deep}', f'{{"text": "a", "n": {number}}}', {"text": "a", "more": _nested(99)})
    wanted = ["lists or objects nested too deeply", "a number of thousands of digits"]
    faults = [fault.split("; ")[0] for fault in told(lines(tmp_path / "x.jsonl", *rows))]
    assert faults == [f"x.jsonl:{line}: {what}" for line, what in enumerate(wanted, 1)]
    (tmp_path / "x.jsonl").unlink()
    (tmp_path / "x.json").write_text(f'[{{"text": {deep}{"]" * len(deep)}}},\n{rows[1]}]')
    assert [fault.split("; ")[0] for fault in told(tmp_path)] == [
        f"x.json:{line}: {what}" for line, what in enumerate(wanted, 1)
    ]


# --- files ------------------------------------------------------------------------------------------------------------


def test_all_faults_of_all_files_at_once(tmp_path: Path) -> None:
    good = json.dumps(CHAT)
    (tmp_path / "a.jsonl").write_text(f'{good}\n{good[:40]}\n{good[:-1]}\n{good}{good}\n{{"text": nope}}\n')
    (tmp_path / "b.jsonl").write_bytes(f"{good}\n".encode() + '{"text": "Gefäß"}\n'.encode("cp1252"))
    (tmp_path / "c.jsonl").write_bytes(f"{good}\n".encode("utf-16"))
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "x" * (10 << 20)}) + "\n" + good + "\n")
    (tmp_path / "e.jsonl").write_text("")
    (tmp_path / "f.csv").write_text('instruction,output\na,b\nc\n"d,e\n')
    (tmp_path / "g.csv").write_text("name,age\nx,3\n")
    (tmp_path / "h.json").write_text(f'[\n{good},\n{{"text": ""}},\n{good[:30]}')
    (tmp_path / "i.txt").write_bytes(b"one\ntwo\xff\n")
    assert [fault.split("; ")[0] for fault in told(tmp_path)] == [
        "a.jsonl:2: half a record: the JSON ends in the middle",
        "a.jsonl:3: half a record: the JSON ends in the middle",
        "a.jsonl:4: two records on one line",
        "a.jsonl:5: not JSON: Expecting value (column 10)",
        "b.jsonl:2: not UTF-8 text",
        "c.jsonl:1: this is UTF-16 text",
        "d.jsonl:1: a record of 10.0 MB, more than the 4 MB that are read as one",
        "e.jsonl: the file is empty",
        "f.csv:3: 1 cell, but the first row names 2 columns",
        "f.csv:4: the quote that opens here is never closed",
        "g.csv:1: no columns of a known form: name,age",
        "h.json:3: the text is empty",
        "h.json:4: half a record: the JSON ends in the middle",
        "i.txt:2: not UTF-8 text",
    ]
    with pytest.raises(UserErrors) as caught:
        read_records(tmp_path)
    assert len(caught.value.errors) == 14


def test_many_faults_of_one_file_are_counted(tmp_path: Path) -> None:
    faults = told(lines(tmp_path / "x.jsonl", CHAT, *[{"text": ""}] * 100))
    assert len(faults) == record_index.MANY + 1
    assert faults[-1] == "x.jsonl: 80 further records have faults"


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(UserError, match=r"no records found; the folder holds 1 \.md, 1 \.png"):
        read_records(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        read_records(tmp_path / "b")
    with pytest.raises(UserError, match=r"\.png is not a file of records"):
        read_records(tmp_path / "a.png")


def test_json_list_records_one_after_the_other_and_one_alone(tmp_path: Path) -> None:
    tricky = {"text": 'a "}] \\" [{ b\\'}
    path = tmp_path / "x.json"
    for written in (
        json.dumps([tricky, CHAT]),
        json.dumps([tricky, CHAT], indent=2),
        "\ufeff" + json.dumps([tricky, CHAT]),
    ):
        path.write_text(written, encoding="utf-8")
        records = read_records(path)
        assert [type(r) for r in records] == [Text, Conversation]
        assert records[0] == Text(tricky["text"])
    path.write_text(json.dumps(tricky) + "\n" + json.dumps(CHAT, indent=1))
    assert len(read_records(path)) == 2
    path.write_text(json.dumps(CHAT, indent=1))
    assert len(read_records(path)) == 1
    path.write_text(json.dumps([tricky, 3, CHAT], indent=1))
    assert [fault.split("; ")[0] for fault in told(path)] == ['x.json:6: not a record: "3"']
    path.write_text(json.dumps(["a", "b"]))
    assert 'not a record: "\\"a\\", \\"b\\"]"' in told(path)[0]
    path.write_text("no json")
    assert "not JSON" in told(path)[0]


def test_lines_of_json_records(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([CHAT, CHAT, {"text": "x"}], indent=1))
    text = path.read_text().splitlines()
    records = read_records(path)
    places = [records.place(i).line for i in range(3)]
    assert [text[line - 1].strip() for line in places] == ["{"] * 3
    assert places[0] == 2
    assert text[places[2]].strip() == '"text": "x"'


def test_json_that_was_saved_as_lines_of_json_is_told_once(tmp_path: Path) -> None:
    for value in (CHAT, [CHAT]):
        path = lines(tmp_path / "x.jsonl", json.dumps(value, indent=2))
        mend = "name the file .json; in a .jsonl file each line is a record"
        assert told(path) == [f"x.jsonl:1: JSON over several lines; {mend}"]
        assert len(read_records(path.rename(tmp_path / "x.json"))) == 1


def test_csv_as_the_csv_module_writes_it(tmp_path: Path) -> None:
    rng, rows = random.Random(3), []
    for _ in range(200):
        rows.append(["".join(rng.choice('ab",;\n\r\t é') for _ in range(rng.randrange(1, 12))) + "x" for _ in range(2)])
    for delimiter in ",;\t":
        with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([["prompt", "completion"], *rows])
        records = read_records(tmp_path / "x.csv")
        clean = [[cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row] for row in rows]
        assert [[r.prompt, r.completion] for r in records if isinstance(r, Completion)] == clean
    (tmp_path / "x.csv").write_text('instruction,input,output\n"a, b",,"c ""d"""\n')
    record = read_records(tmp_path / "x.csv")[0]
    assert isinstance(record, Conversation)
    assert [m["content"] for m in record.messages] == ["a, b", 'c "d"']
    (tmp_path / "x.csv").write_text('text\n"a" b\n')
    assert "there is text after a closing quote" in told(tmp_path / "x.csv")[0]


def test_tables_as_spreadsheets_put_them_out(tmp_path: Path) -> None:
    """With the line that tells Excel the mark between cells, and rows of nothing but marks at the end."""
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\nprompt;completion\r\na;b\r\n;\r\n;\r\n")
    (tmp_path / "y.tsv").write_text("prompt\tcompletion\na\tb\n\t\n")
    (tmp_path / "z.ndjson").write_text('{"prompt": "a", "completion": "b"}\n')
    records = read_records(tmp_path)
    assert list(records) == [Completion("a", "b")] * 3
    assert records.place(0).line == 3
    lines(tmp_path / "z.ndjson", '{"text": "a"},')
    assert told(tmp_path) == ["z.ndjson:1: a comma behind the record; remove it: a line holds a record and no more"]


def test_columns_in_another_encoding_are_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("问题,output\n你好,好\n".encode("gbk"))
    assert told(path) == ["x.csv:1: not UTF-8 text; it looks like GBK (Chinese) or EUC-JP (Japanese); save it as UTF-8"]


def test_a_csv_row_that_is_too_long_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    """None is trained cut short, in quotes or without."""
    half, path = "word " * (3 << 18), tmp_path / "x.csv"  # 3.75 MB
    quoted = f'"{half}\n{half}"'
    path.write_text(f"text\n{half}{half}\nshort\n{quoted}\n\nlast,\nend\n")
    assert [fault.split("; ")[0] for fault in told(path)] == [
        "x.csv:2: a record of 7.5 MB, more than the 4 MB that are read as one",
        "x.csv:4: a record of 7.5 MB, more than the 4 MB that are read as one",
        "x.csv:7: 2 cells, but the first row names 1 columns",
    ]
    records = list_records(path)[0]
    assert [(r.text, records.place(i).line) for i, r in enumerate(records) if isinstance(r, Text)] == [
        ("short", 3),
        ("end", 8),
    ]
    path.write_text(f'text\nshort\n"{quoted[1:-1]}\nend\n')
    mend = 'write a quote inside a cell twice: ""'
    assert told(path) == [f"x.csv:3: the quote that opens here is never closed; {mend}"]


def test_text_is_one_document_and_a_long_one_comes_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Title\n\nwords\n")
    long = "\n\n".join(f"Absatz {i}: größer " * 20 for i in range(2000))
    (tmp_path / "b.txt").write_text(long, encoding="utf-8")
    (tmp_path / "c.txt").write_text("é" * 200_000, encoding="utf-8")  # no place to cut but between characters
    records = read_records(tmp_path)
    assert records[0] == Text("# Title\n\nwords\n")
    for name, whole in (("b.txt", long), ("c.txt", "é" * 200_000)):
        pieces = [r for i, r in enumerate(records) if records.place(i).file.name == name and isinstance(r, Text)]
        assert len(pieces) > 3
        assert "".join(piece.text for piece in pieces) == whole
        assert [p.begins for p in pieces] == [True] + [False] * (len(pieces) - 1)
        assert [p.ends for p in pieces] == [False] * (len(pieces) - 1) + [True]


def test_many_files_are_put_in_order_without_comparing_all_with_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, real = 0, PurePath.__eq__

    def counted(self: PurePath, other: object) -> bool:
        nonlocal compared
        compared += 1
        return real(self, other)

    for number in range(100):
        (tmp_path / f"{number:02}.txt").write_text(str(number))
    monkeypatch.setattr(PurePath, "__eq__", counted)
    records = read_records(tmp_path)
    monkeypatch.undo()
    assert [r.text for r in records if isinstance(r, Text)] == [str(number) for number in range(100)]
    assert compared <= 500


def test_splits_of_a_folder(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "data/test-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines(tmp_path / name, {"text": name})
    lines(tmp_path / ".cache.jsonl", {"text": "hidden"})
    (tmp_path / "README.md").write_text("about the data")
    records = read_records(tmp_path)
    assert [r.text for r in records if isinstance(r, Text)] == ["data/train-00000-of-00001.jsonl", "train.jsonl"]
    assert [path.name for path in records.left_out] == ["test-00000-of-00001.jsonl", "valid.jsonl"]
    assert [r.text for r in read_records(tmp_path, "valid") if isinstance(r, Text)] == ["valid.jsonl"]
    lone = tmp_path / "alone"
    lone.mkdir()
    lines(lone / "test_reports.jsonl", CHAT)
    assert len(read_records(lone)) == 1


def test_index_and_places(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", *[{"text": f"a{i}"} for i in range(5)])
    lines(tmp_path / "b.jsonl", "", *[{"text": f"b{i}"} for i in range(5)])
    records = read_records(tmp_path)
    assert len(records) == 10
    assert [r.text for r in records if isinstance(r, Text)] == [f"{c}{i}" for c in "ab" for i in range(5)]
    assert str(records.place(6)) == f"{tmp_path / 'b.jsonl'}:3"
    assert records[-1] == Text("b4")
    with pytest.raises(IndexError):
        records[10]
    before = records.fingerprint
    lines(tmp_path / "b.jsonl", {"text": "other"})
    assert read_records(tmp_path).fingerprint != before
    with pytest.raises(UserError, match=r"b\.jsonl:3: the file has changed while it was being used; start again"):
        records[6]


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    for name, first, between, last in (("x.jsonl", "", "\n", ""), ("x.json", "[", ",\n", "]")):
        row = json.dumps({"text": "word " * 2000})
        with (tmp_path / name).open("w") as file:
            file.write(first)
            for i in range(2000):
                file.write((between if i else "") + row)
            file.write(last)
        tracemalloc.start()
        records = read_records(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(records) == 2000
        assert (tmp_path / name).stat().st_size > 20e6
        assert peak < 1e6


def test_tables_want_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert told(tmp_path) == [
        'x.parquet: .parquet files are read with the datasets library; pip install "lora-scripts[datasets]"'
    ]


def test_parquet_and_saved_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [CHAT | {"tools": None}, {"messages": [ASKED[0]], "tools": None}]
    data = datasets.Dataset.from_list(rows)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    data.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: mit\n---")
    records, faults = list_records(tmp_path / "hub")
    assert len(records) == 1
    assert isinstance(records[0], Conversation)
    assert records[0].messages == ASKED
    assert [str(f).partition("parquet: ")[2][:40] for f in faults] == ["row 2: nothing is answered: no turn of t"]
    data.select([0]).save_to_disk(str(tmp_path / "saved"))
    assert len(read_records(tmp_path / "saved")) == 1
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing")
    assert "bad.parquet: cannot be read" in str(list_records(tmp_path / "bad.parquet")[1][0])


def test_reading_needs_no_torch() -> None:
    import subprocess
    import sys

    heavy = "{'torch', 'numpy', 'datasets'}"
    code = f"import sys; import lora_scripts.data.texts.records; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
