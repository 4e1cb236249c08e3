"""start.py, with real virtual environments, a tiny project of its own, and no network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pip
import pytest

START = Path(__file__).parents[1] / "start.py"

# A build backend of one function: an editable install needs nothing from an index.
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "tiny_project-1-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("tiny_project.py", "def main():\\n    print('hello from the project')\\n")
        info = "tiny_project-1.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny-project\\nVersion: 1\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "entry_points.txt", "[console_scripts]\\nlora-scripts = tiny_project:main\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


@pytest.fixture
def start() -> ModuleType:
    spec = importlib.util.spec_from_file_location("start", START)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose locks name one wheel that lies beside them."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "backend.py").write_text(BACKEND)
    with zipfile.ZipFile(tmp_path / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "number = 7\n")
        wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    digest = hashlib.sha256((tmp_path / "tiny-1-py3-none-any.whl").read_bytes()).hexdigest()
    (tmp_path / "requirements.lock").write_text(f"./tiny-1-py3-none-any.whl --hash=sha256:{digest}\n")
    (tmp_path / "requirements-torch.lock").write_text("# nothing\n")
    (tmp_path / "requirements-test.lock").write_text("-r requirements.lock\n")
    return tmp_path


class Pip:
    """Stands for pip where only the order of events matters; `fail_at` breaks off at that call."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.fail_at = fail_at

    def __call__(self, root: Path, arguments: Sequence[str]) -> None:
        self.calls.append(list(arguments))
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt


@pytest.fixture
def quick_venv(start: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Environments without pip, made in a moment, that count as usable; gives the list of those made."""
    made: list[Path] = []

    def create(folder: Path, with_pip: bool) -> None:
        made.append(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        packages = subprocess.run(
            [start.venv_program(folder.parent, "python"), "-c", "import site; print(site.getsitepackages()[-1])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        Path(packages, "pip.py").touch()

    monkeypatch.setattr(start.venv, "create", create)
    return made


def test_everything_real_from_an_empty_folder(start: ModuleType, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start.main(["demo", "--no-open"], root) == 0
    first = capfd.readouterr().out
    assert "Making a virtual environment" in first and "hello from the project" in first
    python = start.venv_program(root, "python")
    assert subprocess.check_output([python, "-c", "import tiny; print(tiny.number)"], text=True).strip() == "7"
    assert start.main(["demo", "--no-open"], root) == 0
    assert capfd.readouterr().out == "hello from the project\n"  # the second time nothing is made or installed


def test_setup_installs_and_says_what_to_type(
    start: ModuleType, root: Path, capfd: pytest.CaptureFixture[str], quick_venv: list[Path]
) -> None:
    pip = Pip()
    start.set_up(root, "demo", pip)
    told = capfd.readouterr().out
    assert "Installing requirements.lock, once: about " in told and " GB to download" in told and "50 Mbit/s" in told
    assert start.main(["setup"], root) == 0  # everything is there: nothing but the next step
    told = capfd.readouterr().out
    assert told.startswith("Ready.") and "activate" in told and "lora-scripts new NAME --data FOLDER" in told
    assert "hello from the project" not in told and len(pip.calls) == 3
    with pytest.raises(SystemExit):
        start.main(["setup", "--no-open"], root)


def test_a_disk_without_room_is_told_before_anything_is_loaded(
    start: ModuleType, root: Path, quick_venv: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type(shutil.disk_usage(root))(10**9, 9 * 10**8, 10**8)
    monkeypatch.setattr(start.shutil, "disk_usage", lambda path: full)
    pip = Pip()
    with pytest.raises(start.Fault, match=r"has 0\.1 GB free, and about .* GB are needed"):
        start.set_up(root, "demo", pip)
    assert not pip.calls


def test_offline_is_one_line_and_leaves_no_stamp(
    start: ModuleType,
    root: Path,
    quick_venv: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With the pip of these tests, which is quicker lent than installed."""
    monkeypatch.setenv("PYTHONPATH", str(Path(pip.__file__).parents[1]))
    (root / "requirements.lock").write_text(f"a-package-from-an-index==1 --hash=sha256:{'0' * 64}\n")
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody answers
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert start.main(["demo"], root) == 2
    said = capfd.readouterr().err
    assert said == "start.py: pip could not reach the package index; connect to the network and start again\n"
    assert start.installed(root) == {}


def test_test_covers_demo_but_not_the_other_way_round(start: ModuleType, root: Path, quick_venv: list[Path]) -> None:
    pip = Pip()
    start.set_up(root, "demo", pip)
    torch, own = ["-r", "requirements-torch.lock"], ["--no-deps", "--no-build-isolation", "-e", "."]
    assert pip.calls == [["--require-hashes", "--no-deps", "-r", "requirements.lock"], torch, own]
    start.set_up(root, "test", pip)
    assert pip.calls[3][-1] == "requirements-test.lock" and len(pip.calls) == 6
    for command in ("demo", "test"):
        start.set_up(root, command, pip)
    assert len(pip.calls) == 6 and len(quick_venv) == 1


@pytest.mark.parametrize("changed", ["requirements.lock", "requirements-torch.lock", "pyproject.toml"])
def test_a_changed_lock_or_project_is_installed_again(
    start: ModuleType, root: Path, quick_venv: list[Path], changed: str
) -> None:
    pip = Pip()
    start.set_up(root, "test", pip)
    (root / changed).write_text((root / changed).read_text() + "# changed\n")
    start.set_up(root, "demo", pip)
    assert len(pip.calls) == 6 and len(quick_venv) == 1  # installed on top, not made anew
    start.set_up(root, "test", pip)
    assert len(pip.calls) == 9  # the test set was made for the old lock


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_broken_off_set_up_is_made_anew(start: ModuleType, root: Path, quick_venv: list[Path], fail_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        start.set_up(root, "demo", Pip(fail_at))
    assert start.installed(root) == {}
    leftover = root / ".venv" / "half-a-package"
    leftover.touch()
    start.set_up(root, "demo", Pip())
    assert not leftover.exists() and len(quick_venv) == 2
    assert start.installed(root) == {"folder": str(root), "demo": start.wanted(root, "demo")}


def test_an_update_that_breaks_off_is_not_taken_for_the_old_set_up(
    start: ModuleType, root: Path, quick_venv: list[Path]
) -> None:
    start.set_up(root, "demo", Pip())
    old = (root / "requirements.lock").read_text()
    (root / "requirements.lock").write_text("")
    with pytest.raises(KeyboardInterrupt):
        start.set_up(root, "demo", Pip(1))
    (root / "requirements.lock").write_text(old)
    pip = Pip()
    start.set_up(root, "demo", pip)
    assert len(pip.calls) == 3


@pytest.mark.parametrize("rubbish", ["", "[1]", '{"demo": 3}', "\x00"])
def test_a_damaged_stamp_is_no_stamp(start: ModuleType, root: Path, quick_venv: list[Path], rubbish: str) -> None:
    start.set_up(root, "demo", Pip())
    (root / ".venv" / "start.json").write_text(rubbish)
    pip = Pip()
    start.set_up(root, "demo", pip)
    assert len(pip.calls) == 3


def test_a_moved_project_makes_its_environment_again(start: ModuleType, root: Path, quick_venv: list[Path]) -> None:
    start.set_up(root, "demo", Pip())
    moved = root.parent / (root.name + "-moved")
    root.rename(moved)
    pip = Pip()
    start.set_up(moved, "demo", pip)
    assert len(pip.calls) == 3 and quick_venv == [root / ".venv", moved / ".venv"]


def test_letters_that_a_file_of_an_old_code_page_lacks_end_nothing(
    start: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`py start.py setup > log.txt` in a folder with such letters."""
    written = io.BytesIO()
    monkeypatch.setattr(start, "set_up", lambda root, command: print(root))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    assert start.main(["setup"], tmp_path / "画") == 0
    assert rb"\u753b" in written.getvalue().splitlines()[0]


FAKE_PYTHON = """#!/usr/bin/env bash
echo "$@" >> "$LOG"; echo "$HF_HUB_OFFLINE $OMP_NUM_THREADS" >> "$LOG.env"
[[ "$*" != *"$FAILS"* ]]
"""


@pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are shell scripts")
@pytest.mark.parametrize(("fails", "code"), [("nothing fails", 0), ("mypy", 1), ("pytest", 1)])
def test_every_check_runs_and_pytest_is_last(
    start: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, code: int
) -> None:
    for name in ("python", "lint-imports"):
        program = start.venv_program(tmp_path, name)
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(FAKE_PYTHON)
        program.chmod(0o755)
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setenv("FAILS", fails)
    assert start.test(tmp_path, ["-k", "foo"]) == code
    expected = [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy",
        "",
        "-m pytest -n 2 --dist loadfile --no-loadscope-reorder -k foo",
    ]
    lines = log.read_text().splitlines()
    lines.remove("-m pytest --collect-only")  # beside them, for what it compiles
    assert lines == expected
    (tmp_path / "tests" / "__pycache__").mkdir(parents=True)
    log.unlink()
    assert start.test(tmp_path, ["-k", "foo"]) == code
    assert log.read_text().splitlines() == expected  # all is compiled
    assert Path(f"{log}.env").read_text().splitlines()[-1] == "1 1"


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_leaves_the_program_time_to_save(start: ModuleType, tmp_path: Path) -> None:
    child = "import signal, time, sys\ntry:\n    print('up', flush=True); time.sleep(30)\n"
    child += "except KeyboardInterrupt:\n    time.sleep(0.6); open('saved', 'w').close(); sys.exit(5)\n"
    # A shell starts what it runs in the background with the signal ignored; here it must count.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"import sys, pathlib; sys.path.insert(0, {str(START.parent)!r}); import start\n"
    code += f"sys.exit(start.run([sys.executable, '-c', {child!r}], pathlib.Path({str(tmp_path)!r})))"
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout and process.stdout.readline() == "up\n"
    os.killpg(process.pid, 2)  # as a terminal does: to the whole group
    assert process.wait() == 5 and (tmp_path / "saved").exists()


def test_the_page_is_opened_only_where_it_is_wanted(
    start: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "out" / "neon" / "report.html"
    report.parent.mkdir(parents=True)
    report.touch()
    opened: list[str] = []
    monkeypatch.setattr(start.webbrowser, "open", opened.append)
    monkeypatch.setattr(start, "run", lambda command, root: 0)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    start.demo(tmp_path, Path("out"), open_page=False)
    monkeypatch.setenv("CI", "true")
    start.demo(tmp_path, Path("out"), open_page=True)
    assert opened == []
    monkeypatch.delenv("CI")
    start.demo(tmp_path, Path("out"), open_page=True)
    assert opened == [report.as_uri()]
    assert capsys.readouterr().out == f"Report: {report}\n" * 3


def test_the_demo_of_words_has_a_folder_and_a_report_of_its_own(
    start: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Sequence[str | Path]] = []
    monkeypatch.setattr(start, "set_up", lambda root, command: None)
    monkeypatch.setattr(start, "run", lambda command, root: told.append(command[1:]) or 0)
    report = tmp_path / "output/demo-words/reports/report.html"
    report.parent.mkdir(parents=True)
    report.touch()
    assert start.main(["demo", "words", "--no-open"], tmp_path) == 0
    assert told == [["demo", "words", "--output", Path("output/demo-words")]]
    assert capsys.readouterr().out == f"Report: {report}\n"


def test_usage() -> None:
    helped = subprocess.run([sys.executable, "-S", str(START), "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and "demo" in helped.stdout and "test" in helped.stdout
    wrong = subprocess.run([sys.executable, "-S", str(START), "deploy"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_an_old_python_gets_one_sentence() -> None:
    """The real check, with the version of an older Python in its place."""
    code = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(START)!r}, run_name='__main__')"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr == "lora-scripts needs Python 3.11 or newer, this is 3.9; see https://python.org\n"


def test_it_speaks_chinese_before_anything_is_installed() -> None:
    """By a Python without any package."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['say']('start.py: stopped; start again to go on')"
    env = {**os.environ, "LORA_SCRIPTS_LANG": "zh", "PYTHONIOENCODING": "utf-8"}
    said = subprocess.run([sys.executable, "-S", "-c", code, START], env=env, capture_output=True, encoding="utf-8")
    assert said.stdout == "start.py：已停止；再次启动会接着进行\n" and not said.stderr


def test_a_copy_of_the_file_alone_speaks_english(tmp_path: Path) -> None:
    copy = Path(shutil.copy(START, tmp_path))
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['say']('Report: here')"
    env = {**os.environ, "LORA_SCRIPTS_LANG": "zh", "PYTHONIOENCODING": "utf-8"}
    said = subprocess.run([sys.executable, "-S", "-c", code, copy], env=env, capture_output=True, encoding="utf-8")
    assert said.stdout == "Report: here\n" and not said.stderr
