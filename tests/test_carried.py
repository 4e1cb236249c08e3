"""`label --from-prompts`: prompts as other programs write them into files, and what becomes of them as captions.

The files are made here by hand, chunk by chunk, or by the library that the program itself uses (Pillow).
"""

from __future__ import annotations

import copy
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import lora_scripts
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.generate.command import save
from lora_scripts.generate.png import infotext
from lora_scripts.label import captioning
from lora_scripts.label.carried import carried_prompt
from lora_scripts.label.unweighted import caption_of

INFOTEXT = """girl with an artist's beret, by Alphonse Mucha, ((eyeshadow)), (coquettish), detailed
Negative prompt: ugly, fat, (((deformed))), [blurry], mutated, (extra_limb)
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""
"""In the form of the example in A1111's infotext_utils.py."""
PROMPT = "girl with an artist's beret, by Alphonse Mucha, ((eyeshadow)), (coquettish), detailed"


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key.replace("__", "-"), text)
    Image.new("RGB", (8, 8), "red").save(path, pnginfo=info)
    return path


def chunks(path: Path, *extra: tuple[bytes, bytes]) -> Path:
    """A PNG of one pixel, byte by byte, with more chunks behind its head."""
    head = b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    rows = [head, *extra, (b"IDAT", zlib.compress(b"\0\xff\0\0")), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in rows)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def exif(comment: bytes, order: str = ">", *, model: str = "", inside: bool = True) -> bytes:
    """A TIFF block with an EXIF comment and a camera's model."""
    mark = b"MM\0*" if order == ">" else b"II*\0"
    shown = model.encode() + b"\0" if model else b""
    rows = 1 + bool(model)
    after = 8 + 2 + 12 * rows + 4  # where the values of the first directory begin
    first = struct.pack(order + "H", rows)
    if model:
        first += struct.pack(order + "HHII", 0x0110, 2, len(shown), after)
    block = after + len(shown)
    if inside:
        first += struct.pack(order + "HHII", 0x8769, 4, 1, block)
        second = struct.pack(order + "HHHIII", 1, 0x9286, 7, len(comment), block + 18, 0) + comment
    else:
        first += struct.pack(order + "HHII", 0x9286, 2, len(comment), block)
        second = comment
    return mark + struct.pack(order + "I", 8) + first + bytes(4) + shown + second


def jpeg(path: Path, block: bytes) -> Path:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    data, body = buffer.getvalue(), b"Exif\0\0" + block
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    return path


def unicode(text: str, codec: str = "utf-16-be") -> bytes:
    return b"UNICODE\0" + text.encode(codec)


def test_an_infotext_in_a_png(tmp_path: Path) -> None:
    assert carried_prompt(png(tmp_path / "a.png", parameters=INFOTEXT)) == PROMPT
    assert carried_prompt(png(tmp_path / "b.png", parameters=INFOTEXT.replace("\n", "\r\n"))) == PROMPT
    lines = "masterpiece,\n1girl\n\nNegative prompt: a\nb\nSteps: 20, Seed: 1, Size: 8x8"
    assert carried_prompt(png(tmp_path / "c.png", parameters=lines)) == "masterpiece,\n1girl"
    assert carried_prompt(png(tmp_path / "d.png", parameters="a hut\nSteps: 20, Seed: 1\nTemplate: x")) == "a hut"
    assert carried_prompt(png(tmp_path / "e.png", parameters="一个女孩，微笑\nSteps: 20")) == "一个女孩，微笑"
    assert carried_prompt(png(tmp_path / "f.png", parameters="a hut")) == "a hut"
    for name, chunk in {"t": (b"tEXt", b"parameters\0"), "i": (b"iTXt", b"parameters\0\0\0\0\0")}.items():
        path = chunks(tmp_path / f"{name}.png", (chunk[0], chunk[1] + INFOTEXT.encode()))
        assert carried_prompt(path) == PROMPT


