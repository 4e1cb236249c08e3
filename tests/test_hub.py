"""Base models by their name on the hub: a server of the test's own speaks what huggingface_hub asks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import lora_scripts
import tiny
from lora_scripts.config.values import HubName, hub_name, model_fault
from lora_scripts.errors import UserError
from lora_scripts.families import download, on_machine

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """The tree of a repository and its files, from a folder; `asked` has every path."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        repo = "someone/tiny"
        files = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*") if p.is_file()}
        if path == f"/api/models/{repo}":
            rows = [{"rfilename": n, "size": p.stat().st_size, "blobId": "0" * 40} for n, p in files.items()]
            told = {"id": repo, "sha": COMMIT, "siblings": rows}
            self._send(json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/{repo}/resolve/") and (name := path.split("/", 5)[5]) in files:
            data = files[name].read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
        else:
            self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, body, status=404)

    def _send(self, data: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    """Its address, and what it was asked; the repository holds two precisions of one file and a folder's model."""
    folder = tmp_path / "hub"
    folder.mkdir()
    tiny.write_base(folder / "tiny.safetensors")

    class Own(Hub):
        pass

    Own.folder, Own.asked = folder, []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", Own
    http.shutdown()
    http.server_close()


def run(here: Path, endpoint: str, *words: str, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The command, or some code, in a process of its own: huggingface_hub reads its settings once."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    own = {"PYTHONPATH": str(Path(lora_scripts.__file__).parents[1]), "HF_ENDPOINT": endpoint, "HF_HOME": str(here)}
    command = [sys.executable, *(["-c", code] if code else ["-m", "lora_scripts"]), *words]
    return subprocess.run(command, cwd=here, env={**clean, **own, **env}, capture_output=True, text=True)


def test_a_file_is_fetched_once_and_said_before(server: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, own = server
    here = tmp_path / "here"
    tiny.write_pictures(here / "data", 5)
    new = ["new", "mine", "--data", "data", "--base", "hf:someone/tiny/tiny.safetensors"]
    done = run(here, endpoint, *new)
    assert done.returncode == 0, done.stderr
    size = (own.folder / "tiny.safetensors").stat().st_size / 2**20
    said = f"downloading tiny.safetensors of someone/tiny from {endpoint} into models/someone/tiny: {size:.1f} MB, once"
    assert done.stdout.startswith(said)
    local = here / "models" / "someone" / "tiny" / "tiny.safetensors"
    assert local.read_bytes() == (own.folder / "tiny.safetensors").read_bytes()
    text = (here / "configs" / "mine.yaml").read_text("utf-8")
    assert 'base_model: "models/someone/tiny/tiny.safetensors"' in text
    own.asked.clear()
    again = run(here, endpoint, *new[:-1], "hf:someone/tiny/tiny.safetensors", "--output", "b.yaml")
    assert again.returncode == 0 and own.asked == []  # what is there needs no network


def test_what_the_hub_does_not_have_is_one_line(server: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, _ = server
    here = tmp_path / "here"
    tiny.write_pictures(here / "data", 5)
    config = tiny.write_config(here, base_model="hf:someone/tiny/tinny.safetensors")
    for base, wanted in {
        "hf:someone/tiny/tinny.safetensors": "did you mean hf:someone/tiny/tiny.safetensors?",
        "someone/tiny": "someone/tiny is no model in a folder on the hub; name one of its files: hf:someone/tiny/tiny",
        "someone/else": "someone/else is not on this machine, and there is no such model on the hub",
    }.items():
        failed = run(here, endpoint, "train", "--config", str(config), f"base_model={base}")
        assert failed.returncode == 2 and wanted in failed.stderr and failed.stderr.count("\n") == 1, failed.stderr
    offline = run(here, endpoint, "train", "--config", str(config), HF_HUB_OFFLINE="1")
    mend = "hf download someone/tiny tinny.safetensors --local-dir models/someone/tiny, copy that folder here"
    assert "HF_HUB_OFFLINE is set; on a machine with a network run: " + mend in offline.stderr
    assert offline.returncode == 2 and offline.stderr.count("\n") == 1
    nobody = run(here, "http://127.0.0.1:9", "train", "--config", str(config))
    assert "the hub is not reached" in nobody.stderr and nobody.stderr.count("\n") == 1
    wrong = run(here, endpoint, "train", "--config", str(config), "epochs=many")  # the rest is told first
    assert "epochs=many: must be a whole number" in wrong.stderr and "on the hub" not in wrong.stderr


def test_parts_are_fetched_too_and_nothing_for_a_look_at_the_pictures(
    server: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    endpoint, own = server
    here = tmp_path / "here"
    tiny.write_pictures(here / "data", 5)
    keys = {"base_model": "hf:someone/tiny/tiny.safetensors", "vae": "hf:someone/tiny/tiny.safetensors"}
    config = tiny.write_config(here, train_data_dir=here / "data", **keys)
    looked = run(here, endpoint, "check", "--config", str(config))
    assert looked.returncode == 0 and own.asked == [] and not (here / "models").exists(), looked.stderr
    shutil.copy(own.folder / "tiny.safetensors", own.folder / "vae.safetensors")
    # What every command does first, without the command's own imports.
    code = """
import sys
from pathlib import Path
from lora_scripts.errors import UserError
from lora_scripts.run.configs import load_config
for vae in "hf:someone/tiny", "hf:someone/tiny/vae.safetensors", "hf:someone/else/a.safetensors":
    try:
        config = load_config(Path(sys.argv[1]), ["vae=" + vae], lambda event: print(type(event).__name__))
        print(config.base_model.as_posix(), config.vae.as_posix())
    except UserError as error:
        print(error)
"""
    told = run(here, endpoint, str(config), code=code).stdout
    assert "names a whole model; name the file in it, such as hf:someone/tiny/name.safetensors" in told
    assert "models/someone/tiny/tiny.safetensors models/someone/tiny/vae.safetensors" in told
    assert all((here / "models" / "someone" / "tiny" / f"{name}.safetensors").is_file() for name in ("tiny", "vae"))
    assert told.count("Note\n") == 2  # one each, before it is fetched
    assert "vae someone/else is not on this machine" in told and "write vae: models/someone/else" in told


def test_what_is_fetched_of_a_model_in_a_folder() -> None:
    listed = dict.fromkeys(
        [
            *("model_index.json", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "README.md", "unet/config.json"),
            *("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
            *("unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.bin"),
            *("vae/diffusion_pytorch_model-00001-of-00002.safetensors", "safety_checker/model.safetensors"),
            *("vae/diffusion_pytorch_model.safetensors.index.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
            *("vae/diffusion_pytorch_model.fp16.safetensors.index.json", "feature_extractor/config.json"),
        ],
        1,
    )
    assert download._whole(listed, "a/b") == [
        *("tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json"),
        *("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model-00001-of-00002.safetensors"),
        *("vae/diffusion_pytorch_model.safetensors.index.json", "model_index.json"),
    ]
    language = dict.fromkeys(["config.json", "model.safetensors", "tokenizer.json", "onnx/model.onnx", "a/b.json"], 1)
    assert download._whole(language, "a/b") == ["model.safetensors", "tokenizer.json", "config.json"]
    with pytest.raises(UserError, match="it has no "):
        download._whole({"model.ckpt": 1}, "a/b")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:owner/a.b/x y.safetensors", HubName("owner/a.b", "x y.safetensors")),
        ("hf:owner/name/sub/x.safetensors", HubName("owner/name", "sub/x.safetensors")),
        ("hf:owner/name", HubName("owner/name")),
        ("owner/name", HubName("owner/name")),
        ("owner/x.safetensors", None),
        ("./models/x", None),
        ("a/b/c", None),
        ("hf:owner", None),
        ("hf:../../x/y", None),
        ("models/x", None),  # the folder `models` is here, so it is a path
    ],
)
def test_names_and_paths(text: str, name: HubName | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_name(Path(text)) == name


def test_where_no_name_on_the_hub_is_taken_that_is_told() -> None:
    told = model_fault(Path("hf:owner/name/vae.safetensors"), kind="VAE", folder=True)
    assert told is not None and told[0] == "hf:owner/name/vae.safetensors is a name on the hub"


def test_a_webuis_checkpoints_are_found_and_offered(tmp_path: Path) -> None:
    mine = tmp_path / "sd-webui" / "models" / "Stable-diffusion" / "mine.safetensors"
    mine.parent.mkdir(parents=True)
    tiny.write_base(mine)
    broken = tmp_path / "ComfyUI" / "models" / "checkpoints" / "half.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\0" * 100)
    (found,) = on_machine.find([tmp_path])
    assert found.path.name == "mine.safetensors" and found.facts.name == "sd1"
    lines, error = on_machine.no_base([found], "lora-scripts new x --data d")
    assert "(Stable Diffusion 1.x, " in lines[1]
    assert error.hint and error.hint.endswith(f'lora-scripts new x --data d --base "{found.path.as_posix()}"')
    lines, _ = on_machine.no_base([], "")
    assert any("hf:stabilityai/stable-diffusion-xl-base-1.0/sd_xl_base_1.0.safetensors" in line for line in lines)
