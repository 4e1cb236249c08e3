"""Masks, class pictures, tag dropout and the text encoder's window: what each changes, and nothing else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file

import tiny
from lora_scripts.cli import main
from lora_scripts.data.buckets import View
from lora_scripts.data.cache import Cache
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.loader import caption_for
from lora_scripts.data.masks import alpha_mask, find_masks, read_mask, view_mask
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Table
from lora_scripts.formats.hashes import sha256_of
from lora_scripts.formats.io import write_atomic
from lora_scripts.run import story
from lora_scripts.run.configs import load_config
from lora_scripts.run.dataset import DRAWN_FROM
from lora_scripts.run.preflight import preflight
from lora_scripts.train.encoded import Masks
from runs import only_the_file, stopped
from toy import Toy, feed, samples


def blot(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Black with a white rectangle off the middle."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[8:40, 16:48] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("flip", [False, True])
def test_a_mask_is_cropped_scaled_and_mirrored_as_its_picture(tmp_path: Path, flip: bool) -> None:
    """The picture is the mask itself: its bright latents are where the mask counts."""
    blot().convert("RGB").save(tmp_path / "a.png")
    view = View((64, 32), (96, 64), left=8, top=4, flip=flip)
    got = view_mask(blot(), view, 8, 0.0)
    picture = apply_view(load_rgb(tmp_path / "a.png"), view)
    cells = torch.nn.functional.avg_pool2d(picture[None], 8)[0].mean(0, keepdim=True) / 2 + 0.5
    torch.testing.assert_close(got, cells, rtol=0, atol=1e-6)
    assert got.shape == (1, 4, 8) and got.max() == 1 and got.min() == 0
    torch.testing.assert_close(view_mask(blot(), view, 8, 0.25), 0.25 + 0.75 * got)


def test_transparency_is_a_mask_and_a_picture_without_it_is_told(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 64), "red")
    image.save(tmp_path / "plain.png")
    image.putalpha(blot())
    image.save(tmp_path / "cut.png")
    assert alpha_mask(tmp_path / "cut.png").tobytes() == blot().tobytes()
    with pytest.raises(UserError, match=r"plain.png: has no transparency"):
        alpha_mask(tmp_path / "plain.png")
    blot((50, 50)).save(tmp_path / "square.png")
    with pytest.raises(UserError, match=r"is 50 x 50, its picture 96 x 64"):
        read_mask(tmp_path / "square.png", (96, 64))


def test_every_gap_is_told_before_a_model_is_loaded(
    base: Path, tmp_path: Path, never_loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data, masks = tmp_path / "data", tmp_path / "masks"
    masks.mkdir()
    data.mkdir()
    for i in range(14):
        Image.new("RGB", (96, 64), (9 * i, 90, 50)).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text("a cat", encoding="utf-8")
        blot((64, 96) if i else (96, 64)).save(masks / f"{i}.png")
    turned = Image.Exif()
    turned[0x112] = 6
    blot((64, 96)).save(masks / "1.png", exif=turned)  # upright it is 96 x 64
    keys = {"base_model": base, "train_data_dir": data, "val_split": 0}
    assert main(["train", "--config", str(tiny.write_config(tmp_path, **keys, mask_alpha=True))]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 11 and told[-1] == "error: and 4 pictures more" and "no transparency" in told[9]
    assert main(["train", "--config", str(tiny.write_config(tmp_path, **keys, mask_dir=masks))]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 11 and told[-1] == "error: and 2 pictures more"
    assert all("is 64 x 96, its picture 96 x 64" in line for line in told[:10])


def test_tag_dropout_keeps_the_first_and_drops_its_share() -> None:
    tags = ", ".join(f"t{i}" for i in range(50))
    assert caption_for(tags, shuffle=False, keep=0, rng_key="a") == tags
    kept = [caption_for(tags, shuffle=False, keep=2, rng_key=str(i), dropout=0.3).split(", ") for i in range(100)]
    assert all(row[:2] == ["t0", "t1"] and row == sorted(row, key=lambda t: int(t[1:])) for row in kept)
    share = sum(len(row) - 2 for row in kept) / (48 * 100)
    assert share == pytest.approx(0.7, abs=0.03)
    assert kept[0] == caption_for(tags, shuffle=False, keep=2, rng_key="0", dropout=0.3).split(", ") != kept[1]


def test_the_feed_hands_masks_on_with_their_views(tmp_path: Path) -> None:
    fed = feed(Toy(), samples(tmp_path), flip=True, masks=Masks(lambda sample: blot(), background=0.1))
    fed.fill(Cache(tmp_path / "cache", write_atomic), lambda *_: None)
    seen = [(m, n) for _, step in fed.steps(0, 8) for b in step for m, n in zip(b.masks, b.names, strict=True)]
    assert {tuple(m.shape) for m, _ in seen} == {(1, *fed.encoded.latents(0)["mean"].shape[1:])}
    by_view = {m.numpy().tobytes() for m, _ in seen}
    assert len(by_view) == 2  # the mask and its mirror
    assert min(m.min() for m, _ in seen) == pytest.approx(0.1)


def train(tmp_path: Path, **keys: object) -> Path:
    config = tiny.write_config(tmp_path, **{"epochs": 1, "targets": "['*mid*attn2*']", **keys})
    with mock.patch.object(story, "finish", only_the_file):
        assert main(["train", "--config", str(config)]) == 0
    return Path(str(keys["output_dir"]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "state").iterdir()) / "lora.safetensors")


def test_masked_out_parts_have_no_say(base: Path, data: Path, tmp_path: Path) -> None:
    """Two sets of pictures that differ only under the black of their masks train alike as far as latents allow, and a
    white mask is no mask."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(5):
        Image.new("L", (64, 64), 255).save(masks / f"{i}.png")
    keys = {"base_model": base, "train_data_dir": data}
    plain = weights(train(tmp_path, **keys, output_dir=tmp_path / "plain"))
    white = weights(train(tmp_path, **keys, output_dir=tmp_path / "white", mask_dir=masks))
    for i in range(5):
        blot((64, 64)).save(masks / f"{i}.png")
    black = weights(train(tmp_path, **keys, output_dir=tmp_path / "black", mask_dir=masks))
    for name in plain:
        torch.testing.assert_close(white[name], plain[name], rtol=1e-4, atol=1e-6)
    assert any((black[name] - plain[name]).abs().max() > 1e-4 for name in plain)
    (masks / "3.png").unlink()
    config = tiny.write_config(tmp_path, **keys, output_dir=tmp_path / "gap", mask_dir=masks)
    assert main(["train", "--config", str(config)]) == 2


