"""A diffusers that is older than the families: what a person is told."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
from packaging.requirements import Requirement

import tiny_anima
import tiny_flux3
import tiny_krea2
import tiny_qwen21
from flow_checks import OPTIONS
from lora_scripts.families.library import LEAST
from lora_scripts.families.table import by_name, load_family
from runs import faults

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
MISSING = "Krea2Transformer2DModel", "Flux3Transformer2DModel", "AnimaTextConditioner", "AutoencoderKLQwenImage21"
"""Of what 0.38.0 has not, one for each place that builds it."""


class Older(ModuleType):
    """diffusers without those classes."""

    __version__ = "0.38.0"

    def __getattr__(self, name: str) -> Any:
        if name in MISSING:
            raise AttributeError(f"module diffusers has no attribute {name}")
        return getattr(diffusers, name)


def test_the_floor_that_is_told_is_the_projects() -> None:
    floors = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["dependencies"])}
    assert floors["diffusers"] == f">={LEAST}"


MADE = {"krea2": tiny_krea2, "flux3": tiny_flux3, "anima": tiny_anima, "qwen_image21": tiny_qwen21}


@pytest.mark.parametrize(("name", "missing"), list(zip(MADE, MISSING, strict=True)))
def test_a_class_that_the_installed_diffusers_has_not_is_one_line(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = MADE[name]
    base = made.write_base(tmp_path / "base.safetensors")
    options = replace(OPTIONS, **made.beside(base.parent))
    monkeypatch.setitem(sys.modules, "diffusers", Older("diffusers"))
    told = faults(lambda: load_family(by_name(name), base, options).encode_text(["hello"]))
    assert told == f"this needs diffusers >= {LEAST}: 0.38.0 has no {missing}; pip install -U diffusers"
