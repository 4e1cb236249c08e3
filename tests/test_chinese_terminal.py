"""The terminal in Chinese: which language a person reads, what becomes of a line, and how much of the code's texts is
there."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lora_scripts
import tiny
from lora_scripts.chinese import catalogue, spoken, terminal
from lora_scripts.chinese.terminal import AsItIs, told, told_error
from lora_scripts.chinese.widths import folded, width
from lora_scripts.cli import evaluate, main, parsers, show
from lora_scripts.cli.examples import examples_of
from lora_scripts.errors import UserError
from lora_scripts.events import Advised, Measured, Note, Table
from written import written

PACKAGE = Path(lora_scripts.__file__).parent
ROOT = Path(__file__).parents[1]
HAN = re.compile("[\u4e00-\u9fff]")


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person reads Chinese."""
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh")


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"LORA_SCRIPTS_LANG": "zh", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LORA_SCRIPTS_LANG": "en", "LC_ALL": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_GB.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en:zh"}, "en"),
        ({"LANG": "C", "LANGUAGE": "zh_CN"}, "en"),  # as gettext has it
        ({"LANG": "", "LC_ALL": ""}, "zh"),  # nothing is said: the system is asked
        ({}, "zh"),
        ({"LANG": "en_US.UTF-8"}, "en"),  # it is not asked
    ],
)
def test_the_own_variable_goes_before_the_environment_and_that_before_the_system(
    environ: dict[str, str], wanted: str
) -> None:
    assert spoken.language(environ, asked=lambda: "zh-Hans-CN") == wanted


@pytest.mark.parametrize(("number", "wanted"), [(0x0804, "zh"), (0x0404, "zh"), (0x0409, "en"), (0x0411, "en")])
def test_windows_is_asked_for_the_language_of_its_menus(
    number: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2052 is Chinese of the mainland, 1028 that of Taiwan, 1033 English of the United States, 1041 Japanese."""
    import ctypes
    from types import SimpleNamespace

    kernel = SimpleNamespace(kernel32=SimpleNamespace(GetUserDefaultUILanguage=lambda: number))
    monkeypatch.setattr(ctypes, "windll", kernel, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert spoken.language({}) == wanted


@pytest.mark.parametrize(
    ("said", "wanted"),
    [('(\n    "zh-Hans-CN",\n    "en-CN"\n)\n', "zh"), ('(\n    "en-CN",\n    "zh-Hans"\n)\n', "en"), ("", "en")],
)  # fmt: skip
def test_macos_is_asked_for_the_first_language(said: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("subprocess.run", lambda *told, **options: SimpleNamespace(stdout=said))
    monkeypatch.setattr(sys, "platform", "darwin")
    spoken._of_macos.cache_clear()
    assert spoken.language({}) == wanted
    spoken._of_macos.cache_clear()


def test_a_machine_without_the_means_to_ask_reads_english(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*told: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("subprocess.run", missing)
    spoken._of_macos.cache_clear()
    assert spoken._of_macos() == ""
    spoken._of_macos.cache_clear()
    monkeypatch.setattr(sys, "platform", "linux")
    assert spoken.language({}) == "en"


def test_english_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the catalogue is read."""
    monkeypatch.setattr(terminal, "translated", lambda text: 1 / 0)
    assert told("unknown key") == "unknown key"
    error = UserError("unknown key", file="c.yaml", line=7, hint="did you mean lora_rank?")
    assert str(told_error(error)) == str(error)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            UserError("lora_rnk: unknown key", file="c.yaml", line=7, hint="did you mean lora_rank?"),
            "c.yaml:7: lora_rnk: 不认识的键; 是不是 lora_rank？",
        ),
        (UserError('epochs: must be a whole number, not "many"', file="c.yaml", line=4),
         'c.yaml:4: epochs: 应当是整数，而不是 "many"'),
        (UserError("a text that nobody has put into Chinese", file="a b.yaml", hint="nor this one of the two"),
         "a b.yaml: a text that nobody has put into Chinese; nor this one of the two"),
        (UserError('no image "ship.png" in data/text', hint="remove the row, or add the image"),
         "data/text 里没有图片“ship.png”; 请删除这一行，或补上图片"),
    ],
)  # fmt: skip
def test_message_and_mend_are_told_by_themselves(error: UserError, wanted: str, chinese: None) -> None:
    """File, line, keys and values are what they were."""
    assert str(told_error(error)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  warning: too small (6): img01.png: 256 x 256 px is small: it is enlarged 2.00-fold to 512 x 512; "
         "look for a larger copy, remove it, or train at a lower resolution; also img02.png, img03.png and 4 more",
         "  警告：太小（6）：img01.png: 256 x 256 像素偏小：会放大 2.00 倍到 512 x 512；找一张更大的、删除，"
         "或用更低的分辨率训练；还有 img02.png, img03.png 及另外 4 个"),
        ("note: nobody has put this sentence into Chinese yet", "note: nobody has put this sentence into Chinese yet"),
        ("training: nobody has put this sentence into Chinese", "training: nobody has put this sentence into Chinese"),
        ("has no effect without shuffle_tags or tag_dropout", "没有 shuffle_tags 或 tag_dropout 就不起作用"),
        ("keep_tags: has no meaning whatever without them", "keep_tags: has no meaning whatever without them"),
        ("damaged image: so says a library; copy or download it again",
         "图片已损坏：so says a library；请重新复制或下载"),
        ("these LoRAs are for different models: a.safetensors is for Stable Diffusion 1.x, b is for a language model",
         "这些 LoRA 是给不同模型的：a.safetensors 是给 Stable Diffusion 1.x 的，b 是给语言模型的"),
        ("unknown key a.to_p: it names no layer of a language model or Krea 2 or SDXL",
         "不认识的键 a.to_p：不是语言模型 或 Krea 2 或 SDXL 的任何一层"),
        ("a.to_q: down [4, 64] and up [64] do not fit each other", "a.to_q: down [4, 64]、up [64] 互相不符"),
        ("PEFT: 0 of 9 modules; a.weight: the loading stops: NoMatchingPeftModuleError: Target modules not found.",
         "PEFT：9 个模块中 0 个正确；a.weight: 加载会中止：NoMatchingPeftModuleError: Target modules not found."),
        ("waiting 36 %, matrix products 27 %, element by element 21 %, attention 3 %, norms 3 %, optimizer 1 %",
         "等待 36 %，矩阵乘法 27 %，逐元素运算 21 %，注意力 3 %，归一化 3 %，优化器 1 %"),
        ("data/a.png", "data/a.png"),
        ("unknown key\ndata/a.png", "不认识的键\ndata/a.png"),
    ],
)  # fmt: skip
def test_a_line_is_told_as_a_whole_or_not_at_all(text: str, wanted: str, chinese: None) -> None:
    assert told(text) == wanted


