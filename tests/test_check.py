"""`lora-scripts check`: the verdict, the page, exit codes, and the quick part of it before a training."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import tiny_flux1
from conftest import offline
from lora_scripts.check.quick import quick_findings
from lora_scripts.check.shape import in_bucket
from lora_scripts.check.verdict import lines, ordered
from lora_scripts.cli import main
from lora_scripts.config.load import load_config
from lora_scripts.data.buckets import bucket_sizes
from lora_scripts.data.findings import Finding
from lora_scripts.data.scan import Sample, scan
from lora_scripts.demo import world
from lora_scripts.events import Event, Note
from lora_scripts.report.check_page import CheckData, ShownPicture, render
from lora_scripts.report.chinese import missing
from lora_scripts.run.preflight import tell_quick
from test_report import EVIL, Page

LONG = ", ".join(f"detail number {n}" for n in range(40))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn scenes of 256 px, one of them wide, each with its caption."""
    folder = tmp_path_factory.mktemp("check") / "neon"
    folder.mkdir()
    rows = ["filename,prompt"]
    for number, scene in enumerate(world.style_set("plain", 6, seed=4), 1):
        image = world.draw(scene, 256)
        if number == 6:
            image = image.crop((0, 64, 256, 192)).resize((512, 256))
        image.save(folder / f"img{number:02d}.png")
        rows.append(f'img{number:02d}.png,"{world.caption(scene)}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_pictures_whose_caption_row_is_broken_are_marked_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of eight pictures three have a caption, three have none, and the rows of two are torn."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (64, 64), (30 * number, 90, 200)).save(folder / f"{number}.png")
    torn = [f"{number}.png,a house, by a lake" for number in (3, 4)]
    rows = ["filename,prompt", *(f"{number}.png,house {number}" for number in range(3)), *torn]
    for some, files in ((rows, ["3.png", "4.png"]), (rows[:-1], ["3.png"])):
        (folder / "metadata.csv").write_text("\n".join(some) + "\n", encoding="utf-8")
        assert main(["check", str(folder), "--json"]) == 2
        told = json.loads(capsys.readouterr().out)
        found = {finding["kind"]: finding for finding in told["findings"]}
        assert found["caption_file"]["files"] == files and found["caption_file"]["source"] == "metadata.csv:5"
        assert (told["captioned"], told["unread"]) == (3, len(files))
        assert len(found["caption_missing"]["files"]) == 5 - len(files)
    page = Page(Path(told["page"]).read_text("utf-8"))
    assert "8 pictures, 3 with a caption, 1 with one that cannot be read: " in " ".join(page.text("p"))
    assert sum(mark["title"] == "error" for mark in page.all("span", "dot")) == 1 + 4
    assert page.text("span").count("its caption cannot be read") == 1


@pytest.fixture
def faulty(clean: Path, tmp_path: Path) -> Path:
    """The same with planted faults."""
    folder = tmp_path / "neon"
    shutil.copytree(clean, folder)
    rows = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    rows[2] = rows[2][:-1] + f', {LONG}"'
    rows[3] = rows[3][:-1] + ', indoors, outdoors"'
    rows += ["gone.png,a cat", 'copy of img01.png,"a caption of its own"', "img04.png,a cat, red"]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.copy(folder / "img01.png", folder / "copy of img01.png")
    data = (folder / "img05.png").read_bytes()
    (folder / "img05.png").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (256, 256), "teal").save(folder / "<script>alert(1).png")
    return folder


