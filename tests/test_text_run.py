"""A run on texts, from a YAML file to a proved LoRA: once through the whole life of it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import small_words
from lora_scripts import run
from lora_scripts.cli import main
from lora_scripts.data.texts.conversations import Conversation
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Table, ignore
from lora_scripts.families.causal_lm.model import open_model
from lora_scripts.families.texts import Answering
from lora_scripts.loras import adapter_folder
from lora_scripts.report.chinese import missing
from lora_scripts.run import base_files
from lora_scripts.run.configs import load_config
from lora_scripts.run.texts import export
from lora_scripts.run.texts.preflight import digest_of, preflight
from runs import interrupting


def write_records(path: Path, count: int = 30) -> Path:
    rows = []
    for i in range(count):
        messages = [
            {"role": "user", "content": f"what is {i}+{i}?"},
            {"role": "assistant", "content": f"it is {2 * i}" + ", sunny" * (i % 4)},
        ]
        rows.append({"messages": messages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(folder: Path, **changes: Any) -> Path:
    keys: dict[str, Any] = {
        "lora_rank": 4,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "val_every": 4,
        "precision": "fp32",
        "device": "cpu",
        "answer_tokens": 8,
        "save_precision": "fp32",
    } | changes
    path = folder / "config.yaml"
    path.write_text("".join(f"{key}: {json.dumps(str(v) if isinstance(v, Path) else v)}\n" for key, v in keys.items()))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_words.write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = write_records(folder / "reports.jsonl")
    keys = {"base_model": base, "train_file": data, "output_dir": folder / "talk", "sample_every": 6}
    config = config_of(folder, **keys, lora_dropout=0.2)
    assert main(["train", "--config", str(config)]) == 0
    return folder / "talk"


def test_what_a_run_leaves(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"talk", "talk-best", "talk-step000003", "report.html", "config.yaml", "heldout.json", "logs"} <= names
    assert {p.name for p in (finished / "talk").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
    }
    assert len(list((finished / "samples").glob("step000006-*.txt"))) == 3
    record = json.loads((finished / "heldout.json").read_text())
    assert len(record["records"]) == 3
    assert record["records"][0].count("reports.jsonl:") == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished / "logs"))
    board.Reload()
    wanted = [math.exp(sum(taken["held"]) / 3) for taken in record["evaluations"]]
    assert [e.value for e in board.Scalars("heldout/perplexity")] == pytest.approx(wanted, rel=1e-5)
    assert load_config(finished / "config.yaml") == load_config(finished.parent / "config.yaml")
    page = (finished / "report.html").read_text()
    assert [text for text in missing(page) if " " in text] == []  # each sentence is there in Chinese
    assert "With the LoRA" in page
    assert "⟦it is" in page
    assert "Records that were not trained" in page


def test_peft_and_chat_say_what_the_training_says(
    base: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ["chat", "--base", str(base), "--lora", f"{finished / 'talk'}:1", "--message", "what is 3+3?", "--json"]
    assert main([*words, "--device", "cpu", "--precision", "fp32", "--max-tokens", "8"]) == 0
    said = json.loads(capsys.readouterr().out)["turns"][0]["answer"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), finished / "talk")
    talk = [{"role": "user", "content": "what is 3+3?"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True) == said


def alpha_doubled(write: Callable[..., None]) -> Callable[..., None]:
    """Writes a folder that means another LoRA."""

    def wrong(path: Path, *rest: Any) -> None:
        write(path, *rest)
        told = adapter_folder.config_of(path)
        (path / adapter_folder.ADAPTER_CONFIG).write_text(json.dumps(told | {"lora_alpha": 2 * told["lora_alpha"]}))

    return wrong


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_folder_that_means_another_lora_ends_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    """Its alpha doubled behind the writer's back; in bf16 a right one passes although it has learned nearly nothing."""
    data = write_records(tmp_path / "reports.jsonl", 12)
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "talk", "val_split": 0, "val_every": None}
    config = config_of(tmp_path, **keys, epochs=2, precision=precision, save_precision="fp16", learning_rate=3e-3)
    write = export.write
    monkeypatch.setattr(export, "write", alpha_doubled(export.write))
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert "makes another model of it: off by" in told and "; go on with --resume save_precision=fp32" in told
    monkeypatch.setattr(export, "write", write)
    shutil.rmtree(tmp_path / "talk")
    assert main(["train", "--config", str(config), "learning_rate=1e-4"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 5, 6, 7])