def test_our_own_pictures(tmp_path: Path) -> None:
    for prompt in ("a (red:1.2) hut <lora:neon:0.8:0.5>", "小屋，<lora:neon:0.8>夜"):
        text = infotext(prompt, "blurry", {"Steps": 20, "Sampler": "Euler", "Lora hashes": "neon: 1a, b: 2c"})
        save(tmp_path / "own.png", Image.new("RGB", (8, 8)), text)
        assert carried_prompt(tmp_path / "own.png") == prompt


@pytest.mark.parametrize(
    "block",
    [
        exif(unicode(INFOTEXT)),  # as piexif writes it: both big endian
        exif(unicode(INFOTEXT), "<"),
        exif(unicode(INFOTEXT, "utf-16-le"), "<"),
        exif(b"UNICODE\0" + INFOTEXT.encode("utf-16"), "<"),  # with a byte order mark
        exif(b"ASCII\0\0\0" + INFOTEXT.encode()),
        exif(bytes(8) + INFOTEXT.encode()),
        exif(INFOTEXT.encode()),
    ],
)
def test_an_infotext_in_exif(block: bytes, tmp_path: Path) -> None:
    assert carried_prompt(jpeg(tmp_path / "a.jpg", block)) == PROMPT
    for suffix in ("webp", "avif"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"a.{suffix}", exif=block)
        assert carried_prompt(tmp_path / f"a.{suffix}") == PROMPT


def test_chinese_in_exif_and_remarks_of_phones(tmp_path: Path) -> None:
    said = "一个女孩，红发\nSteps: 20, Sampler: Euler a"
    for codec in ("utf-16-be", "utf-16-le"):
        assert carried_prompt(jpeg(tmp_path / "a.jpg", exif(unicode(said, codec)))) == "一个女孩，红发"
    for remark in (b"ASCII\0\0\0Screenshot", unicode("Screenshot"), b"", b"UNICODE\0", b"UNI"):
        assert carried_prompt(jpeg(tmp_path / "b.jpg", exif(remark))) == ""


DEFAULT: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 1, "height": 512, "width": 512}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "beautiful scenery, galaxy bottle"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "text, watermark"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}
"""ComfyUI's default workflow, as it saves it."""


def graph(**nodes: tuple[str, Mapping[str, Any]]) -> str:
    """The default workflow with some of its nodes in another way: `n6=("CLIPTextEncode", {…})`."""
    changed = copy.deepcopy(DEFAULT)
    for name, (kind, inputs) in nodes.items():
        before = changed.get(name[1:], {"inputs": {}})["inputs"]
        changed[name[1:]] = {"class_type": kind, "inputs": {**before, **inputs}}
    return json.dumps(changed)


