"""What tests share: one thread, one tiny base model, one finished run of it."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: with two workers, more threads than one each only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the terminal says is compared in English, whatever the system speaks.
os.environ["LORA_SCRIPTS_LANG"] = "en"
# Its checks assert for five test files, and are to say with which numbers, as those do.
pytest.register_assert_rewrite("flow_checks")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="the rows that take long and show little that others do not")


LONGEST = (
    "families_life",
    "resume",
    "plan",
    "validate",
    "shortage",
    "text_run",
    "memory",
    "training",
    "demo",
    "adapters",
)
"""Files that begin first, so that in the end no worker waits for one of them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(
            reason="it takes long and shows little that others do not: python3 start.py test --slow"
        )
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of circles need not walk through it again and again, half a million
    objects each time, and comes less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


class NoSocket(socket.socket):
    """A socket that nobody may open."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within it, opening a socket raises."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", NoSocket)
        patch.setattr(socket, "create_connection", NoSocket)
        patch.setattr(socket, "getaddrinfo", NoSocket)
        yield


@dataclass(frozen=True)
class Finished:
    """A run that is done. Copy `folder` before changing anything in it."""

    config: Path
    folder: Path
    told: str
    """What it printed."""

    @property
    def lora(self) -> Path:
        return self.folder / f"{self.folder.name}.safetensors"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Stable Diffusion 1.x as one LDM file, float32."""
    import tiny

    return tiny.write_base(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a base fails."""

    def loads(*told: Any) -> Any:
        raise AssertionError("a base was loaded")

    monkeypatch.setattr("lora_scripts.families.table.load_pictures", loads)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end with their file: no proof, no pictures."""
    from lora_scripts.run import story
    from runs import only_the_file

    monkeypatch.setattr(story, "finish", only_the_file)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of 64 x 64 with captions."""
    import tiny

    return tiny.write_pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="session")
def family(base: Path) -> Any:
    """The base, loaded in float32. Take off what you put on."""
    import torch

    from lora_scripts.families.base import LoadOptions
    from lora_scripts.families.table import by_name, load_family

    return load_family(by_name("sd1"), base, LoadOptions(torch.device("cpu"), torch.float32))


@pytest.fixture(scope="session")
def finished(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Six steps in float32, alpha unlike the rank, trained through the command line without a network."""
    import tiny
    from lora_scripts.cli import main

    folder = tmp_path_factory.mktemp("finished")
    keys = {"save_steps": 1, "keep_last": 2, "lora_alpha": 1, "warmup_steps": 2, "sample_every": 4}
    keys |= {"val_split": "null"}
    config = tiny.write_config(folder, base_model=base, train_data_dir=data, output_dir=folder / "mylora", **keys)
    told = io.StringIO()
    with offline(), contextlib.redirect_stdout(told):
        assert main(["train", "--config", str(config)]) == 0
    return Finished(config, folder / "mylora", told.getvalue())