@pytest.mark.parametrize("rate", [4e-3, 2e-3, 7e-4, 3e-4, 1.7e-4, 1.1e-4, 9e-5, 5e-5])
def test_in_bf16_right_folders_pass_and_wrong_ones_do_not(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, seed: int
) -> None:
    """However little was learnt."""
    data = write_records(tmp_path / "reports.jsonl", 12)
    keys = {"base_model": base, "train_file": data, "val_split": 0, "val_every": None, "epochs": 2, "seed": seed}
    keys |= {"precision": "bf16", "save_precision": "fp16", "learning_rate": rate}
    assert main(["train", "--config", str(config_of(tmp_path, **keys, output_dir=tmp_path / "right"))]) == 0
    monkeypatch.setattr(export, "write", alpha_doubled(export.write))
    assert main(["train", "--config", str(config_of(tmp_path, **keys, output_dir=tmp_path / "wrong"))]) == 2


def test_resuming_is_exact(base: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle and gone on with, a run gives the same bytes as one that was not stopped, and the answers
    of the step in which it was stopped. The second start does not read the base again for its digest."""
    monkeypatch.setattr(base_files, "_SETTLED", -1)  # it was written just now
    folder = tmp_path / "run"
    folder.mkdir()
    data = write_records(folder / "reports.jsonl")
    keys = {"base_model": base, "train_file": data, "output_dir": folder / "talk", "sample_every": 6}
    config = config_of(folder, **keys, lora_dropout=0.2)
    with pytest.raises(KeyboardInterrupt):
        run.train(load_config(config), sink=interrupting(6, ignore))
    assert not (folder / "talk" / "talk").exists() and not (folder / "talk" / "samples").exists()
    monkeypatch.setattr(base_files, "sound_digest", lambda path, unread: pytest.fail(f"{path} is read again"))
    assert main(["train", "--config", str(config), "--resume"]) == 0
    name = "adapter_model.safetensors"
    assert (folder / "talk" / "talk" / name).read_bytes() == (finished / "talk" / name).read_bytes()
    ours, theirs = (json.loads((f / "heldout.json").read_text())["evaluations"] for f in (folder / "talk", finished))
    assert ours == theirs
    answered, wanted = ({p.name: p.read_text() for p in (f / "samples").iterdir()} for f in (folder / "talk", finished))
    assert answered == wanted and "step000006-1.txt" in wanted


def test_a_dora_is_trained_resumed_exactly_and_loaded_by_peft(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with PEFT's loader saying what the training says; see `export.prove`."""
    data, kept = write_records(tmp_path / "reports.jsonl"), []
    for stop in (False, True):
        out = tmp_path / f"stopped {stop}"
        keys = {"adapter": "dora", "rank_stabilised": True, "lora_plus_ratio": 4, "val_split": 0, "val_every": None}
        config = config_of(tmp_path, base_model=base, train_file=data, output_dir=out, epochs=1, **keys)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                run.train(load_config(config), sink=interrupting(4, ignore))
        assert main(["train", "--config", str(config), *(["--resume"] if stop else [])]) == 0
        told = capsys.readouterr().out
        assert "rank 4, alpha 8," in told  # rank-stabilised: what a reader divides by the rank
        assert "note: vLLM and llama.cpp read no DoRA: merge it for them" in told
        folder = out / out.name
        assert adapter_folder.config_of(folder)["use_dora"]
        kept.append((folder / "adapter_model.safetensors").read_bytes())
    assert kept[0] == kept[1]
    keys = {"adapter": "dora", "init_lora": folder, "learning_rate": 1e-12, "val_split": 0, "val_every": None}
    config = config_of(tmp_path, base_model=base, train_file=data, output_dir=tmp_path / "more", epochs=1, **keys)
    assert main(["train", "--config", str(config)]) == 0
    before, after = (load_file(at / "adapter_model.safetensors") for at in (folder, tmp_path / "more" / "more"))
    assert before.keys() == after.keys() and any("magnitude" in key for key in before)
    assert all(torch.allclose(after[key], tensor, atol=1e-6, rtol=0) for key, tensor in before.items())


def test_other_records_or_another_config_of_the_base_do_not_resume(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What gives the same tokens and the same model does: other line ends, a key that is not read, a newer library."""
    data, own = write_records(tmp_path / "reports.jsonl", 8), tmp_path / "model"
    shutil.copytree(base, own)
    file, text = own / "config.json", data.read_text()
    said, without = json.loads(file.read_text()), {"val_split": 0, "val_every": None}
    config = config_of(tmp_path, base_model=own, train_file=data, output_dir=tmp_path / "talk", **without)
    with pytest.raises(KeyboardInterrupt):
        run.train(load_config(config), sink=interrupting(1, ignore))
    argv = ["train", "--config", str(config), "--resume"]
    write_records(data, 9)
    assert main(argv) == 2
    assert "cannot resume exactly, because something changed: records; undo that" in capsys.readouterr().err
    data.write_bytes(text.replace('{"messages"', '{"id": 1, "messages"').replace("\n", "\r\n").encode() + b"\r\n")
    file.write_text(json.dumps(said | {"rms_norm_eps": 0.1}))
    assert main(argv) == 2
    assert "because something changed: config.json of base_model; undo that" in capsys.readouterr().err
    file.write_text(json.dumps(said | {"transformers_version": "9.0.0"}))
    assert main(argv) == 0


def test_without_its_earlier_lora_or_with_another_a_run_does_not_resume(
    base: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers that only the earlier one has would be gone from the file."""
    data = write_records(tmp_path / "reports.jsonl", 8)
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "more", "targets": ["*.q_proj"]}
    keys |= {"init_lora": finished / "talk", "val_split": 0, "val_every": None}
    config = config_of(tmp_path, **keys)
    with pytest.raises(KeyboardInterrupt):
        run.train(load_config(config), sink=interrupting(1, ignore))
    for other in ("null", finished / "talk-step000003"):
        assert main(["train", "--config", str(config), "--resume", f"init_lora={other}"]) == 2
        assert "because something changed: init_lora;" in capsys.readouterr().err
    shutil.copytree(finished / "talk", tmp_path / "moved")
    assert main(["train", "--config", str(config), "--resume", f"init_lora={tmp_path / 'moved'}"]) == 0


def test_the_table_names_the_schedule_that_is_taken(base: Path, tmp_path: Path) -> None:
    """That of schedule_free, which has none, is constant; the key's default is another."""
    pytest.importorskip("schedulefree")
    data, told = write_records(tmp_path / "reports.jsonl", 8), list[Event]()
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "talk", "optimizer": "schedule_free"}
    with pytest.raises(KeyboardInterrupt):
        run.train(load_config(config_of(tmp_path, **keys)), sink=interrupting(1, told.append))
    (table,) = (dict(event.rows) for event in told if isinstance(event, Table))
    assert table["learning rate"] == "0.01, constant"