ENCODED = ("CLIPTextEncode", {"text": "a hut"})
GRAPHS: dict[str, tuple[str, str]] = {
    "default": (graph(), "beautiful scenery, galaxy bottle"),
    "a link to a text": (
        graph(n6=("CLIPTextEncode", {"text": ["20", 0]}), n20=("PrimitiveStringMultiline", {"value": "a hut"})),
        "a hut",
    ),
    "two texts": (
        graph(
            n6=("CLIPTextEncode", {"text": ["20", 0]}),
            n20=("StringConcatenate", {"string_a": "neon", "string_b": ["21", 0], "delimiter": ", "}),
            n21=("PrimitiveString", {"value": "a hut"}),
        ),
        "neon, a hut",
    ),
    "a ControlNet": (
        graph(
            n3=("KSampler", {"positive": ["20", 0], "negative": ["20", 1]}),
            n20=("ControlNetApplyAdvanced", {"positive": ["6", 0], "negative": ["7", 0], "image": ["5", 0]}),
        ),
        "beautiful scenery, galaxy bottle",
    ),
    "a ControlNet the wrong way round": (
        graph(
            n3=("KSampler", {"positive": ["20", 1], "negative": ["20", 0]}),
            n20=("ControlNetApplyAdvanced", {"positive": ["7", 0], "negative": ["6", 0], "image": ["5", 0]}),
        ),
        "beautiful scenery, galaxy bottle",
    ),
    "two that are combined": (
        graph(
            n3=("KSampler", {"positive": ["20", 0]}),
            n20=("ConditioningCombine", {"conditioning_1": ["6", 0], "conditioning_2": ["21", 0]}),
            n21=ENCODED,
        ),
        "beautiful scenery, galaxy bottle, a hut",
    ),
    "FLUX.1": (
        graph(
            n3=("SamplerCustomAdvanced", {"positive": 0, "negative": 0, "guider": ["20", 0], "noise": ["25", 0]}),
            n20=("BasicGuider", {"model": ["4", 0], "conditioning": ["21", 0]}),
            n21=("FluxGuidance", {"guidance": 3.5, "conditioning": ["22", 0]}),
            n22=("ReferenceLatent", {"latent": ["5", 0], "conditioning": ["23", 0]}),
            n23=("CLIPTextEncodeFlux", {"clip": ["4", 1], "clip_l": "hut, snow", "t5xxl": "A hut in the snow."}),
            n25=("RandomNoise", {"noise_seed": 1}),
        ),
        "hut, snow, A hut in the snow.",
    ),
    "SDXL, the same twice": (
        graph(n6=("CLIPTextEncodeSDXL", {"text": "", "text_g": "a hut", "text_l": "a hut"})),
        "a hut",
    ),
    "an edit": (graph(n6=("TextEncodeQwenImageEditPlus", {"text": "", "prompt": "make it night"})), "make it night"),
    "a second pass": (
        graph(
            n8=("VAEDecode", {"samples": ["20", 0]}),
            n20=("KSampler", {"positive": ["21", 0], "negative": ["7", 0], "latent_image": ["3", 0]}),
            n21=ENCODED,
        ),
        "a hut",
    ),
    "no words": (
        graph(n3=("KSampler", {"positive": ["20", 0]}), n20=("ConditioningZeroOut", {"conditioning": ["6", 0]})),
        "",
    ),
    "a text that is made": (
        graph(n6=("CLIPTextEncode", {"text": ["20", 0]}), n20=("Florence2Run", {"text_input": "describe"})),
        "",
    ),
    "a circle": (
        graph(n3=("KSampler", {"positive": ["20", 0]}), n20=("FluxGuidance", {"conditioning": ["20", 0]})),
        "",
    ),
    "links to nothing": (graph(n3=("KSampler", {"positive": ["99", 0]})), ""),
    "no graph": ("[1, 2]", ""),
    "odd nodes": (json.dumps({"1": 5, "2": {"inputs": [1]}, "3": {"inputs": {"positive": [[], {}]}}}), ""),
}


@pytest.mark.parametrize(("text", "wanted"), GRAPHS.values(), ids=GRAPHS)
def test_a_graph_of_comfyui(text: str, wanted: str, tmp_path: Path) -> None:
    assert carried_prompt(png(tmp_path / "a.png", prompt=text, workflow="{}")) == wanted


