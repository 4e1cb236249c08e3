"""Configs that `new` writes, for people who read Chinese: comments are theirs, keys and values what they are in
English."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_scripts
import small_words
import tiny
import tiny_flux2
from lora_scripts.chinese.terminal import AsItIs, noted
from lora_scripts.chinese.widths import width
from lora_scripts.cli import main
from lora_scripts.config.commented import commented
from lora_scripts.config.load import parse_file
from lora_scripts.families.facts import Drawing, Facts
from lora_scripts.families.table import FAMILIES
from test_coming_from import KOHYA
from written import written

PACKAGE = Path(lora_scripts.__file__).parent
HAN = re.compile("[\u4e00-\u9fff]")
ENGLISH = re.compile("[a-z]{2,} [a-z]{2,}")
"""Left in Chinese, besides names and commands."""

STYLE = """\
# A style, called by the word picture. Train it: lora-scripts train --config …; every key stands in docs/keys.md.

train_data_dir: "pics"                              # 20 pictures of 64 x 64 px
metadata_path: "pics/metadata.csv"                  # the captions
base_model: "base.safetensors"                      # a Stable Diffusion 1.x checkpoint
output_dir: "output/mine"                           # the LoRA is named after this folder: <lora:mine:0.8>

trigger_word: "picture"                             # calls the LoRA; each caption has to hold it
resolution: 64                                      # what the base was made for
epochs: 38                                          # 20 pictures, each seen 38 times: 190 steps
lora_rank: 16                                       # 12 to 16 for a rich style
batch_size: 4                                       # lower this first when memory runs out
learning_rate: 2e-4                                 # 1e-4 to 5e-4; lower if the loss rises
caption_dropout: 0.1                                # now and then without a caption, so that the style shows by itself
min_snr_gamma: 5                                    # weighs noise levels evenly
save_steps: 40                                      # about five files on the way

sample_prompts:  # previews on the way
  - "picture, a house by a lake"
  - "picture, portrait of a woman with a hat"
"""
"""As it was before anything was in Chinese."""

IN_CHINESE = """\
# 画风 LoRA，触发词：picture。开始训练：lora-scripts train --config …；每个键的说明见 docs/zh/keys.md。

train_data_dir: "pics"                              # 20 张图片，64 × 64 像素
metadata_path: "pics/metadata.csv"                  # 描述
base_model: "base.safetensors"                      # Stable Diffusion 1.x 底模
output_dir: "output/mine"                           # LoRA 以这个文件夹命名，提示词里写 <lora:mine:0.8>

trigger_word: "picture"                             # 用它调用 LoRA；每条描述里都要有它
resolution: 64                                      # 底模就是按这个分辨率训练的
epochs: 38                                          # 20 张图片，每张看 38 次：共 190 步
lora_rank: 16                                       # 丰富的画风用 12 到 16
batch_size: 4                                       # 显存不够时先降它
learning_rate: 2e-4                                 # 1e-4 到 5e-4；损失上升就调低
caption_dropout: 0.1                                # 偶尔不给描述，让画风自己显出来
min_snr_gamma: 5                                    # 平衡各噪声强度的权重
save_steps: 40                                      # 途中大约保存五次

sample_prompts:  # 训练途中预览图的提示词
  - "picture, a house by a lake"
  - "picture, portrait of a woman with a hat"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with pictures and a base."""
    monkeypatch.chdir(tmp_path)
    tiny.write_base(tmp_path / "base.safetensors")
    tiny.write_pictures(tmp_path / "pics", 20)
    return tmp_path


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person reads Chinese."""
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh")


