"""The rules of the house that can be counted: see docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_scripts.config.schema import NEEDS, TrainConfig
from lora_scripts.config.types import FEATURES
from lora_scripts.families.table import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "lora_scripts"
ROOM = 20
"""Files in one room."""
FAMILY = re.compile(
    r"\bsd[-_ ]?\d|sdxl|stable[-_ ]diffusion|flux|qwen[-_ ]?image|z[-_ ]?image|\bkrea|\banima\b|\bchroma\b|causal_lm",
    re.IGNORECASE,
)
# A WebUI bears the name, and so does one captioner's model; both are programs here, not families.
PROGRAMS = re.compile(
    r"\"CAUSAL_LM\"|stable-diffusion-webui|Stable Diffusion WebUI|sd-webui-additional-networks|sd-scripts"
)
ALIKE = {
    "__init__",
    "command",
    "base",
    "facts",
    "names",
    "model",
    "layout",
    "singlefile",
    "load",
    "skeleton",
    "check",
    "recipes",
    "folder",
    "answers",
}
"""Stems that several rooms have for the same thing: a feature's command, a family's parts, a protocol."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def outside_families() -> Iterator[tuple[Path, int, str]]:
    for path in [*modules(), *PACKAGE.rglob("templates/*")]:
        if "families" not in path.relative_to(PACKAGE).parts:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                yield path.relative_to(PACKAGE), number, line


def test_no_module_outside_families_names_a_family() -> None:
    named = [f"{p}:{n}: {line}" for p, n, line in outside_families() if FAMILY.search(PROGRAMS.sub("", line))]
    assert not named, "\n".join(named)


def test_nothing_below_the_command_line_prints() -> None:
    printing = []
    for path in modules():
        room = path.relative_to(PACKAGE).parts[0]
        if room in ("cli", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    allowed = {"demo/evaluate.py"}  # a program that is started by hand, by `python -m`
    assert not [place for place in printing if place.rpartition(":")[0] not in allowed], printing


def test_no_room_is_crowded() -> None:
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in modules()}}
    crowded = {str(f.relative_to(PACKAGE)): n for f, n in counts.items() if n > ROOM + 1 and f.name != "cli"}
    assert not crowded  # and __init__; cli has one file for each command


def test_a_stem_means_one_thing() -> None:
    """cli and config's keys have a file for each command and group, named as what it is about."""
    places = defaultdict(list)
    for path in modules():
        inside = path.relative_to(PACKAGE)
        mirrors = ("config", "keys"), ("run", "texts")  # the latter has the parts of run/, for texts
        if inside.parts[0] not in ("cli", "adapters") and inside.parts[:2] not in mirrors:
            places[path.stem].append(inside.as_posix())
    twice = {stem: paths for stem, paths in places.items() if len(paths) > 1 and stem not in ALIKE}
    assert not twice


def test_nothing_subclasses_a_run_and_no_function_takes_one() -> None:
    """A run's parts are a frozen holder; only the stories of a run and of a rehearsal, which compose it, take it."""
    takes = set()
    for path in modules():
        if "lora_scripts.run.parts" not in path.read_text("utf-8"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert not any(isinstance(b, ast.Name) and b.id in ("Run", "Parts") for b in node.bases), path
            if isinstance(node, ast.FunctionDef):
                kinds = [a.annotation.id for a in node.args.args if isinstance(a.annotation, ast.Name)]
                if "Parts" in kinds:
                    takes.add(path.relative_to(PACKAGE).as_posix())
    assert takes <= {"run/story.py", "plan/rehearsal.py"}


def test_needs_of_keys_are_known_and_some_family_has_each() -> None:
    assert NEEDS.keys() <= TrainConfig.model_fields.keys()
    assert set(NEEDS.values()) <= FEATURES.keys()
    had = set().union(*(facts.features for facts in FAMILIES))
    assert had == set(FEATURES)


def test_facts_of_families_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from lora_scripts.families import table\n"
        "for facts in table.FAMILIES: facts.names(); facts.base(None)\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr


@pytest.mark.parametrize("facts", FAMILIES, ids=lambda facts: facts.name)
def test_names_of_a_family_are_one_to_one(facts: object) -> None:
    names = facts.names()  # type: ignore[attr-defined]
    for table in (names.kohya, names.original, names.diffusers):
        alone = [stem for stem in table.values() if stem not in names.fused]  # the others are one layer in such a file
        assert len(set(alone)) == len(alone)


def test_the_picture_of_the_house_is_the_one_that_the_imports_draw() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "draw_house.py"), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_mistake_in_the_captions_is_told_without_torch() -> None:
    code = "import sys, lora_scripts.run.preflight as p, lora_scripts.run.configs as c; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "False\n", answer.stderr
