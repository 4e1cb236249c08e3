"""Folders as people have them, good and bad."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts.data.findings import HEIC_MEND, Finding
from lora_scripts.data.listing import list_data
from lora_scripts.data.scan import Sample, scan
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.report.chinese import translated


def draw(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)  # type: ignore[arg-type]
    return path


def faults(folder: Path, metadata: Path | None = None, **options: bool) -> list[str]:
    with pytest.raises(UserError) as caught:
        scan(folder, metadata, **options)
    error = caught.value
    return [str(one) for one in (error.errors if isinstance(error, UserErrors) else [error])]


def test_any_layout(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    names = ("b.JPG", "10_name/c.webp", "10_name/deep er/d.bmp", "中.png", "e.avif", "f.jfif")
    paths = {name: draw(tmp_path / name) for name in names}
    paths["a.jpeg"] = draw(tmp_path / "a.jpeg", exif=exif)
    for hidden in (
        ".hidden.png",
        ".git/x.png",
        "__MACOSX/y.png",
        "@eaDir/SYNOFILE_THUMB_M.jpg",
        "#recycle/z.png",
        "10_name/._c.webp",
    ):
        draw(tmp_path / "t.png").rename((tmp_path / hidden).parent.mkdir(exist_ok=True) or tmp_path / hidden)
    (tmp_path / "notes.md").write_text("not a caption", encoding="utf-8")
    (tmp_path / "metadata.csv").write_text(
        'filename,prompt\nb.JPG,"one, two"\n10_name/c.webp,three\n'
        "10_name/deep er/d.bmp,four\n中.png,five\na.jpeg,six\ne.avif,seven\nf.jfif,eight\n",
        encoding="utf-8",
    )
    samples = scan(tmp_path)
    assert [s.name for s in samples] == sorted(paths)
    by_name = {s.name: s for s in samples}
    assert by_name["b.JPG"] == Sample(
        paths["b.JPG"], "b.JPG", "one, two", 40, 30, hashlib.sha256(paths["b.JPG"].read_bytes()).hexdigest()
    )
    assert (by_name["a.jpeg"].width, by_name["a.jpeg"].height) == (30, 40)
    assert by_name["中.png"].caption == "five"


def test_sources_add_up(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "sub/d.png", "e.png"):
        draw(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,from csv\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("from csv\n")  # the same words: no contradiction
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "from jsonl"}', encoding="utf-8")
    (tmp_path / "c.TXT").write_text("from txt", encoding="utf-8")
    (tmp_path / "sub/metadata.csv").write_text("filename,prompt\nd.png,from below\n", encoding="utf-8")
    (tmp_path / "e.caption").write_text("from caption", encoding="utf-8")
    (tmp_path / "readme.txt").write_text("belongs to no image", encoding="utf-8")
    found = {s.name: s.caption for s in scan(tmp_path)}
    assert found == {
        "a.png": "from csv",
        "b.png": "from jsonl",
        "c.png": "from txt",
        "e.png": "from caption",
        "sub/d.png": "from below",
    }


def test_a_given_metadata_file_stands_alone(tmp_path: Path) -> None:
    draw(tmp_path / "data/a.png")
    (tmp_path / "data/metadata.csv").write_text("filename,prompt\na.png,old\n", encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"file_name": "a.png", "text": "new"}', encoding="utf-8")
    assert scan(tmp_path / "data", tmp_path / "other.jsonl")[0].caption == "new"


def test_contradicting_captions(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,a cat\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("a dog", encoding="utf-8")
    (fault,) = faults(tmp_path)
    assert '"a cat" in metadata.csv:2 but "a dog" in a.txt' in fault and "a.png: " in fault


def test_every_fault_at_once(tmp_path: Path) -> None:
    good = draw(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "pointer.jpg").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", encoding="utf-8"
    )
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html></html>", encoding="utf-8")
    draw(tmp_path / "icon.png", (8, 40))
    draw(tmp_path / "bare.png")
    draw(tmp_path / "gbk.png")
    (tmp_path / "gbk.txt").write_bytes("霓虹灯下的城市".encode("gbk"))
    (tmp_path / "pipe.txt").write_text("x", encoding="utf-8")
    names = ["good.png", "cut.png", "zero.jpg", "pointer.jpg", "page.jpg", "icon.png", "GOOD.png", "gone.png"]
    rows = "".join(f"{name},words\n" for name in names)
    (tmp_path / "metadata.csv").write_text(f"filename,prompt\n{rows}../up.png,x\nextra.png,a, b\n", encoding="utf-8")
    draw(tmp_path / "extra.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    else:
        (tmp_path / "pipe.png").mkdir()
    wanted = [
        'metadata.csv:10: "../up.png" leaves',
        "metadata.csv:11: too many fields",
        'metadata.csv:8: no image "GOOD.png" in ' + str(tmp_path) + '; did you mean "good.png"?',
        'metadata.csv:9: no image "gone.png"',
        "gbk.txt:1: not UTF-8 text; it looks like GBK",
        "bare.png: has no caption",
        "cut.png: damaged image",
        "icon.png: 8 x 40 px is too small",
        "page.jpg: is a web page",
        "pointer.jpg: is a git-lfs pointer",
        "zero.jpg: the file is empty",
    ]
    if hasattr(os, "mkfifo"):
        wanted.insert(-1, "pipe.png: is not a regular file")
    told = faults(tmp_path)
    assert len(told) == len(wanted), told
    for words in wanted:
        assert sum(words in fault for fault in told) == 1, (words, told)


def test_no_captions_at_all_is_one_fault(tmp_path: Path) -> None:
    for n in range(30):
        draw(tmp_path / f"{n}.png")
    (tmp_path / "captions.json").write_text("{}", encoding="utf-8")
    (fault,) = faults(tmp_path)
    assert "no captions found for its 30 images" in fault and "30 .png, 1 .json" in fault
    assert "allow_missing_captions" in fault
    assert [s.caption for s in scan(tmp_path, allow_missing_captions=True)] == [""] * 30


def test_many_faults_of_one_kind_are_counted(tmp_path: Path) -> None:
    for n in range(50):
        draw(tmp_path / f"{n}.png", (16, 16))
    (tmp_path / "metadata.csv").write_text("filename,prompt\n0.png,x\n" + "".join(f"no{n}.png,x\n" for n in range(50)))
    told = faults(tmp_path)
    assert len(told) == 42
    assert "30 further rows" in told[20] and "29 further images" in told[41]


def test_names_relative_to_another_folder_are_one_fault(tmp_path: Path) -> None:
    for n in range(3):
        draw(tmp_path / f"{n}.png")
    (tmp_path / "metadata.csv").write_text("filename,prompt\n" + "".join(f"train/{n}.png,x\n" for n in range(3)))
    (fault,) = faults(tmp_path)
    assert "none of its 3 names is an image" in fault and '"train/0.png"' in fault and 'like "0.png"' in fault


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a", 'did you mean "a.png"?'),
        ("a.jpg", 'did you mean "a.png"?'),
        ("picture_01.png", 'did you mean "sub/picture_01.png"?'),
        ("sub/picture_O1.png", 'did you mean "sub/picture_01.png"?'),
        ("film.gif", "convert it"),
        ("xyz.png", "remove the row"),
    ],
)
def test_hints_for_a_row_without_image(tmp_path: Path, row: str, words: str) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "sub/picture_01.png")
    (tmp_path / "film.gif").write_bytes(b"GIF89a")
    for name in ("a.txt", "sub/picture_01.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "metadata.csv").write_text(f"filename,prompt\n{row},x\n", encoding="utf-8")
    (fault,) = faults(tmp_path)
    assert words in fault


def test_no_images(tmp_path: Path) -> None:
    assert "the folder is empty" in faults(tmp_path)[0]
    for name in ("a.gif", "b.gif", "pictures.zip", "c.jxl"):
        (tmp_path / name).write_bytes(b"x")
    told = (
        "no images (jpg, png, webp, avif, bmp) found; the folder holds 2 .gif, 1 .jxl, 1 .zip; convert to JPEG or PNG"
    )
    assert told in faults(tmp_path)[0]
    assert "no such folder" in faults(tmp_path / "none")[0]
    assert "is not a folder" in faults(tmp_path / "a.gif")[0]


def test_unreadable_metadata_is_not_followed_by_missing_captions(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes("filename,prompt\na.png,霓虹灯下的城市\n".encode("gbk"))
    assert len(faults(tmp_path)) == 1
    assert "no such file" in faults(tmp_path, tmp_path / "none.csv")[0]


def test_a_row_of_a_heic_picture_names_the_package_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_scripts.data.listing.IMAGE_SUFFIXES", (".png",))
    draw(tmp_path / "b.png")
    (tmp_path / "a.HEIC").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.HEIC,a cat\nb.png,a dog\n", encoding="utf-8")
    assert [fault.hint for fault in list_data(tmp_path).faults] == [HEIC_MEND]


def test_empty_captions_where_allowed(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n", encoding="utf-8")
    assert "empty" in faults(tmp_path)[0]
    assert scan(tmp_path, allow_missing_captions=True)[0].caption == ""


def test_decomposed_file_names(tmp_path: Path) -> None:
    draw(tmp_path / unicodedata.normalize("NFD", "café.png"))
    (tmp_path / "metadata.csv").write_text("filename,prompt\ncafé.png,a cup\n", encoding="utf-8")
    (sample,) = scan(tmp_path)
    assert sample.name == unicodedata.normalize("NFC", "café.png") and sample.path.exists()


@pytest.mark.skipif(os.name == "nt", reason="links and raw names")
def test_links_and_raw_names(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere/a.png")
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "circle").symlink_to(data)
    (tmp_path / "elsewhere/a.txt").write_text("x", encoding="utf-8")
    assert [s.name for s in scan(data)] == ["linked/a.png"]
    (data / "lost.png").symlink_to(data / "none")
    (data / "self.png").symlink_to(data / "self.png")
    (data / "metadata.csv").write_text("filename,prompt\nlost.png,x\nself.png,y\n", encoding="utf-8")
    told = faults(data)
    assert len(told) == 2 and "leads nowhere" in told[0] and "self.png: cannot be read" in told[1]
    try:
        with open(os.fsencode(data) + b"/\xff.png", "wb"):
            pass
    except OSError:
        return  # a file system that takes only Unicode
    assert any("'\\udcff.png' is not Unicode" in fault for fault in faults(data))


def test_what_lies_beside_the_pictures_and_is_not_read_is_told(tmp_path: Path) -> None:
    """In the words of the check page, which are there in Chinese."""
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    for name in ("x.gif", "sub/y.GIF", "z.jxl", "captions.csv", "sub/metadata.xlsx", "more.txt", "b.csv.bak"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    told = [(note.message, note.mend) for note in list_data(tmp_path, allow_missing_captions=True).notes]
    assert told == [
        ("3 not read (.gif 2, .jxl 1)", "convert to JPEG or PNG"),
        (f"captions.csv {LIES_THERE}", "name it metadata.csv, or set metadata_path"),
        (f"sub/metadata.xlsx {LIES_THERE}", "save it as metadata.csv"),
    ]
    assert all(translated(text) for pair in told for text in pair)
    assert f"captions.csv {LIES_THERE}: name it metadata.csv, or set metadata_path" in faults(tmp_path)[0]
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,one\nb.png,two\n", encoding="utf-8")
    notes: list[Finding] = []
    assert len(scan(tmp_path, notes=notes)) == 2  # nothing is missing: another table is nobody's business
    assert [note.kind for note in notes] == ["not_read"]


def test_captions_that_belong_to_no_picture_are_told_where_captions_are_missing(tmp_path: Path) -> None:
    """As galleries name them, or of pictures that were renamed since."""
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
        (tmp_path / f"{name}.txt").write_text("a cat", encoding="utf-8")
    [note] = list_data(tmp_path).notes
    assert note.message == "2 caption files beside no picture of their name (a.png.txt)"
    assert translated(note.message) and translated(note.mend)
    assert f"{note.message}: {note.mend}" in faults(tmp_path)[0]
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,one\nb.png,two\n", encoding="utf-8")
    assert not list_data(tmp_path).notes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["captions.txt"], "captions.txt lies there, but is named as no picture: it is not read"),
        (["metadata.json"], "metadata.json lies there, but captions are read from metadata.csv or metadata.jsonl"),
        (
            ["a.json", "b.json", "readme.txt"],
            "2 .json files lie there (a.json), but captions are read from metadata.csv or .txt",
        ),
        (["readme.txt", "a.txt"], None),
        (["readme.txt", "metadata.csv"], None),
    ],
)
def test_one_file_that_may_hold_all_captions_is_told(tmp_path: Path, names: list[str], message: str | None) -> None:
    """As other trainers have them. A readme beside captions that are read is nobody's business."""
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    for name in names:
        (tmp_path / name).write_text("filename,prompt\na.png,one\n", encoding="utf-8")
    notes = list_data(tmp_path, allow_missing_captions=True).notes
    assert [note.message for note in notes] == ([message] if message else [])
    assert all(translated(note.message) and translated(note.mend) for note in notes)
    assert all(f"{note.message}: {note.mend}" in faults(tmp_path)[0] for note in notes)