PROBLEMS = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "zh" / "problems.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", PROBLEMS)
def test_the_faults_that_beginners_meet_are_in_chinese(line: str, chinese: None) -> None:
    """Those of the page of common ones, each with its mend: no sentence of English is left."""
    shown = line.removesuffix(", …").replace("…", "7")
    text = told(re.sub(r"^[\w./-]+\.(yaml|csv|png|safetensors|ckpt)(:\d+)?: |^[\w/]+/\w+: ", "", shown))
    ours = re.sub(r"lora-scripts [^；，。]*|\S*[/_.:=]\S*|[\"“][^\"”]*[\"”]", "", text)
    assert HAN.search(text) and not re.search("[a-z]{2,} [a-z]{2,} [a-z]{2,}", ours), text


@pytest.mark.parametrize(
    "piece", ["a, ", "ab; ", "ab: ", "note: a of b, c (d: e; f); ", "3 pictures, 4 with a caption: ", "1 error, "]
)
@pytest.mark.parametrize("count", [9, 60, 3000])
def test_what_is_long_and_put_together_of_many_ends_no_command(piece: str, count: int, chinese: None) -> None:
    """A caption or a path in a fault may be anything: it is looked up in parts, and those have parts."""
    assert told(piece * count + "end")


def test_what_a_person_wrote_is_never_told(chinese: None) -> None:
    assert told("unknown key") != "unknown key"
    assert told(AsItIs("unknown key")) == "unknown key"
    assert told("captions") == "描述"
    error = UserError("captions does not exist in step", hint="put the pictures there, or change the path")
    assert str(told_error(error)).startswith("step 里没有 captions; ")


def test_a_missing_reference_is_no_word_of_its_file(chinese: None) -> None:
    assert told("3.png: has no reference") == "3.png: 没有参考图"


