"""Captioners that write sentences: batches of pictures against plain transformers code with one picture at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import captioners
from conftest import offline
from lora_scripts.errors import UserError
from lora_scripts.label import llava
from lora_scripts.label.base import Captioner, CaptionOptions, load_captioner, require_model
from lora_scripts.label.writer import complete

OPTIONS = CaptionOptions(device="cpu", precision="fp32", max_new_tokens=8, beams=2)
MAKE: dict[str, Callable[[Path], Path]] = {
    "blip": captioners.blip,
    "blip2-opt": captioners.blip2,
    "blip2-t5": lambda folder: captioners.blip2(folder, "t5"),
    "florence2": captioners.florence2,
    "qwen2.5-vl": captioners.qwen,
    "qwen3-vl": lambda folder: captioners.qwen(folder, "qwen3_vl"),
    "llava-siglip": captioners.llava,
    "llava-clip": lambda folder: captioners.llava(folder, "clip"),
    "llava-clip-default": lambda folder: captioners.llava(folder, "clip", select="default"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny captioner, made once."""
    root = tmp_path_factory.mktemp("captioners")
    return lambda name: root / name if (root / name).exists() else MAKE[name](root / name)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """RGB, of different sizes and shapes."""
    generator = np.random.default_rng(0)
    sizes = [(60, 40), (64, 64), (30, 100)]
    noise = [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    return [*noise, Image.new("RGB", (70, 50), (250, 20, 20))]


def loaded(folder: Path, options: CaptionOptions = OPTIONS) -> Captioner:
    with offline():
        folder, name = require_model(str(folder), None)
        return load_captioner(name, folder, options)


@pytest.mark.parametrize("name", MAKE)
def test_a_batch_gives_what_transformers_gives_for_each_picture(
    name: str, made: Callable[[str], Path], pictures: list[Image.Image]
) -> None:
    folder = made(name)
    captioner = loaded(folder)
    texts = captioner.caption(pictures)
    assert captioner.kind == "sentence" and len(set(texts)) >= 3  # it looks at the pictures
    assert texts == captioners.plain(folder, pictures, OPTIONS)
    assert captioner.caption(pictures[::-1]) == texts[::-1]
    assert all(text == " ".join(text.split()) and "<" + "|" not in text for text in texts)


@pytest.mark.parametrize("name", ["blip", "florence2", "qwen3-vl", "llava-siglip", "blip2-opt"])
def test_bf16(name: str, made: Callable[[str], Path], pictures: list[Image.Image]) -> None:
    captioner: Any = loaded(made(name), CaptionOptions(device="cpu", precision="bf16", max_new_tokens=4, beams=1))
    assert len(captioner.caption(pictures)) == len(pictures)
    assert captioner.writer.dtype is torch.bfloat16
    # BLIP-2 keeps a part in float32 by itself
    assert torch.bfloat16 in {parameter.dtype for parameter in captioner.writer.model.parameters()}


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("blip2-opt", "Question: what is it? Answer:"),
        ("blip2-t5", "a photo of"),
        ("florence2", "<CAPTION>"),
        ("qwen2.5-vl", "Only the colours."),
        ("llava-clip", "Only the colours."),
    ],
)
def test_an_instruction_is_followed(
    name: str, instruction: str, made: Callable[[str], Path], pictures: list[Image.Image]
) -> None:
    folder = made(name)
    options = CaptionOptions("cpu", "fp32", instruction, 8, 2)
    assert loaded(folder, options).caption(pictures) != loaded(folder).caption(pictures)


def test_sampling_set_by_the_makers_of_a_model_does_not_count(
    made: Callable[[str], Path], pictures: list[Image.Image], tmp_path: Path
) -> None:
    folder = captioners.qwen(tmp_path / "qwen2.5-hot")
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 9.0, "top_k": 90, "top_p": 0.99, "max_length": 3, "eos_token_id": [2, 0]}'
    )
    assert loaded(folder).caption(pictures) == loaded(made("qwen2.5-vl")).caption(pictures)


def test_a_picture_one_pixel_high_is_not_taken_for_one_of_one_channel(made: Callable[[str], Path]) -> None:
    captioner: Any = loaded(made("blip"))
    thin = Image.effect_noise((90, 1), 80).convert("RGB")
    reduced = thin.resize((32, 32), Image.Resampling.BICUBIC)
    pixels = [captioner.writer.pixels([image])["pixel_values"] for image in (thin, reduced)]
    assert pixels[0].shape == (1, 3, 32, 32) and torch.equal(*pixels)