def test_masks_that_lie_beside_their_pictures_are_no_pictures(tmp_path: Path) -> None:
    """As OneTrainer has them: they were labelled and trained, or taken for copies and moved away."""
    for name in ("a.jpg", "a-masklabel.png", "sub/b.png", "sub/b-masklabel.PNG", "c-masklabel.png"):
        draw(tmp_path / name)
    listing = list_data(tmp_path, allow_missing_captions=True)
    assert list(listing.images) == ["a.jpg", "c-masklabel.png", "sub/b.png"]
    [note] = listing.notes
    assert note.message == "2 not read as pictures: masks by OneTrainer (a-masklabel.png)"
    assert translated(note.message) and translated(note.mend)
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.jpg,one\na-masklabel.png,two\n", encoding="utf-8")
    assert "remove the row: the file is the mask of a picture" in faults(tmp_path)[0]


LIES_THERE = "lies there, but captions are read from metadata.csv or metadata.jsonl"


def test_names_of_many_pictures_are_compared_without_their_folders(tmp_path: Path) -> None:
    """A long folder that all share is no likeness."""
    many = tmp_path / "a" / "long" / "folder" / "of" / "many"
    many.mkdir(parents=True)
    for path in (tmp_path / "good.png", many / "kitten_13.png"):
        Image.new("RGB", (64, 64)).save(path)
    rows = [f"{many.relative_to(tmp_path).as_posix()}/{name},x" for name in ("kitten_12.png", "house.png")]
    (tmp_path / "metadata.csv").write_text("\n".join(["filename,prompt", "good.png,x", *rows]) + "\n", "utf-8")
    told = faults(tmp_path)
    assert 'did you mean "a/long/folder/of/many/kitten_13.png"?' in told[0]
    assert "remove the row, or add the image" in told[1]
