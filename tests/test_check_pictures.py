"""Each finding about pictures: one that has the defect, planted by other means, and a clean one beside it."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from lora_scripts.check import duplicates, integrity, overlays, pictures, whole_set
from lora_scripts.check.facts import PictureFacts, measure
from lora_scripts.check.pictures import look, picture_findings
from lora_scripts.data.buckets import bucket_sizes
from lora_scripts.data.findings import Finding
from lora_scripts.demo import world
from lora_scripts.events import Event, Progress


def leaves(seed: int, size: int = 512) -> Image.Image:
    """Discs of all sizes over each other, with grain: sharp and busy as a photograph."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size * 2, size * 2))
    draw = ImageDraw.Draw(image)
    for x, y, u in rng.uniform(size=(900, 3)):
        r = size * 0.03 / np.sqrt(u + 0.004)
        box = (2 * size * x - r, 2 * size * y - r, 2 * size * x + r, 2 * size * y + r)
        draw.ellipse(box, fill=tuple(rng.integers(0, 255, 3).tolist()))
    values = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32)
    return Image.fromarray(np.clip(values + rng.normal(0, 2, values.shape), 0, 255).astype(np.uint8))


def scene(seed: int, style: str = "plain", size: int = 512) -> Image.Image:
    rng = random.Random(seed)
    return world.draw(world.place(rng.choice(world.all_keys()), rng, style), size)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 88} if kind == "JPEG" and not options else options))
    return out.getvalue()


def facts_of(folder: Path, files: dict[str, bytes]) -> list[PictureFacts]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return look({name: folder / name for name in files}, workers=1)


def findings(
    folder: Path, files: dict[str, bytes | Image.Image], resolution: tuple[int, int] | None = None
) -> dict[str, list[Finding]]:
    """By kind."""
    data = {name: v if isinstance(v, bytes) else encoded(v) for name, v in files.items()}
    out: dict[str, list[Finding]] = {}
    for finding in picture_findings(facts_of(folder, data), resolution and bucket_sizes(resolution)):
        out.setdefault(finding.kind, []).append(finding)
    return out


def names(found: dict[str, list[Finding]], kind: str) -> list[str]:
    return [name for finding in found.get(kind, []) for name in finding.files]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    clean = encoded(leaves(1), kind)
    middle = len(clean) // 2
    files = {
        "clean": clean,
        "cut": clean[:middle],
        "tail": clean[:-9],
        "zeros": clean[:middle] + bytes(2048) + clean[middle + 2048 :],
        "head": bytes(64) + clean[64:],
        "empty": b"",
        "page": b"<!DOCTYPE html><html></html>",
    }
    found = findings(tmp_path, files)
    assert sorted(names(found, "corrupt")) == sorted(set(files) - {"clean"})
    assert all(finding.severity == "error" and finding.mend for finding in found["corrupt"])


def test_never_more_processes_than_windows_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(chunks: list[list[tuple[str, Path]]], workers: int) -> Iterator[list[Any]]:
        asked.append(workers)
        yield from ([SimpleNamespace(name=name) for name, _ in chunk] for chunk in chunks)

    monkeypatch.setattr(pictures, "_measured", measured)
    many = {str(i): Path(str(i)) for i in range(10_000)}
    assert len(pictures.look(many, workers=96)) == len(many) and asked == [61]


def test_damage_that_pillow_does_not_see() -> None:
    picture = leaves(2)
    for data in (encoded(picture), encoded(picture, quality=80, progressive=True)):
        middle = len(data) // 2
        broken = data[:middle] + bytes(4096) + data[middle + 4096 :]
        Image.open(io.BytesIO(broken)).load()  # raises nothing
        assert "zeros" in (integrity.damage(broken) or "") and integrity.damage(data) is None
        noise = data[:middle] + random.Random(1).randbytes(4096) + data[middle + 4096 :]
        assert integrity.damage(noise)
    png = bytearray(encoded(picture, "PNG"))
    png[-20] ^= 1
    assert "checksum" in (integrity.damage(bytes(png)) or "")


def test_flat_pictures_with_long_rows_of_zeros_are_whole() -> None:
    for image in (Image.new("RGB", (2048, 2048), "red"), Image.linear_gradient("L").resize((2048, 2048))):
        for options in ({"quality": 75}, {"quality": 75, "optimize": True}, {"quality": 75, "progressive": True}):
            assert integrity.damage(encoded(image, **options)) is None
    with_restarts = encoded(leaves(3), quality=80, restart_marker_blocks=4)
    assert integrity.damage(with_restarts) is None
    # markers out of their order: the second is gone
    second = with_restarts.index(b"\xff\xd1")
    assert integrity.damage(with_restarts[:second] + with_restarts[second + 2 :])


