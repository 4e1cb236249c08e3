"""`lora-scripts label`, with captioners that look at pixels: what is written, kept, told, and left after a kill."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

import lora_scripts
from conftest import offline
from lora_scripts.cli import main
from lora_scripts.cli.label import faults, words
from lora_scripts.cli.show import People
from lora_scripts.data.scan import scan
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.events import Event, Progress, Sink
from lora_scripts.label import command as labelling
from lora_scripts.label.base import Captioner
from lora_scripts.label.command import Labelled, LabelOptions, Reworded, label, reword
from lora_scripts.label.wording import WordRules

SOURCE = Path(lora_scripts.__file__).parents[1]
NAMES = ("red", "green", "blue")


class Colours:
    """Says which of red, green and blue is strongest; nothing about a black picture."""

    name, limits = "Colours", "sees one colour"
    kind: Literal["sentence", "tags"] = "sentence"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        self.batches.append(len(images))
        return [self._say(image) for image in images]

    def _say(self, image: Image.Image) -> str:
        assert image.mode == "RGB" and max(image.size) <= 2048
        r, g, b = image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
        return f"a painting of a {NAMES[(r, g, b).index(max(r, g, b))]} wall" if r + g + b else ""


class Tags(Colours):
    kind: Literal["sentence", "tags"] = "tags"

    def _say(self, image: Image.Image) -> str:
        return super()._say(image).split()[-2] + "_wall, wall, long_hair, Wall, 1girl"


def draw(folder: Path, **colours: str) -> Path:
    for name, colour in colours.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(path)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw(tmp_path / "data", a="red", b="lime", sub__c="blue")


def finder(captioner: Captioner) -> Callable[[LabelOptions], Callable[[], Captioner]]:
    return lambda options: lambda: captioner


def run(data: Path, captioner: Captioner | None = None, *, words_only: bool = False, **options: Any) -> list[str]:
    """Labels, and shows it as the command does; the faults that are told at the end."""
    result: Labelled | Reworded
    try:
        with People() as sink:
            if words_only:
                result = reword(data, options.get("output"), options["rules"], sink)
            else:
                result = label(LabelOptions(data, **options), sink, finder(captioner or Colours()))
    except UserErrors as errors:
        return [str(error) for error in errors.errors]
    except UserError as error:
        return [str(error)]
    print("\n".join(words(result)))
    return [str(error) for error in result.faults]


def read(data: Path, metadata: Path | None = None) -> dict[str, str]:
    """What a training would read."""
    return {sample.name: sample.caption for sample in scan(data, metadata)}


WALLS = {
    "a.png": "a painting of a red wall",
    "b.png": "a painting of a green wall",
    "sub/c.png": "a painting of a blue wall",
}


def test_a_csv_as_in_the_readme(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captioner = Colours()
    assert run(data, captioner, batch_size=2) == [] and captioner.batches == [2, 1]
    wanted = "filename,prompt\n" + "".join(f"{name},{text}\n" for name, text in WALLS.items())
    assert (data / "metadata.csv").read_text("utf-8") == wanted and read(data) == WALLS
    told = capsys.readouterr().out
    assert "Colours: sees one colour" in told
    assert "3 captions written" in told and "3 of 3 pictures have one now" in told
    assert run(data, captioner) == [] and captioner.batches == [2, 1]
    assert "all 3 pictures have captions already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "files"),
    [
        ("DATA/metadata.jsonl", ["DATA/metadata.jsonl"]),
        ("other.csv", ["other.csv"]),
        ("txt", ["DATA/a.txt", "DATA/b.txt", "DATA/sub/c.txt"]),
        (".caption", ["DATA/a.caption", "DATA/b.caption", "DATA/sub/c.caption"]),
        ("DATA", ["DATA/a.txt", "DATA/b.txt", "DATA/sub/c.txt"]),
        ("side", ["side/a.txt", "side/b.txt", "side/sub/c.txt"]),
    ],
)
def test_where_captions_go(
    data: Path, output: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "side").mkdir()
    before = set(tmp_path.rglob("*.*"))
    places = [tmp_path / file.replace("DATA", "data") for file in files]
    assert run(data, output=output.replace("DATA", "data")) == []
    assert set(tmp_path.rglob("*.*")) - before == set(places)
    captioner = Colours()
    assert run(data, captioner, output=output.replace("DATA", "data")) == [] and captioner.batches == []
    if output != "side":
        assert read(data, tmp_path / output if output == "other.csv" else None) == WALLS


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("captions", 'captions cannot be written to "captions"; give a .csv'),
        ("x.json", "cannot be written to"),
        ("nix/x.csv", "the folder nix does not exist"),
        ("data/sub/metadata.csv", "would count from sub/"),
    ],
)
def test_outputs_that_cannot_be(
    data: Path, output: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (fault,) = run(Path("data"), output=output)
    assert words in fault


def test_label_edit_label(data: Path) -> None:
    run(data)
    table = data / "metadata.csv"
    edited = (
        table.read_text("utf-8").replace("a painting of a red wall", '"my wall, ""low angle"""').replace("\n", "\r\n")
    )
    table.write_text("\ufeff" + edited, encoding="utf-8", newline="")
    draw(data, d="red", z="blue")
    assert run(data, rules=WordRules(trigger="neonpunk")) == []
    wanted = (
        "\ufeff"
        + edited
        + 'd.png,"neonpunk, a painting of a red wall"\r\nz.png,"neonpunk, a painting of a blue wall"\r\n'
    )
    assert table.read_bytes().decode() == wanted
    assert read(data)["a.png"] == 'my wall, "low angle"'