def test_masks_are_found_whatever_a_disk_made_of_their_names(tmp_path: Path) -> None:
    """Case and the two ways to write an accent; where one fits exactly it is that one."""
    names = {"a.png": "a.PNG", "in/B.jpg": "IN/b.webp", "é.png": "e\u0301.Jpg", "c.png": "c.jpg", "C.png": "C.bmp"}
    pictures = [Sample(tmp_path / name, name, "", 64, 64, "") for name in names]
    for mask in names.values():
        (tmp_path / "masks" / mask).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / mask).write_bytes(b"")
    found = find_masks(pictures, tmp_path / "masks")
    assert all(path.samefile(tmp_path / "masks" / names[name]) for name, path in found.items())
    assert found.keys() == names.keys()
    (tmp_path / "masks" / "a.PNG").unlink()
    with pytest.raises(UserError, match=r"a\.png: has no mask; add .*a\.png, white"):
        find_masks(pictures, tmp_path / "masks")


def test_class_pictures_are_drawn_once_and_trained_at_their_weight(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"base_model": base, "train_data_dir": data, "class_prompt": "'a gradient'", "class_images": 3}
    folder = train(tmp_path, **keys, output_dir=tmp_path / "prior")
    drawn = sorted((folder / "class_images").glob("*.png"))
    assert len(drawn) == 3 and {Image.open(p).size for p in drawn} == {(64, 64)}
    assert "8 images x 1 repeats / batch 2 = 4 batches" in " ".join(capsys.readouterr().out.split())
    state = json.loads((next((folder / "state").iterdir()) / "run.json").read_text())
    assert [name for name in state["data"] if name.startswith("class/")] == [f"class/0000{i}.png" for i in range(3)]
    # An earlier start drew the first as this one would, the second with another seed, the third from another base.
    own = tmp_path / "half" / "class_images"
    own.mkdir(parents=True)
    (own / "00000.png").write_bytes(drawn[0].read_bytes())
    (own / "00001.png").write_bytes(drawn[0].read_bytes())
    (mark := PngInfo()).add_itxt(DRAWN_FROM, Image.open(drawn[2]).info[DRAWN_FROM].replace(sha256_of(base), "0" * 64))
    Image.new("RGB", (64, 64)).save(own / "00002.png", pnginfo=mark)
    before = (own / "00000.png").stat().st_mtime_ns
    own = train(tmp_path, **keys, output_dir=tmp_path / "half", prior_weight=0.5)
    assert (own / "class_images" / "00000.png").stat().st_mtime_ns == before
    assert [p.read_bytes() for p in sorted((own / "class_images").glob("*.png"))] == [p.read_bytes() for p in drawn]
    assert any(not torch.equal(t, weights(own)[n]) for n, t in weights(folder).items())