def test_a_graph_in_a_webp_and_one_with_two_prompts(tmp_path: Path) -> None:
    block = exif(b"", model=f"prompt:{graph()}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=block)
    assert carried_prompt(tmp_path / "a.webp") == "beautiful scenery, galaxy bottle"
    two = graph(n20=("SaveImage", {"images": ["21", 0]}), n21=("KSampler", {"positive": ["22", 0]}), n22=ENCODED)
    with pytest.raises(UserError, match="draws from several prompts"):
        carried_prompt(png(tmp_path / "b.png", prompt=two))
    preview = graph(n20=("PreviewImage", {"images": ["8", 0]}))
    assert carried_prompt(png(tmp_path / "c.png", prompt=preview)) == "beautiful scenery, galaxy bottle"


def test_a_graph_that_doubles_again_and_again_ends(tmp_path: Path) -> None:
    nodes = {
        f"n{i}": ("StringConcatenate", {"string_a": [str(i + 1), 0], "string_b": [str(i + 1), 0]})
        for i in range(20, 60)
    }
    text = graph(n6=("CLIPTextEncode", {"text": ["20", 0]}), **nodes)
    assert carried_prompt(png(tmp_path / "a.png", prompt=text)) == ""


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ({"invokeai_metadata": '{"positive_prompt": "a hut", "negative_prompt": "b"}'}, "a hut"),
        (
            {
                "invokeai_metadata": json.dumps(
                    {"positive_prompt": "trees+, fog-, (gold (blue eyes)1.3)1.1, well-known++"}
                )
            },
            "trees, fog, (gold (blue eyes)), well-known",
        ),
        (
            {"invokeai_metadata": json.dumps({"positive_prompt": '("a hut", "night").blend(0.7, 0.3)'})},
            "(a hut, night)",
        ),
        ({"sd__metadata": '{"image": {"prompt": [{"prompt": "a hut [ugly]", "weight": 1}]}}'}, "a hut"),
        ({"sd__metadata": '{"image": {"prompt": "a hut"}}', "Dream": '"b" -s50'}, "a hut"),
        ({"Dream": '"a hut, night [blurry]" -s50 -W512 -H512 -C7.5 -Ak_lms'}, "a hut, night"),
        ({"Software": "NovelAI", "Description": "{{a hut}}, night", "Comment": '{"uc": "b"}'}, "{{a hut}}, night"),
        ({"Software": "Krita", "Description": "my sketch"}, ""),
        ({"parameters": '{"prompt": "a hut", "full_prompt": ["cinematic still a hut"]}'}, "a hut"),
        (
            {"parameters": 'cinematic still a hut, night .\nSteps: 30, Raw prompt: "a hut, \\"night\\"", Version: F'},
            'a hut, "night"',
        ),
        ({"parameters": "cinematic still a hut\nSteps: 30, Raw prompt: a hut, Version: F"}, "a hut"),
        ({"parameters": "{masterpiece}, a hut\nSteps: 3"}, "{masterpiece}, a hut"),
        ({"parameters": "", "prompt": graph()}, "beautiful scenery, galaxy bottle"),
        ({"parameters": "[" * 5000, "Comment": "x"}, "[" * 5000),
        ({"parameters": '{"a":' * 5000}, '{"a":' * 5000),
        ({"invokeai_metadata": '{"positive_prompt": 5}', "prompt": '{"a":' * 5000}, ""),
        ({"invokeai_metadata": "[]", "sd__metadata": '{"image": []}', "Dream": "x"}, ""),
        ({}, ""),
    ],
)
def test_other_programs(texts: dict[str, str], wanted: str, tmp_path: Path) -> None:
    assert carried_prompt(png(tmp_path / "a.png", **texts)) == wanted


def test_fooocus_writes_its_comment_outside_the_exif_part(tmp_path: Path) -> None:
    block = exif(b'{"prompt": "a hut"}\0', inside=False)
    assert carried_prompt(jpeg(tmp_path / "a.jpg", block)) == "a hut"


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"MM\0*\xff\xff\xff\xff",
        exif(unicode(INFOTEXT))[:40],
        b"II*\0\x08\0\0\0\xff\xff" + b"\x69\x87" * 99,
    ],
)
def test_a_torn_exif_is_no_prompt(block: bytes, tmp_path: Path) -> None:
    assert carried_prompt(jpeg(tmp_path / "a.jpg", block)) == ""