def test_a_run_begins_from_an_earlier_lora(base: Path, finished: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "reports.jsonl")
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "more", "init_lora": finished / "talk"}
    config = config_of(tmp_path, **keys, epochs=1)
    text = config.read_text().replace("lora_rank: 4\n", "")
    config.write_text(text)
    assert main(["train", "--config", str(config)]) == 0
    first = json.loads((tmp_path / "more" / "heldout.json").read_text())["evaluations"]
    last = json.loads((finished / "heldout.json").read_text())["evaluations"][-1]
    assert [e["name"] for e in first[:2]] == ["base", "init"]
    assert first[1]["held"] == pytest.approx(last["held"], rel=1e-4)


def test_faults_of_everything_at_once(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_records(tmp_path / "reports.jsonl", 3)
    data.write_text(data.read_text() + '{"messages": [\n{"text": ""}\n')
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("hello\n霓虹灯\n".encode("gbk"))
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "talk", "adapter": "loha"}
    keys["sample_prompts"] = prompts
    assert main(["train", "--config", str(config_of(tmp_path, **keys))]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(";")[0].replace(str(tmp_path) + "/", "") for line in told] == [
        "adapter: loha has no form in the folder of a language model's LoRA",
        "prompts.txt:2: not UTF-8 text",
        "reports.jsonl:4: half a record: the JSON ends in the middle",
        "reports.jsonl:5: the text is empty",
    ]


def test_a_date_in_a_table_has_a_digest() -> None:
    """A .parquet file may hold one, where a template may read it."""
    asked = {"role": "user", "content": "a?"}
    talks = [Conversation(({**asked, "when": datetime(2026, 1, day)},)) for day in (1, 2)]
    assert len({digest_of(one) for one in [*talks, *talks]}) == 2