def test_exact_copies(tmp_path: Path) -> None:
    original = encoded(leaves(4))
    shown = Image.open(io.BytesIO(original))
    files = {"a.jpg": original, "b.jpg": original, "c.png": encoded(shown, "PNG"), "d.jpg": encoded(leaves(5))}
    found = findings(tmp_path, files)
    assert sorted(names(found, "exact_duplicate")) == ["a.jpg", "b.jpg", "c.png"]
    assert "pixels" in found["exact_duplicate"][0].message
    assert "near_duplicate" not in found


@pytest.mark.parametrize("make", [leaves, scene])
def test_near_copies_and_the_one_to_keep(tmp_path: Path, make: object) -> None:
    image = leaves(6) if make is leaves else scene(6)
    crop = image.crop((0, 25, 487, 512))  # 5 % at two sides
    bright = ImageEnhance.Brightness(image.resize((400, 400))).enhance(1.1)
    files: dict[str, bytes | Image.Image] = {
        "crop.jpg": encoded(crop, quality=70),
        "whole.png": encoded(image, "PNG"),
        "small.jpg": bright,
        "mirror.jpg": ImageOps.mirror(image),
    }
    files |= {f"other{i}.jpg": leaves(20 + i) if make is leaves else scene(40 + i) for i in range(12)}
    found = findings(tmp_path, files)
    assert [finding.files[0] for finding in found["near_duplicate"]] == ["whole.png"]
    assert sorted(names(found, "near_duplicate")) == ["crop.jpg", "small.jpg", "whole.png"]
    assert [set(finding.files) for finding in found["mirrored"]] == [{"whole.png", "mirror.jpg"}]
    assert found["mirrored"][0].severity == "note"


def test_an_enlarged_copy_is_not_the_one_to_keep(tmp_path: Path) -> None:
    image = leaves(7)
    large = image.resize((256, 256)).resize((800, 800), Image.Resampling.BICUBIC)
    found = findings(tmp_path, {"large.jpg": large, "small.jpg": image})
    assert found["near_duplicate"][0].files == ("small.jpg", "large.jpg")


def test_a_chain_of_copies_keeps_its_ends() -> None:
    assert duplicates._clusters(4, [(0, 1), (1, 2)]) == [[0, 1], [2], [3]]


def test_blur(tmp_path: Path) -> None:
    sky = Image.linear_gradient("L").resize((512, 512))
    shallow = leaves(8).filter(ImageFilter.GaussianBlur(6))
    shallow.paste(leaves(9).crop((100, 100, 260, 260)), (200, 200))
    files = {
        "blurred.jpg": leaves(8).filter(ImageFilter.GaussianBlur(2.2)),
        "large.jpg": leaves(8, 1024).filter(ImageFilter.GaussianBlur(4.4)),
        "drawn.jpg": scene(8).filter(ImageFilter.GaussianBlur(3)),
        "sharp.jpg": leaves(10),
        "flat art.jpg": scene(11),
        "smooth sky.jpg": sky,
        "shallow focus.jpg": shallow,
    }
    found = findings(tmp_path, dict(files))
    assert sorted(names(found, "blurred")) == ["blurred.jpg", "drawn.jpg", "large.jpg"]
    assert names(found, "upscaled") == []


def test_enlarged_pictures(tmp_path: Path) -> None:
    image = leaves(12, 768)
    files: dict[str, bytes | Image.Image] = {"sharp.jpg": image, "drawn.jpg": scene(13, "sketch", 768)}
    for kernel in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        files[f"{kernel.name}.jpg"] = image.resize((384, 384), Image.Resampling.BOX).resize((768, 768), kernel)
    found = findings(tmp_path, files)
    assert sorted(names(found, "upscaled")) == ["BICUBIC.jpg", "BILINEAR.jpg", "LANCZOS.jpg"]
    assert found["upscaled"][0].severity == "warning" and "384 x 384" in found["upscaled"][0].message
    # trained at a third of its pixels, it does not matter
    assert findings(tmp_path, {"BICUBIC.jpg": files["BICUBIC.jpg"]}, (256, 256))["upscaled"][0].severity == "note"


def test_size_and_shape(tmp_path: Path) -> None:
    files: dict[str, bytes | Image.Image] = {
        "small.jpg": leaves(14, 300),
        "long.jpg": leaves(15, 768).crop((0, 0, 768, 200)),
        "fits.jpg": leaves(16, 640),
        "icon.png": encoded(leaves(17, 12), "PNG"),
    }
    found = findings(tmp_path, files, (512, 512))
    small = next(f for f in found["too_small"] if f.files == ("small.jpg",))
    assert f"{512 / 300:.2f}-fold" in small.message and small.severity == "warning"
    assert names(found, "odd_aspect") == ["long.jpg"] and "fits.jpg" not in names(found, "too_small")
    assert next(f for f in found["too_small"] if f.files == ("icon.png",)).severity == "error"
    alone = findings(tmp_path, files)
    assert sorted(names(alone, "too_small")) == ["icon.png", "long.jpg", "small.jpg"]
    assert names(alone, "odd_aspect") == ["long.jpg"]


