"""What may not be another between the start of a run and its resume: refused by name, or told, or done anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

import tiny
import tiny_zimage
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.run import resume as resuming
from lora_scripts.run import story
from lora_scripts.train import state as states
from runs import stopped

KEYS = {
    **{"targets": "['*.mid_block.*attn2*']", "batch_size": 2, "epochs": 4, "save_steps": 100},
    **{"val_split": 0, "class_prompt": "a gradient", "lora_alpha": 1, "caption_dropout": 0.1},
}


def _redraw(path: Path) -> None:
    image = Image.open(path)
    image.load()
    ImageOps.invert(image.convert("RGB")).save(path)


def _add(folder: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "data" / "new.png")
    with (folder / "data" / "metadata.csv").open("a") as file:
        file.write("new.png,a new one\n")
    shutil.copy(folder / "masks" / "0.png", folder / "masks" / "new.png")


def _remove(folder: Path) -> None:
    (folder / "data" / "2.png").unlink()
    _captions(folder, '2.png,"picture 2, a gradient, round 2"\n', "")


def _captions(folder: Path, old: str, new: str) -> None:
    path = folder / "data" / "metadata.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _rename(folder: Path) -> None:
    for where in ("data", "masks"):
        (folder / where / "2.png").rename(folder / where / "9.png")
    _captions(folder, "2.png", "9.png")


def _swap(folder: Path) -> None:
    one, two = (folder / "data" / f"{n}.png" for n in (1, 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _another_base(folder: Path) -> None:
    path = folder / "base.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # one bit of the last tensor
    path.unlink()  # the one that was linked stays as it was
    path.write_bytes(data)


def _vae(folder: Path) -> None:
    tiny.models(seed=3)[1].save_pretrained(folder / "vae")


REFUSED: dict[str, tuple[Callable[[Path], object] | None, list[str], str]] = {
    # what changes: how, keys, what is named
    "a picture is drawn over": (lambda f: _redraw(f / "data" / "1.png"), [], "1.png"),
    "two pictures are swapped": (_swap, [], "1.png, 2.png"),
    "a picture comes": (_add, [], "new.png"),
    "a picture goes": (_remove, [], "2.png"),
    "a picture has another name": (_rename, [], "2.png, 9.png"),
    "a caption": (lambda f: _captions(f, "round 1", "square"), [], "1.png"),
    "a letter of a caption": (lambda f: _captions(f, "round 3", "Round 3"), [], "3.png"),
    "a mask": (lambda f: Image.new("L", (64, 64), 200).save(f / "masks" / "0.png"), [], "mask of 0.png"),
    "no masks any more": (None, ["mask_dir=null"], "mask of 0.png"),
    "a class picture": (lambda f: _redraw(f / "class" / "1.png"), [], "class/1.png"),
    "the base, by a bit": (_another_base, [], "base_model"),
    "another VAE": (_vae, ["vae={f}/vae"], "vae"),
    "a LoRA to begin with": (None, ["init_lora={f}/start/start-step000001.safetensors"], "init_lora"),
    "rank": (None, ["lora_rank=3"], "lora_rank: 2 -> 3"),
    "alpha": (None, ["lora_alpha=2"], "lora_alpha: 1.0 -> 2.0"),
    "resolution": (None, ["resolution=[64,72]"], "resolution: "),
    "learning rate": (None, ["learning_rate=0.02"], "learning_rate: 0.01 -> 0.02"),
    "seed": (None, ["seed=43"], "seed: 42 -> 43"),
    "batch": (None, ["batch_size=1"], "batch_size: 2 -> 1"),
    "epochs": (None, ["epochs=5"], "epochs: 4 -> 5"),
    "optimizer": (None, ["optimizer=adafactor"], "optimizer: adamw -> adafactor"),
    "which layers": (None, ["targets=['*.mid_block.*attn1*']"], "targets: "),
    "caption dropout": (None, ["caption_dropout=0.2"], "caption_dropout: 0.1 -> 0.2"),
    "precision": (None, ["precision=bf16"], "precision: fp32 -> bf16"),
    "how the base is kept": (None, ["base_precision=int8"], "base_precision: auto -> int8"),
}


def _touch(folder: Path) -> None:
    for path in (folder / "data").iterdir():
        os.utime(path, (1, 1))


def _damage_cache(folder: Path) -> None:
    entries = sorted((folder / "out" / "cache").rglob("*.safetensors"))
    for path in entries[::2]:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


def _move(folder: Path) -> None:
    (folder / "data").rename(folder / "elsewhere")
    (folder / "masks").rename(folder / "other masks")


REDONE: dict[str, tuple[Callable[[Path], object] | None, list[str]]] = {
    "no cache": (lambda f: shutil.rmtree(f / "out" / "cache"), []),
    "a damaged cache": (_damage_cache, []),
    "other times of the files, and another place": (
        lambda f: (_touch(f), _move(f)),
        ["train_data_dir={f}/elsewhere", "mask_dir={f}/other masks", "sample_steps=2", "save_steps=7", "keep_last=1"],
    ),
}


@pytest.fixture(scope="module")
def begun(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at its second step, with masks and class pictures; and one that went to the third."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copy(base, folder / "base.safetensors")
    tiny.write_pictures(folder / "data", 4)
    tiny.write_pictures(folder / "class", 2, size=(72, 64))
    (folder / "masks").mkdir()
    for n in range(4):
        Image.radial_gradient("L").resize((64, 64)).rotate(90 * n).save(folder / "masks" / f"{n}.png")
    tiny.write_config(folder, mask_dir=folder / "masks", class_data_dir=folder / "class", **KEYS)
    stopped(folder / "config.yaml", 1, f"output_dir={folder / 'start'}")
    stopped(folder / "config.yaml", 3, f"output_dir={folder / 'unbroken'}")
    stopped(folder / "config.yaml", 2)
    return folder


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(begun, folder, ignore=shutil.ignore_patterns("base.safetensors"))
    os.link(begun / "base.safetensors", folder / "base.safetensors")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(folder)))
    return folder


BUILT: dict[Any, Any] = {}


def _built(real: Callable[..., Any]) -> Callable[..., Any]:
    """A model that is refused was not touched: the next may have it, if it would be made of the same."""

    def build(config: Any, *rest: Any) -> Any:
        stat = config.base_model.stat()
        made_of = (stat.st_ino, stat.st_mtime_ns, config.vae, config.init_lora, config.lora_rank, config.lora_alpha)
        key = (*made_of, str(config.targets), config.optimizer, config.base_precision, *map(str, rest[:2]))
        if key not in BUILT:
            BUILT[key] = real(config, *rest)
        return BUILT[key]

    return build


@pytest.mark.parametrize("name", REFUSED)
def test_a_change_is_refused_by_name_and_touches_nothing(
    name: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, keys, named = REFUSED[name]
    if change is not None:
        change(copy)
    monkeypatch.setattr(story, "build_model", _built(story.build_model))
    state = copy / "out" / "state"
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert main(["train", "--config", str(copy / "config.yaml"), "--resume", *(k.format(f=copy) for k in keys)]) == 2
    told = capsys.readouterr().err
    assert "cannot resume exactly, because something changed: " in told and told.count("\n") == 1
    changed = told.partition("changed: ")[2].partition("; undo that")[0]
    assert named in changed
    others = {other[2] for other in REFUSED.values()} - {named}
    assert not any(f" {other}" in f" {changed}" for other in others if other not in named and " -> " in other)
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", REDONE)
def test_what_can_be_done_anew_is_and_the_run_goes_on_exactly(name: str, copy: Path, begun: Path) -> None:
    change, keys = REDONE[name]
    if change is not None:
        change(copy)
    stopped(copy / "config.yaml", 3, *(key.format(f=copy) for key in keys), resume=True)
    for file in ("lora.safetensors", "optimizer.safetensors"):
        mine, theirs = (f / "state" / "step-00000003" / file for f in (copy / "out", begun / "unbroken"))
        assert mine.read_bytes() == theirs.read_bytes()


def test_versions_threads_and_device_are_told(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = resuming.versions
    monkeypatch.setattr(resuming, "versions", lambda: {**versions(), "diffusers": "0.99.1", "python": "3.99"})
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        stopped(copy / "config.yaml", 3, resume=True)
    finally:
        torch.set_num_threads(threads)
    told = " ".join(capsys.readouterr().out.split())
    for what in ("diffusers: ", "python: ", f"threads: {threads} -> {threads + 1}"):
        assert f"note: since the run began, {what}" in told


def test_a_state_of_another_run_is_refused(copy: Path) -> None:
    """Its folder is copied over, whole by its manifest."""
    found = copy / "out" / "state" / "step-00000002"
    shutil.rmtree(found)
    shutil.copytree(copy / "start" / "state" / "step-00000001", found)
    state = json.loads((found / "run.json").read_text())
    state["config"]["seed"] = 1
    files: dict[str, Any] = {path.name: [path.read_bytes()] for path in found.iterdir() if path.name != "manifest.json"}
    files["run.json"] = [json.dumps(state).encode()]
    for name, pieces in states.with_manifest(files).items():
        (found / name).write_bytes(b"".join(pieces))
    with pytest.raises(UserError, match=r"something changed: seed: 1 -> 42; undo that"):
        stopped(copy / "config.yaml", 3, resume=True)


def test_another_text_encoder_beside_the_base_is_refused_wherever_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is not trained: what it makes of the captions decides the weights. Another place is no other one."""
    base, data = tiny_zimage.write_base(tmp_path / "base.safetensors"), tiny.write_pictures(tmp_path / "data", 2)
    where = tmp_path / "text" / "qwen_3_4b.safetensors"
    keys = {"targets": "['*layers.0.*to_q']", "vae": tmp_path / "ae.safetensors", "text_encoder": [where]}
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, epochs=3, **keys)
    stopped(config, 1)
    whole = where.read_bytes()
    flipped = bytearray(whole)
    flipped[-2] ^= 1
    where.write_bytes(flipped)
    assert main(["train", "--config", str(config), "--resume"]) == 2
    assert "because something changed: text_encoder; undo that" in capsys.readouterr().err
    where.write_bytes(whole)
    (tmp_path / "text").rename(tmp_path / "other")
    stopped(config, 2, f"text_encoder=[{tmp_path / 'other' / where.name}]", resume=True)
    run = tmp_path / "out" / "state" / "step-00000002" / "run.json"
    assert json.loads(run.read_text())["data"].keys() == {
        "base_model",
        "vae",
        "text_encoder",
        "init_lora",
        "0.png",
        "1.png",
    }
