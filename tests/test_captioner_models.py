"""Which model is meant, what is wrong with it, and which options fit: before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
from safetensors.numpy import save_file

from conftest import offline
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.label import base
from lora_scripts.label.base import CaptionOptions, check_options, require_model

COMMIT = "0123456789012345678901234567890123456789"


def write_model(folder: Path, **config: Any) -> Path:
    """The files of a captioner; nothing in them is loaded here."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "blip", **config}), encoding="utf-8")
    (folder / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    save_file({}, folder / "model.safetensors")
    return folder


def refused(model: object, captioner: str | None = None) -> str:
    with offline(), pytest.raises(UserError) as caught:
        require_model(str(model), captioner)
    lines = str(caught.value).splitlines()
    assert len(lines) == (len(caught.value.errors) if isinstance(caught.value, UserErrors) else 1)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("blip", "blip"), ("blip-2", "blip2"), ("florence2", "florence2"), ("qwen3_vl", "qwen-vl"), ("llava", "llava")],
)
def test_the_captioner_is_found_from_the_config(model_type: str, name: str, tmp_path: Path) -> None:
    eyes = {"model_type": "siglip_vision_model"}
    folder = write_model(tmp_path / "it", model_type=model_type, image_token_index=5, vision_config=eyes)
    with offline():
        assert require_model(str(folder), None) == (folder, name) == require_model(str(folder), name)
    other = "blip" if name != "blip" else "llava"
    assert f"is a model for the captioner {name} ({model_type}), not for {other}" in refused(folder, other)


def test_every_captioner_has_its_module() -> None:
    assert set(base.MODEL_TYPES.values()) | {"wd"} == set(base.CAPTIONERS)
    for module in base.CAPTIONERS.values():
        assert (Path(base.__file__).parent / f"{module.rsplit('.', 1)[1]}.py").is_file()


def test_nothing_heavy_is_imported_before_a_model_is_loaded(tmp_path: Path) -> None:
    write_model(tmp_path / "it")
    code = (
        "import sys\nfrom lora_scripts.label.base import *\n"
        f"require_model({str(tmp_path / 'it')!r}, None)\n"
        "try: check_options('blip', CaptionOptions(instruction='x'))\nexcept Exception as fault: print(fault)\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL', 'onnxruntime') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.endswith("\n[]\n") and "does not take this instruction" in answer.stdout, answer.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "vit"}, 'model_type "vit", which no captioner here is for; known are blip, blip-2'),
        ({"model_type": "florence2", "auto_map": {}}, "runs code of its own; use the same model for transformers: "),
        ({"model_type": "blip-2"}, "config.json: has no image_token_index"),
        ({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}, 'vision tower "pixtral" is not known'),
        ({"quantization_config": {"quant_method": "awq"}}, "its weights are quantised"),
    ],
)
def test_models_that_do_not_work_here(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refused(write_model(tmp_path / "it", **config))


def test_missing_and_damaged_files_are_told_at_once(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "it")
    for name in ("vocab.txt", "preprocessor_config.json", "model.safetensors"):
        (folder / name).unlink()
    told = refused(folder)
    for words in ("there is no model.safetensors", "its tokenizer is missing", "its image preprocessor is missing"):
        assert words in told
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "its weights are a pickle (pytorch_model.bin), which can run code" in refused(folder)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused(folder)
    (folder / "config.json").write_text("[1]")
    assert "config.json: is not a JSON object" in refused(folder)
    (folder / "config.json").unlink()
    assert "is no captioner: there is no config.json in it" in refused(folder)
    (folder / "model_index.json").write_text("{}")
    assert "is a model that paints" in refused(folder)


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "it")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}))
    assert f"{shards[1]}: no such file" in refused(folder)
    save_file({}, folder / shards[1])
    assert require_model(str(folder), None) == (folder, "blip")
    index.write_text("{}")
    assert "is not an index of weights" in refused(folder)


def test_models_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "is a pickle file" in refused(tmp_path / "model.bin")
    assert "is a file, not a folder" in refused(tmp_path / "model.onnx")
    assert "there is no such folder; give the folder of a captioner" in refused(tmp_path / "nothing")
    assert "no selected_tags.csv" in refused(tmp_path)
    assert 'there is no captioner "blib"; did you mean blip' in refused(tmp_path, "blib")


