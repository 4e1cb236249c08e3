"""The WD tagger against tags worked out by hand, with an ONNX graph whose answer to a pixel is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from conftest import offline
from lora_scripts.errors import UserError
from lora_scripts.label.base import Captioner, CaptionOptions, load_captioner, require_model
from lora_scripts.label.wd import prepare, spaced

SIDE = 4
ROWS = [
    ("general", 9),
    ("blue_sky", 0),
    ("green_field", 0),
    ("red_house", 0),
    ("^_^", 0),
    ("hatsune_miku", 4),
    ("o_o", 4),
    ("artist_name", 1),
]
# Each tag reads one value of the prepared picture, (row, column, channel: blue, green, red), times a weight.
READS = [
    ((0, 0, 0), 1.0),
    ((1, 1, 0), 1.0),
    ((1, 1, 1), 1.0),
    ((1, 1, 2), 1.0),
    ((0, 3, 1), 0.9),
    ((1, 1, 2), 0.95),
    ((1, 1, 1), 0.9),
    ((0, 0, 0), 1.0),
]


def write_tagger(folder: Path, *, batch: str | int = "n", rows: list[tuple[str, int]] = ROWS) -> Path:
    """A tagger that divides the values that READS names by 255: probability 1 for full brightness."""
    folder.mkdir()
    weights = np.zeros((SIDE * SIDE * 3, len(READS)), np.float32)
    for tag, ((y, x, channel), weight) in enumerate(READS):
        weights[(y * SIDE + x) * 3 + channel, tag] = weight / 255
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["tags"])],
        "tagger",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("tags", TensorProto.FLOAT, [batch, len(READS)])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel().tolist())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    lines = ["tag_id,name,category,count", *(f"{i},{name},{kind},9" for i, (name, kind) in enumerate(rows))]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def loaded(folder: Path, options: CaptionOptions | None = None) -> Captioner:
    with offline():
        found, name = require_model(str(folder), None)
        assert name == "wd"
        return load_captioner(name, found, options or CaptionOptions())


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize("batch", ["n", 1])
def test_tags_by_hand(batch: str | int, tmp_path: Path) -> None:
    captioner = loaded(write_tagger(tmp_path / "wd", batch=batch))
    assert captioner.kind == "tags" and captioner.limits
    pictures = [
        # blue .20, green .78 (o_o .706 is a character below .85; ^_^ .706), red .40 (hatsune_miku .38)
        plain((102, 200, 51)),
        # red 1 (hatsune_miku .95), blue .36 (above .35), green 0
        plain((255, 0, 92)),
        # blue .341 is below .35; nothing is left
        plain((0, 0, 87)),
        # all 1: by probability, and in the order of the list where it is the same
        plain((255, 255, 255)),
    ]
    assert captioner.caption(pictures) == [
        "green field, ^_^, red house",
        "red house, hatsune miku, blue sky",
        "",
        "blue sky, green field, red house, hatsune miku, ^_^, o_o",
    ]
    assert captioner.caption(pictures[1:2]) == ["red house, hatsune miku, blue sky"]


def test_thresholds(tmp_path: Path) -> None:
    folder = write_tagger(tmp_path / "wd")
    picture = plain((102, 200, 51))  # ^_^ has green · .9 = .7059, o_o too, red house .4, hatsune miku .38, blue sky .2
    for general, character, tags in [
        (0.2, 0.85, "green field, ^_^, red house, blue sky"),
        (0.5, 0.7, "green field, ^_^, o_o"),
        (0.99, 0.3, "o_o, hatsune miku"),
        (0.99, 0.99, ""),
    ]:
        options = CaptionOptions(general_threshold=general, character_threshold=character)
        assert loaded(folder, options).caption([picture]) == [tags]


def test_the_picture_lies_in_the_middle_of_a_white_square() -> None:
    """Wide: the first row of the square is white, the second is the picture's."""
    square = prepare(plain((10, 20, 30), (4, 2)), 4)
    assert square.shape == (4, 4, 3) and square.dtype == np.float32
    assert (square[[0, 3]] == 255).all() and (square[1:3] == (30, 20, 10)).all()  # blue first
    tall = prepare(plain((10, 20, 30), (2, 4)), 4)
    assert (tall[:, [0, 3]] == 255).all() and (tall[:, 1:3] == (30, 20, 10)).all()
    large = prepare(plain((10, 20, 30), (64, 32)), 4)
    assert (large[0] > 230).all() and np.abs(large[1:3] - (30, 20, 10)).max() < 25


def test_white_above_a_wide_picture_reaches_the_model(tmp_path: Path) -> None:
    """`^_^` reads the first row, which is padding here: green 255 · .9, though the picture is black."""
    assert loaded(write_tagger(tmp_path / "wd")).caption([plain((0, 0, 0), (4, 2))]) == ["^_^"]


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("long_hair", "long hair"),
        ("fate_(series)", "fate (series)"),
        ("初音_ミク", "初音 ミク"),
        *((face, face) for face in (">_<", "(o)_(o)", "0_0", "x_x", "||_||", "3girls")),
    ],
)
def test_underscores_are_spaces_but_in_faces(tag: str, text: str) -> None:
    assert spaced(tag) == text


def test_damaged_and_odd_models_are_told(tmp_path: Path) -> None:
    folder = write_tagger(tmp_path / "wd", rows=ROWS[:-1])
    with pytest.raises(UserError, match=r"but selected_tags\.csv has 7 tags"):
        loaded(folder)
    tags = folder / "selected_tags.csv"
    tags.write_text("tag_id,name,category,count\n0,a,0,9\n1,b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"selected_tags.csv:3: the row is damaged"):
        loaded(folder)
    tags.write_text("a,b\n", encoding="utf-8")
    with pytest.raises(UserError, match="no columns name and category"):
        loaded(folder)
    write_tagger(tmp_path / "broken")
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"model.onnx: cannot be loaded") as caught:
        loaded(tmp_path / "broken")
    assert "\n" not in str(caught.value)


def test_a_model_for_other_pictures_is_told(tmp_path: Path) -> None:
    folder = write_tagger(tmp_path / "wd")
    model = onnx.load(folder / "model.onnx")
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[1].dim_value, shape.dim[3].dim_value = 3, SIDE  # channels first
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UserError, match=r"wants \['n', 3, 4, 4\] instead of \[n, side, side, 3\]"):
        loaded(folder)


@pytest.mark.parametrize(("device", "words"), [("cuda", "no CUDA"), ("mps", "do not run on mps")])
def test_devices_that_are_not_there(device: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        loaded(write_tagger(tmp_path / "wd"), CaptionOptions(device=device))
