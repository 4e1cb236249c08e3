"""The project's own files agree with each other and with the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lora_scripts
from lora_scripts.config.schema import TrainConfig

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
READMES = ("README.md", "README.zh-CN.md")
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))
WITH_LINKS = (*READMES, "CONTRIBUTING.md", "CHANGELOG.md", *DOCS)
HOLES = {"torch": "2.10", "transformers": "5.3", "diffusers": "0.38", "pillow": "12.2"}
"""Lowest versions without known security holes."""


def lock(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text("utf-8").replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if line and not line.startswith(("#", "-r")):
            requirement, *hashes = line.split(" --hash=")
            assert all(re.fullmatch("sha256:[0-9a-f]{64}", one.strip()) for one in hashes)
            assert hashes or name == "requirements-torch.lock", f"{requirement} has no hash"
            found.append(Requirement(requirement))
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pinned(requirement: Requirement) -> str:
    assert re.fullmatch(r"==[0-9.]+", str(requirement.specifier)), requirement  # exact, and no local version
    return str(requirement.specifier)[2:]


def test_locks_pin_everything_and_fit_the_ranges() -> None:
    runtime, test = lock("requirements.lock") | lock("requirements-torch.lock"), lock("requirements-test.lock")
    assert not runtime.keys() & test.keys()
    assert pinned(runtime["torch"]) == "2.13.0" and "torchvision" not in runtime | test
    project = PROJECT["project"]
    for wanted in map(Requirement, project["dependencies"]):
        assert wanted.specifier.contains(pinned(runtime[canonicalize_name(wanted.name)])), wanted
    for wanted in map(Requirement, project["optional-dependencies"]["test"]):
        assert wanted.specifier.contains(pinned(test[canonicalize_name(wanted.name)])), wanted


def test_the_runtime_lock_is_closed() -> None:
    """Whatever a locked package needs on this system is locked too, so that nothing floats."""
    runtime = lock("requirements.lock") | lock("requirements-torch.lock")
    for name, requirement in runtime.items():
        if requirement.marker and not requirement.marker.evaluate():
            continue
        for needed in map(Requirement, requires(name) or []):
            if "extra" in str(needed.marker or "") or (needed.marker and not needed.marker.evaluate()):
                continue
            # torch pins its GPU libraries itself, exactly, and they differ from system to system
            if name == "torch" and (re.match("nvidia-|cuda-", needed.name) or needed.name == "triton"):
                continue
            assert canonicalize_name(needed.name) in runtime, f"{name} needs {needed}"


def test_ranges_stay_above_known_holes() -> None:
    ranges = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    for name, lowest in HOLES.items():
        (floor,) = ranges[name].specifier
        assert floor.operator == ">=" and Version(floor.version) >= Version(lowest)
        assert Version(version(name)) >= Version(lowest)


def test_torchvision_is_never_imported() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) torchvision", path.read_text("utf-8"), re.MULTILINE), path


def test_package_data_patterns_hold_every_file_that_is_not_code() -> None:
    package = ROOT / "src" / "lora_scripts"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["lora_scripts"]
    packed = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    packed |= {path for pattern in patterns for path in package.glob(pattern + "/*") if path.is_file()}
    others = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert others <= packed and package / "report" / "assets" / "page.css" in packed


def test_version_and_changelog_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[([0-9.]+)\]", changelog, re.MULTILINE)[0] == lora_scripts.__version__


def test_command_line_and_config_import_nothing_heavy() -> None:
    code = (
        "import sys, lora_scripts.cli, lora_scripts.config.load, lora_scripts.config.schema\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'PIL', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert answer.stdout == "[]\n", answer.stderr


def test_importing_the_package_opens_no_socket_and_writes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pkgutil, importlib\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): raise SystemExit(f'{event} {args}')\n"
        "sys.addaudithook(hook)\n"
        "import lora_scripts\n"
        "for found in pkgutil.walk_packages(lora_scripts.__path__, 'lora_scripts.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
    )
    command = [sys.executable, "-B", "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, env=_environment(), cwd=tmp_path)
    assert (answer.returncode, answer.stdout, list(tmp_path.iterdir())) == (0, "", []), answer.stderr


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.parametrize("name", WITH_LINKS)
def test_local_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", WITH_LINKS)
def test_rows_stand_in_a_table(name: str) -> None:
    """A row behind an empty line is shown as text with bars in it."""
    blocks = re.findall(r"(?:^\|.*\n)+", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    assert [block for block in blocks if not re.match(r"\|.*\n\|[-|: ]+\|\n", block)] == []


@pytest.mark.parametrize("name", WITH_LINKS)
def test_commands_are_one_line(name: str) -> None:
    """The command prompt of Windows and PowerShell know no backslash at a line's end."""
    assert not re.search(r"\\$", (ROOT / name).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", READMES)
def test_readme_opens_with_the_two_commands_and_shows_the_config_as_it_is(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    first, *_ = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == [
        "python3 start.py setup",
        "python3 start.py demo",
        "python3 start.py demo words",
        "python3 start.py test",
    ]
    shown = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "configs" / "cyberpunk.yaml").read_text("utf-8"))
    assert "<lora:cyberpunk_lora:0.8>" in text and "--port 6006" in text


