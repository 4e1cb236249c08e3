"""Every fault point of every write: a kill, a full disk, a broken disk, short writes, power that goes.

After each of them there is the old or the new version, whole, a fault is told as a line with a file, and the next start
leaves no litter. What was reported as written is there even if the power goes in the next moment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from disks import every_fault, with_fault
from lora_scripts.check import fix
from lora_scripts.data.cache import Cache, cache_key
from lora_scripts.data.captions import read_metadata
from lora_scripts.errors import UserError
from lora_scripts.events import ignore
from lora_scripts.formats import io
from lora_scripts.formats.manifest import damage
from lora_scripts.label.store import open_store
from lora_scripts.loras import file as loras
from lora_scripts.run.pivotal import save_words
from lora_scripts.run.run_folder import RunFolder, step_of
from lora_scripts.train import state as states
from lora_scripts.train.progress import Board
from lora_scripts.train.state import RunState

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@dataclass(frozen=True)
class Write:
    """One thing that is written."""

    before: Callable[[Path], object]
    """What is there before."""
    act: Callable[[Path], object]
    seen: Callable[[Path], str]
    """ "old" or "new"; an error where it is neither, whole."""
    start: Callable[[Path], object] = io.remove_stale_temps
    """What clears at the next start."""
    lasting: bool = True
    """Not so what is only saved time: where power goes at once, it may be gone."""


# --- what is written --------------------------------------------------------------------------------------------------


def _state(folder: Path, step: int, value: float) -> None:
    p = torch.nn.Parameter(torch.full((4, 4), value))
    optimizer = torch.optim.AdamW([p])
    p.grad = torch.ones(4, 4)
    optimizer.step()
    run = RunFolder(folder, "x")
    io.make_folder(run.states)
    io.write_folder(run.state(step), states.pack(RunState(step, 9, {}, {}, {}), {"p": p}, optimizer))
    run.prune_states(1, ignore)


def _step_seen(folder: Path) -> str:
    newest = RunFolder(folder, "x").newest_state()
    assert newest is not None and damage(newest) == ""
    state, weights, moments = states.unpack(newest)
    assert state.step == step_of(newest) and weights["p"].shape == moments[0]["exp_avg"].shape
    return "old" if state.step == 2 else "new"


def _again_seen(folder: Path) -> str:
    assert damage(folder / "state" / "step-00000002") == ""
    value = float(load_file(folder / "state" / "step-00000002" / "lora.safetensors")["p"][0, 0])
    return "old" if value < 1.5 else "new"


def _locked(folder: Path) -> None:
    with RunFolder(folder, "x").locked():
        pass


def _lora(folder: Path, value: float) -> None:
    path = folder / "x.safetensors"
    save_words({"wort": torch.full((1, 8), value)}, (8,), path)
    loras.save(path, {"a": torch.full((64, 8), value), "b": torch.full((3,), value)}, {"v": str(value)})


def _lora_seen(folder: Path) -> str:
    """A LoRA that is new has its new words."""
    values = [t.unique().tolist() for t in load_file(folder / "x.safetensors").values()]
    (word,) = _words(folder)
    assert values in ([[1.0], [1.0]], [[2.0], [2.0]]) and word in (1.0, 2.0)
    assert not (values[0] == [2.0] and word == 1.0)
    return "old" if values[0] == [1.0] else "new"


def _words(folder: Path) -> list[float]:
    found = [path for path in folder.rglob("*.safetensors") if path.parent != folder]
    return [float(next(iter(load_file(path).values())).unique()) for path in found]


KEY = cache_key("faults", 1)


def _cached(folder: Path) -> str:
    entry = Cache(folder / "cache", io.write_atomic).get(KEY)
    if entry is None:
        return "old"
    assert torch.equal(entry["x"], torch.arange(5000.0))
    return "new"


OLD_TABLE = "filename,prompt\r\na.png,one\r\nb.png,two\r\n"


def _table(folder: Path) -> None:
    (folder / "metadata.csv").write_text(OLD_TABLE, newline="")


def _label(folder: Path) -> None:
    store = open_store(None, folder, {"a.png": folder / "a.png", "c.png": folder / "c.png"})
    store.put("c.png", "three")
    store.flush()


def _table_seen(folder: Path) -> str:
    text = (folder / "metadata.csv").read_bytes().decode()
    assert text in (OLD_TABLE, OLD_TABLE + "c.png,three\r\n")
    return "old" if text == OLD_TABLE else "new"


def _sidecar(folder: Path) -> None:
    store = open_store("txt", folder, {"a.png": folder / "a.png"})
    store.put("a.png", "new words")
    store.flush()


def _sidecar_seen(folder: Path) -> str:
    text = (folder / "a.txt").read_text()
    assert text in ("old words", "new words\n")
    return text[:3]


def _data(folder: Path) -> None:
    """Two pictures, one of which is set aside with its sidecar, and a table that loses a row and gets a comma right."""
    (folder / "data").mkdir()
    for number, name in enumerate("ab"):
        Image.new("L", (8, 8), number).save(folder / "data" / f"{name}.png")
    (folder / "data" / "b.txt").write_text("two, twice")
    _table(folder / "data")


def _mend(folder: Path) -> None:
    data, side = folder / "data", folder / "data-set-aside"
    moves = {data / f"b{suffix}": side / f"b{suffix}" for suffix in (".txt", ".png")}
    moves = {source: target for source, target in moves.items() if source.exists() or not target.exists()}
    changes = {data / "metadata.csv": {2: "one, one", 3: None}}
    fix.apply(fix.Mend(side, moves, {"b.png": "two"}, changes), data)


def _mended(folder: Path) -> str:
    """Nothing is lost at any moment: each file is in one place or, moved to another disk, in both."""
    data, side = folder / "data", folder / "data-set-aside"
    for name, content in (("b.txt", b"two, twice"), ("b.png", None)):
        there = [path for path in (data / name, side / name) if path.exists()]
        assert there and all(content in (None, path.read_bytes()) for path in there)
    assert np.asarray(Image.open(data / "a.png")).max() == 0
    text = (data / "metadata.csv").read_bytes().decode()
    assert text in (OLD_TABLE, 'filename,prompt\r\na.png,"one, one"\r\n')
    if text != OLD_TABLE:
        assert (data / "metadata.csv.bak-1").read_bytes().decode() == OLD_TABLE
        faults: list[UserError] = []
        assert read_metadata(side / "captions.csv", faults)["b.png"].text == "two" and not faults
    return "new" if (side / "b.png").exists() and not (data / "b.png").exists() else "old"


def _mend_start(folder: Path) -> None:
    for inside in (folder / "data", folder / "data-set-aside"):
        io.remove_stale_temps(inside)


def _text_seen(name: str) -> Callable[[Path], str]:
    def seen(folder: Path) -> str:
        text = (folder / name).read_text()
        assert text in ("old" * 99, "new" * 999)
        return text[:3]

    return seen


def _next_write(folder: Path) -> None:
    """A command that clears nothing itself: the first write into a folder does."""
    io._CLEARED.clear()
    io.write_text(folder / "other.html", "")


def _picture_seen(folder: Path) -> str:
    image = Image.open(folder / "samples" / "x.png")
    image.load()
    assert image.size in ((9, 9), (32, 32))
    return "old" if image.size == (9, 9) else "new"


WRITES = {
    "a new state, and the old one goes": Write(
        lambda f: _state(f, 2, 1.0), lambda f: _state(f, 4, 2.0), _step_seen, _locked
    ),
    "a state over itself": Write(lambda f: _state(f, 2, 1.0), lambda f: _state(f, 2, 2.0), _again_seen, _locked),
    "who holds the lock": Write(
        lambda f: (f / "keep").write_text("old"), _locked, lambda f: "new" if (f / "keep").exists() else "lost", _locked
    ),
    "a LoRA and its word": Write(lambda f: _lora(f, 1.0), lambda f: _lora(f, 2.0), _lora_seen, _locked),
    "an entry of the cache": Write(
        lambda f: None,
        lambda f: Cache(f / "cache", io.write_atomic).put(KEY, {"x": torch.arange(5000.0)}),
        _cached,
        lambda f: [io.remove_stale_temps(inside) for inside in (f / "cache").glob("??")],
        lasting=False,
    ),
    "a caption in a table": Write(_table, _label, _table_seen, lambda f: open_store(None, f, {})),
    "a caption beside its picture": Write(
        lambda f: (f / "a.txt").write_text("old words"),
        _sidecar,
        _sidecar_seen,
        lambda f: open_store("txt", f, {"a.png": f / "a.png"}),
    ),
    "the mends of check --fix": Write(_data, _mend, _mended, _mend_start),
    "a page": Write(
        lambda f: (f / "report.html").write_text("old" * 99),
        lambda f: io.write_text(f / "report.html", "new" * 999),
        _text_seen("report.html"),
        _next_write,
    ),
    "a file that is changed by convert or combine": Write(
        lambda f: loras.save(f / "a.safetensors", {"a": torch.zeros(9)}, {}),
        lambda f: loras.save(f / "a.safetensors", {"a": torch.ones(9)}, {}),
        lambda f: "new" if load_file(f / "a.safetensors")["a"].sum() else "old",
        _next_write,
    ),
    "a picture": Write(
        lambda f: io.save_png(f / "samples" / "x.png", Image.new("RGB", (9, 9))),
        lambda f: io.save_png(f / "samples" / "x.png", Image.new("RGB", (32, 32))),
        _picture_seen,
        _locked,
    ),
    "a folder in a folder": Write(
        lambda f: io.write_folder(f / "adapter", {"a": b"old" * 99, "s/b": b"old" * 99}),
        lambda f: io.write_folder(f / "adapter", {"a": b"new" * 999, "s/b": b"new" * 999}),
        lambda f: "".join({_text_seen("adapter/a")(f), _text_seen("adapter/s/b")(f)}),
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_every_fault_point_leaves_the_old_or_the_new_version_whole(name: str, tmp_path: Path) -> None:
    write, folder, seen = WRITES[name], tmp_path / "run", set()
    (tmp_path / "before").mkdir()
    write.before(tmp_path / "before")
    _fresh(tmp_path, folder)
    calls = with_fault(lambda: write.act(folder), "none", 0).calls
    assert write.seen(folder) == "new" and len(calls) >= 6
    for fault, nth in every_fault(calls):
        _fresh(tmp_path, folder)
        ended = with_fault(lambda: write.act(folder), fault, nth)
        where = f"{fault} at call {nth} of {calls}: {ended}"
        assert not ended.told or str(tmp_path) in ended.told, where
        write.start(folder)
        there = write.seen(folder)
        assert there == "new" or (there == "old" and (ended.died or ended.told or not write.lasting)), where
        assert not list(folder.rglob(".lora-scripts-*")), where
        seen.add((there, ended.died, bool(ended.told)))
    assert ("new", False, False) in seen and any(one[1] for one in seen) and any(one[2] for one in seen)


def _fresh(tmp_path: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "before", folder)


def test_curves_that_were_cut_off_anywhere_are_read_up_to_there(tmp_path: Path) -> None:
    """The one file that is appended: a kill, or power that goes, leaves any part of its last record."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path / "logs", 0, lambda event: None)
    for step in range(1, 4):
        board.scalars(step, {"x": float(step)})
        (file,) = (tmp_path / "logs").iterdir()
        if step == 2:
            size = file.stat().st_size
    whole = file.read_bytes()
    for end in range(size, len(whole)):
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / file.name).write_bytes(whole[:end])
        seen = EventAccumulator(str(tmp_path / "cut"))
        seen.Reload()
        assert [(e.step, e.value) for e in seen.Scalars("x")] == [(1, 1.0), (2, 2.0)]