def test_what_is_no_picture_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"<html>")
    bomb = chunks(tmp_path / "c.png", (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(2**24))))
    for path in (tmp_path / "a.png", tmp_path / "b.png", bomb, tmp_path / "nix.png"):
        with pytest.raises(UserError):
            carried_prompt(path)


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        (
            "masterpiece, (best quality:1.2), ((1girl)), [solo], {{smile}}",
            "masterpiece, best quality, 1girl, solo, smile",
        ),
        (r"miku \(vocaloid\), (saber \(fate\):1.1)", "miku (vocaloid), saber (fate)"),
        ("a hut <lora:neon:0.8:0.5>, <hypernet:x:1> night, <LyCO:a b:te=1>", "a hut, night"),
        ("<lora:neon:1>", ""),
        ("a hut BREAK night\nBREAK snow", "a hut, night, snow"),
        ("a hut :1.2 AND night:0.8", "a hut, night"),
        ("a sign that says SALT AND PEPPER", "a sign that says SALT AND PEPPER"),
        ("a [mountain:lake:0.25] and [an oak:a tree:15]", "a lake and a tree"),
        ("a hut[ in snow::0.6][ at night:0.25]", "a hut in snow at night"),
        ("[(a:1.2):(b:1.3):0.5], [c:[d:e:2]:1]", "b, e"),
        ("[cow|horse] in a field", "cow, horse in a field"),
        ("ratio 16:9, [note: red]", "ratio 16:9, note: red"),
        ("a,, b , \n\n c,", "a, b, c"),
        ("best quality\n1girl", "best quality, 1girl"),
        ("A hut.\nIt snows.", "A hut. It snows."),
        ("一个女孩，，红发，\n微笑、夜", "一个女孩，红发，微笑、夜"),
        ("a hut (at night", "a hut at night"),
        ("a hut], :)", "a hut], :)"),
        ("long_hair, ^_^", "long_hair, ^_^"),
        ("a \x00\ud800b\ufeff", "a ?b"),
        ("()[]{}", ""),
    ],
)
def test_the_words_of_a_prompt(prompt: str, caption: str) -> None:
    assert caption_of(prompt) == caption


def test_a_prompt_without_end_is_cut_at_a_comma(tmp_path: Path) -> None:
    told = caption_of("a hut, " * 10**5)
    assert 4900 < len(told) <= 5000 and told.endswith("a hut")
    for text in ("[" * 10**6, "([{" * 10**5, "a:" * 10**5, "[a:" * 3000 + "0.5]" * 3000):
        assert len(caption_of(text)) <= 5000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    png(folder / "a.png", parameters="masterpiece, 1girl, (red hat:1.2), long_hair <lora:x:1>\nSteps: 20")
    jpeg(folder / "b.jpg", exif(unicode("一个女孩，红发\nSteps: 20, Seed: 1")))
    png(folder / "sub" / "c.png", prompt=graph(n6=("CLIPTextEncode", {"text": "A hut, in the snow."})))
    return folder


Label = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def label(data: Path, capsys: pytest.CaptureFixture[str]) -> Label:
    def call(*argv: str) -> tuple[int, list[str], list[str]]:
        code = main(["label", "--input", str(data), "--from-prompts", *argv])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err.splitlines()

    return call


def test_each_picture_gets_its_prompt(data: Path, label: Label) -> None:
    code, told, wrong = label()
    assert (code, wrong) == (0, [])
    assert (data / "metadata.csv").read_text("utf-8").splitlines() == [
        "filename,prompt",
        'a.png,"masterpiece, 1girl, red hat, long_hair"',
        "b.jpg,一个女孩，红发",
        'sub/c.png,"A hut, in the snow."',
    ]
    assert "3 captions written" in told[-1] and any("look through the captions" in line for line in told)
    (again,) = label()[1]  # no word of --words-only: there are no rules
    assert "all 3 pictures have captions already" in again


def test_rules_for_words_hold(data: Path, label: Label) -> None:
    rules = ["--trigger", "neon", "--remove", "masterpiece", "--replace", "hut=barn"]
    assert label("--output", "txt", *rules)[0] == 0
    said = [(data / name).read_text("utf-8").strip() for name in ("a.txt", "b.txt", "sub/c.txt")]
    assert said == ["neon, 1girl, red hat, long hair", "neon, 一个女孩，红发", "neon, A barn, in the snow."]
    code, _, wrong = label("--overwrite", "--output", "txt", "--whitelist", "red hat")
    assert code == 2 and (data / "a.txt").read_text("utf-8") == "red hat\n"
    assert len(wrong) == 1 and "--whitelist keeps whole tags, and its prompt is a sentence" in wrong[0]
    assert "2 pictures" in wrong[0]