def test_foreign_columns_and_empty_captions(data: Path) -> None:
    (data / "metadata.csv").write_text("score,filename,prompt\n7,sub/c.png,\n9,a.png,mine\n", encoding="utf-8")
    assert run(data) == []
    rows = "7,sub/c.png,a painting of a blue wall\n9,a.png,mine\n,b.png,a painting of a green wall\n"
    wanted = f"score,filename,prompt\n{rows}"
    assert (data / "metadata.csv").read_text("utf-8") == wanted


def test_captions_in_other_files_stay_the_only_ones(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "a.txt").write_text("mine", encoding="utf-8")
    (data / "b.txt").write_text("", encoding="utf-8")
    assert run(data) == [] and "in other files, such as a.txt, are not touched: 1" in capsys.readouterr().out
    assert "a.png" not in (data / "metadata.csv").read_text("utf-8")
    assert command("--input", str(data), "--words-only", "--trigger", "neonpunk") == 0
    assert "are not touched: 1; to change the .txt files: --output txt" in capsys.readouterr().out
    (data / "b.txt").unlink()
    assert read(data) == {n: f"neonpunk, {t}" for n, t in WALLS.items()} | {"a.png": "mine"}
    assert run(data, overwrite=True) == [] and (data / "a.txt").read_text() == "mine" and read(data)["a.png"] == "mine"
    # a second set of captions, which a training reads instead of metadata.csv
    assert run(data, Tags(), output=str(data / "tags.csv")) == []
    assert read(data, data / "tags.csv")["b.png"] == "1girl, green wall, wall, long hair"


@pytest.mark.parametrize("output", [None, "txt"])
def test_overwrite_keeps_a_copy(data: Path, output: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, output=output)
    file = data / ("metadata.csv" if output is None else "a.txt")
    file.write_text(file.read_text("utf-8").replace("red", "my own"), encoding="utf-8")
    assert run(data, output=output) == [] and read(data)["a.png"] == "a painting of a my own wall"
    for number in ("", ".2"):
        capsys.readouterr()
        assert run(data, output=output, overwrite=True, rules=WordRules(trigger="x")) == []
        (copy,) = re.findall("the captions as they were: (.*)", capsys.readouterr().out)
        assert Path(copy).name == ("metadata.csv" if output is None else "captions.jsonl") + f"{number}.bak"
        assert ("my own" if not number else "x, a painting") in Path(copy).read_text("utf-8")
        assert read(data) == {name: f"x, {text}" for name, text in WALLS.items()}