def check(*words: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and errors of the command, without a network."""
    out, err = io.StringIO(), io.StringIO()
    with offline(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["check", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_clean_set(clean: Path) -> None:
    code, out, err = check(clean)
    assert (code, err) == (0, "")
    assert "6 pictures, 6 with a caption: " in out and "error" not in out
    page = clean.with_name("neon-check.html")
    assert out.rstrip().endswith(f"the page: {page}")
    assert {path.suffix for path in clean.iterdir()} == {".png", ".csv"}  # nothing is left among the pictures
    Page(page.read_text(encoding="utf-8"))


def test_planted_faults_are_told_with_file_and_line(faulty: Path, tmp_path: Path) -> None:
    code, out, err = check(faulty, "--output", tmp_path / "new/page.html", "--trigger", "neonpunk")
    assert code == 2 and len(err.splitlines()) == 1 and "training would stop at" in err
    for told in (
        "metadata.csv:10: too many fields (3 instead of 2)",
        "also metadata.csv:8",  # gone.png
        "img05.png: ",
        "<script>alert(1).png: has no caption",
        "copy of img01.png",
        "img02.png (metadata.csv:3): ",
        'img03.png (metadata.csv:4): says both "indoors" and "outdoors"',
        'the trigger "neonpunk" stands in 0 of 7 captions',
        f"lora-scripts check {faulty} --fix",
    ):
        assert told in out
    assert len(out.splitlines()) < 30 and max(map(len, out.splitlines())) < 500
    html = (tmp_path / "new/page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "<script>alert(1).png" in page.text("figcaption") and "<script>alert(1)" not in html
    assert any("detail number 39" in text for text in page.text("p"))  # what is cut stands there in full
    assert len(page.all("span", "thumb")) >= 8


def test_fix_mends_and_ends(faulty: Path) -> None:
    pictures = {path.read_bytes() for path in faulty.glob("*.png")}
    code, out, _ = check(faulty, "--fix")
    aside = faulty.with_name("neon-set-aside")
    assert code == 2 and "copy of img01.png set aside as" in out and "to undo" in out
    assert sorted(path.name for path in aside.iterdir()) == ["captions.csv", "copy of img01.png"]
    assert {path.read_bytes() for root in (faulty, aside) for path in root.glob("*.png")} == pictures
    assert (faulty / "metadata.csv.bak-1").exists() and "copy of" not in (faulty / "metadata.csv").read_text()
    before = {path: path.read_bytes() for path in faulty.parent.rglob("*") if path.suffix != ".html" and path.is_file()}
    assert "nothing to mend without asking" in check(faulty, "--fix")[1]
    after = {path: path.read_bytes() for path in faulty.parent.rglob("*") if path.suffix != ".html" and path.is_file()}
    assert after == before


def test_what_is_left_is_offered_to_be_set_aside(faulty: Path) -> None:
    (faulty / "img06.txt").write_text("a wide one", encoding="utf-8")
    rows = [row for row in (faulty / "metadata.csv").read_text("utf-8").splitlines() if "img06" not in row]
    (faulty / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    Image.open(faulty / "img06.png").resize((120, 60)).save(faulty / "img06.png")
    assert "set them aside" not in check(faulty, "--resolution", "256")[1]  # first what --fix mends
    _, out, _ = check(faulty, "--resolution", "256", "--fix")
    command = f"lora-scripts check {faulty} --resolution 256x256 --set-aside corrupt too_small"
    assert f"replace these pictures, or set them aside, corrupt (1), too small (1): {command}\n" in out
    page = Page(faulty.with_name("neon-check.html").read_text("utf-8"))
    assert command in page.text("code")
    before = {path.name: path.read_bytes() for path in faulty.iterdir()}
    _, out, _ = check(*shlex.split(command)[2:])
    aside = faulty.with_name("neon-set-aside")
    assert {path.name for path in aside.iterdir()} >= {"img05.png", "img06.png", "img06.txt"}
    assert all((aside / name).read_bytes() == before[name] for name in ("img05.png", "img06.png", "img06.txt"))
    assert not (faulty / "img05.png").exists() and "img05" not in (faulty / "metadata.csv").read_text("utf-8")
    assert "to undo" in out and "set them aside" not in out and "corrupt" not in out
    assert check(faulty, "--set-aside", "overlay")[2].startswith("error: argument --set-aside: must be of corrupt, ")
    for name in ("img01.png", "img02.png", "img03.png", "img04.png"):
        (faulty / name).unlink()
    assert "no picture would be left" in check(faulty, "--resolution", "1024", "--set-aside", "too_small")[2]


def test_as_json(faulty: Path) -> None:
    code, out, err = check(faulty, "--json")
    result = json.loads(out)
    assert code == 2 and (result["pictures"], result["captioned"]) == (8, 7) and result["mended"] is None
    assert result["mend"] == f"lora-scripts check {faulty} --fix" and Path(result["page"]).is_file()
    (corrupt,) = [finding for finding in result["findings"] if finding["kind"] == "corrupt"]
    assert (corrupt["severity"], corrupt["files"], corrupt["sure"]) == ("error", ["img05.png"], None)
    events = [json.loads(line) for line in err.splitlines()]
    assert events[-2] == {"event": "progress", "what": "pictures", "done": 8, "total": 8}
    assert events[-1]["event"] == "error" and "training would stop at" in events[-1]["message"]
    code, out, _ = check(faulty, "--fix", "--json")
    assert any("set aside as" in line for line in json.loads(out)["mended"]) and json.loads(out)["mend"] == ""


def write_config(folder: Path, data: Path) -> Path:
    (folder / "base.safetensors").touch()
    path = folder / "config.yaml"
    path.write_text(f"train_data_dir: {data}\nbase_model: {folder}/base.safetensors\noutput_dir: {folder}/out\n")
    return path


def test_what_is_not_read_and_what_moves_is_told(clean: Path, tmp_path: Path) -> None:
    folder = tmp_path / "neon"
    shutil.copytree(clean, folder)
    (folder / "metadata.csv").rename(folder / "captions.csv")
    (folder / "scan.tif").touch()
    frames = [Image.new("RGB", (256, 256), colour) for colour in ("red", "blue")]
    for name in ("moves.webp", "moves_too.png", "again.avif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    code, out, _ = check(str(folder))
    assert code == 2 and "note: 1 not read (.tif 1); convert to JPEG or PNG" in out
    assert "note: captions.csv lies there, but" in out and "; name it metadata.csv, or set metadata_path" in out
    assert "note: animated (3): again.avif: an animation: its first frame is taken; save the frames" in out
    assert missing((tmp_path / "neon-check.html").read_text("utf-8")) == []


def test_of_two_copies_the_one_with_a_caption_that_cannot_be_read_stays(tmp_path: Path) -> None:
    """By its name alone the other would."""
    folder = tmp_path / "cats"
    folder.mkdir()
    Image.effect_noise((256, 256), 40).convert("RGB").save(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "b.png")
    (folder / "metadata.csv").write_text("filename,prompt\na.png,a cat, red\n")
    check(str(folder), "--fix")
    assert (folder / "a.png").exists() and not (folder / "b.png").exists()
    assert (folder / "metadata.csv").read_text() == "filename,prompt\na.png,a cat, red\n"


def test_the_captions_of_pictures_are_no_records(clean: Path) -> None:
    code, _, err = check(str(clean / "metadata.csv"))
    assert code == 2 and err.count("\n") == 1
    assert f"holds captions of pictures, not records; give their folder: lora-scripts check {clean.as_posix()}" in err


def test_with_a_config(clean: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, clean)
    code, out, _ = check("--config", config, "resolution=1024")
    assert code == 0 and "too small (6)" in out and "set them aside" not in out  # none would be left
    page = (tmp_path / "out/check.html").read_text(encoding="utf-8")
    assert "1024\u00a0×\u00a01024" in page
    (tmp_path / "other.csv").write_text("filename,prompt\nimg01.png,a cat\n")
    other = f"metadata_path={tmp_path}/other.csv"
    assert check("--config", config, other)[0] == 2
    assert check("--config", config, other, "allow_missing_captions=true")[0] == 0
    (tmp_path / "other.csv").write_text(f"filename,prompt\nimg01.png,{'neon ' * 100}\n")
    flux = f"base_model={tiny_flux1.write_base(tmp_path / 'flux.safetensors')}"
    for word, cut in (("", True), ("caption_tokens=150", False), (flux, False)):
        _, out, _ = check(*filter(None, ["--config", config, other, "allow_missing_captions=true", word]))
        assert ("100 tokens, of which CLIP reads 75" in out) == cut, word


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "nothing to look at"),
        (["a", "b"], "give one folder of pictures"),
        (["nix"], "nix: no such folder"),
        (["empty"], "empty: no images"),
        (["--config", "c.yaml", "--resolution", "768"], "--resolution has no effect with --config"),
        (["empty", "--trigger", " "], "--trigger is an empty text"),
        (["empty", "--output", "x.txt"], "argument --output: must be a .html file"),
        (["empty", "--output", "empty/x.html"], "empty/x.html: the page would lie among the pictures"),
        (["empty", "resolution=3"], "give one folder of pictures"),
    ],
)
def test_mistakes(words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, _, err = check(*words)
    assert code == 2 and err.startswith(f"error: {error}") and len(err.splitlines()) == 1


def test_the_command_imports_no_torch(clean: Path, tmp_path: Path) -> None:
    code = "import sys; from lora_scripts.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = ["check", str(clean), "--output", str(tmp_path / "p.html")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# --- the page ---------------------------------------------------------------------------------------------------------


def thumbnail(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def data() -> CheckData:
    pictures = [
        ShownPicture(EVIL, (200, 100), thumbnail(), EVIL, (512, 512), (0.25, 0.0, 0.5, 1.0)),
        ShownPicture("b.png", (512, 512), thumbnail("blue"), "b", (512, 512), (0.0, 0.0, 1.0, 1.0)),
        ShownPicture("c.png", None, b"", ""),
    ]
    findings = [
        Finding("corrupt", "error", ("c.png",), EVIL, EVIL, None, EVIL),
        Finding("near_duplicate", "warning", (EVIL, "b.png"), "alike", "keep one", 0.93),
    ]
    return CheckData(EVIL, EVIL, [(EVIL, EVIL)], findings, pictures, [EVIL], EVIL)


def test_the_page_loads_nothing_and_escapes_everything() -> None:
    html = render(data())
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert all(address.startswith("url(data:image/jpeg;base64,") for address in re.findall(r"url\([^)]*", html))
    assert "http" not in html.replace("http-equiv", "") and "default-src 'none'" in html
    assert len(page.all("script")) == 2  # the page's own, and its texts in Chinese
    assert EVIL in page.text("h1") and EVIL in page.text("b") and EVIL in page.text("figcaption")
    assert page.all("span", "t0")[0]["aria-label"] == EVIL
    none = CheckData("n", "fine", [], [], [])
    assert not Page(render(none)).all("article")


def test_each_picture_stands_on_the_page_once() -> None:
    html = render(data())
    assert html.count("base64,") == 2
    assert len(Page(html).all("span", "t0")) == 2  # in its finding, and among all


def test_the_crop_is_drawn_where_training_crops() -> None:
    buckets = bucket_sizes((512, 512))
    bucket, enlarged, kept = in_bucket((2000, 500), buckets)
    left, top, width, height = kept
    assert bucket[0] / bucket[1] == pytest.approx(2000 * width / (500 * height), abs=0.02)
    assert left == pytest.approx((1 - width) / 2, abs=0.002) and (top, height) == (0, 1)
    assert enlarged == pytest.approx(bucket[1] / 500)
    page = Page(render(replace(data(), findings=[])))
    assert [a["style"] for a in page.all("i")] == ["left: 25.00%; top: 0.00%; width: 50.00%; height: 100.00%"]
    assert "−50 %" in page.text("b") and "cannot be read" in page.text("span")


def test_one_line_for_each_kind_the_worst_first() -> None:
    found = [
        Finding("b", "note", (), "all of it", "x"),
        Finding("a", "warning", ("1.png",), "one", "mend", 0.6),
        Finding("a", "warning", ("2.png", "3.png", "4.png", "5.png"), "two " * 90, "mend", 0.9, "m.csv:2"),
        Finding("c", "error", ("6.png",), "three", "stop"),
    ]
    assert [f.kind for f in ordered(found)] == ["c", "a", "a", "b"]
    told = lines(found)
    assert told[0] == "error: 6.png: three; stop"
    assert told[1].startswith("warning: a (2): 2.png, 3.png, 4.png and 1 more (m.csv:2): two two")
    assert told[1].endswith("…; mend; also 1.png") and len(told[1]) < 250
    assert told[2] == "note: all of it; x"


# --- before a training ------------------------------------------------------------------------------------------------


def sample(name: str, size: tuple[int, int] = (512, 512), caption: str = "", digest: str = "") -> Sample:
    return Sample(Path(name), name, caption or f"the picture {name}", *size, digest or name)


def test_the_quick_part_sees_what_headers_tell() -> None:
    samples = [
        sample("a.png", digest="x"),
        sample("b.png", digest="x"),
        sample("c.png", (300, 300)),
        sample("d.png", (3000, 512)),
        sample("e.png", caption=LONG),
        sample("f.png", caption="one"),
        sample("g.png", caption="One"),
        sample("i.png", (768, 512)),
        sample("j.png", caption="<html>502 Bad Gateway</html>"),
    ]
    found = quick_findings(samples, (512, 512))
    assert Counter(f.kind for f in found) == {
        kind: 1
        for kind in (
            "exact_duplicate",
            "too_small",
            "odd_aspect",
            "caption_truncated",
            "captions_identical",
            "caption_nonsense",
        )
    }
    by_kind = {f.kind: f for f in found}
    assert by_kind["exact_duplicate"].files == ("a.png", "b.png")
    assert by_kind["too_small"].files == ("c.png",) and "1.71-fold" in by_kind["too_small"].message
    assert by_kind["odd_aspect"].files == ("d.png",)
    assert quick_findings([sample("a.png"), sample("b.png", (768, 512))], (512, 512)) == []


def test_captions_are_counted_by_what_the_base_reads(clean: Path, tmp_path: Path, base: Path) -> None:
    """CLIP reads 75 tokens, more where the config says so; what a language model reads it tells by itself."""
    flux = tiny_flux1.write_base(tmp_path / "flux.safetensors")
    long = [sample("a.png", caption=" ".join(["neon"] * 100)), sample("b.png", caption=" ".join(["neon"] * 200))]

    def told(*overrides: str) -> list[str]:
        notes: list[Event] = []
        tell_quick(load_config(write_config(tmp_path, clean), list(overrides)), long, ["x"], notes.append)
        return [note.text for note in notes if isinstance(note, Note) and "CLIP reads" in note.text]

    [at_75] = told(f"base_model={base}")
    assert "100 tokens, of which CLIP reads 75; " in at_75 and "; also b.png" in at_75
    [at_150] = told(f"base_model={base}", "caption_tokens=150")
    assert "b.png: 200 tokens, of which CLIP reads 150; " in at_150 and "a.png" not in at_150
    assert told(f"base_model={flux}") == []
    # And the buckets are the base's own: FLUX.1's sides are multiples of 32, not of 64.
    long = [sample("c.png", (400, 100))]
    for path, bucket in ((base, "768 x 320"), (flux, "800 x 320")):
        notes: list[Event] = []
        tell_quick(load_config(write_config(tmp_path, clean), [f"base_model={path}"]), long, ["x"], notes.append)
        assert sum(f"-fold to {bucket};" in note.text for note in notes if isinstance(note, Note)) == 1


def test_before_a_training_five_lines_at_most(clean: Path, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, clean), ["resolution=256"])
    samples = [sample(f"{n}.png", (40 * n, 100), LONG if n % 2 else "one", str(n // 2)) for n in range(1, 20)]
    notes: list[Event] = []
    tell_quick(config, samples, ["--config", "my config.yaml", "epochs=3"], notes.append)
    told = [note.text for note in notes if isinstance(note, Note)]
    assert len(told) == len(notes) == 5 and "lora-scripts check --config 'my config.yaml' epochs=3" in told[-1]
    shapes = next(text for text in told if "odd aspect" in text or "too small" in text)
    assert "; look for a larger copy, remove it, or train at a lower resolution" in shapes or "crop" in shapes
    assert not any(text.endswith("…") for text in told)
    notes.clear()
    tell_quick(config, scan(clean), ["x"], notes.append)
    assert len(notes) == 1
