"""The miniature world: its grammar, its pictures, its data sets."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_scripts.data.scan import scan
from lora_scripts.demo import world


def _pixels(scene: world.Scene, size: int = 128) -> np.ndarray:
    return np.asarray(world.draw(scene, size)).astype(float)


def _first(style: str, count: int, seed: int = 5) -> list[world.Scene]:
    return list(itertools.islice(world.scenes(seed, style), count))


def test_the_grammar_is_large_enough_and_says_each_content_once() -> None:
    assert len(world.OBJECTS) >= 5 and len(world.COLOURS) >= 7 and len(world.GROUNDS) >= 4 and len(world.SKIES) >= 3
    keys = world.all_keys()
    assert len(set(keys)) == len(keys) == 6 * 7 * 4 * 3
    assert len({world.caption(world.Scene(*key)) for key in keys}) == len(keys)


def test_a_caption_is_an_english_sentence() -> None:
    scene = world.Scene("house", "red", "sand", "a night sky")
    assert world.caption(scene) == "a red house on sand under a night sky"
    orange = world.Scene("car", "orange", "snow", "a clear sky")
    assert world.caption(orange) == "an orange car on snow under a clear sky"


def test_position_and_size_vary_and_the_object_stays_inside() -> None:
    scenes = _first("plain", 200)
    for values in ([s.x for s in scenes], [s.size for s in scenes], [s.horizon for s in scenes]):
        assert len(set(values)) == 200
    assert all(0.3 < s.x < 0.7 and 0.4 < s.size < 0.7 for s in scenes)


@pytest.mark.parametrize("style", world.STYLES)
def test_the_same_seed_gives_the_same_pixels(style: str) -> None:
    for one, two, other in zip(_first(style, 2), _first(style, 2), _first(style, 2, seed=6), strict=True):
        assert one == two and one != other
        assert world.draw(one).tobytes() == world.draw(two).tobytes() != world.draw(other).tobytes()


@pytest.mark.parametrize("style", world.STYLES)
def test_512_px_show_what_128_px_show(style: str) -> None:
    here, other = _first(style, 2)
    large = world.draw(here, 512)
    assert large.size == (512, 512)
    reduced = np.asarray(large.resize((128, 128), Image.Resampling.BOX)).astype(float)
    difference = np.abs(reduced - _pixels(here)).mean()
    assert difference < 2.0 and difference < 0.2 * np.abs(reduced - _pixels(other)).mean()


def test_each_word_of_the_grammar_can_be_seen() -> None:
    base = world.Scene("house", "red", "grass", "a clear sky", seed=1)
    slots = {"object": world.OBJECTS, "colour": world.COLOURS, "ground": world.GROUNDS, "sky": world.SKIES}
    for slot, words in slots.items():
        pictures = {_pixels(world.Scene(**{**vars(base), slot: word})).tobytes() for word in words}
        assert len(pictures) == len(words), slot


def test_the_colour_of_the_object_is_the_one_that_the_caption_names() -> None:
    for colour, rgb in world.COLOURS.items():
        house = world.Scene("house", colour, "sand", "a clear sky", x=0.5, size=0.6, horizon=0.66)
        # In the middle of the wall, above the door and between the windows.
        assert np.abs(_pixels(house)[70, 64] - rgb).max() <= 1, colour


def test_neon_is_dark_with_bright_edges_from_magenta_to_cyan() -> None:
    weights = np.array([0.299, 0.587, 0.114])
    neon = [_pixels(s) for s in _first("neon", 12)]
    plain = [_pixels(s) for s in _first("plain", 12)]
    sketch = [_pixels(s) for s in _first("sketch", 12)]
    assert max(np.mean(p @ weights) for p in neon) < 60 < 200 < min(np.mean(p @ weights) for p in sketch)
    assert np.mean(neon) < 0.5 * np.mean(plain)
    for picture in neon:
        assert (picture @ weights).max() > 120  # it glows
        red, blue_green = picture[:, :, 0], picture[:, :, 1]
        top, bottom = picture[:40], picture[-40:]
        assert top[..., 0].sum() > top[..., 1].sum() and bottom[..., 1].sum() > bottom[..., 0].sum()
        assert red.max() > 120 and blue_green.max() > 120


def test_training_and_held_out_sets_share_no_content() -> None:
    training, held_out = world.training_scenes(), world.held_out_scenes()
    assert len(training) == 50 and len(held_out) >= 30
    train_keys, held_keys = {s.key for s in training}, {s.key for s in held_out}
    assert len(train_keys) == 50 and len(held_keys) == len(held_out) and not train_keys & held_keys
    assert {s.style for s in training + held_out} == {"neon"}
    assert training == world.training_scenes()
    for words, index in ((world.OBJECTS, 0), (world.COLOURS, 1), (world.GROUNDS, 2), (world.SKIES, 3)):
        assert {key[index] for key in train_keys} == set(words)


def test_written_pictures_are_read_back_by_the_scanner(tmp_path: Path) -> None:
    scenes = world.training_scenes()[:5]
    world.write_pictures(tmp_path / "data", scenes)
    samples = scan(tmp_path / "data", allow_missing_captions=True)
    assert {(s.width, s.height) for s in samples} == {(128, 128)}
    with Image.open(samples[2].path) as image:
        assert image.tobytes() == world.draw(scenes[2]).tobytes()