def test_large_pictures_are_reduced_for_qwen(tmp_path: Path) -> None:
    """As published, 16 million pixels pass, which are 16,384 tokens for one picture."""
    folder = captioners.qwen(tmp_path / "qwen3-vl", "qwen3_vl")
    config = folder / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"longest_edge": 8192', '"longest_edge": 16777216'))
    assert "16777216" in config.read_text()
    captioner: Any = loaded(folder)
    grid = captioner.writer.pixels([Image.new("RGB", (3000, 2000))])["image_grid_thw"]  # patches of 16 x 16
    assert 0.9 * 2**20 < grid.prod().item() * 16 * 16 <= 2**20
    assert len(captioner.caption([Image.new("RGB", (900, 2))])) == 1  # the image processor refuses 450 : 1


JOY = (
    "{{ '<|begin|>' }}{% for m in messages %}<|head|>{{ m['role'] }}\n{% if m['role'] == 'user' %}<image>{% endif %}"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}<|head|>assistant"
)
PARTS = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}"
    "<image>\n{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }} "
    "{% endfor %}{% endfor %}ASSISTANT:"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}" + PARTS
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            JOY,
            "<|begin|><|head|>system\nYou are a helpful image captioner.<|eot|><|head|>user\n<image>Say it.<|eot|>"
            "<|head|>assistant",
        ),
        (PARTS, "USER: <image>\nSay it. ASSISTANT:"),
        (STRICT, "USER: <image>\nSay it. ASSISTANT:"),
        (None, "USER: <image>\nSay it. ASSISTANT:"),
    ],
)
def test_llava_writes_the_chat_as_the_template_wants_it(template: str | None, text: str, tmp_path: Path) -> None:
    folder = captioners.llava(tmp_path / "llava", template=template)
    options = CaptionOptions("cpu", "fp32", "Say it.", 5, 1)
    captioner = loaded(folder, options)
    assert isinstance(captioner, llava.Llava) and captioner.text == text
    begins = [captioner.writer.tokenizer.bos_token_id, captioner.writer.tokenizer.bos_token_id]
    assert captioner.before[:1] == begins[:1] and captioner.before[:2] != begins  # one token of the beginning
    assert len(captioner.caption([Image.new("RGB", (40, 40))])) == 1


def test_an_old_template_file_of_llava_is_found(tmp_path: Path) -> None:
    folder = captioners.llava(tmp_path / "llava")
    (folder / "chat_template.json").write_text('{"chat_template": "Look: <image>{{ messages[1][\'content\'] }}"}')
    captioner: Any = loaded(folder, CaptionOptions("cpu", "fp32", "Say it.", 5, 1))
    assert captioner.text == "Look: <image>Say it."


@pytest.mark.parametrize("name", ["qwen2.5-vl", "llava-clip"])
def test_the_token_of_the_picture_in_an_instruction_is_refused(name: str, made: Callable[[str], Path]) -> None:
    word = "<image>" if "llava" in name else "<|image_pad|>"
    with pytest.raises(UserError, match="stands for the picture"):
        loaded(made(name), CaptionOptions("cpu", "fp32", f"see {word}"))


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        ("A red house. It stands on a hi", "A red house."),
        ('She says "no." and leav', 'She says "no."'),
        ("A house near version 1.5 of a tr", "A house near version 1.5 of a"),
        ("一只猫。 它在", "一只猫。"),
        ("a red house, on", "a red house"),
        ("housesandtre", "housesandtre"),
        ("A house. Done.", "A house. Done."),
        ("", ""),
    ],
)
def test_a_cut_text_ends_where_a_reader_would_end_it(cut: str, whole: str) -> None:
    assert complete(cut) == whole


def test_weights_that_do_not_fit_the_config_are_told(tmp_path: Path) -> None:
    folder = captioners.blip(tmp_path / "blip")
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"1 tensors are missing, first {name}"):
        loaded(folder)
    save_file({**weights, name: torch.zeros(3, 3)}, file, {"format": "pt"})
    with pytest.raises(UserError, match="the model cannot be loaded") as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)


def test_limits_are_told(made: Callable[[str], Path], tmp_path: Path) -> None:
    assert loaded(made("blip")).limits is None
    folder = captioners.blip(tmp_path / "blip")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"limits": "knows houses only",', 1))
    assert loaded(folder).limits == "knows houses only"
