"""Whatever stands in a file, a person gets a line: no exception but ours, and nothing that hangs.

Quick in CI; by hand for longer: `FUZZ=20000 python -m pytest tests/test_fuzz.py`, so many examples of each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import families
from lora_scripts.config.load import load_config
from lora_scripts.config.prompt_line import parse_line
from lora_scripts.data.captions import read_metadata, read_sidecar
from lora_scripts.data.image import decode_rgb
from lora_scripts.data.write_captions import CaptionTable
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families import table
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.clip import prompts
from lora_scripts.formats.header import read_header
from lora_scripts.formats.numbers import sound_digest
from lora_scripts.generate.prompt import parse_prompt

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

MANY = int(os.environ.get("FUZZ", 60))

fuzzed = settings(
    max_examples=MANY,
    deadline=None,
    derandomize="FUZZ" not in os.environ,  # in CI the same each time
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextlib.contextmanager
def only_ours() -> Iterator[None]:
    """Lets our errors pass, each of which must be a line for a person."""
    try:
        yield
    except UserErrors as errors:
        assert errors.errors and all(_is_a_line(error) for error in errors.errors)
    except UserError as error:
        assert _is_a_line(error)


def _is_a_line(error: UserError) -> bool:
    text = str(error)
    return bool(text.strip()) and "\n" not in text and "Traceback" not in text


def edited(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file with a few pieces cut out, put in, changed or repeated."""

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = whole
        for at, length, new in edits:
            start = at % (len(data) + 1)
            data = data[:start] + new + data[start + length :]
        return data

    one = st.tuples(st.integers(0, 1 << 30), st.integers(0, 200), st.binary(max_size=12))
    return st.lists(one, min_size=1, max_size=5).map(apply)


# --- models -----------------------------------------------------------------------------------------------------------

_numbers = st.one_of(st.integers(-2, 70), st.integers(), st.floats(), st.text(max_size=3), st.none(), st.booleans())
_entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "F4"]), _numbers),
        "shape": st.one_of(st.lists(_numbers, max_size=5), _numbers),
        "data_offsets": st.one_of(st.lists(_numbers, max_size=3), _numbers),
        "x": _numbers,
    },
)
_keys = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "__metadata__",
            "model.diffusion_model.input_blocks.0.0.weight",
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
            "lora_unet_mid_block_attentions_0_proj_in.alpha",
            "model.embed_tokens.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        ]
    ),
)


@fuzzed
@given(header=st.dictionaries(_keys, st.one_of(_entry, _numbers, st.dictionaries(st.text(max_size=5), _numbers))),
       body=st.binary(max_size=300), off=st.sampled_from([0, 0, 0, 1, -1, 1 << 40]))  # fmt: skip