def test_bad_data_gets_one_line_each_at_once(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a tokenizer without a template one line, not one for each record."""
    bare, data = tmp_path / "bare", tmp_path / "reports.jsonl"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    twice = {"messages": [{"role": "user", "content": "a"}] * 2}
    rows = [json.dumps({"instruction": "what", "input": "", "output": "that"}), '{"text": "half', json.dumps(twice)]
    rows += [json.dumps({"text": "x" * 10_000_000}), '{"text": "caf\xe9"}']
    data.write_bytes("\n".join(rows).encode("latin-1"))
    keys = {"base_model": bare, "train_file": data, "output_dir": tmp_path / "talk"}
    assert main(["train", "--config", str(config_of(tmp_path, **keys))]) == 2
    told = [line.partition("reports.jsonl:")[2] or line for line in capsys.readouterr().err.splitlines()]
    assert [line.partition(";")[0] for line in told] == [
        "2: half a record: the JSON ends in the middle",
        "3: the role user twice in a row",
        "4: a record of 9.5 MB, more than the 4 MB that are read as one",
        "5: not UTF-8 text",
        f"error: {bare}: the model's tokenizer has no chat template",
    ]
    assert main(["check", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "no chat template" in capsys.readouterr().out


def test_records_that_the_template_cannot_take_have_their_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_records(tmp_path / "reports.jsonl", 3)
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "talk", "max_length": 16}
    assert main(["train", "--config", str(config_of(tmp_path, **keys))]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert "reports.jsonl:1: " in told[0]
    assert "tokens, and its first 16 hold nothing that is trained; raise max_length" in told[0]


def test_a_base_that_is_no_language_model_is_told_as_one(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the data are records: not by a line about pictures that are not there."""
    (tmp_path / "data").mkdir()
    data, other = write_records(tmp_path / "data" / "reports.jsonl", 3), tmp_path / "model"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma3ForConditionalGeneration"]}))
    wanted = "this is no causal language model, but Gemma3ForConditionalGeneration"
    for given in ({"train_file": data}, {"train_data_dir": data.parent}):
        path = config_of(tmp_path, base_model=other, output_dir=tmp_path / "talk", **given)
        for words in (["train", "--config", str(path)], ["check", "--config", str(path)]):
            assert main(words) == 2
            told = capsys.readouterr().err.splitlines()
            assert [line.partition(": ")[2].partition("; ")[0] for line in told] == [
                f"{other / 'config.json'}: {wanted}"
            ]
    assert main(["chat", "--base", str(other), "--message", "x"]) == 2
    assert wanted in capsys.readouterr().err


def test_one_fault_of_all_records_is_told_once(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% if %}")
    data = write_records(tmp_path / "reports.jsonl", 9)
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "talk", "chat_template": broken}
    assert main(["train", "--config", str(config_of(tmp_path, val_split=0, val_every=None, **keys))]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"{data}:1: the chat template refuses it: " in told
    assert "(so it is of 8 further records)" in told


def test_keys_for_pictures_are_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_records(tmp_path / "reports.jsonl", 3)
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "talk", "min_snr_gamma": 5}
    pictures = {"flip": True, "metadata_path": data, "allow_missing_captions": True, "metadata_captions": True}
    pictures |= {"sample_steps": 8, "sample_cfg": 2, "sample_size": 64}
    assert main(["train", "--config", str(config_of(tmp_path, **keys, **pictures))]) == 2
    told = capsys.readouterr().err
    for key in pictures:
        refused = f"{key}: is for models that draw pictures, and base_model is a causal language model"
        assert f"{refused}; leave it out" in told
    assert "min_snr_gamma" in told