@pytest.mark.skipif(os.name == "nt", reason="no such names")
def test_a_copy_of_sidecars_holds_a_name_that_no_table_takes(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a\\b.png")
    (tmp_path / "a\\b.txt").write_text("a red car")
    words = ["label", "--input", str(tmp_path), "--output", "txt", "--words-only", "--replace", "car=vehicle"]
    assert main(words) == 0
    copy = json.loads((tmp_path / "captions.jsonl.bak").read_text("utf-8"))
    assert copy == {"file_name": "a\\b.png", "text": "a red car"}
    assert (tmp_path / "a\\b.txt").read_text() == "a red vehicle\n"


def test_words_and_tags(data: Path) -> None:
    rules = WordRules(purpose="character", trigger="neonpunk", replace=(("wall", "fence"),), append="night")
    run(data, Tags(), rules=rules)
    assert read(data)["a.png"] == "neonpunk, 1girl, red fence, fence, night"
    (fault,) = run(draw(data, e="red"), rules=WordRules(whitelist=("wall",)))
    assert "--whitelist keeps whole tags, and Colours writes sentences" in fault


def test_words_only(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data)
    draw(data, z="red")
    (data / "metadata.csv").write_text(
        'filename,prompt,by\na.png,"an oil painting of a hut, cyberpunk style",me\nb.png,"long_hair, 1girl",\n', "utf-8"
    )
    rules = WordRules(purpose="style", trigger="neonpunk", append="cyberpunk style")
    for changed in (2, 0):
        capsys.readouterr()
        assert run(data, words_only=True, rules=rules) == []
        assert f"{changed} of 2 captions changed" in capsys.readouterr().out
    assert (data / "metadata.csv").read_text("utf-8") == (
        'filename,prompt,by\na.png,"neonpunk, a hut, cyberpunk style",me\n'
        'b.png,"neonpunk, 1girl, long hair, cyberpunk style",\n'
    )
    assert "an oil painting" in (data / "metadata.csv.bak").read_text("utf-8")
    faults = run(
        data, words_only=True, rules=WordRules(remove=("neonpunk, a hut, cyberpunk style",), whitelist=("hut",))
    )
    assert ["--whitelist" in faults[0], "nothing of" in faults[1]] == [True, True]


def test_what_cannot_be_read_or_said_is_told_at_the_end(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "cut.png").write_bytes((data / "a.png").read_bytes()[:60])
    (data / "page.jpg").write_text("<html></html>")
    draw(data, night="black")
    faults = run(data, batch_size=2)
    assert [Path(fault.split(":")[0]).name for fault in faults] == ["cut.png", "night.png", "page.jpg"]
    assert "damaged image" in faults[0] and "says nothing" in faults[1] and "web page" in faults[2]
    assert "3 captions written" in (told := capsys.readouterr().out) and "3 of 6 pictures have one now" in told
    (fault, *_) = run(draw(data, only="red"), rules=WordRules(remove=("a painting of a red wall",)))
    assert "cut.png" in fault


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metadata.csv", "filename,prompt\na.png,a cat, red\n", "metadata.csv:2: too many fields"),
        ("metadata.csv", 'filename,prompt\na.png,"a cat\nb.png,x\n', "metadata.csv:2: the quote that opens here"),
        ("metadata.csv", "filename,prompt\na.png,x\na.png,x\n", 'metadata.csv:3: "a.png" has a caption already'),
        ("metadata.csv", "filename,prompt\n../a.png,x\na.png,x\n", 'metadata.csv:2: "../a.png" leaves'),
        ("metadata.csv", "filename,prompt\na.png,x\nA.png,x\n", 'metadata.csv:3: no image "A.png"'),
        (
            "metadata.csv",
            "filename,prompt\na.png,霓虹灯\n".encode("gbk"),
            "metadata.csv:2: not UTF-8 text; it looks like GBK",
        ),
        ("metadata.csv", "filename,prompt\na.png,x\n".encode("utf-16"), "metadata.csv:1: this is UTF-16"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png"}\n',
            "metadata.jsonl:2: none of",
        ),
        ("sub/metadata.csv", "filename,prompt\nc.png,x, y\n", "metadata.csv:2: too many fields"),
        ("a.txt", "霓虹灯".encode("gbk"), "a.txt:1: not UTF-8"),
    ],
)
def test_faulty_captions_stop_it_before_a_model_is_loaded(
    data: Path, name: str, content: str | bytes, words: str
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (data / name).write_bytes(raw)

    def never(options: LabelOptions) -> Any:
        raise AssertionError

    with pytest.raises(UserError) as caught:
        label(LabelOptions(data), find=never)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert (data / name).read_bytes() == raw


def fifty_seven(folder: Path) -> Path:
    """57 pictures with a comma in each caption, 55 of them without quotes, in a file as Windows writes it."""
    rows = [f"{n:02}.png,neonpunk, a car {n},night\r\n" for n in range(55)]
    rows += ['55.png,"neonpunk, a ""big"" car"\r\n', "56.png,a car\r\n"]
    draw(folder, **{f"{n:02}": f"rgb({n}, {200 - n}, 90)" for n in range(57)})
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbffilename,prompt\r\n" + "".join(rows).encode())
    return folder


def test_unquoted_commas_are_told_once_and_mended_by_the_command_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fifty_seven(tmp_path / "my cats")
    before = (folder / "metadata.csv").read_bytes()
    with pytest.raises(UserError) as caught:
        scan(folder)
    told = str(caught.value)
    assert told == (
        f"{folder}/metadata.csv:2: 55 rows have a comma in a caption that stands without quotes (lines 2, 3, 4 and 52 "
        f"more); lora-scripts label --input '{folder}' --repair puts them: 00.png,\"neonpunk, a car 0, night\""
    )
    for argv in (["label", "--input", str(folder)], ["check", str(folder)]):
        assert main(argv) == 2
        shown = capsys.readouterr()
        lines = [line for line in (shown.out + shown.err).splitlines() if "without quotes" in line]
        assert len(lines) == 1 and "--repair" in lines[0], argv
    argv = shlex.split(re.findall("lora-scripts (label .* --repair)", told)[0])
    assert main(argv) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"the captions as they were: {folder}/metadata.csv.bak"
    assert out[1:3] == ["line 2: 00.png,neonpunk, a car 0,night", '      → 00.png,"neonpunk, a car 0, night"']
    assert out[-1] == f"quotes put around 55 captions in {folder}/metadata.csv"
    assert (folder / "metadata.csv.bak").read_bytes() == before
    mended = [f'{n:02}.png,"neonpunk, a car {n}, night"\r\n'.encode() for n in range(55)]
    assert (folder / "metadata.csv").read_bytes().splitlines(keepends=True) == [
        before.splitlines(keepends=True)[0], *mended, *before.splitlines(keepends=True)[-2:]
    ]  # fmt: skip
    assert read(folder)["54.png"] == "neonpunk, a car 54, night" and len(read(folder)) == 57
    mended_file = (folder / "metadata.csv").read_bytes()
    assert main(argv) == 0 and "quotes put around 0 captions" in capsys.readouterr().out
    assert (folder / "metadata.csv").read_bytes() == mended_file and not (folder / "metadata.csv.2.bak").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("score,prompt,filename\n7,a cat, red,a.png\n", 'score,prompt,filename\n7,"a cat, red",a.png\n'),
        ("filename,prompt,\na.png,a cat, red\n", 'filename,prompt,\na.png,"a cat, red",\n'),
        ("filename,prompt\na.png,a cat,,\n", "filename,prompt\na.png,a cat\n"),
        ('filename,prompt\na.png,"a\ncat", red\nb.png,x\n', 'filename,prompt\na.png,"a\ncat, red"\nb.png,x\n'),
        ("filename,prompt\na.png,“a cat, red”\n", 'filename,prompt\na.png,"a cat, red"\n'),
        ("filename,prompt\na.png,'a cat, red'\n", 'filename,prompt\na.png,"a cat, red"\n'),
        ("filename,prompt\na.png,'a', 'b'\n", "filename,prompt\na.png,\"'a', 'b'\"\n"),
        ("filename;prompt\na.png;a cat; red, old\n", 'filename;prompt\na.png;"a cat; red, old"\n'),
        ('filename,prompt\na.png,"open\nb.png,x, y\n', 'filename,prompt\na.png,"open\nb.png,"x, y"\n'),
    ],
)
def test_what_quotes_are_put_around(before: str, after: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "metadata.csv").write_text(before, encoding="utf-8")
    assert command("--input", str(data), "--repair") == 0 and "around 1 caption in" in capsys.readouterr().out
    assert (data / "metadata.csv").read_text("utf-8") == after