def test_exif_turns_the_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(leaves(18, 64).crop((0, 0, 64, 40)), quality=90, exif=exif)
    assert facts_of(tmp_path, {"a.jpg": data})[0].size == (40, 64)


def test_jpeg_blocks(tmp_path: Path) -> None:
    image = leaves(19).filter(ImageFilter.GaussianBlur(0.7))
    strong = encoded(image, quality=10)
    again = encoded(Image.open(io.BytesIO(strong)).crop((3, 5, 512, 512)), "PNG")  # the grid lies elsewhere
    found = findings(tmp_path, {"strong.jpg": strong, "again.png": again, "good.jpg": encoded(image, quality=75)})
    assert sorted(names(found, "jpeg_blocks")) == ["again.png", "strong.jpg"]
    for quality in (30, 75, 95):
        assert facts_of(tmp_path, {"q.jpg": encoded(image, quality=quality)})[0].quality == quality


def test_bars(tmp_path: Path) -> None:
    image = leaves(20)
    files: dict[str, bytes | Image.Image] = {
        "bars.jpg": ImageOps.expand(image, (0, 40), "black"),
        "frame.jpg": ImageOps.expand(image, 20, "white"),
        "uneven.jpg": ImageOps.expand(image, (0, 30, 0, 90), (20, 20, 30)),
        "none.jpg": image,
        "drawn.jpg": scene(21, "neon"),
    }
    found = findings(tmp_path, files)
    assert sorted(names(found, "border")) == ["bars.jpg", "frame.jpg", "uneven.jpg"]
    assert {finding.severity for finding in found["border"]} == {"warning"}
    bars = measure("bars.jpg", tmp_path / "bars.jpg").border
    assert bars is not None and (bars.left, bars.right) == (0, 0) and bars.sure == 0.9
    assert (bars.top, bars.bottom) == pytest.approx((40 / 592, 40 / 592), abs=0.005)
    # sharp bars do not make a blurred picture sharp
    faint = ImageEnhance.Contrast(image.filter(ImageFilter.GaussianBlur(3))).enhance(0.4)
    soft = ImageOps.expand(faint, 60, "black")
    assert names(findings(tmp_path, {"soft.jpg": soft}), "blurred") == ["soft.jpg"]


def marked(image: Image.Image, text: str = "© J. Doe Photos") -> Image.Image:
    out = image.copy()
    ImageDraw.Draw(out).text((250, 460), text, (255, 255, 255), ImageFont.load_default(24))
    return out


def test_writing_over_a_picture(tmp_path: Path) -> None:
    plain = scene(22).filter(ImageFilter.GaussianBlur(0.3))
    found = findings(tmp_path, {"marked.jpg": marked(plain), "plain.jpg": plain})
    assert names(found, "overlay") == ["marked.jpg"]
    text = found["overlay"][0]
    assert text.severity == "note" and text.sure is not None and text.sure < 0.9 and "bottom" in text.message
    left, top, right, bottom = measure("m", tmp_path / "marked.jpg").texts[0].box
    assert 240 / 512 < left < 262 / 512 < 380 / 512 < right and 455 / 512 < top < bottom < 495 / 512


def scribble(seed: int) -> Image.Image:
    """Sixty curves of a pen across a page with a margin: the gaps between them have the size of letters."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, 60)[:, None]
    image = Image.new("L", (512, 512), 225)
    pen = ImageDraw.Draw(image)
    for _ in range(60):
        a, b, c, d = rng.uniform(60, 430, (4, 2))
        curve = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        pen.line([(float(x), float(y)) for x, y in curve], fill=30, width=int(rng.integers(2, 5)))
    return image


def test_gaps_between_the_lines_of_a_drawing_are_no_writing() -> None:
    drawings = [scribble(seed) for seed in range(20)]
    assert not [number for number, image in enumerate(drawings) if overlays.find(np.asarray(image))]
    for image in drawings:
        ImageDraw.Draw(image).text((40, 466), "www.example.org/drawings", 60, ImageFont.load_default(22))
    lines = [overlays.find(np.asarray(image)) for image in drawings]
    assert all(len(found) == 1 and found[0].box[1] > 455 / 512 for found in lines)


def tree_tops(seed: int) -> Image.Image:
    """Three rows of pointed trees, one before the other, in flat grey."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (512, 512), int(rng.integers(20, 50)))
    pen, ground = ImageDraw.Draw(image), 200.0
    for shade in rng.permutation([60, 110, 160, 210])[:3]:
        x, base, outline = 0.0, ground, [(0.0, 512.0)]
        while x < 520:
            wide, tall = rng.uniform(4, 14), rng.uniform(3, 28)
            outline += [(x, base), (x + wide / 2, base - tall), (x + wide, base + rng.uniform(-3, 3))]
            x, base = x + wide + rng.uniform(0, 3), base + rng.uniform(-2, 2)
        pen.polygon([*outline, (520.0, 512.0)], fill=int(shade))
        ground += 90
    return image


