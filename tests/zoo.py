# ruff: noqa: E501
"""A zoo of bad input: what people really have in place of a config, a picture, captions, a model, a path, a command.

Run as a program it asks for the answer to each, in a process that cannot import torch, and prints them as JSON:
`python zoo.py FOLDER LAYERS`, where the folder holds base.safetensors, lora.safetensors and data/. The
tests say what each answer must be.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import struct
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KINDS = ("config", "yaml", "picture", "captions", "model", "path", "command")

# --- configs ----------------------------------------------------------------------------------------------------------

BAD_VALUES = (
    *("''", "many", "-1", "1.5", "[1, 2, 3]", "{a: 1}", "1e400", ".nan", "yes", "99999999999999", "2000-01-01"),
    *("!!python/object:os.system x", "0x10", "1:30", '"a\\0b"'),
)
"""Written in place of a key's value."""

YAML = {
    "empty": "",
    "only a comment": "# nothing\n",
    "a list": "- train_data_dir: data\n",
    "a text": "train\n",
    "a tab": "train_data_dir: data\n\tbase_model: b\n",
    "no colon": "train_data_dir data\noutput_dir: o\n",
    "unclosed quote": 'train_data_dir: "data\noutput_dir: o\n',
    "unclosed list": "resolution: [512, 512\n",
    "a key twice": "{good}epochs: 2\nepochs: 3\n",
    "an unknown key": "{good}learning_rte: 2e-4\n",
    "a key of kohya": "{good}max_train_steps: 100\n",
    "a key with a space": "{good}batch size: 2\n",
    "a key in capitals": "{good}Epochs: 2\n",
    "a key with a dash": "{good}batch-size: 2\n",
    "a group": "{good}training:\n  epochs: 2\n",
    "two documents": "{good}---\n{good}",
    "an alias to nothing": "{good}epochs: *x\n",
    "an alias to itself": "{good}sample_prompts: &a [*a]\n",
    "a merge key": "{good}<<: {{epochs: 2}}\n",
    "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\n",
    "deeply nested": "a: " + "[" * 3000 + "]" * 3000,
    "JSON": '{"train_data_dir": "data"',
    "TOML": "[training]\nepochs = 2\n",
    "HTML": "<!doctype html>\n<html><body>404: Not Found</body></html>\n",
    "a number as key": "{good}1: 2\n",
    "a list as key": "{good}? [1, 2]\n: 3\n",
    "nothing as key": "{good}: 3\n",
    "full-width colon": "train_data_dir：data\n",
    "curly quotes": "{good}name: “x”\n",
    "a python tag": "{good}name: !!python/object/apply:os.system ['true']\n",
    "control characters": "{good}sample_negative: a\x07b\n",
}

