"""Pages in English and Chinese: that no text of ours is without Chinese, and that a browser shows it."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import test_report
import tiny
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.check.texts.command import TextCheckOptions, check_texts
from lora_scripts.config.keys.training import LrSchedule
from lora_scripts.data.findings import Finding
from lora_scripts.loras.proof import Proof
from lora_scripts.report import check_page, chinese, page, text_page
from lora_scripts.report.data import HeldOutCurve, Nearest, NearPair
from lora_scripts.report.grid_page import Block, GridData, MeasureRow, ShownCell
from lora_scripts.report.grid_page import render as grid
from lora_scripts.run import overview
from lora_scripts.run.init_lora import LoraWeights, Size, fit_all
from lora_scripts.run.shortage import smaller_words
from lora_scripts.train import evidence
from lora_scripts.train.advise import Facts, advise, too_short
from lora_scripts.train.evidence import Evaluation, judge
from runs import stopped

ROOM = Path(chinese.__file__).parents[1]
WORDS = json.loads((ROOM / "chinese" / "zh.json").read_text("utf-8"))
NAMES = {"LoRA", "ComfyUI", "diffusers", "AutoV2", "SHA-256", "torch", "CPU", "1.2 MB", "Images", "Device", "50"}
"""Of programs and the like, which are the same in Chinese; and what stands in the tests alone."""


def report() -> str:
    full = test_report.full()
    near = Nearest("no copies: 0 of 5 drawn pictures are near copies (x; the closest: 1)", [
        NearPair(test_report.noise(1), test_report.noise(2), "1.png", "a cat · seed 1"),
    ])  # fmt: skip
    curve = HeldOutCurve([(1, 0.3), (2, 0.2)], [(1, 0.3), (2, 0.1)], ["the last step is the best"])
    advice = ["step 5: the loss goes up and down: on the same training pictures it rose twice, so the learning rate "
              "is too high; try learning_rate: 1e-5"]  # fmt: skip
    return page.render(replace(full, verification="verified: 192 of 192 modules in A1111; ΔW read to 1e-7, 0.03 % of "
                               "it lost in fp16", nearest=near, held_out=curve, advice=advice))  # fmt: skip


def shown(html: str) -> list[str]:
    """Texts without Chinese, besides names and numbers."""
    return [
        text
        for text in chinese.missing(html)
        if text not in NAMES and not re.search(r"\.safetensors$|\d$|^[0-9a-f]{64}$", text)
    ]


def test_every_text_of_the_pages_is_there_in_chinese() -> None:
    assert shown(report()) == []
    finding = Finding("near_duplicate", "warning", ("a.png",), "has no caption", "remove it", 0.9, "m.csv:1")
    picture = check_page.ShownPicture("a.png", (64, 64), b"", "a cat")
    some = check_page.CheckData("d", "1 picture, 0 with a caption: 1 warning, 2 notes", [("captions", "0")],
                                [finding] * 9, [picture], (), "check --fix", "check --set-aside")  # fmt: skip
    assert shown(check_page.render(some)) == []
    cell = ShownCell(test_report.noise(1), "a.png", "prompt a, strength 1", "a cat")
    row = MeasureRow("x", 1.0, ["a"], 2, 0.1, 0.1, None, 0.1, "1.png", 0.5)
    data = GridData("g", ["prompt", "strength"], [Block(None, ["0.5"], [("a cat", [cell])])], [row],
                    [("pictures", "14"), ("sampler", "DDIM, 20 steps")], True, "s.png")  # fmt: skip
    assert [text for text in shown(grid(data)) if text != "a cat"] == []


@pytest.mark.parametrize("module", sorted(path.name for path in (ROOM / "check").glob("*.py")))
def test_every_finding_of_the_data_set_doctor_is_there_in_chinese(module: str) -> None:
    """Each text that becomes a message or a mend in the code, with a word where a value goes."""
    tree = ast.parse((ROOM / "check" / module).read_text("utf-8"))
    texts: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("message", "mend"):
            texts.append(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
            texts += node.args[3:5]
            if isinstance(kind := node.args[0], ast.Constant):  # its heading
                assert chinese.translated(kind.value.replace("_", " ")) is not None, kind.value
    for text in (one for value in texts for one in _strings(value)):
        assert chinese.translated(f"{text}7" if text.endswith(": ") else text) is not None, text


def test_the_page_of_a_data_set_of_records_is_there_in_chinese(tmp_path: Path) -> None:
    """Every kind of finding, and every fault of a record."""
    file = tmp_path / "records.jsonl"
    good = [{"instruction": f"what is {n} times {n * n}?", "output": "as the table says"} for n in range(30)]
    own = ("Alice lives in the red house by the lake, has three cats, and mends bicycles every second Saturday morning"
           " in the yard behind it; what does she do?")  # fmt: skip
    bad = [{"instruction": "q", "output": ""}, *good[:2], {"instruction": "echo me", "output": "echo me"},
           {"instruction": "what is 0 times 0?", "output": "nothing"}, {"instruction": "key", "output": "a@mail.com"},
           {"text": "b <|im_end|> c"}, {"text": "d <|im_end|> e"}, {"messages": []}, {"strange": 1}, {"text": ""},
           {"instruction": own, "output": "bicycles"}, {"instruction": own + "!", "output": "bicycles"},
           {"messages": [{"role": "user", "content": "x"}]}, {"conversations": [{"from": "nobody", "value": "x"}]},
           {"prompt": "a", "chosen": "b", "rejected": "c"}, 7]  # fmt: skip
    lines = [*map(json.dumps, [*good, *bad]), '{"text": "half', '{"text": "a"} {"text": "b"}']
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    checked = check_texts(TextCheckOptions(file, page=tmp_path / "check.html", language="zh"))
    kinds = {finding.kind for finding in checked.findings}
    assert {"duplicate", "near_duplicate", "contradiction", "one_answer", "echo", "secret", "template_sign"} <= kinds
    assert len(kinds) >= 15
    html = checked.page.read_text("utf-8")
    assert shown(html) == ["39 (37 instruction, 2 text)"] and 'data-language="zh"' in html  # names of forms
    file.write_text('{"text": "a"}\n', encoding="utf-8")  # few records
    few = check_texts(TextCheckOptions(file, page=tmp_path / "few.html")).page.read_text("utf-8")
    assert shown(few) == ["1 (1 text)"]


@pytest.mark.parametrize("module", ["data/texts/conversations.py", "data/texts/record_index.py"])
def test_every_fault_of_a_record_is_there_in_chinese(module: str) -> None:
    calls = [n for n in ast.walk(ast.parse((ROOM / module).read_text("utf-8"))) if isinstance(n, ast.Call)]
    said = [
        text for n in calls if getattr(n.func, "id", "") == "RecordFault" for arg in n.args for text in _strings(arg)
    ]
    assert len(said) > 9 and [text for text in said if chinese.translated(text) is None] == []


def _strings(value: ast.expr) -> list[str]:
    if isinstance(value, ast.IfExp):
        return _strings(value.body) + _strings(value.orelse)
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value] if " " in value.value else []
    if isinstance(value, ast.JoinedStr):
        return ["".join(str(p.value) if isinstance(p, ast.Constant) else "7" for p in value.values)]
    return []


def test_every_row_of_a_runs_table_is_there_in_chinese(base: Path, tmp_path: Path) -> None:
    """The report shows the table: its rows as a run makes them, whatever its keys."""
    pictures = tiny.write_pictures(tmp_path / "data" / "2_zibbo", 4)
    some = {"train_data_dir": pictures.parent, "output_dir": tmp_path / "out", "targets": tiny.SOME, "epochs": 3}
    config = tiny.write_config(tmp_path, base_model=base, report="auto", val_split=0.25, **some)
    parts = stopped(config, 1)
    own = ("base model", "output", "starts from", "training adapter")
    every = parts.config
    plain = next(layer for layer in parts.model.layers.values() if isinstance(layer, LoraLayer))
    many: list[dict[str, Any]] = [
        {"lr_schedule": name, "report": how, "sample_every": 2 * (how != "one"), "gradient_accumulation": n + 1}
        for n, (name, how) in enumerate(itertools.product(get_args(LrSchedule), ("full", "short", "one")))
    ]
    memory = {"gradient_checkpointing": True, "base_precision": "int8", "offload_blocks": 2, "vae_tiling": True}
    many += [{**memory, "compile": True}, {"compile": True}, {"vae_tiling": True}, {"offload_blocks": 1}]
    many += [{"folder_repeats": True}, {"new_token": ["zib", "bo"], "token_init": ["a"]}, {"new_token": ["zib"]}]
    many += [{"learning_rate": 1.0, "lora_dropout": 0.1}, {"val_split": 0.0}, {"warmup_steps": 9, "val_every": 9}]
    many += [{"train_text_encoder": True, "text_encoder_start": 9}]
    told: dict[str, str] = {}
    for done, keys in enumerate(many):
        held = parts.held if keys.get("val_split") != 0.0 else replace(parts.held, every=0)
        plain.dropout = keys.get("lora_dropout", 0.0)
        with_keys = every.model_copy(update=keys)
        rows = overview.table_rows(
            with_keys, parts.model, parts.feed, held, steps=6, done=done % 2, precision="bf16", output=tmp_path
        )
        told |= {value: what for what, value in rows}
    smaller = smaller_words(replace(parts.state, smaller=[[2, 4]]))
    told |= {smaller: "memory ran out", **{f"l.safetensors, {_resized(*ranks)}": "" for ranks in ((4, 8), (8, 4))}}
    assert {"besides training", "memory", "speed", "new words", "note", "held out"} <= set(told.values())
    known = {text: chinese.translated(text) for text in [*told, *told.values()] if text and told.get(text) not in own}
    assert [text for text, words in known.items() if words is None and re.search("[a-z]{2}", text)] == []
    left = {text: words for text, words in known.items() if words and re.search(r"\b(of|the|and|steps|in)\b", words)}
    assert left == {}, "a part of them is English"


@pytest.mark.parametrize("samples", ["pictures", "records"])
@pytest.mark.parametrize("count", [2, 5])
def test_what_measurements_say_is_there_in_chinese(samples: str, count: int) -> None:
    """Verdicts and advice, of a few and of more held-out ones, as they come of measurements (held out, trained)."""
    facts = Facts(1e-3, 100, 10, 0, "neon", samples, epochs=10)
    told: list[str] = []
    for curve in (
        [(0.2, 0.2), (0.1, 0.1)],
        [(0.1, 0.2), (0.2, 0.1)],
        [(0.1999, 0.2), (0.2, 0.1)],
        [(0.5, 0.2), (0.6, 0.1)],
        [(0.3, 0.4), (0.3, 0.5)],
        [(0.3, 0.32), (0.3, 0.2), (0.3, 0.33), (0.3, 0.34)],
        [(0.3, 0.32), (0.3, 0.2), (0.3, 0.28)],
        [(0.3, 0.301), (0.3, 0.301), (0.3, 0.302)],
        [(0.3, 0.299), (0.3, 0.298), (0.3, 0.299)],
        [(0.2, 0.25), (0.2001, 0.2), (0.2001, 0.1), (0.2001, 0.04)],
        [(0.28, 0.2), (0.27, 0.1)],
    ):
        steps = [round(100 * (n + 1) / len(curve)) for n in range(len(curve))]
        base, init = (_measured(0, count, 0.3 - at, 0.3 - at, name) for at, name in ((0, "base"), (0.01, "init")))
        points = [_measured(step, count, *at) for step, at in zip(steps, curve, strict=True)]
        for starts in ([base], [base, init]):
            taken = [*starts, *points]
            verdict = judge(taken, 0)
            assert verdict is not None
            told += [*evidence.words(verdict, taken, samples), *map(str, advise(taken, facts))]
        ahead = too_short(base, points[-1], _measured(100, count, 0.01, 0.01), facts)
        told += [str(ahead)] if ahead else []
    assert len({text.partition(": ")[2][:14] for text in told if text.startswith("step") and "try" in text}) >= 6
    english = re.compile(rf"\b({samples}|of|the|and|in|is|lower|higher|fell|rose|risen)\b")
    left = [text for text in told if (chinese_text := chinese.translated(text)) is None or english.search(chinese_text)]
    assert left == []


def _measured(step: int, count: int, held: float, train: float, name: str = "") -> Evaluation:
    return Evaluation(step, [held + 0.01 * n for n in range(count)], [train + 0.001 * n for n in range(6)], name)


def test_what_proofs_say_is_there_in_chinese() -> None:
    for rounding, precision in ((0.0, "fp32"), (2e-4, "fp16")):
        proof = Proof(3, ("diffusers", "PEFT"), 1e-7, rounding, precision, {})
        assert "of it lost" in str(proof) and "lost" not in (chinese.translated(str(proof)) or "lost")


def _resized(was: int, now: int) -> str:
    """What is told of a LoRA of one rank that goes on with another."""
    weights = LoraWeights(torch.ones(was, 3), torch.ones(3, was), float(was))
    return fit_all({"x": weights}, {"x": Size(now, float(now))}, lambda _: torch.ones(now, 3))[1]


def test_both_languages_have_the_same_holes() -> None:
    for group in WORDS.values():
        for english, words in group.items():
            holes, theirs = (set(re.findall(r"\{(\w+)\}", text)) for text in (english, words))
            assert theirs <= holes, english
            assert holes - theirs <= {"again"}, english
    keys = [key for group in WORDS.values() for key in group]
    assert len(keys) == len(set(keys))  # one English text has one meaning


def test_no_text_is_taken_for_another() -> None:
    """Each with a number in its holes comes back in its own words, not in those of one that is more particular."""
    for group in WORDS.values():
        for english, words in group.items():
            one, other = (re.sub(r"\{\w+\}", "7", text) for text in (english, words))
            found = chinese.translated(one) or ""
            assert found.replace(" ", "") == other.replace(" ", ""), english  # a figure brings spaces along


@pytest.mark.parametrize(
    ("english", "words"),
    [
        ("Step 5: nobody; try x: 1", "第 5 步：nobody；下次可以试 x: 1"),
        ("At most 2e-4, 0 at the end.", "最高 2e-4，结束时 0。"),
        (
            "12 pictures, 3 with a caption: 1 error, 2 warnings, 1 note",
            "12 张图片，3 张有描述：1 个错误，2 个警告，1 条提示",
        ),
        ("bars of one colour: left 5 %, right 6 %", "纯色边条：左 5 %，右 6 %"),
        ("Step 100: a red house on sand", "第 100 步：a red house on sand"),
        ("Base model: style red · seed 3", "底模：style red · 种子 3"),  # a prompt stays, whatever it says
        (
            "Loss. 0.182 on average over the first tenth of the steps, 0.102 over the last.",
            "训练损失。前十分之一的步数平均 0.182，最后十分之一平均 0.102。",
        ),
        ("Style 4 %. On average over the prompts:", "画风 4 %。对各条提示词取平均："),
        ("5 of 50 images; measured every 9 steps", "50 张中的 5 张；每 9 步测一次"),
        ("5 images of ./val; measured every 9 steps", "./val 里的 5 张；每 9 步测一次"),
        (
            "about 18 % of the time: report 18 % (less with report: short)",  # a key and its value
            "约占 18 % 的时间：报告的图 18 %（想少一些：report: short）",
        ),
        ("training would stop at 1 error", "训练会因 1 个错误停下"),  # a space beside a figure
        ("this is a picture, not a model", "这是图片，不是模型"),
        ("this is a cat, not a model", None),  # no half of each
        (
            "argument --size: must be multiples of 8 from 64 to 2048 pixels, not '5'; the nearest to 5 is 64",
            "参数 --size：应当是 64 到 2048 像素之间 8 的倍数，而不是 '5'；离 5 最近的是 64",
        ),
        ("trial: epochs 2, 1 of 4 epochs", "试验：epochs 2，训练 1 轮（配置共 4 轮）"),  # keys stay keys
        ("in 1 of 4 epochs the lowest: write seed: 2", "训练 1 轮（配置共 4 轮）时损失最低：请写 seed: 2"),
        (
            "no copies: 0 of 10 drawn pictures are near copies (7; the closest: 0.96, 0.98)",
            "没有照抄：画出的 10 张图中有 0 张几乎是训练图片的翻版（7；最接近的：0.96, 0.98）",
        ),
        ("about 1 min 55 s: steps 1 min 19 s, saves 2 min 6 s", "约 1 min 55 s：训练 1 min 19 s，保存 2 min 6 s"),
        (
            "a.safetensors: a Stable Diffusion 1.x checkpoint, 20.9 MB",
            "a.safetensors: Stable Diffusion 1.x 底模，20.9 MB",
        ),
        (
            "2e-4 and 1e-4 cannot be told from 8e-4 by 3 held-out samples",
            "只靠 3 个留出的样本，2e-4、1e-4 与 8e-4 分不出高下",
        ),
        (
            "stopped at step 4; everything is saved, go on with the same command",
            "停在第 4 步；一切都已保存，再运行同样的命令就会继续",
        ),
        ("about 11 s: preparing 2.3 s, steps 1.6 s", "约 11 s：准备 2.3 s，训练 1.6 s"),
        ("leave compile out, or write base_precision: int8", "请去掉 compile，或写 base_precision: int8"),
        ("the range is empty: 5 to 3", "范围是空的：5 到 3"),
        ("has no effect without shuffle_tags or tag_dropout", "没有 shuffle_tags 或 tag_dropout 就不起作用"),
        ("a cat by a lake", None),
        ('says both "red" and "steps"', "同时写了“red”和“steps”"),  # words of a caption
        (
            "12 % of the pictures lean towards red (a* +9, b* +1): the LoRA will learn that",
            "12 % 的图片偏红（a* +9，b* +1）：LoRA 会学到这一点",
        ),
    ],
)
def test_texts_are_put_together_from_what_is_known(english: str, words: str | None) -> None:
    assert chinese.translated(english) == words


def test_what_a_person_wrote_stays_and_can_end_nothing() -> None:
    full = test_report.full()
    html = page.render(
        replace(full, thumbnails=[(test_report.noise(1), "Loss"), (test_report.noise(2), "</script><b>")])
    )
    (told,) = re.findall(r'<script type="application/json" id="zh">(.*?)</script>', html)
    assert "<" not in told and "Loss" in json.loads(told)
    assert re.search(r'<figure translate="no"><button.*<figcaption>Loss</figcaption>', html)


def test_the_language_of_the_config_opens_the_page() -> None:
    assert 'data-language="auto"' in page.render(test_report.full())
    assert 'data-language="zh"' in page.render(replace(test_report.full(), language="zh"))
    assert text_page.fill("check.html", **_nothing()).count('data-language="auto"') == 1


def _nothing() -> dict[str, object]:
    empty = check_page.CheckData("n", "fine", [], [], [])
    return {"check": empty, "index": {}, "worst": "fine", "severities": [], "groups": [], "marks": {},
            "most_thumbnails": 1, "open": 1}  # fmt: skip


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_in_chinese_shows_chinese(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report(), encoding="utf-8")
    seen = {}
    for language in ("zh-CN", "en-US"):
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--lang={language}", "--dump-dom"]
        own = [f"--accept-lang={language}", f"--user-data-dir={tmp_path / language}", path.as_uri()]
        seen[language] = subprocess.run([*command, *own], capture_output=True, timeout=120).stdout.decode()
    body = {name: html.partition("<main>")[2].partition("<script")[0] for name, html in seen.items()}
    assert "训练前后" in body["zh-CN"] and "Before and after" not in body["zh-CN"] and ">复制<" in body["zh-CN"]
    assert "Before and after" in body["en-US"] and "训练前后" not in body["en-US"] and ">Copy<" in body["en-US"]
    assert "a house" in body["zh-CN"]