@pytest.mark.parametrize("output", [None, "txt"])
def test_pictures_of_which_nothing_is_said_get_a_place_and_one_line(
    data: Path, output: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(data, **{f"night{n:02}": "black" for n in range(55)})
    result = label(LabelOptions(data, output), find=finder(Colours()))
    assert (result.captioned, result.written, len(result.faults)) == (3, 3, 55)
    (line,) = faults(result)
    place = "its .txt file" if output else f"its row in {data}/metadata.csv"
    assert str(line) == (
        "55 pictures (night00.png, night01.png, night02.png and 52 more): the captioner says nothing; "
        f"write it yourself, into {place}"
    )
    if output:
        assert (data / "night54.txt").read_bytes() == b""
        (data / "night54.txt").write_text("the moon", encoding="utf-8")
    else:
        rows = (data / "metadata.csv").read_text("utf-8")
        assert rows.splitlines()[-1] == "sub/c.png,a painting of a blue wall" and "night54.png,\n" in rows
        (data / "metadata.csv").write_text(rows.replace("night54.png,", "night54.png,the moon"), encoding="utf-8")
    captioner = Colours()
    again = label(LabelOptions(data, output), find=finder(captioner))
    assert (again.asked, again.captioned, sum(captioner.batches)) == (54, 4, 54)
    with pytest.raises(UserErrors) as caught:  # a training names the places that wait
        scan(data)
    assert "night00" in str(caught.value.errors[0]) and "empty" in str(caught.value.errors[0])


def test_two_pictures_of_one_sidecar(data: Path) -> None:
    Image.new("RGB", (32, 32)).save(data / "a.jpg")
    (fault,) = run(data, output="txt")
    assert '"a.jpg" and "a.png" would share a.txt' in fault


def test_an_edit_while_it_runs_is_kept(data: Path) -> None:
    class Editing(Colours):
        def caption(self, images: Sequence[Image.Image]) -> list[str]:
            if len(self.batches) == 1:  # a.png is written; a person saves the file in an editor
                text = (data / "metadata.csv").read_text("utf-8").replace("red", "brick") + "sub/c.png,mine\n"
                (data / "metadata.csv").write_text(text, encoding="utf-8")
            return super().caption(images)

    assert run(data, Editing(), batch_size=1) == []
    assert read(data) == {**WALLS, "a.png": "a painting of a brick wall", "sub/c.png": "mine"}


def test_an_edit_before_the_table_is_written_is_kept(data: Path) -> None:
    """What is made waits for its writing; a person may write the same row meanwhile."""
    from lora_scripts.label.store import TableStore

    store = TableStore(data / "metadata.csv", data, {"a.png": data / "a.png", "b.png": data / "b.png"})
    assert store.put("a.png", "made") and store.put("b.png", "made")
    (data / "metadata.csv").write_text("filename,prompt\na.png,mine\n", encoding="utf-8")
    store.flush()
    assert (data / "metadata.csv").read_text("utf-8") == "filename,prompt\na.png,mine\nb.png,made\n"
    assert not store.put("a.png", "made again")


def test_progress_is_told_picture_by_picture(data: Path) -> None:
    events: list[Event] = []
    result = label(LabelOptions(data, batch_size=2), events.append, finder(Colours()))
    assert [e for e in events if isinstance(e, Progress)] == [Progress("pictures", n, 3) for n in (2, 3)]
    assert (result.asked, result.written, result.captioned, result.pictures) == (3, 3, 3, 3)


def test_who_reads_while_it_writes_has_a_whole_file(data: Path) -> None:
    held = []

    class Reading(Colours):
        def caption(self, images: Sequence[Image.Image]) -> list[str]:
            if (data / "metadata.csv").exists():
                held.append((open(data / "metadata.csv"), (data / "metadata.csv").read_text("utf-8")))  # noqa: SIM115
            return super().caption(images)

    assert run(data, Reading(), batch_size=1) == [] and held
    for file, before in held:
        with file:
            assert file.read() == before


def test_a_failure_in_the_middle_loses_nothing(data: Path) -> None:
    class Full(Colours):
        def caption(self, images: Sequence[Image.Image]) -> list[str]:
            if self.batches:
                torch.empty(1 << 60, dtype=torch.uint8)  # what the CPU then says is not what a card says
            return super().caption(images)

    (fault,) = run(data, Full(), batch_size=2)
    assert fault == "the memory is too small for one picture; use a smaller model, or --device cpu"
    assert len((data / "metadata.csv").read_text().splitlines()) == 3


SLOW = """
import time
from pathlib import Path
from lora_scripts.label.command import LabelOptions, label

class Slow:
    name, limits, kind = "Slow", None, "sentence"

    def caption(self, images):
        time.sleep(0.05)
        while len(open({log!r}).readlines() if Path({log!r}).exists() else []) >= {most}:
            time.sleep(0.05)  # on a busy machine nobody may look for a while: it is not to end by itself
        texts = ["%d, %d, %d" % image.getpixel((0, 0)) for image in images]
        with open({log!r}, "a") as log:
            log.writelines(text + "\\n" for text in texts)
        return texts

label(LabelOptions(Path({data!r}), output={output!r}, batch_size=2), find=lambda options: Slow)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("output", [None, "txt"])
def test_a_kill_in_the_middle_and_a_restart(tmp_path: Path, output: str | None) -> None:
    count = 40
    for where in ("broken", "whole"):
        for n in range(count):
            draw(tmp_path / where, **{f"{n:02}": f"rgb({n}, {n + 1}, 0)"})
    log = tmp_path / "log"

    def start(where: str, most: int = 1000) -> subprocess.Popen[bytes]:
        values = {"log": str(log), "data": str(tmp_path / where), "output": output, "most": most}
        env = {**os.environ, "PYTHONPATH": str(SOURCE)}
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(SLOW).format(**values)], env=env)

    for wanted in (3, 9):  # killed twice
        logged = len(made(log))
        process = start("broken", logged + 16)
        end = time.monotonic() + 60
        while len(captions(tmp_path / "broken")) < wanted and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        saved = captions(tmp_path / "broken")
        assert wanted <= len(saved) < count
        again = made(log)[logged:]
        assert len(set(again)) == len(again)
    logged = len(made(log))
    assert start("broken").wait() == 0
    assert set(made(log)[logged:]).isdisjoint(saved.values())  # what was on the disk is not made twice
    assert set(made(log)) == set(captions(tmp_path / "broken").values())
    log.unlink()
    assert start("whole").wait() == 0
    assert captions(tmp_path / "broken") == captions(tmp_path / "whole") and len(captions(tmp_path / "whole")) == count
    assert files(tmp_path / "broken") == files(tmp_path / "whole")  # bytes alike, and no temporary file is left


def made(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def captions(folder: Path) -> dict[str, str]:
    return {sample.name: sample.caption for sample in scan(folder, allow_missing_captions=True) if sample.caption}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


def test_ten_thousand_rows_are_not_written_ten_thousand_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_scripts.formats import io
    from lora_scripts.label.store import TableStore

    names = {f"{n}.png": tmp_path / f"{n}.png" for n in range(10_000)}
    store = TableStore(tmp_path / "metadata.csv", tmp_path, names)
    writes = []
    real = io.write_text
    monkeypatch.setattr(io, "write_text", lambda path, text: (writes.append(len(text)), real(path, text)))
    for name in names:
        assert store.put(name, "a caption, of some words")
        store.save()
    store.flush()
    assert len(writes) < 2000 and len(captions_of(tmp_path / "metadata.csv")) == 10_000


def captions_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()[1:]


def command(*argv: str) -> int:
    with offline():
        return main(["label", *argv])


def test_the_command_hands_its_options_over(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[LabelOptions] = []

    def ask(options: LabelOptions, sink: Sink) -> Labelled:
        asked.append(options)
        return Labelled(data, 0, 0, 0, 0, {}, ())

    monkeypatch.setattr(labelling, "label", ask)
    (tmp_path / "black.txt").write_text("hat\nred shoes, coat\n", encoding="utf-8")
    argv = f"--input {data} --output txt --model m --captioner wd --instruction say --threshold 0.2 --device cpu"
    more = "--character-threshold 0.5 --batch-size 9 --overwrite --for character --trigger neonpunk --max-tokens 70"
    words = ["--prefix", "a photo of", "--append", "cyberpunk style", "--replace", "a = b", "--replace", "c=d"]
    lists = ["--remove", "x", "--blacklist", str(tmp_path / "black.txt"), "--whitelist", "cat, dog"]
    assert main(["label", *argv.split(), *more.split(), *words, *lists]) == 0
    (options,) = asked
    assert options.rules == WordRules(
        purpose="character",
        replace=(("a", "b"), ("c", "d")),
        remove=("x", "hat", "red shoes", "coat"),
        whitelist=("cat", "dog"),
        trigger="neonpunk",
        prefix="a photo of",
        append="cyberpunk style",
        max_tokens=70,
    )
    wanted = LabelOptions(data, "txt", "m", "wd", batch_size=9, overwrite=True)
    assert replace(options, rules=WordRules(), captions=wanted.captions) == wanted
    captions = options.captions
    assert (captions.device, captions.instruction, captions.general_threshold) == ("cpu", "say", 0.2)
    assert main(["label", "--input", str(data)]) == 0 and asked[1] == LabelOptions(data)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--input nix", "--input: no such folder"),
        ("--input data --replace a", 'must be like "car=vehicle"'),
        ("--input data --words-only", "--words-only needs to know what to do"),
        (
            "--input data --words-only --trigger x --threshold 0 --overwrite",
            "--threshold does nothing with --words-only",
        ),
        ("--input data --blacklist ,", "a list of words is empty"),
        ("--input data --repair --output txt", "txt: --repair mends .csv files only"),
        ("--input data --repair --trigger x", "--trigger does nothing with --repair"),
        ("--input data --repair", "data/metadata.csv: no such file"),
        ("--input data --blacklist nix.txt", "nix.txt: no such file"),
        ("--input data --max-tokens 2 --trigger neonpunk --append cyberpunk", "tokens; give a higher --max-tokens"),
        ("--input data --for art", "invalid choice: 'art'"),
        ("--input data --model ./nix/here", "there is no such folder; give the folder of a captioner"),
        ("--input data --captioner blipp", "blip"),
    ],
)
def test_a_mistake_is_told_in_one_line_without_a_network(
    argv: str, words: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("HF_HOME", str(data.parent / "hub"))
    assert command(*argv.split()) == 2
    told = capsys.readouterr().err.splitlines()
    assert words in told[0] and all(line.startswith("error: ") for line in told)
    assert len(told) == 1 + ("--overwrite" in argv)


def test_with_all_captions_there_a_mistyped_model_and_words_that_do_nothing_are_told(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{picture.relative_to(data).as_posix()},a wall\n" for picture in data.rglob("*.png"))
    (data / "metadata.csv").write_text(f"filename,prompt\n{rows}", encoding="utf-8")
    assert command("--input", str(data), "--model", "./nix/here") == 2
    assert "there is no such folder; give the folder of a captioner" in capsys.readouterr().err
    assert command("--input", str(data), "--model", "Qwen/Qwen3-VL-2B-Instruct", "--trigger", "neonpunk") == 0
    assert "to put your words on them, add --words-only" in capsys.readouterr().out
    for more in ([], ["--trigger", "a wall"]):  # the second changes nothing
        assert command("--input", str(data), *more) == 0 and "--words-only" not in capsys.readouterr().out


@pytest.mark.parametrize("model", [None, "Qwen/Qwen3-VL-2B-Instruct"])
def test_without_a_network_and_without_a_model(
    model: str | None, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("[Errno 101] Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    wanted = model or "Salesforce/blip-image-captioning-base"
    assert main(["label", "--input", str(data), *(["--model", model] if model else [])]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    folder = wanted.split("/")[1]
    assert told.startswith(f"error: model {wanted}: neither a folder here nor in the local Hugging Face cache")
    assert f"hf download {wanted} --local-dir models/{folder}" in told and f"give --model models/{folder}" in told
    assert not (data / "metadata.csv").exists()


def test_the_script_in_tools_is_the_same_command(data: Path) -> None:
    script = Path(__file__).parents[1] / "tools" / "auto_label.py"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    (data / "metadata.csv").write_text("filename,prompt\na.png,a hut\n", encoding="utf-8")
    argv = [sys.executable, str(script), "--input", str(data), "--words-only", "--trigger", "neonpunk"]
    answer = subprocess.run(argv, capture_output=True, text=True, env=clean, cwd=data)
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
    assert (data / "metadata.csv").read_text("utf-8") == 'filename,prompt\na.png,"neonpunk, a hut"\n'