def test_the_text_encoder_is_trained_only_in_its_window(base: Path, data: Path, tmp_path: Path) -> None:
    keys = {"base_model": base, "train_data_dir": data, "train_text_encoder": "true", "save_steps": 1, "epochs": 1}
    keys |= {"text_encoder_start": 1, "text_encoder_stop": 2, "save_precision": "fp32"}
    folder = train(tmp_path, **keys, output_dir=tmp_path / "window")
    files = [*sorted(folder.glob("window-*.safetensors")), folder / "window.safetensors"]
    steps = [{k: v for k, v in load_file(f).items() if k.startswith("lora_te_") and "alpha" not in k} for f in files]
    assert len(steps) == 3 and steps[0]
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in itertools.pairwise(steps)]
    assert moved == [True, False]
    assert all(not v.any() for k, v in steps[0].items() if "up" in k)  # not in the first step


def test_another_mask_is_told_by_name_on_resuming(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in data.glob("*.png"):
        blot((64, 64)).save(masks / path.name)
    keys = {"targets": "['*.mid_block.*attn2*']", "mask_dir": masks}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    stopped(config, 2)
    before = (masks / "3.png").read_bytes()
    blot((64, 64)).rotate(90).save(masks / "3.png")
    assert main(["train", "--config", str(config), "--resume"]) == 2
    told = capsys.readouterr().err
    assert "cannot resume exactly, because something changed: mask of 3.png; undo that" in told
    (masks / "3.png").write_bytes(before)
    stopped(config, 3, resume=True)


def test_a_mask_that_changes_while_a_run_begins_is_told(tmp_path: Path, base: Path, data: Path) -> None:
    """Between its digest and its reading: another mask would be trained than the one that the state knows."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in data.glob("*.png"):
        blot((64, 64)).save(masks / path.name)
    blot((64, 64)).rotate(180).save(masks / "3.png")  # of equal ones another would be read
    keys = {"targets": "['*.mid_block.*attn2*']", "mask_dir": masks}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys)
    loaded = load_config(config)
    ready = preflight(loaded, resume=False)

    def sink(event: Event) -> None:
        if isinstance(event, Table):  # the digests are taken, nothing is read
            blot((64, 64)).rotate(90).save(masks / "3.png")

    with pytest.raises(UserError, match=r"masks/3\.png: has changed since this start looked at it; start again"):
        story.train(loaded, ready.folder, ready.samples, resume=False, sink=sink)