def test_headers(header: dict[str, object], body: bytes, off: int, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(max(0, len(text) + off).to_bytes(8, "little") + text + body)
    for look in (read_header, sound_digest, table.identify, table.find, table.require_lora):
        with only_ours():
            look(path)


@fuzzed
@given(data=st.data())
def test_bytes_of_a_lora(data: st.DataObject, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    rows = {f"{name}.lora_down.weight": [2, 4], f"{name}.lora_up.weight": [4, 2], f"{name}.alpha": []}
    header, at = {}, 0
    for key, shape in rows.items():
        size = 4 * (shape[0] * shape[1] if shape else 1)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(data.draw(edited(len(text).to_bytes(8, "little") + text + b"\x3f" * at)))
    from lora_scripts.loras import file as loras

    for look in (sound_digest, table.identify, loras.read):
        with only_ours():
            look(path)


CONFIGS = ("config.json", "scheduler_config.json", "model_index.json")
VALUES = (None, "x", [], {}, -1, 0, 2.5, True, ["x"], [None], float("nan"))


def test_configs_of_a_diffusers_folder(tmp_path: Path) -> None:
    """By hand of other families, too: `FUZZ=500 FUZZ_FAMILY=krea2`."""
    row = next(row for row in families.ROWS if row.name == os.environ.get("FUZZ_FAMILY", "anima"))
    assert row.folder is not None
    folder, rng = row.folder(tmp_path / "base"), random.Random(1)
    files = {p: json.loads(p.read_text()) for p in sorted(folder.rglob("*.json")) if p.name in CONFIGS}
    for file, key in rng.choices([(file, key) for file, keys in files.items() for key in keys], k=MANY // 5):
        whole = file.read_bytes()
        file.write_text(json.dumps({**files[file], key: rng.choice(VALUES)}), "utf-8")
        with only_ours():
            loaded(folder)
        file.write_bytes(whole)


def loaded(folder: Path) -> object:
    """All that is asked of a folder on the way to a family."""
    facts = table.find(folder)
    facts.made_for(folder)
    table.settings(folder, {})
    facts.check(folder, True)
    if facts.check_text is not None:
        facts.check_text(folder, [])
    return table.load_family(facts, folder, LoadOptions(torch.device("cpu"), torch.float32))


# --- captions ---------------------------------------------------------------------------------------------------------

CSV = b'filename,prompt\na.png,"a cat, red"\nb.png,a dog\n'
JSONL = '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "text": "größe 猫"}\n'.encode()


@fuzzed
@given(data=st.one_of(st.binary(max_size=200), edited(CSV), edited(JSONL), st.text().map(str.encode)))
def test_captions(data: bytes, tmp_path: Path) -> None:
    for name in ("metadata.csv", "metadata.jsonl"):
        path, faults = tmp_path / name, list[UserError]()
        path.write_bytes(data)
        read_metadata(path, faults)
        assert all(_is_a_line(fault) and fault.file == path for fault in faults)
        if faults:
            continue
        table_of = CaptionTable(path)  # what can be read can be written, and is then read as the same
        before = dict(table_of.captions)
        table_of.set("new.png", 'a "quoted", tag')
        path.write_bytes(table_of.content().encode())
        after = {key: caption.text for key, caption in read_metadata(path, faults, allow_empty=True).items()}
        assert not faults and after == {**before, "new.png": 'a "quoted", tag'}
    (tmp_path / "a.txt").write_bytes(data)
    with only_ours():
        caption = read_sidecar(tmp_path / "a.txt")
        assert caption and "\n" not in caption


# --- configs ----------------------------------------------------------------------------------------------------------

CONFIG = (
    b"train_data_dir: data\nbase_model: b.safetensors\noutput_dir: out\nlearning_rate: 2e-4\nresolution: [512, 768]\n"
)
CONFIG += b"targets: [attention, {match: '*ff*', rank: 4}]\nsample_prompts:\n  - a cat --w 512\n  - 'b'\n"


@fuzzed
@given(data=st.one_of(edited(CONFIG), st.text(max_size=60).map(lambda text: CONFIG + text.encode("utf-8", "replace"))))
def test_configs(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    with only_ours():
        load_config(path)


_values = st.one_of(st.integers(), st.floats(), st.text(max_size=20), st.none(), st.booleans(), st.lists(st.integers()))


@fuzzed
@given(key=st.text(max_size=12), value=st.text(max_size=30))
def test_overrides(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(CONFIG)
    with only_ours():
        load_config(path, [f"{key}={value}"])


# --- pictures and prompts ---------------------------------------------------------------------------------------------


def _pictures() -> list[bytes]:
    found, image = [], Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    for kind, more in (
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("JPEG", {"progressive": True}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", **more)
        found.append(buffer.getvalue())
    return found


PICTURES = _pictures()


@fuzzed
@given(data=st.one_of(*map(edited, PICTURES)))
def test_pictures(data: bytes) -> None:
    with only_ours():
        image = decode_rgb(data, Path("x.png"))
        assert image.mode == "RGB" and min(image.size) > 0


_prompt = st.text(
    st.one_of(st.sampled_from(list("()[]:,<>lora \\.0123456789-")), st.characters(codec="utf-8")), max_size=60
)
"""What comes to a prompt: half characters are refused at the door (tests/test_cli.py)."""


@fuzzed
@given(text=_prompt)
def test_prompts(text: str) -> None:
    with only_ours():
        parse_prompt(text)
    with only_ours():
        parse_line(text)
    stretches = prompts.weighted(text)
    assert stretches and all(isinstance(weight, float) for _, weight in stretches)
    for chunk in prompts.chunks(stretches):
        assert len(chunk.ids) == len(chunk.weights) == 77
    if not re.search(r"[\\()\[\]]|BREAK", text):
        assert stretches == [(text, 1.0)]