def test_long_answers_of_a_model_stay_and_who_gives_them_is_told(chinese: None) -> None:
    line = evaluate._said("with LoRA", "first, " * 300)
    assert told(line) == "加上 LoRA：" + "first, " * 300


def test_a_terminal_that_takes_no_chinese_gets_english(chinese: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    assert told("unknown key") == "不认识的键"
    for encoding, takes in (("ascii", False), ("cp1252", False), ("gbk", True), ("utf-8", True)):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert terminal.in_chinese() == takes


def test_lines_beside_a_bar_are_in_chinese_too(chinese: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """rich puts its own stream, without an encoding, in the place of stdout while it draws one."""
    import io

    from rich.console import Console
    from rich.file_proxy import FileProxy

    for encoding, takes in (("utf-8", True), ("ascii", False)):
        real = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", FileProxy(Console(file=io.StringIO()), real))
        assert sys.stdout.encoding is None and terminal.in_chinese() == takes


def test_events_are_told_in_chinese(chinese: None, capsys: pytest.CaptureFixture[str]) -> None:
    with show.People() as sink:
        sink(Advised("rising", "step 5: the loss hardly falls"))
        sink(Measured(3, "", 0.25, 0.1))
        sink(Note("rehearsing the largest batch, one preview, one save"))
        sink(Table("", (("base model", "models/base model.safetensors"), ("steps", "5 epochs = 20 steps"))))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "验证损失（第 3 步）：0.2500，比底模低 10.0 %",
        "正在预演最大的一批、一张预览图、一次保存",
        "底模 models/base model.safetensors",
        "步数 5 轮 = 20 步",
    ]


def test_json_stays_english(chinese: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--config", str(tmp_path / "none.yaml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["message"] == "no such file"
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "没有这个文件" in capsys.readouterr().err


def test_columns_stand_one_under_the_other(chinese: None) -> None:
    """A Chinese character is as wide as two letters."""
    assert width("底模 a") == 6
    lines = show.columns(("block", "modules", "where"), [["OUT03", "12", "unet"], ["中文", "7", "x"]])
    assert len({width(line) for line in lines}) == 1
    rows = show.facts([("base model", "a.safetensors"), ("learning rate", "1e-4")])
    assert len({width(line[: line.rindex(" ")]) for line in rows}) == 1


def test_long_values_are_folded_by_width(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "分辨率 512 像素，批大小 4，学习率 2e-4，每步 1.5 秒；预览图每 100 步一次，在 output/mine/previews 里。"
    for columns in (20, 30, 41):
        lines = folded(text, columns)
        assert all(width(line) <= columns for line in lines) and len(lines) > 1
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")  # nothing is lost
        assert not [line for line in lines if line[0] in "，。；："]
        assert any("output/mine/previews" in line for line in lines)  # a word stays whole
    english = "a plain text of several words that has to be folded"
    assert folded(english, 12) == ["a plain text", "of several", "words that", "has to be", "folded"]


def test_the_first_commands_of_a_beginner_are_in_chinese(
    chinese: None, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`new` and `check` without a line of English, besides names and commands."""
    monkeypatch.chdir(tmp_path)
    tiny.write_pictures(tmp_path / "data" / "mine", 8)
    assert main(["new", "mine", "--data", "data/mine", "--base", str(base)]) == 0
    assert main(["check", "data/mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 8 and [line for line in lines if not HAN.search(line)] == []


def test_every_help_is_in_chinese_and_as_wide_as_the_terminal(
    chinese: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, parser in parsers().items():
        texts = [parser.description, *(action.help for action in parser._actions)]
        texts += [f"{purpose}:" for purpose, _ in examples_of(name)]
        plain = [" ".join(text.split()) for text in texts if text]
        assert [text for text in plain if told(text) == text and re.search("[a-z]{3} [a-z]{2}", text)] == [], name
        lines = parser.format_help().split("例子：")[0].splitlines()
        assert max(map(width, lines)) <= 80 and lines[0].startswith("用法: lora-scripts"), name
        assert not [line for line in lines if line.endswith("（")]
    assert main(["--help"]) == 0
    assert "用 LoRA 画图" in capsys.readouterr().out


# --- how much of the code is there ------------------------------------------------------------------------------------

SENTENCES = re.compile(r"[a-z]{2,}[,:;]? [a-z\0\"(]|\0[,:;]? [a-z]{2}")
"""Texts of more than a word: names and formats are none."""
TOLD = re.compile(r"(UserError|RecordFault|Note|Advised|ValueError|Terminated|KeyboardInterrupt|fault)$")
"""Calls whose arguments a person is told."""
NAMED = {"message", "hint", "mend", "text", "told", "fault", "words"}
"""Variables that become such arguments."""


FRAGMENTS = {
    "\0 not seen: \0",
    "\0 reference\0: \0 takes \0",
    "\0\0 stay",
    "allocate memory",
    "base_image_seq_len is max_image_seq_len",
    "caption_projection_dim \0, patch_size \0, out_channels \0, qk_norm \0",
    "note: \0\0",
    "note: \0 change no caption: none has several parts \0",
    "note: \0 changes no caption: none has several parts \0",
    "pip install -U diffusers",
    "pip install onnxruntime",
    "pip install pillow-heif for HEIC, or \0",
    "refuse a LoRA with words in it (token_bundle)",
    "the base's usual, such as \0",
}
"""Texts that are told with others as one, which is known as a whole; commands; and what other programs say."""


@cache
def texts() -> Counter[str]:
    """Every text of the code that a person may be told as a fault, its mend or a note, with "7" where a value goes, by
    the room that it stands in: room -> how many; and those without Chinese as "room: text"."""
    counts: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text("utf-8"))
        helps = {id(node) for made in ast.walk(tree) if _is_help(made) for node in ast.walk(made)}
        seen = {
            text
            for node in ast.walk(tree)
            if id(node) not in helps
            for value in _arguments(node)
            for text in written(value)
        }
        for text in sorted(seen):
            if text in FRAGMENTS:
                continue
            if SENTENCES.search(text) and not text.startswith((" ", ",", ";", "(")) and not text.endswith((" ", "(")):
                counts[room] += 1
                if not _is_told(text):
                    counts[f"{room}: {text}"] += 1
    return counts


def _is_help(node: ast.AST) -> bool:
    """Whether it is a function that adds arguments, whose texts are those of --help."""
    return isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("add")


def _arguments(node: ast.AST) -> Iterator[ast.expr | None]:
    if isinstance(node, ast.Call) and TOLD.search(ast.unparse(node.func)):
        yield from node.args
        yield from (keyword.value for keyword in node.keywords)
    elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):  # faults of keys
        yield from node.value.elts
    elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in NAMED:
        yield node.value


def _is_told(text: str) -> bool:
    """Whether it has Chinese, with a number or a sentence that is known where a value goes."""
    figures, words = text.replace("\0", "7"), text.replace("\0", "records")
    tries = (
        figures,
        words,
        text.replace("\0", "7", 1).replace("\0", "records"),
        text.removesuffix("\0").replace("\0", "7"),
    )
    return any(HAN.search(told(one)) for one in tries)


def test_the_share_of_texts_in_chinese_is_at_least_what_the_docs_say(chinese: None) -> None:
    """Those without are named here; what they lack stands in faults.json or lines.json."""
    counts = texts()
    every = sum(number for room, number in counts.items() if ": " not in room)
    without = sorted(name for name in counts if ": " in name)
    pages = (("platforms.md", r"(\d+) % of the faults"), ("zh/README.md", r"(\d+) % 的报错"))
    said = [re.findall(pattern, (ROOT / "docs" / page).read_text("utf-8")) for page, pattern in pages]
    assert every > 1000 and said[0] == said[1] and len(said[0]) == 1
    assert 100 * (1 - len(without) / every) >= int(said[0][0]), "\n".join(without)


def test_the_tables_agree_with_each_other() -> None:
    """No text has two translations, each hole of a text stands in its Chinese, and none is empty."""
    seen: dict[str, str] = {}
    for table in catalogue.TABLES:
        for group in json.loads((PACKAGE / "chinese" / table).read_text("utf-8")).values():
            for english, words in group.items():
                assert words.strip() and seen.setdefault(english, words) == words, english
                holes = re.findall(r"\{(\w+)\}", english)
                assert len(holes) == len(set(holes)) and set(re.findall(r"\{(\w+)\}", words)) <= set(holes), english
                if table != "zh.json":
                    assert set(re.findall(r"\{(\w+)\}", words)) == set(holes), english