def test_merged_it_answers_alike(
    base: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_records(tmp_path / "held.jsonl", 4)
    words = ["merge", f"{finished / 'talk'}:1", "--base", str(base), "--output", str(tmp_path / "merged")]
    assert main([*words, "--data", str(data)]) == 0
    assert "proved on" in capsys.readouterr().out
    model = open_model(tmp_path / "merged", torch.device("cpu"), torch.float32)
    from lora_scripts.loras import on_texts

    worn = open_model(base, torch.device("cpu"), torch.float32)
    on_texts.wear(worn, [(finished / "talk", 1.0)])
    talk = [{"role": "user", "content": "what is 3+3?"}]
    assert model.answer(talk, Answering(8)) == worn.answer(talk, Answering(8))


def test_running_text_and_a_folder(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text("hello how are you, the weather in Paris is sunny. " * (i + 1))
    keys = {"base_model": base, "train_data_dir": folder, "output_dir": tmp_path / "talk", "max_length": 32}
    keys["warmup_steps"] = 9  # as words.yaml has more than a small set has steps
    keys["targets"] = [{"match": "attention"}, {"match": "*.down_proj", "rank": 8}]
    assert main(["train", "--config", str(config_of(tmp_path, **keys, val_split=0, val_every=None))]) == 0
    told = capsys.readouterr().out
    assert "note: vLLM and llama.cpp read one rank and alpha for all layers" in told
    assert re.search(r"warmup_steps 9 of \d steps: learning_rate is never reached", told)
    assert re.search(r"\d+ records are few", told)
    assert (tmp_path / "talk" / "talk" / "adapter_model.safetensors").exists()
    shutil.rmtree(tmp_path / "talk")


def test_files_named_as_splits_are_trained_or_measured_or_told(base: Path, tmp_path: Path) -> None:
    folder, notes = tmp_path / "texts", list[str]()
    folder.mkdir()
    for name, first in (("train", 0), ("valid", 20), ("test", 40)):
        rows = write_records(tmp_path / "all.jsonl", 60).read_text().splitlines(keepends=True)[first : first + 20]
        (folder / f"{name}.jsonl").write_text("".join(rows))

    def split(**more: Any) -> tuple[list[str], list[str]]:
        """Places of what is trained and of what is held out; `notes` as told."""
        notes.clear()
        config = config_of(tmp_path, base_model=base, output_dir=tmp_path / "talk", val_every=None, **more)
        ready = preflight(load_config(config), resume=None, sink=lambda event: notes.append(getattr(event, "text", "")))
        trained, held = (
            [str(rows.place(i)) for rows, i in part] for part in (ready.split.trained, ready.split.held_out)
        )
        return trained, held

    trained, held = split(train_data_dir=folder)
    assert trained == [f"{folder / 'train.jsonl'}:{line}" for line in range(1, 21)]
    assert held == [f"{folder / 'valid.jsonl'}:{line}" for line in range(1, 21)]
    assert notes == ["note: held out, by their names: valid.jsonl", "note: not trained, by their names: test.jsonl"]
    trained, held = split(train_data_dir=folder, val_split=0.1)
    assert (len(trained), len(held)) == (18, 2)
    assert notes == ["note: not trained, by their names: test.jsonl, valid.jsonl"]
    with pytest.raises(UserError, match="each of its records is trained, too, so nothing could be measured"):
        split(train_file=folder / "train.jsonl", val_file=folder / "train.jsonl")


# --- plan -------------------------------------------------------------------------------------------------------------


def test_plan_says_what_the_run_then_does(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_records(tmp_path / "reports.jsonl")
    keys = {
        "base_model": base,
        "train_file": data,
        "output_dir": tmp_path / "talk",
        "keep_last": 1,
        "precision": "bf16",
    }
    config = config_of(tmp_path, **keys)
    assert main(["plan", "--config", str(config), "--json", "--profile"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["measured"]["profile"]["kinds"]["optimizer"] > 0
    assert planned["fits"] in ("yes", "unknown")
    assert planned["measured"]["at"] == "done"
    assert not (tmp_path / "talk").exists()
    assert list(tmp_path.glob(".lora-scripts-plan-*")) == []
    assert main(["train", "--config", str(config)]) == 0
    told = capsys.readouterr().out
    assert f"= {planned['measured']['steps']} steps" in told
    written = (tmp_path / "talk" / "talk" / "adapter_model.safetensors").stat().st_size
    assert written == pytest.approx(planned["measured"]["lora"], rel=0.2)
    (state,) = (tmp_path / "talk" / "state").glob("step-*")
    written = sum(path.stat().st_size for path in state.iterdir())
    assert written == pytest.approx(planned["measured"]["state"], rel=0.2)  # with the moments


@pytest.mark.slow  # it rehearses one batch size after the other
def test_plan_proposes_what_fits(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_records(tmp_path / "reports.jsonl")
    keys = {"base_model": base, "train_file": data, "output_dir": tmp_path / "talk", "batch_size": 2}
    config = config_of(tmp_path, **keys, gradient_checkpointing=True, base_precision="int8", max_length=512)
    assert main(["plan", "--config", str(config), "--memory", "0.05"]) == 0  # less than Python and torch take
    told = capsys.readouterr().out
    assert "does not fit: peak" in told
    assert "rehearsing batch_size=1, gradient_accumulation=2" in told
    assert "no smaller batch, shorter record or base in 8 bits helps" in told
