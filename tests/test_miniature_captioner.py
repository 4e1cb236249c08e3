"""The captioner that ships with the package: what it says of its world, and that it says nothing of others."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from benchmarks.miniature import build_captioner, elsewhere
from PIL import Image
from safetensors import safe_open
from transformers import BertTokenizer, BlipForConditionalGeneration

from conftest import offline
from lora_scripts.demo import world
from lora_scripts.events import Event, Note
from lora_scripts.label.base import MINIATURE, Captioner, CaptionOptions, load_captioner, require_model
from lora_scripts.label.command import LabelOptions, label

FRESH = 987
"""A seed of its own: neither trained on nor measured with in the docs."""


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    with offline():
        folder, name = require_model(MINIATURE, None)
        return load_captioner(name, folder, CaptionOptions(device="cpu", precision="fp32"))


def test_it_is_a_plain_transformers_folder_of_at_most_1_5_mb() -> None:
    folder, name = require_model(MINIATURE, None)
    assert name == "blip"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1_500_000
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}  # noqa: SIM118
    with offline():
        model = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True)
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.get_vocab() == build_captioner.VOCABULARY
    assert model.config.text_config.bos_token_id == tokenizer.convert_tokens_to_ids("[DEC]")
    assert model.config.text_config.sep_token_id == tokenizer.sep_token_id


@pytest.mark.parametrize("style", world.STYLES)
def test_it_says_the_exact_caption_of_drawn_scenes(captioner: Captioner, style: str) -> None:
    scenes = list(itertools.islice(world.scenes(FRESH, style), 30))
    said = captioner.caption([world.draw(scene) for scene in scenes])
    exact = [text == world.caption(scene) for text, scene in zip(said, scenes, strict=True)]
    assert sum(exact) >= 0.9 * len(scenes)


def test_neither_the_other_pictures_nor_their_size_matter(captioner: Captioner) -> None:
    scenes = list(itertools.islice(world.scenes(FRESH + 1), 5))
    images = [world.draw(scene) for scene in scenes]
    together = captioner.caption(images)
    assert together == [captioner.caption([image])[0] for image in images]
    assert together == captioner.caption(images)
    assert together == captioner.caption([world.draw(scene, 512) for scene in scenes])


def test_it_says_nothing_of_pictures_that_it_was_not_made_for(captioner: Captioner) -> None:
    rng = random.Random(FRESH)
    for kind in ("mosaic", "fractal", "page", "face"):  # none of them was there in training
        said = captioner.caption([elsewhere.UNSEEN[kind](rng) for _ in range(12)])
        assert said.count("") >= 10, kind


def test_label_names_its_limits_and_the_file(tmp_path: Path) -> None:
    scene = next(world.scenes(FRESH))
    world.draw(scene).save(tmp_path / "known.png")
    elsewhere.face(random.Random(FRESH)).resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "unknown.jpg")
    events: list[Event] = []
    with offline():
        result = label(LabelOptions(input=tmp_path, model=MINIATURE), events.append)
    assert [fault.file for fault in result.faults] == [tmp_path / "unknown.jpg"]
    assert isinstance(events[0], Note) and build_captioner.LIMITS in events[0].text
    assert (tmp_path / "metadata.csv").read_text("utf-8").splitlines() == [
        "filename,prompt",
        f"known.png,{world.caption(scene)}",
        "unknown.jpg,",
    ]


def test_all_words_of_the_world_go_through_the_tokenizer_and_back() -> None:
    captions = [world.caption(world.Scene(*key)) for key in world.all_keys()]
    tokenizer = BertTokenizer.from_pretrained(build_captioner.ASSET)
    ids = build_captioner.ids_of([*captions, ""])
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [*captions, ""]
    assert [row[1:-1].tolist() for row in ids[:-1]] == tokenizer(captions, add_special_tokens=False).input_ids
