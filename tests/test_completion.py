"""Scripts for the Tab key, asked in the shells themselves."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lora_scripts.cli import main
from lora_scripts.config.schema import TrainConfig

ASKED = {
    "lora-scripts m": {"merge", "metadata"},
    "lora-scripts convert --to ": {"kohya", "diffusers", "peft", "original"},
    "lora-scripts merge --ou": {"--output"},
    "lora-scripts merge --base b": {"base.safetensors"},
    "lora-scripts train epo": {"epochs="},
    "lora-scripts train ": {f"{key}=" for key in TrainConfig.model_fields},
}


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    path = tmp_path / f"completion.{shell}"
    path.write_text(capsys.readouterr().out)
    (tmp_path / "base.safetensors").touch()
    return path


def ask(command: list[str], folder: Path) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize("line", ASKED)
def test_bash(line: str, script: Path) -> None:
    words = line.split(" ")
    code = f"compopt() {{ :; }}; source {script}; COMP_WORDS=({' '.join(shlex.quote(w) for w in words)})\n"
    code += f'COMP_CWORD={len(words) - 1}; _lora_scripts; printf "%s\\n" "${{COMPREPLY[@]}}"'
    found = set(ask(["bash", "-c", code], script.parent).split())
    assert found == (set() if ASKED[line] == {"base.safetensors"} else ASKED[line])  # readline finishes files itself


def test_fish_finishes_every_path(capsys: pytest.CaptureFixture[str]) -> None:
    """It has to be told, where the other shells do so by themselves: the folder of `--lora`, a text encoder, too."""
    assert main(["completion", "fish"]) == 0
    lines = [
        line for line in capsys.readouterr().out.splitlines() if " -l lora " in line or " -l text-encoder " in line
    ]
    assert len(lines) > 4 and all(" -r -F " in line for line in lines)


@pytest.mark.parametrize("script", ["fish"], indirect=True)
@pytest.mark.parametrize("line", ASKED)
def test_fish(line: str, script: Path) -> None:
    found = ask(["fish", "--no-config", "-c", f"source {script}; complete -C {shlex.quote(line)}"], script.parent)
    words = {row.partition("\t")[0] for row in found.splitlines()}
    assert ASKED[line] <= words and (line.endswith("train ") or ASKED[line] == words)  # and files, where keys are


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
@pytest.mark.parametrize("line", ASKED)
def test_zsh(line: str, script: Path) -> None:
    """The function itself, with stand-ins for what zsh has only while a line is typed."""
    words = " ".join(shlex.quote(word) for word in line.split(" "))
    code = "compdef() { :; }; _files() { print -l *.safetensors; }\n"
    code += "compadd() { while [[ $1 == -* && $1 != -- ]]; do shift; [[ $1 == '' ]] && shift; done; shift; "
    code += 'for word in "$@"; do [[ $word == ${words[CURRENT]}* ]] && print -- $word; done; true; }\n'
    code += f"source {script}; words=({words}); CURRENT=$#words; _lora_scripts"
    found = set(ask(["zsh", "-f", "-c", code], script.parent).split())
    assert ASKED[line] <= found <= ASKED[line] | {"base.safetensors"}


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["shell"] == "bash" and "complete -o default -F _lora_scripts lora-scripts" in document["script"]