def test_a_tagger_needs_its_onnx_file_and_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,count\n")
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    told = refused(tmp_path)
    assert "there is no .onnx file" in told and "WD taggers need onnxruntime; pip install onnxruntime" in told


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("blip", {"instruction": "Say it."}, "blip does not take this instruction; leave it out"),
        ("wd", {"instruction": "Say it."}, "wd does not take this instruction"),
        ("florence2", {"instruction": "<OD>"}, "it knows <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>"),
        ("llava", {"instruction": " "}, "the instruction is empty"),
        ("blip", {"general_threshold": 0.5}, "general threshold: does nothing with the captioner blip"),
        ("wd", {"beams": 1, "max_new_tokens": 9}, "max new tokens: does nothing with the captioner wd"),
    ],
)
def test_options_that_do_nothing_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_options(name, CaptionOptions(**options))
    check_options(name, CaptionOptions())


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    def __init__(self, folder: Path, asked: list[str], *args: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "some", "blip"]:
            rows = [
                {"type": "file", "path": p.relative_to(self.folder).as_posix(), "size": p.stat().st_size, "oid": p.name}
                for p in self.folder.rglob("*.*")
            ]
            answer = {"id": "some/blip", "sha": COMMIT, "siblings": []} if parts[4] == "revision" else rows
            self.reply(json.dumps(answer).encode(), "application/json")
        elif parts[:3] == ["some", "blip", "resolve"]:
            if self.command == "GET":
                self.asked.append(parts[-1])
            self.reply((self.folder / "/".join(parts[4:])).read_bytes(), "application/octet-stream")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def reply(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        for key, value in (("Content-Type", kind), ("ETag", f'"{hash(body):x}"'), ("X-Repo-Commit", COMMIT)):
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that nobody answers at."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that has the model some/blip; the names of the files that were fetched."""
    folder, asked = write_model(tmp_path / "published"), []
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (write_model(folder / "onnx") / "other.json").write_text('"of a subfolder"')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = hub_constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/", 3)[3]
    monkeypatch.setattr(hub_constants, "ENDPOINT", address)
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{template}")
    yield asked
    server.shutdown()
    server.server_close()


def fetch_hint(model: str) -> str:
    folder = f"models/{model.split('/')[1]}"
    return (
        f"; on a machine with a network run: hf download {model} --local-dir {folder}, copy that folder here, and give "
        f"--model {folder}"
    )


def test_a_model_is_downloaded_once_and_only_what_is_needed(hub: list[str], cache: Path) -> None:
    folder, name = require_model("some/blip", None)
    assert name == "blip" and folder == cache / "models--some--blip" / "snapshots" / COMMIT
    assert sorted(hub) == ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt"]
    assert require_model("some/blip", None)[0] == folder and len(hub) == 4
    with offline():  # from the cache without a socket
        assert require_model("some/blip", None) == (folder, "blip")


def test_a_model_that_fits_no_captioner_is_refused_before_its_weights_are_fetched(
    hub: list[str], tmp_path: Path
) -> None:
    (tmp_path / "published" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match='model_type "vit"'):
        require_model("some/blip", None)
    assert "model.safetensors" not in hub


def test_a_model_that_the_hub_does_not_have(hub: list[str]) -> None:
    with pytest.raises(UserError, match="no such model on the hub, or it wants a login"):
        require_model("some/other", None)


def test_without_a_network_one_line_says_how_to_get_the_model(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        require_model(base.DEFAULT_MODEL, None)
    told = str(caught.value)
    assert "\n" not in told and told.startswith(f"model {base.DEFAULT_MODEL}: neither a folder here nor in the local")
    assert told.endswith(fetch_hint(base.DEFAULT_MODEL)) and "Connection refused" in told


def test_offline_mode_opens_no_socket(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    told = refused(base.DEFAULT_MODEL)
    assert "(HF_HUB_OFFLINE is set)" in told and told.endswith(fetch_hint(base.DEFAULT_MODEL))


def test_half_a_model_in_the_cache_is_completed_or_told(cache: Path) -> None:
    model = cache / "models--some--blip"
    write_model(model / "snapshots" / COMMIT)
    (model / "snapshots" / COMMIT / "model.safetensors").unlink()
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    with pytest.raises(UserError):
        require_model("some/blip", None)


def test_a_mistyped_folder_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "there is no such folder" in refused(os.path.join("models", "blib"))