@pytest.mark.parametrize("name", READMES)
def test_every_key_in_the_readme_exists(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    keys = set(re.findall(r"`([a-z_]+):? [^`]*`", text)) | set(re.findall(r"`([a-z]+_[a-z_]+)`", text))
    keys -= {"python", "py", "lora_scripts", "pip", "lora-scripts", "git"}
    assert {"flip", "init_lora", "gradient_accumulation", "min_snr_gamma"} <= keys
    assert keys <= set(TrainConfig.model_fields), keys - set(TrainConfig.model_fields)


def test_every_key_stands_in_the_table_with_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", text, re.MULTILINE))
    assert set(rows) == set(TrainConfig.model_fields)
    for key, shown in rows.items():
        tests = re.findall(r"`(\w+)::(test_\w+)`", shown)
        assert tests, key
        for module, name in tests:
            source = (ROOT / "tests" / f"test_{module}.py").read_text("utf-8")
            assert f"\ndef {name}(" in source, f"{key}: {module}::{name}"


def test_the_keys_tables_say_first_what_a_key_does() -> None:
    """Defaults stand in docs/keys.md."""
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    assert "| key | what it does |" in page
    assert re.findall(r"^\| `\w+` \| `[^|]*` \|.*", page, re.MULTILINE) == []


def test_both_readmes_count_as_many_programs() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in READMES)
    [count] = re.findall(r"`lora-scripts verify` \| whether (\w+) programs", english)
    assert re.findall("检查(.)种程序", chinese) == [{"eight": "八", "nine": "九", "ten": "十"}[count]]


def test_both_readmes_have_the_same_parts() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in READMES)
    assert [line.count("#") for line in english.splitlines() if re.match("#+ ", line)] == [
        line.count("#") for line in chinese.splitlines() if re.match("#+ ", line)
    ]
    assert len(re.findall(r"^\|", english, re.MULTILINE)) == len(re.findall(r"^\|", chinese, re.MULTILINE))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_ci_calls_exactly_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text("utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    assert lines[-1] == "python3 start.py test"


def test_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "lora-scripts contributors" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_the_pages_of_keys_are_what_the_schema_says() -> None:
    """docs/keys.md and docs/zh/keys.md."""
    command = [sys.executable, str(ROOT / "tools" / "write_keys.py"), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_faults_that_are_put_in_by_hand_still_fit() -> None:
    """A line that was written anew since would be tried by nobody."""
    from benchmarks.mutants import MUTANTS

    package = ROOT / "src" / "lora_scripts"
    gone = [f"{m.file}: {m.old}" for m in MUTANTS if m.old not in (package / m.file).read_text("utf-8")]
    files = {file for m in MUTANTS for file in m.tests.split() if not (ROOT / "tests" / f"test_{file}.py").exists()}
    assert not gone and not files


NAMED = ("lora_rank", "learning_rate", "base_precision", "timestep_sampling")
"""What docs/models.md says of every family's template, with whose it is and why."""


def _defaults() -> list[tuple[str, str]]:
    """(template, what the row of defaults says of it), in the order of docs/models.md."""
    lines = (ROOT / "docs" / "models.md").read_text("utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(("| template", "| defaults"))]
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    assert all(one[0].startswith("template") and two[0].startswith("defaults") for one, two in pairs)
    return [(names.split("`")[1], told) for one, two in pairs for names, told in zip(one[1:], two[1:], strict=True)]


def test_the_defaults_in_the_docs_are_the_templates() -> None:
    told = _defaults()
    assert {name for name, _ in told} == {path.name for path in (ROOT / "configs").glob("*_style.yaml")}
    for name, text in told:
        template = yaml.safe_load((ROOT / "configs" / name).read_text("utf-8"))
        says: dict[str, object] = {}
        for span in re.findall(r"`([a-z_]+: [^`]+)`", text):
            says |= {key: value for key, value in yaml.safe_load(span).items() if key in TrainConfig.model_fields}
        is_so = {key: template.get(key, TrainConfig.model_fields[key].default) for key in says}
        assert says == is_so, name
        assert says.keys() >= {
            *NAMED,
            *({"offload_blocks", "timestep_shift", "lora_alpha", "targets"} & template.keys()),
        }