def both(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[str, str]:
    """What `new mine` writes in English and in Chinese."""
    texts = []
    for language in ("en", "zh"):
        monkeypatch.setenv("LORA_SCRIPTS_LANG", language)
        assert main(["new", "mine", *words, "--output", f"{language}.yaml"]) == 0
        texts.append(Path(f"{language}.yaml").read_text("utf-8"))
        Path(f"{language}.yaml").unlink()
    return texts[0], texts[1]


def comments(text: str) -> list[str]:
    return [line.rpartition("# ")[2] for line in text.splitlines() if "# " in line]


def said(text: str) -> list[tuple[str, Any]]:
    """Keys and values, as `train` reads them."""
    entries, faults = parse_file(text, Path("c.yaml"))
    assert not faults
    return [(entry.key, entry.value) for entry in entries]


def left(text: str) -> list[str]:
    """Comments that are English, or partly."""
    own = [re.sub(r"lora-scripts train --config|\"[^\"]*\"", "", comment) for comment in comments(text)]
    return [comment for comment in own if not HAN.search(comment) or ENGLISH.search(comment)]


def test_a_config_in_each_language(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data", "pics", "--base", "base.safetensors", "--trigger", "picture"]
    assert both(monkeypatch, *words) == (STYLE, IN_CHINESE)


CASES = {
    "a person, in numbered folders": ("--data", "img", "--base", "base.safetensors", "--for", "character"),
    "a trigger of several words": ("--data", "pics", "--base", "base.safetensors", "--trigger", "St. Anna: 5pm"),
    "captions that begin with one": ("--data", "begun", "--base", "base.safetensors"),
    "smaller pictures of several sizes": ("--data", "sizes", "--base", "flux"),
    "an edit": ("--data", "pics", "--base", "flux", "--references", "before"),
    "records": ("--data", "texts.jsonl", "--base", "model"),
    "conversations": ("--data", "talk", "--base", "model"),
}


@pytest.mark.parametrize("case", CASES)
def test_keys_and_values_are_the_same_and_every_comment_is_in_chinese(
    case: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = CASES[case]
    tiny.write_pictures(here / "img" / "10_neon", 4)
    tiny.write_pictures(here / "before", 20)
    tiny.write_pictures(here / "sizes" / "a", 4, (48, 56))
    tiny.write_pictures(here / "sizes" / "b", 3, (64, 40))
    tiny.write_pictures(here / "begun", 20)
    rows = "".join(
        f"{path.name},neonpunk street {n}\n" for n, path in enumerate(sorted((here / "begun").glob("*.png")))
    )
    (here / "begun" / "metadata.csv").write_text("filename,prompt\n" + rows, "utf-8")
    if "flux" in words:
        tiny_flux2.write_folder(here / "flux")
    if "model" in words:
        small_words.write_model(here / "model")
        lines = [json.dumps({"instruction": f"what is {n}?", "output": "a number " * n}) for n in range(1, 61)]
        (here / "texts.jsonl").write_text("\n".join(lines), "utf-8")
        (here / "talk").mkdir()
        talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
        (here / "talk" / "train.jsonl").write_text(f"{json.dumps(talk)}\n" * 250, "utf-8")
    english, chinese = both(monkeypatch, *words)
    assert said(chinese) == said(english) and len(comments(chinese)) == len(comments(english)) > 8
    assert left(chinese) == [] and not any(map(HAN.search, comments(english)))


def test_what_comes_of_another_trainer_is_told_in_chinese(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their keys stay as they stand there, and so do the lists of them."""
    tiny.write_pictures(here / "img" / "10_neon", 7)
    Path("k.toml").write_text(
        KOHYA.replace('"Lion"', '"AdamW"') + "ip_noise_gamma = 0\nno_such_switch = false\n", "utf-8"
    )
    english, chinese = both(monkeypatch, "--from", "k.toml")
    assert said(chinese) == said(english) and len(comments(chinese)) == len(comments(english))
    theirs = re.compile(r"\w+( \w+)? = [\w.,/-]+(，\w+( \w+)? = [\w.,/-]+)*")
    assert [comment for comment in left(chinese) if not theirs.fullmatch(comment)] == []
    assert "\n# 没有带过来的：\n#   color_aug = true: 这里不改变颜色\n#   betas_of_mine = 3: 这里不认识\n" in chinese
    assert "# mine，由 kohya 的 sd-scripts 的 k.toml 改写而来。" in chinese and "：xformers\n" in chinese
    assert "# lr_warmup_steps = 0.1，共 " in chinese


@pytest.mark.parametrize("facts", FAMILIES, ids=lambda facts: facts.name)
def test_every_reason_of_a_recipe_is_in_chinese(facts: Facts, chinese: None) -> None:
    reasons = {setting.why for recipe in facts.recipes.values() for setting in recipe.settings}
    assert reasons or "texts" in facts.features
    assert [why for why in reasons if _is_english(noted(why))] == []
    assert not _is_english(noted(facts.checkpoint.words)) and noted("a VAE") != "a VAE"


def _is_english(text: str) -> bool:
    return not HAN.search(text) or ENGLISH.search(re.sub(r"\[.*?\]", "", text)) is not None


SENTENCES = re.compile(r"[a-z]{2,}[,:;]? [a-z\0\"(]|\0[,:;]? [a-z]{2}")
"""Texts of more than a word: names and formats are none."""
PARTS = {
    "\0. Train it: lora-scripts train --config …; every key stands in docs/keys.md.",
    "the folder above ",
    ": \0 to \0 an epoch; put them into a folder \0_name, with folder_repeats: true",
    "times the root of \0, \0",
    ": look at the rate",
    *("concept path = \0", "\0, balancing = \0 \0"),
    *("Always so, or decided by the program here", "Says nothing beyond the lines above", "Off, and not known here"),
    *("kohya locon", "kohya dylora", "lycoris/native fine-tuning", r"line (\d+)", "LoRA_type \0, network_module"),
}
"""Told with others as one, below; and names of theirs."""


def _reasons(path: Path) -> set[str]:
    """Texts of a module that become comments of a config, with NUL where a value goes."""
    texts: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        given = {keyword.arg: keyword.value for keyword in node.keywords} if isinstance(node, ast.Call) else {}
        if name == "Setting":
            texts += [text for value in node.args[2:3] for text in written(value)]
        elif name == "Drawing":
            values = [*node.args[3:], given.get("steps_why"), given.get("cfg_why")]
            texts += [text for value in values for text in written(value)]
        elif name in ("remark", "listed"):
            texts += written(node.args[-1])
    return set(texts)


def _texts(path: Path) -> set[str]:
    """All texts of a module, but for what explains it."""
    tree = ast.parse(path.read_text("utf-8"))
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    apart |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    joined = {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.expr) and id(node) not in apart - joined]
    kinds = ast.Constant | ast.JoinedStr
    return {text for node in nodes if isinstance(node, kinds) for text in written(node)}


def test_every_reason_in_the_code_is_in_chinese(chinese: None) -> None:
    """Of `new` and of recipes; of what comes of other trainers every text that there is."""
    modules = {room: sorted((PACKAGE / room).rglob("*.py")) for room in ("families", "run", "adopt")}
    found = {text for room in ("families", "run") for path in modules[room] for text in _reasons(path)}
    found |= {text for path in modules["adopt"] for text in _texts(path)}
    found = {text for text in found if SENTENCES.search(text)} - PARTS
    assert len(found) > 300
    assert sorted(text for text in found if not _is_told(text)) == []


def _is_told(text: str) -> bool:
    """Whether it has Chinese, with a figure, a word or a setting where a value goes."""
    first = text.replace("\0", "x = 1", 1)
    tries = (text.replace("\0", one) for one in ("7", "records", "x = 1"))
    return any(HAN.search(noted(one)) for one in (*tries, first.replace("\0", "7")))


@pytest.mark.parametrize(
    ("english", "words"),
    [
        ("the folder above image_dir = a, num_repeats = 2, image_dir = b",
         "image_dir = a, num_repeats = 2, image_dir = b 的上一层文件夹"),
        ("learning_rate = 0.0001, times the root of 16, learning_rate_scaler = BOTH",
         "learning_rate = 0.0001，乘以 16 的平方根，learning_rate_scaler = BOTH"),
        ("is not here; adamw stands in its place: look at the rate", "这里没有；用 adamw 代替：请看一下学习率"),
        ("there they are repeated until they are as many as the others, here each is seen as its folder says: 4 to 76"
         " an epoch; put them into a folder 19_name, with folder_repeats: true",
         "那边会重复它们直到与其他的一样多，这里按各自的文件夹来看：每轮 4 张对 76 张；"
         "请放进文件夹 19_name，并写 folder_repeats: true"),
        ("their default (max_train_steps): 1600; 10 steps an epoch, so 1600 steps",
         "那边的默认值（max_train_steps）：1600；每轮 10 步，所以是 1600 步"),
        ("lr_warmup in %: lr_warmup_steps = 0.1 of 152 steps", "lr_warmup 是百分比：lr_warmup_steps = 0.1，共 152 步"),
        ("text_encoder_layer_skip = 1, counted from 0 there", "text_encoder_layer_skip = 1，那边从 0 算起"),
        ("save_every = 2 epochs, 10 steps an epoch", "save_every = 2 轮，每轮 10 步"),
        ("up to 3e-4; lower if the loss rises", "最高 3e-4；损失上升就调低"),
        ("10_a, 12_b, 3_c and 2 more: how often", "10_a, 12_b, 3_c 及另外 2 个：按文件夹名重复"),
        ("color_aug = true", "color_aug = true"),
    ],
)  # fmt: skip
def test_reasons_of_several_parts(english: str, words: str, chinese: None) -> None:
    assert noted(english) == words


def test_drawings_by_default_are_in_chinese(chinese: None) -> None:
    usual = Drawing(9, 2.0, "blurry").settings()
    assert [setting.why for setting in usual if not HAN.search(noted(setting.why))] == []


def test_reasons_stand_one_under_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Chinese character in a path is as wide as two letters; in English the line is what it was."""
    rows = [("base_model", '"models/霓虹.safetensors"'), ("epochs", "3")]
    english = [commented(*row, "the captions") for row in rows]
    assert [line.index("#") for line in english] == [52, 52]
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh")
    assert [width(commented(*row, "the captions").partition("#")[0]) for row in rows] == [52, 52]


def test_a_file_takes_chinese_whatever_the_terminal_takes(chinese: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert noted("the captions") == "描述"


def test_parts_of_a_reason_are_told_each_and_what_stands_in_a_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (AsItIs("the captions"), "counted from 0 there")
    assert noted(*parts) == "the captions, counted from 0 there"
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh")
    assert noted(*parts) == "the captions，那边从 0 算起"