def test_what_a_person_wrote_stays_and_what_has_no_prompt_is_told_together(data: Path, label: Label) -> None:
    (data / "metadata.csv").write_text("filename,prompt\na.png,my words\nd.png,\n", encoding="utf-8")
    for name in "def":
        Image.new("RGB", (8, 8)).save(data / f"{name}.png")
    png(data / "g.png", parameters="<lora:x:1>")
    (data / "h.png").write_bytes((data / "a.png").read_bytes()[:20])
    code, told, wrong = label()
    assert code == 2 and "2 captions written" in told[-1] and "3 of 8 pictures have one now" in told[-1]
    assert sorted(line.split(": ", 1)[1] for line in wrong if "prompt" in line) == [
        "4 pictures (d.png, e.png, f.png and 1 more): no prompt in the file; label the rest without --from-prompts"
    ]
    assert len(wrong) == 2 and any("h.png" in line and "damaged" in line for line in wrong)
    rows = (data / "metadata.csv").read_text("utf-8").splitlines()
    assert rows[:3] == ["filename,prompt", "a.png,my words", "d.png,"] and len(rows) == 5
    wrong = label("--overwrite")[2]
    assert 'a.png,"masterpiece' in (data / "metadata.csv").read_text("utf-8")
    assert (data / "metadata.csv.bak").read_text("utf-8").splitlines() == rows
    (data / "metadata.csv").write_text("filename,prompt\nd.png,mine\n", encoding="utf-8")
    assert any("d.png: no prompt in the file; its caption stays" in line for line in label("--overwrite")[2])


def test_it_goes_on_after_a_stop(data: Path, label: Label, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(path: Path) -> str:
        if path.name == "b.jpg":
            raise KeyboardInterrupt
        return carried_prompt(path)

    monkeypatch.setattr(captioning, "PROMPTS_AT_ONCE", 1)
    with monkeypatch.context() as once:
        once.setattr(captioning, "carried_prompt", stopped)
        code, _, wrong = label()
    assert code == 130 and "captions written: 1; the same command goes on from here" in wrong[-1]
    assert len((data / "metadata.csv").read_text("utf-8").splitlines()) == 2
    assert "2 captions written" in label()[1][-1]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--model m --captioner wd --batch-size 2", ["--model", "--captioner", "--batch-size"]),
        ("--instruction say --threshold 0 --device cpu", ["--instruction", "--threshold", "--device"]),
        ("--character-threshold 0.5 --precision fp16", ["--character-threshold", "--precision"]),
    ],
)
def test_options_of_captioners_are_refused(argv: str, named: list[str], label: Label) -> None:
    code, _, wrong = label(*argv.split())
    assert code == 2 and len(wrong) == len(named)
    for word, line in zip(named, sorted(wrong, key=lambda line: named.index(line.split()[1])), strict=True):
        assert line == f"error: {word} does nothing with --from-prompts; leave one of them out"


@pytest.mark.parametrize("other", ["--words-only --trigger x", "--repair"])
def test_with_ways_that_read_no_prompts_it_is_refused(other: str, label: Label) -> None:
    code, _, (wrong,) = label(*other.split())
    assert code == 2 and f"--from-prompts does nothing with {other.split()[0]}" in wrong


def test_in_chinese(data: Path, label: Label, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh")
    Image.new("RGB", (8, 8)).save(data / "d.png")
    _, told, (wrong,) = label()
    assert "文件里没有提示词; 其余的请不带 --from-prompts 再打标" in wrong
    assert any("提示词说的是想要什么" in line for line in told)


def test_no_torch_is_imported(data: Path) -> None:
    code = (
        "import sys; from lora_scripts.cli import main\n"
        f"code = main(['label', '--input', {str(data)!r}, '--from-prompts'])\n"
        "sys.exit(code or bool({'torch', 'transformers', 'diffusers'} & sys.modules.keys()))"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(lora_scripts.__file__).parents[1])}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert answer.returncode == 0, answer.stderr
