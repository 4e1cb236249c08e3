"""What each animal of the zoo must be answered: one line with the file and the mend, exit code 2, before torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lora_scripts
import tiny
import zoo
from lora_scripts.config.schema import TrainConfig

Answers = dict[tuple[str, str], dict[str, Any]]

# --- what may be answered otherwise -----------------------------------------------------------------------------------

VALUES = {"0x10": 16, "1.5": 1.5, "99999999999999": 99999999999999}
"""Of config values that some keys take, what they mean in YAML 1.2; texts stay as they are."""
TEXT_KEYS = {"sample_negative", "class_prompt", "new_token", "output_dir", "cache_dir", "trigger_word"}

TAKEN = {
    ("picture", "bmp with zeros from 0.02 on"): "a format without compression holds any bytes",
    ("picture", "bmp with 0xff from 0.02 on"): "likewise",
    ("picture", "bmp with zeros from 0.5 on"): "likewise",
    ("picture", "bmp with 0xff from 0.5 on"): "likewise",
    ("picture", "avif with 0xff from 0.5 on"): "a picture whose lower half is something else, within the rules of AV1",
    ("picture", "bmp as text"): "likewise",
    ("captions", "jsonl: a NUL"): "read as a blank",
    ("captions", "txt: only commas"): "a caption of tags, none of which says anything",
    ("captions", "caption: only commas"): "likewise",
    **dict.fromkeys(
        [
            ("path", f"output_dir: {name}")
            for name in ("not there", "an empty folder", "an address", "a name of a hub", "a variable")
        ],
        "a folder that is made",
    ),
    ("command", "label --input {f}/data --model no/such-model"): "all pictures have captions, so no model is asked",
}
"""Rows that are no fault, or none that can be known, and why."""

WORDS = {
    "yaml": {
        "empty": "is empty; copy a template",
        "only a comment": "is empty; copy a template",
        "a list": "expected keys with values, found a list",
        "a tab": ":2: not valid YAML: a tab stands where YAML wants spaces",
        "unclosed quote": ":1: a quote is not closed",
        "a key twice": ":5: epochs: given twice; it stands on line 4 too",
        "a key of kohya": "unknown key; did you mean epochs?",
        "a key with a dash": "did you mean batch_size?",
        "two documents": "a second document follows after ---",
        "a billion laughs": ":1: a: unknown key",
        "deeply nested": "is nested too deeply",
        "full-width colon": "the plain colon and a space",
        "control characters": ":4: holds the character U\\+0007",
        "UTF-16": "is UTF-16 text; save it as UTF-8",
        "GBK": r"it looks like GBK \(Chinese\); save it as UTF-8",
        "binary": "is not text",
    },
    "picture": {
        "png cut at 0.0": "is empty \\(0 bytes\\)",
        "png cut at 0.5": "damaged image",
        "png with zeros from 0.5 on": "zeros: a download that was not finished; download it again",
        "jpg with zeros from 0.5 on": "zeros: a download that was not finished",
        "webp with zeros from 0.5 on": "zeros: a download that was not finished",
        "a web page": "is a web page saved under the name of an image; download the image itself",
        "a git-lfs pointer as jpg": "is a git-lfs pointer, not the image itself; run: git lfs pull",
        "HEIC": "damaged image: its end is missing",
        "avif cut at 0.5": "damaged image: its end is missing",
        "avif with zeros from 0.5 on": "zeros: a download that was not finished",
        "a bomb": "more than|more pixels than",
        "wholly transparent": "is wholly transparent",
    },
    "captions": {
        "csv: an unquoted comma": ':2: too many fields .*put the prompt in double quotes: 0.png,"a cat, red"',
        "csv: an unclosed quote": ":2: the quote that opens here is never closed",
        "csv: a picture twice": "has a caption already, on line 2",
        "csv: a path outside": "leaves the image folder",
        "csv: an absolute path": "leaves the image folder",
        "csv: a drive": "leaves the image folder",
        "csv: a folder as name": "is a folder, not an image",
        "csv: semicolons": ':2: too many fields .*0.png;"a cat; red"',
        "csv: GBK": "it looks like GBK",
        "jsonl: cut off": ":1: column 32: Unterminated string",
        "jsonl: a lone surrogate": "half of a character",
        "jsonl: text a number": "is not a string",
        "txt: a web page": "is a web page saved under the name of a caption",
        "caption: a git-lfs pointer": "run: git lfs pull",
        "txt: UTF-16 without a mark": "it looks like UTF-16",
    },
    "model": {
        "cut at 0.0": "empty",
        "a .ckpt": "pickle|ckpt",
        "a web page": "web page",
        "a git-lfs pointer": "git-lfs|git lfs",
        "without first_stage_model": "VAE",
        "without cond_stage_model": "text encoder",
        "a byte short": "bytes|cut|short|incomplete|download",
    },
    "path": {
        "metadata_path: a device": "is not a plain file",
        "base_model: a pipe": "is not a plain file",
        "train_data_dir: too long": "choose a shorter one",
        "base_model: a name of a hub": "is not on this machine",
        "train_data_dir: the root": "lies in train_data_dir",
        "train_data_dir: an empty folder": "the folder is empty",
        "base_model: a file": "this is not a safetensors file; name a .safetensors file, or download it again",
        "base_model: an empty folder": "a folder without a model that is known here; give a checkpoint",
        "base_model: a device": "is not a plain file",
        "base_model: the root": "a folder without a model that is known here",
        "metadata_path: a file": "captions are read from a .csv or a .jsonl file",
        "output_dir: inside of a file": "output_dir: .*file is no folder; name a folder",
        "output_dir: a loop": "is no folder",
        "output_dir: inside of a loop": "is no folder",
        "output_dir: a dangling link": "is no folder",
    },
    "command": {
        "trian": "did you mean train\\?",
        "train --config {f}/good.yaml --resume": "there is no run to resume here",
        "generate --base {f}/data/0.png --prompt x": "this is a picture",
        "generate --base {f}/lora.safetensors --prompt x": "this is a LoRA",
        "generate --base {f}/base.safetensors": "give one of --prompt and --from-file",
    },
}
"""Of some rows what must stand in the answer, a pattern; all others have it by their kind, see below."""

LEAST = {"config": 250, "yaml": 35, "picture": 100, "captions": 105, "model": 250, "path": 60, "command": 60}


@pytest.fixture(scope="module")
def answers(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Asked in a process that cannot import torch: what needs it would be told as that."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "base.safetensors").write_bytes(base.read_bytes())
    tiny.write_pictures(folder / "data")
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    header = {
        f"{layer}.{leaf}": {"dtype": "F32", "shape": shape, "data_offsets": at}
        for leaf, shape, at in (
            ("lora_down.weight", [1, 64], [0, 256]),
            ("lora_up.weight", [64, 1], [256, 512]),
            ("alpha", [], [512, 516]),
        )
    }
    text = json.dumps(header).encode()
    (folder / "lora.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * 516)
    env = {**os.environ, "PYTHONPATH": str(Path(lora_scripts.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, zoo.__file__, str(folder), "60"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({(kind, name) for kind, name, _ in rows}) == len(rows)
    return {(kind, name): answer for kind, name, answer in rows}


def test_the_zoo_is_large_enough(answers: Answers) -> None:
    counts = Counter(kind for kind, _ in answers)
    assert all(counts[kind] >= least for kind, least in LEAST.items()), counts
    assert all((kind, name) in answers for kind, rows in WORDS.items() for name in rows)
    assert all(row in answers for row in TAKEN)


def test_nothing_is_a_traceback_and_nothing_needs_torch_to_be_told(answers: Answers) -> None:
    foreign = {row: a["err"][-300:] for row, a in answers.items() if a["code"] == -1 or "Traceback" in a["err"]}
    late = [row for row, a in answers.items() if "torch" in a["err"] and row not in TAKEN]
    assert not foreign and not late


@pytest.mark.parametrize("kind", LEAST)
def test_each_is_told_with_its_place_and_its_mend(kind: str, answers: Answers) -> None:
    """Exit code 2; the file (and the line of a config); what is wrong, and after a semicolon the mend, unless what is
    wrong says it ("must be a whole number")."""
    place = {
        "config": r"config\.yaml:\d+: ",
        "yaml": r"config\.yaml",
        "path": r"config\.yaml:\d+: |/paths/|/dev/null: |error: /: |error: base_model ",
        "command": "",
        "picture": r"/x\.\w+: ",
        "captions": r"metadata\.(csv|jsonl)|/0\.(txt|caption)|captions/\d+: no captions",
        "model": r"/x\.safetensors: ",
    }[kind]
    badly = {}
    for (_, name), answer in ((row, a) for row, a in answers.items() if row[0] == kind):
        key, _, bad = name.partition(": ")
        if (kind, name) in TAKEN:
            continue
        if answer["code"] in (0, None):
            taken = kind == "config" and _meant(key, bad, answer["out"])
            if not taken:
                badly[name] = "accepted: " + answer["out"]
            continue
        told = answer["err"].strip()
        words = WORDS.get(kind, {}).get(name, ".")
        mend = r"; |must be |must name |did you mean|needs|has no value|unknown option|is an empty text|names "
        if (kind in ("config", "path") and key not in told and not (kind == "path" and words != ".")) or not (
            re.search(place, told) and re.search(mend, told) and re.search(words, told)
        ):
            badly[name] = told
        elif answer["code"] != 2 or (answer["out"] and kind not in ("command", "path")):
            badly[name] = f"{answer['code']}: {answer['out']}"
    assert not badly, json.dumps(badly, indent=1)[:4000]


def _meant(key: str, bad: str, out: str) -> bool:
    """Whether a config's value that was taken is what a person meant by it."""
    if key in TEXT_KEYS:
        return True
    return bad in VALUES and out.strip() in (repr(VALUES[bad]), repr(float(VALUES[bad])))


def test_every_key_is_in_the_zoo(answers: Answers) -> None:
    assert {name.partition(": ")[0] for kind, name in answers if kind == "config"} == set(TrainConfig.model_fields)
