"""Folders that say how often their pictures are seen, as kohya's trainers read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

import tiny
from lora_scripts.cli import main
from lora_scripts.data.loader import check_numbered, folder_above, repeats_of
from lora_scripts.errors import UserErrors
from lora_scripts.report import chinese
from lora_scripts.report.chinese import missing
from lora_scripts.units import typed


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("10_zibbo/a.png", 10),
        ("3_close up/more/a.png", 3),
        ("007_x/a.png", 7),
        ("others/a.png", 1),
        ("others/10_zibbo/a.png", 1),  # not a folder of the data folder itself
        ("10_a.png", 1),
        ("10 zibbo/a.png", 1),
        ("v2_10/a.png", 1),
    ],
)
def test_the_number_before_the_first_underscore_of_the_first_folder(name: str, count: int) -> None:
    assert repeats_of(name) == count


FEW = {"targets": "['*.mid_block.*attn1*']", "batch_size": 17}


def test_all_folders_that_cannot_be_are_told_at_once() -> None:
    names = ["3_a/1.png", "0_b/1.png", "9000000_c/1.png"]
    for needed in (True, False):  # those of the class need no number, and no wrong one
        with pytest.raises(UserErrors) as caught:
            check_numbered(names, any_needed=needed)
        assert [e.message.split()[1] for e in caught.value.errors] == ["0_b", "9000000_c"]
    check_numbered(["others/1.png", "1.png"], any_needed=False)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_pictures_are_seen_as_often_as_their_folder_says(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, count in (("5_zibbo", 2), ("2_close", 3), ("others", 1)):
        tiny.write_pictures(tmp_path / "data" / folder, count)
    keys = {"base_model": base, "train_data_dir": tmp_path / "data", "epochs": 1, "repeats": 2, **FEW}
    config = tiny.write_config(tmp_path, **keys, metadata_captions=True, folder_repeats=True)
    assert main(["train", "--config", str(config)]) == 0
    assert "6 images x 2 repeats = 34 by their folders / batch 17 = 2 batches" in told(capsys)  # 2 (5·2 + 2·3 + 1)
    with safe_open(tmp_path / "out" / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_num_train_images"] == "34"
    folders = {"5_zibbo": (10, 2), "2_close": (4, 3), "others": (2, 1)}
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        name: {"n_repeats": repeats, "img_count": count} for name, (repeats, count) in folders.items()
    }


def test_what_is_not_counted_is_told_and_what_cannot_be_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_pictures(tmp_path / "data" / "5_zibbo", 2)
    keys = {"base_model": base, "train_data_dir": tmp_path / "data", "epochs": 1, **FEW}
    config = tiny.write_config(tmp_path, **keys)
    assert main(["train", "--config", str(config)]) == 0
    said = told(capsys)
    assert "2 images x 1 repeats / batch 17 = 1 batches" in said
    assert "how often their pictures are seen (5_zibbo), and nobody counts that; folder_repeats: true does" in said
    (tmp_path / "data" / "5_zibbo").rename(tmp_path / "data" / "0_zibbo")
    again = ["train", "--config", str(config), f"output_dir={tmp_path / 'more'}", "folder_repeats=true"]
    assert main(again) == 2
    assert "0_zibbo says that its pictures are seen 0 times; it must be 1 to 1000000; rename the folder" in told(capsys)
    shutil.move(tmp_path / "data" / "0_zibbo", tmp_path / "data" / "zibbo")
    assert main(again) == 2
    assert "folder_repeats: no folder of pictures is named like 10_name; rename the folders" in told(capsys)


@pytest.mark.parametrize(
    ("names", "above"),
    [
        (["img/10_a/1.png", "img/2_b/more/1.png"], ("img", [])),
        (["Images/10_a/1.png", "Reg/1_c/1.png", "model/sample/1.png"], ("Images", ["Reg", "model"])),
        (["img/10_a/1.png", "1.png"], None),
        (["img/10_a/1.png", "img/1.png"], None),
        (["img/10_a/1.png", "img/10_b.png"], None),
        (["img/10_a/1.png", "more/10_a/1.png"], None),
        (["10_a/10_b/1.png"], None),
        (["10_a/1.png", "reg/1.png"], None),
        (["reg/1_c/1.png"], None),
    ],
)
def test_the_folder_above_those_of_kohyas_trainers(names: list[str], above: tuple[str, list[str]] | None) -> None:
    assert folder_above(names) == above


def test_the_folder_above_is_told_with_the_command_for_the_one_below(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of the class were trained without captions, and nobody counted how often the others are seen."""
    monkeypatch.chdir(tmp_path)
    tiny.write_pictures(Path("data/img/10_zib"), 2)
    tiny.write_pictures(Path("data/reg/1_person"), 1)
    Path("data/reg/1_person/metadata.csv").unlink()
    assert main(["check", "data"]) == 2
    what = "this is the folder above img: its numbers, as in 10_name, are not read from here"
    mend = "give data/img in its place, and data/reg as class_data_dir: lora-scripts check data/img"
    said = told(capsys)
    assert f"note: {what}, and what lies in reg is trained, too; {mend}" in said
    texts = (f"{what}, and what lies in reg is trained, too", mend, what)
    assert all(chinese.translated(text) for text in texts)
    assert missing(Path("data-check.html").read_text("utf-8")) == []
    given = ["--base", str(base), "--for", "character", "--trigger", "zib"]
    assert main(["new", "mine", "--data", "data", *given]) == 2
    right = ["new", "mine", "--data", "data/img", *given]
    assert told(capsys) == f"error: data: {what.replace(': its', ', whose')}; {typed(['lora-scripts', *right])}"
    assert main(right) == 0
    assert "folder_repeats: true" in Path("configs/mine.yaml").read_text("utf-8")
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir="data")
    assert main(["train", "--config", str(config)]) == 2
    assert f"data/reg/1_person/0.png: has no caption; {mend}" in told(capsys)