def test_tree_tops_are_no_writing() -> None:
    pictures = [tree_tops(seed) for seed in range(20)]
    assert sum(bool(overlays.find(np.asarray(image))) for image in pictures) <= 2
    for image in pictures:
        ImageDraw.Draw(image).text((40, 466), "www.example.org/drawings", 255, ImageFont.load_default(22))
    assert sum(bool(overlays.find(np.asarray(image))) for image in pictures) >= 18


def test_a_mark_at_one_place_in_many_pictures(tmp_path: Path) -> None:
    files: dict[str, bytes | Image.Image] = {f"{i}.jpg": scene(50 + i) for i in range(8)}
    files |= {f"{i}.jpg": marked(scene(50 + i)) for i in range(4)}
    found = findings(tmp_path, files)["watermark"]
    assert len(found) == 1 and set(found[0].files) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}


def test_colour_cast(tmp_path: Path) -> None:
    def tinted(seed: int, factors: tuple[float, float, float]) -> Image.Image:
        values = np.asarray(leaves(seed, 128), np.float32) * np.array(factors)
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

    balanced = {f"{i}.jpg": tinted(60 + i, (1, 1, 1)) for i in range(8)}
    warm = {f"{i}.jpg": tinted(60 + i, (1.2, 0.9, 0.45)) for i in range(8)}
    assert "colour_cast" not in findings(tmp_path, dict(balanced))
    cast = findings(tmp_path, dict(warm))["colour_cast"]
    assert cast[0].sure is None  # the share of the pictures is no certainty
    assert len(cast) == 1 and cast[0].files == () and ("orange" in cast[0].message or "yellow" in cast[0].message)


def test_lab_against_little_cms() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    lab = ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    theirs = np.asarray(ImageCms.applyTransform(Image.fromarray(patches), transform)).astype(float)
    theirs = np.stack([theirs[..., 0] / 2.55, *(np.moveaxis(theirs[..., 1:], -1, 0) + 128) % 256 - 128], -1)
    # a* and b* of little cms are for D50, ours for D65: a few units apart on strong colours, none on grey
    assert np.abs(whole_set._lab(patches) - theirs).max() < 12
    grey = np.full((1, 1, 3), 119, np.uint8)
    assert whole_set._lab(grey)[0, 0] == pytest.approx((50, 0, 0), abs=0.3)


def test_look_keeps_the_order_in_any_number_of_processes(tmp_path: Path) -> None:
    files = {f"{i:02d}.jpg": encoded(leaves(i % 5, 64)) for i in range(20)} | {"broken.png": b"\x89PNG\r\n\x1a\n1234"}
    one = facts_of(tmp_path, files)
    events: list[Event] = []
    two = look({name: tmp_path / name for name in files}, workers=2, sink=events.append)
    assert two == one and [fact.name for fact in two] == list(files)
    counts = [event.done for event in events if isinstance(event, Progress)]
    assert counts == sorted(counts) and events[-1] == Progress("pictures", 21, 21)
    assert two[-1].problem and not two[-1].readable
    assert Image.open(io.BytesIO(two[0].thumbnail)).size == (64, 64)


def test_hundreds_of_different_scenes_are_not_copies() -> None:
    facts = []
    for i, drawn in enumerate(world.style_set("plain", 200, 9)):
        image = world.draw(drawn, 64)
        grid = image.resize((48, 48), Image.Resampling.BOX).tobytes()
        facts.append(PictureFacts(f"{i}", f"{i}", 1, "PNG", pixels=f"{i}", size=image.size, grid=grid))
    twin = replace(facts[17], name="twin", sha256="twin", pixels="twin")
    found = duplicates.find([*facts, twin])
    assert [sorted(group) for group in found.near if "twin" in group] == [["17", "twin"]]
    assert len(found.near) <= 3  # of 19,900 pairs


def test_torch_stays_out() -> None:
    code = "import sys, lora_scripts.check.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