BYTES = {
    "UTF-16": "train_data_dir: data\n".encode("utf-16"),
    "latin-1": "train_data_dir: Müller\n".encode("latin-1"),
    "GBK": "train_data_dir: 训练用的图片都在这里\n".encode("gbk"),
    "binary": bytes(range(256)) * 10,
    "NUL bytes": b"train_data_dir: data\n" + b"\0" * 50,
    "a picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures() -> Iterator[tuple[str, str, bytes]]:
    """(name of the row, name of the file, content)"""
    from PIL import Image

    whole = {}
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    for suffix, kind in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF"), ("bmp", "BMP")):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        whole[suffix] = buffer.getvalue()
    for suffix, data in whole.items():
        for share in (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
            yield f"{suffix} cut at {share}", f"x.{suffix}", data[: int(len(data) * share)]
        for share in (0.0, 0.02, 0.5):
            at = int(len(data) * share)
            yield f"{suffix} with zeros from {share} on", f"x.{suffix}", data[:at] + bytes(len(data) - at)
            yield f"{suffix} with 0xff from {share} on", f"x.{suffix}", data[:at] + b"\xff" * (len(data) - at)
        yield f"{suffix} as text", f"x.{suffix}", data.decode("latin-1").encode()
    others = {
        "a web page": b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
        "a web page with blanks first": b"\n\n  <html>",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "JSON": b'{"error": "not found"}',
        "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
        "a zip": b"PK\x03\x04" + b"\0" * 60,
        "a program": b"MZ" + b"\0" * 200,
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "the head of an AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
        "a video": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "PSD": b"8BPS\0\x01" + b"\0" * 30,
        "one byte": b"\x89",
        "text": b"a picture of a cat\n",
        "a pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07builtin.",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "ICO": b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0\x68\x04\0\0\x16\0\0\0",
    }
    for name, data in others.items():
        yield name, "x.png", data
        yield f"{name} as jpg", "x.jpg", data
    yield "a bomb", "x.png", _png(60_000, 60_000)
    yield "no pixels", "x.png", _png(0, 0)
    yield "negative sides", "x.png", _png(0x80000000, 1)
    yield "a bad checksum", "x.png", whole["png"][:30] + b"\0\0" + whole["png"][32:]
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(buffer, "PNG")
    yield "wholly transparent", "x.png", buffer.getvalue()
    yield "an odd depth", "x.png", _png(64, 64, depth=3)


def _png(width: int, height: int, depth: int = 8) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# --- captions ---------------------------------------------------------------------------------------------------------

HEADS = ("filename,prompt", "file_name,text")


def captions() -> Iterator[tuple[str, str, bytes]]:
    """(name of the row, name of the file, content), beside a picture that is called 0.png."""
    tables = {
        "empty": b"",
        "a header only": b"filename,prompt\n",
        "no header": b"0.png,a cat\n",
        "another header": b"image,label\n0.png,a cat\n",
        "one column": b"filename\n0.png\n",
        "an unquoted comma": b"filename,prompt\n0.png,a cat, red\n",
        "an unclosed quote": b'filename,prompt\n0.png,"a cat\n1.png,b\n',
        "text behind a quote": b'filename,prompt\n0.png,"a cat" red\n',
        "a picture that is not there": b"filename,prompt\n0.png,a\nnone.png,b\n",
        "a picture twice": b"filename,prompt\n0.png,a\n0.png,b\n",
        "a path outside": b"filename,prompt\n../../etc/passwd,a\n",
        "an absolute path": b"filename,prompt\n/etc/passwd,a\n",
        "a drive": b"filename,prompt\nC:\\x.png,a\n",
        "a NUL": b"filename,prompt\n0.png,a\0b\n",
        "UTF-16": "filename,prompt\n0.png,a\n".encode("utf-16"),
        "latin-1": "filename,prompt\n0.png,größe\n".encode("latin-1"),
        "GBK": "filename,prompt\n0.png,一只猫坐在红色的垫子上看着窗外\n".encode("gbk"),
        "half a character": b"filename,prompt\n0.png,\xe7\x8c\n",
        "binary": bytes(range(256)) * 4,
        "a web page": b"<!doctype html>\n<html></html>\n",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "semicolons": b"filename;prompt\n0.png;a cat; red\n",
        "tabs": b"filename\tprompt\n0.png\ta cat\tred\n",
        "no caption": b"filename,prompt\n0.png,\n",
        "no name": b"filename,prompt\n,a cat\n",
        "three columns of two": b"filename,prompt\n0.png,a,b,c\n",
        "a caption column twice": b"filename,prompt,text\n0.png,a,b\n",
        "a name column twice": b"filename,file_name,prompt\n0.png,0.png,a\n",
        "an Excel file": b"PK\x03\x04" + b"\0" * 99,
        "a row cut off": b"filename,prompt\n0.pn",
        "JSON in a csv": b'[{"filename": "0.png"}]\n',
        "a folder as name": b"filename,prompt\n.,a\n",
        "a very long name": b"filename,prompt\n" + b"a" * 300 + b".png,a\n",
        "UTF-32": "filename,prompt\n0.png,a\n".encode("utf-32"),
        "Big5": "filename,prompt\n0.png,一隻貓坐在紅色的墊子上\n".encode("big5"),
        "a Windows path outside": b"filename,prompt\n..\\0.png,a\n",
        "gzip": gzip.compress(b"filename,prompt\n0.png,a\n", mtime=0),
        "rich text": b"{\\rtf1\\ansi filename,prompt\\par 0.png,a}",
        "bars": b"filename|prompt\n0.png|a cat\n",
    }
    for name, data in tables.items():
        yield f"csv: {name}", "metadata.csv", data
    rows = {
        "empty": b"",
        "not JSON": b"0.png, a cat\n",
        "cut off": b'{"file_name": "0.png", "text": "a c',
        "a list": b'[{"file_name": "0.png", "text": "a"}]\n',
        "single quotes": b"{'file_name': '0.png', 'text': 'a'}\n",
        "a number": b"7\n",
        "nothing": b"null\n",
        "no text": b'{"file_name": "0.png"}\n',
        "no name": b'{"text": "a"}\n',
        "text a number": b'{"file_name": "0.png", "text": 3}\n',
        "text a list": b'{"file_name": "0.png", "text": ["a"]}\n',
        "text nothing": b'{"file_name": "0.png", "text": null}\n',
        "text empty": b'{"file_name": "0.png", "text": ""}\n',
        "name a number": b'{"file_name": 0, "text": "a"}\n',
        "a trailing comma": b'{"file_name": "0.png", "text": "a",}\n',
        "two on a line": b'{"file_name": "0.png", "text": "a"}{"file_name": "1.png", "text": "a"}\n',
        "another name": b'{"image": "0.png", "label": "a"}\n',
        "a path outside": b'{"file_name": "../0.png", "text": "a"}\n',
        "twice": b'{"file_name": "0.png", "text": "a"}\n{"file_name": "0.png", "text": "b"}\n',
        "not there": b'{"file_name": "none.png", "text": "a"}\n',
        "a key twice": b'{"file_name": "0.png", "text": "a", "text": "b"}\n',
        "half a character": b'{"file_name": "0.png", "text": "\xe7\x8c"}\n',
        "a lone surrogate": b'{"file_name": "0.png", "text": "\\ud800"}\n',
        "deeply nested": b'{"file_name": "0.png", "text": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
        "UTF-16": '{"file_name": "0.png", "text": "a"}\n'.encode("utf-16"),
        "NaN": b'{"file_name": "0.png", "text": NaN}\n',
        "a huge number": b'{"file_name": "0.png", "text": ' + b"9" * 5000 + b"}\n",
        "a NUL": b'{"file_name": "0.png", "text": "a\\u0000b"}\n',
        "a text alone": b'"a cat"\n',
        "a comment": b'// made by hand\n{"file_name": "0.png", "text": "a"}\n',
        "over several lines": b'{\n  "file_name": "0.png",\n  "text": "a"\n}\n',
        "gzip": gzip.compress(b'{"file_name": "0.png", "text": "a"}\n', mtime=0),
    }
    for name, data in rows.items():
        yield f"jsonl: {name}", "metadata.jsonl", data
    sidecars = {
        "empty": b"",
        "blanks": b"  \n\t\n",
        "UTF-16": "a cat".encode("utf-16"),
        "UTF-16 without a mark": "a cat on a mat".encode("utf-16-le"),
        "latin-1": "größe".encode("latin-1"),
        "GBK": "一只猫坐在红色的垫子上看着窗外".encode("gbk"),
        "Shift JIS": "猫の絵".encode("shift_jis"),
        "binary": bytes(range(256)),
        "a NUL": b"a\0b",
        "half a character": b"a cat \xe7\x8c",
        "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "a web page": b"<!doctype html><html><body>502 Bad Gateway</body></html>",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "0xff": b"\xff" * 40,
        "only a mark": b"\xef\xbb\xbf",
        "only commas": b", , ,\n",
        "gzip": gzip.compress(b"a cat", mtime=0),
        "UTF-32": "a cat".encode("utf-32"),
    }
    for suffix in ("txt", "caption"):
        for name, data in sidecars.items():
            yield f"{suffix}: {name}", f"0.{suffix}", data


# --- models -----------------------------------------------------------------------------------------------------------


def models(whole: bytes, layers: int) -> Iterator[tuple[str, bytes]]:
    """(name of the row, content) of a file that should be a base model; `whole`: a base that is one. `layers`: how many
    tensors are each left out, renamed and given another shape."""
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def made(table: dict[str, Any], data: bytes = body, pad: int = 0) -> bytes:
        text = json.dumps(table).encode()
        return len(text).to_bytes(8, "little") + text + data + bytes(pad)

    for share in (0.0, 1e-7, 1e-6, 1e-4, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.9999):
        yield f"cut at {share}", whole[: int(len(whole) * share)]
    yield "a byte short", whole[:-1]
    yield "a byte too many", whole + b"\0"
    yield "a kilobyte too many", whole + bytes(1024)
    for length in (0, 1, 2, 7, 100, size - 1, size + 1, size + 8, 2**31, 2**40, 2**63, 2**64 - 1):
        yield f"header length {length}", length.to_bytes(8, "little") + whole[8:]
    for name, data in {
        "a pickle": b"\x80\x04\x95" + b"\0" * 99,
        "a .ckpt": b"PK\x03\x04" + b"\0" * 999,
        "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 99,
        "a web page": b"<!doctype html><html><body>Access to this model is gated</body></html>",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n",
        "JSON": b'{"error": "Invalid username or password."}',
        "text": b"Entry not found",
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(900),
        "an xz": b"\xfd7zXZ\0" + bytes(900),
    }.items():
        yield name, data
    for text in (
        "[]",
        "null",
        "7",
        '"x"',
        "{",
        "{]",
        '{"a": 1}',
        '{"a": []}',
        '{"a": {}}',
        "{" * 500,
        "\\",
        "\0\0\0\0",
    ):
        data = text.encode()
        yield f"header {text[:12]!r}", len(data).to_bytes(8, "little") + data + body
    name = next(key for key in header if key.startswith("model.diffusion_model"))
    entry = header[name]
    for key, values in {
        "dtype": ("F31", "", 3, None, "f32", "I64", "U8", "F8_E5M2", [], {}),
        "shape": ([], [-1], [1.5], ["3"], None, 7, "3", [2**63, 2], [0], [10**9, 10**9], {}),
        "data_offsets": ([], [0], [0, 0, 0], [4, 0], [-4, 0], [0, 2**63], ["0", "4"], None, [0, 4], [0.0, 4.0], {}, 3),
    }.items():
        for value in values:
            yield f"{key} {str(value)[:24]}", made({**header, name: {**entry, key: value}})
        yield f"no {key}", made({**header, name: {k: v for k, v in entry.items() if k != key}})
    for value in (3, None, [], "x", {"a": 1}, {"a": None}, {"a": []}):
        yield f"metadata {value}", made({**header, "__metadata__": value})
    for part in ("model.diffusion_model", "first_stage_model", "cond_stage_model"):
        kept = {key: info for key, info in header.items() if not key.startswith(part)}
        yield f"without {part}", _packed(kept, body)
        only = {key: info for key, info in header.items() if key.startswith(part)}
        yield f"only {part}", _packed(only, body)
    names = sorted(key for key in header if key != "__metadata__")
    every = max(1, len(names) // layers)
    for number in range(0, len(names), every):
        gone = names[number]
        yield f"without {gone}", _packed({key: info for key, info in header.items() if key != gone}, body)
    for number in range(3, len(names), every):
        one = names[number]
        renamed = {("x" + key if key == one else key): info for key, info in header.items()}
        yield f"{one} renamed", made(renamed)
    for number in range(5, len(names), every):
        one = names[number]
        shape = header[one]["shape"]
        yield (
            f"{one} flat",
            made(
                {
                    **header,
                    one: {**header[one], "shape": [_product(shape)], "x": 0}
                    if len(shape) > 1
                    else {**header[one], "shape": [1, *shape]},
                }
            ),
        )


def _product(shape: list[int]) -> int:
    out = 1
    for side in shape:
        out *= side
    return out


def _packed(table: dict[str, Any], body: bytes) -> bytes:
    """A file of these tensors alone, side by side as the format wants it."""
    out, data, at = {}, [], 0
    for key, info in table.items():
        if key == "__metadata__":
            out[key] = info
            continue
        start, end = info["data_offsets"]
        data.append(body[start:end])
        out[key] = {**info, "data_offsets": [at, at + end - start]}
        at += end - start
    text = json.dumps(out).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data)


# --- paths and commands -----------------------------------------------------------------------------------------------


def paths(folder: Path) -> dict[str, str]:
    """Name of the row -> a path that is no good, for each key that takes one."""
    made = folder / "paths"
    made.mkdir()
    (made / "file").write_text("x")
    (made / "loop").symlink_to(made / "loop")
    (made / "dangling").symlink_to(made / "nowhere")
    (made / "empty").mkdir()
    os.mkfifo(made / "pipe")
    return {
        "not there": str(made / "none"),
        "a file": str(made / "file"),
        "inside of a file": str(made / "file" / "x"),
        "a loop": str(made / "loop"),
        "inside of a loop": str(made / "loop" / "x"),
        "a dangling link": str(made / "dangling"),
        "an empty folder": str(made / "empty"),
        "a pipe": str(made / "pipe"),
        "a device": "/dev/null",
        "a component that is too long": str(made / ("x" * 300)),
        "too long": str(made) + "/x" * 2500,
        "the root": "/",
        "a home that is nobody's": "~nobody-has-this-name/x",
        "an address": "https://example.org/model.safetensors",
        "a name of a hub": "runwayml/stable-diffusion-v1-5",
        "a variable": "$HOME/none",
        "backslashes": "C:\\Users\\x\\none",
    }


PARTS = {"only first_stage_model": "no-lora", "without model.diffusion_model": "no-model"}
"""Of the models, two that are asked for by commands, too -> the file's name there."""

COMMANDS = (
    [], ["trian"], ["train"], ["train", "--config"], ["train", "--config", "{f}/none.yaml"], ["train", "--config", "{f}"],
    ["train", "--config", "{f}/good.yaml", "epochs"], ["train", "--config", "{f}/good.yaml", "=3"],
    ["train", "--config", "{f}/good.yaml", "epochs=many"], ["train", "--config", "{f}/good.yaml", "nope=3"],
    ["train", "--config", "{f}/good.yaml", "--nope"], ["train", "--config", "{f}/good.yaml", "--resume"],
    ["train", "--config", "{f}/good.yaml", "epochs=2", "epochs=3"], ["train", "--config", "/dev/null"],
    ["plan"], ["plan", "--config", "{f}/none.yaml"], ["plan", "--config", "{f}/good.yaml", "x=1"],
    ["check"], ["check", "{f}/none"], ["check", "{f}/base.safetensors"], ["check", "--fix"],
    ["label"], ["label", "--input", "{f}/none"], ["label", "--input", "{f}/base.safetensors"],
    ["label", "--input", "{f}/data", "--model", "no/such-model"], ["label", "--input", "{f}/data", "--output", "x.doc"],
    ["generate"], ["generate", "--base", "{f}/none.safetensors", "--prompt", "x"],
    ["generate", "--base", "{f}/base.safetensors"], ["generate", "--base", "{f}/data/0.png", "--prompt", "x"],
    ["generate", "--base", "{f}/base.safetensors", "--prompt", "x", "--nope"],
    ["generate", "--base", "{f}/base.safetensors", "--prompt", "x", "--steps", "many"],
    ["generate", "--base", "{f}/base.safetensors", "--prompt", "x", "--steps", "0"],
    ["generate", "--base", "{f}/base.safetensors", "--prompt", "x", "--size", "7"],
    ["generate", "--base", "{f}/lora.safetensors", "--prompt", "x"],
    ["inspect"], ["inspect", "{f}/none"], ["inspect", "/dev/null"],
    ["verify"], ["verify", "{f}/none"], ["verify", "{f}/base.safetensors"], ["verify", "{f}/data/0.png"],
    ["merge"], ["merge", "--base", "{f}/none", "{f}/lora.safetensors", "--output", "{f}/m.safetensors"],
    ["merge", "{f}/lora.safetensors:many", "--base", "{f}/base.safetensors", "--output", "{f}/m.safetensors"],
    ["merge", "--base", "{f}/base.safetensors", "--output", "{f}/m.safetensors"],
    ["merge", "--base", "{f}/base.safetensors", "{f}/lora.safetensors"],
    ["combine"], ["combine", "{f}/none"], ["combine", "{f}/base.safetensors", "{f}/lora.safetensors", "--output", "{f}/c"],
    ["extract"], ["extract", "--base", "{f}/none", "--tuned", "{f}/none", "--output", "{f}/e.safetensors"],
    ["resize"], ["resize", "{f}/none", "--rank", "4"], ["resize", "{f}/lora.safetensors", "--rank", "0"],
    ["resize", "{f}/base.safetensors", "--rank", "4", "--output", "{f}/r.safetensors"],
    ["convert"], ["convert", "{f}/none"], ["convert", "{f}/x", "--to", "peft"],
    ["convert", "{f}/lora.safetensors", "--to", "nothing"],
    ["metadata"], ["metadata", "{f}/none"], ["metadata", "{f}/data/0.png"], ["card"], ["card", "{f}/none"],
    ["grid", "--base", "{f}/none", "--loras", "{f}/none"], ["grid", "--base", "{f}/data/0.png"], ["new"], ["new", "nothing"],
    ["evaluate"], ["evaluate", "{f}/none"], ["chat"], ["chat", "{f}/none"], ["unmerge"], ["unmerge", "{f}/none"],
    *(
        [word.replace("{x}", f"{{f}}/{bad}.safetensors") for word in words]
        for bad in ("page", "cut", "no-lora", "no-model")
        for words in (
            ["inspect", "{x}"], ["convert", "{x}", "--to", "peft"], ["verify", "{x}", "--base", "{f}/base.safetensors"],
            ["verify", "{f}/lora.safetensors", "--base", "{x}"], ["resize", "{x}", "--rank", "1", "--output", "{f}/r.safetensors"],
            ["grid", "--base", "{f}/base.safetensors", "--loras", "{x}"], ["grid", "--base", "{x}"], ["card", "{x}"],
            ["generate", "--base", "{x}", "--prompt", "x"], ["metadata", "{x}"],
            ["merge", "{f}/lora.safetensors", "--base", "{x}", "--output", "{f}/m.safetensors"],
        )
        if (bad, words[0]) not in {("no-lora", "inspect"), ("no-lora", "metadata"), ("no-model", "inspect"), ("no-model", "metadata")}
    ),
    ["completion"], ["completion", "dos"], ["demo", "nothing"], ["--nope"], ["train", "train"],
)  # fmt: skip


# --- the answers ------------------------------------------------------------------------------------------------------


def asked(call: Callable[[], Any]) -> dict[str, Any]:
    """What a person sees: exit code, output, errors; or the traceback."""
    from lora_scripts.errors import UserError, UserErrors

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call()
        except UserErrors as errors:
            code = 2
            print(*errors.errors, sep="\n", file=err)
        except UserError as error:
            code = 2
            print(error, file=err)
        except SystemExit as error:
            code = error.code
        except BaseException:
            return {"code": -1, "out": out.getvalue(), "err": traceback.format_exc()}
    return {"code": code, "out": out.getvalue()[:2000], "err": err.getvalue()[:40_000]}


def answers(folder: Path, layers: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(kind, name of the row, what was answered)"""
    from lora_scripts.cli import main
    from lora_scripts.config.schema import TrainConfig
    from lora_scripts.data.scan import scan
    from lora_scripts.families import table
    from lora_scripts.run.configs import load_config

    good = {"train_data_dir": folder / "data", "base_model": folder / "base.safetensors", "output_dir": folder / "out"}
    lines = "".join(f"{key}: {value}\n" for key, value in good.items())
    (folder / "good.yaml").write_text(lines + "resolution: 64\n")
    config = folder / "config.yaml"
    for bad in BAD_VALUES:
        # All keys at once: every fault is told with its line, so that one reading asks for all; who has none asks alone.
        keys = {**dict.fromkeys(good, ""), **dict.fromkeys(TrainConfig.model_fields, bad)}
        config.write_text("".join(f"{key}: {bad}\n" for key in keys))
        answer = asked(lambda: load_config(config) and 0)
        told = answer["err"].splitlines()
        for number, key in enumerate(keys, 1):
            own = [line for line in told if f"config.yaml:{number}: " in line]
            if own:
                yield "config", f"{key}: {bad}", {**answer, "err": "\n".join(own)}
                continue
            config.write_text("".join(f"{k}: {v}\n" for k, v in {**good, key: bad}.items()))

            def value(key: str = key) -> int:
                print(repr(getattr(load_config(config), key)))
                return 0

            yield "config", f"{key}: {bad}", asked(value)
    for name, text in YAML.items():
        config.write_text(text.replace("{good}", lines).replace("{{", "{").replace("}}", "}"), "utf-8")
        yield "yaml", name, asked(lambda: main(["train", "--config", str(config)]))
    for name, data in BYTES.items():
        config.write_bytes(data)
        yield "yaml", name, asked(lambda: main(["train", "--config", str(config)]))
    for number, (name, file, data) in enumerate(pictures()):
        home = folder / "pictures" / str(number)
        home.mkdir(parents=True)
        (home / file).write_bytes(data)
        (home / "x.txt").write_text("a cat")
        yield "picture", name, asked(lambda home=home: len(scan(home)) and 0)
    picture = (folder / "data" / "0.png").read_bytes()
    for number, (name, file, data) in enumerate(captions()):
        home = folder / "captions" / str(number)
        home.mkdir(parents=True)
        (home / "0.png").write_bytes(picture)
        (home / file).write_bytes(data)
        yield "captions", name, asked(lambda home=home: print(*(s.caption for s in scan(home)), sep="\n"))
    model = folder / "x.safetensors"
    for name, data in models((folder / "base.safetensors").read_bytes(), layers):
        model.write_bytes(data)
        yield "model", name, asked(lambda: table.find(model).check(model, True))
    for where, path in paths(folder).items():
        for key in ("train_data_dir", "base_model", "output_dir", "metadata_path"):
            config.write_text("".join(f"{k}: {json.dumps(str(v))}\n" for k, v in {**good, key: path}.items()))
            yield "path", f"{key}: {where}", asked(lambda: main(["train", "--config", str(config)]))
    whole = (folder / "base.safetensors").read_bytes()
    for name, data in {
        "page": b"<!doctype html><html></html>",
        "cut": whole[:-100],
        **{PARTS[name]: data for name, data in models(whole, 1) if name in PARTS},
    }.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    for argv in COMMANDS:
        yield (
            "command",
            " ".join(argv),
            asked(lambda argv=argv: main([part.replace("{f}", str(folder)) for part in argv])),
        )


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]
    for answer in answers(Path(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(answer), flush=True)
