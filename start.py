"""The commands for a fresh machine; they need nothing but Python 3.11 or newer and pip.

    python3 start.py setup    install everything, and say what to type next
    python3 start.py demo     train a LoRA on the bundled miniature world and open its report (or: demo words)
    python3 start.py test     check the code and run the tests

All make a virtual environment in `.venv` beside this file and install the locked requirements into it, once. This file
uses the standard library only, and parses on Python 3.7, so that an old Python gets a sentence and not a traceback.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("lora-scripts needs Python 3.11 or newer, this is {}.{}; see https://python.org".format(*sys.version_info))

import argparse
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import threading
import venv
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
WORLDS = {"pictures": ("output/demo", "neon"), "words": ("output/demo-words", "reports")}
"""Of `demo`: the folder that it writes to, and the one of the run in it."""
LOCKS = {"demo": "requirements.lock", "test": "requirements-test.lock"}
TORCH = "requirements-torch.lock"
"""Apart, and without hashes: pip wants hashes of all or of none, and torch's wheels differ with the machine."""
SIZES = {"linux": (2.9, 5.5), "win32": (0.3, 1.0), "darwin": (0.3, 1.0)}
"""Gigabytes that the first set-up downloads, and that it takes on the disk: summed over the wheels of the lock and what
is in them, for x86-64 (macOS: arm64). On Linux most of it is what torch brings for NVIDIA cards."""
NO_NETWORK = re.compile(  # what pip and urllib3 say when nobody answers
    "NameResolution|NewConnection|ConnectTimeout|ProxyError|Max retries|connection broken|unreachable|failed to resolve"
    "|connection refused|name resolution|getaddrinfo",
    re.IGNORECASE,
)

Pip = Callable[[Path, Sequence[str]], None]


class Fault(Exception):
    """Something a person can mend, as one line."""


def say(text: str, *, error: bool = False) -> None:
    """A text for people, in the language that lora-scripts tells them everything in."""
    sys.path.insert(0, str(ROOT / "src"))
    try:
        from lora_scripts.chinese.terminal import told  # needs no package

        text = told(text)
    except ImportError:  # this file alone
        pass
    finally:
        sys.path.pop(0)
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


# --- the environment ------------------------------------------------------------------------------------------------


def venv_program(root: Path, name: str) -> Path:
    """Where a program of the virtual environment lies on this system."""
    return root / ".venv" / ("Scripts" if os.name == "nt" else "bin") / (f"{name}.exe" if os.name == "nt" else name)


def wanted(root: Path, command: str) -> str:
    """SHA-256 of everything that decides what `command` has installed."""
    files = ["pyproject.toml", TORCH, *dict.fromkeys([LOCKS["demo"], LOCKS[command]])]
    digest = hashlib.sha256(f"{sys.version_info[:2]}\n".encode())
    for name in files:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    return digest.hexdigest()


def installed(root: Path) -> dict[str, str]:
    """What the stamp says: command -> the hash of what was installed for it, and the folder it was installed in."""
    try:
        stamp = json.loads((root / ".venv" / "start.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and venv_program(root, "python").exists() else {}


def usable(root: Path) -> bool:
    """Whether the environment has this Python's version, a working pip, and no broken-off installation."""
    if (root / ".venv" / "unfinished").exists() or not venv_program(root, "python").exists():
        return False
    if installed(root).get("folder", str(root)) != str(root):
        return False  # moved: the programs of an environment hold its full path
    probe: list[str | Path] = [venv_program(root, "python"), "-c", "import sys, pip; print(*sys.version_info[:2])"]
    answer = subprocess.run(probe, capture_output=True, text=True)
    return answer.returncode == 0 and answer.stdout.split() == [str(part) for part in sys.version_info[:2]]


def make_venv(root: Path) -> None:
    """A fresh `.venv`; what a broken-off start left behind is removed first."""
    folder = root / ".venv"
    if folder.exists():
        say(f"Removing the unfinished or outdated environment in {folder}")
        shutil.rmtree(folder)
    say(f"Making a virtual environment in {folder}")
    folder.mkdir()
    (folder / "unfinished").touch()  # removed when everything is in: an interrupted pip can leave half a package behind
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError:
        mend = (
            f"sudo apt install python3.{sys.version_info[1]}-venv" if shutil.which("apt") else "install Python with pip"
        )
        raise Fault(f"this Python cannot make virtual environments with pip; {mend}") from None


def run_pip(root: Path, arguments: Sequence[str]) -> None:
    """`pip install` with the environment's own pip; its progress is shown, its failures become one line."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    general = ["-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-user", *quiet]
    command: list[str | Path] = [venv_program(root, "python"), *general, *arguments]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line.rstrip())
        if not line.startswith(("WARNING: Retrying", "ERROR")):
            print(line, end="", file=sys.stderr)
    if process.wait() == 0:
        return
    if any(NO_NETWORK.search(line) for line in said):
        raise Fault("pip could not reach the package index; connect to the network and start again")
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")]
    raise Fault(f"pip could not install the requirements: {errors[-1] if errors else 'see the lines above'}")


def size_in_words(root: Path) -> str:
    """What the first set-up downloads and keeps. Fault where the disk has no room for it."""
    size, disk = SIZES.get(sys.platform, SIZES["linux"])
    free = shutil.disk_usage(root).free / 1e9
    if free < disk:
        raise Fault(f"{root} has {free:.1f} GB free, and about {disk:.1f} GB are needed; make room, and start again")
    minutes = math.ceil(size * 8000 / 50 / 60)
    return (
        f"about {size:g} GB to download, {disk:.1f} GB on the disk; {minutes} minutes at 50 Mbit/s and a few to unpack,"
        " less where pip has some of it already"
    )


def set_up(root: Path, command: str, pip: Pip = run_pip) -> None:
    """Brings `.venv` to the state that `command` needs; does nothing, quickly, when it is there already.

    The stamp is taken away before anything changes and written when all is done, so an interrupted set-up is never
    mistaken for a finished one.
    """
    stamp, unfinished = root / ".venv" / "start.json", root / ".venv" / "unfinished"
    done, hashes = installed(root), {name: wanted(root, name) for name in dict.fromkeys(["demo", command])}
    if done.get(command) == hashes[command] and done.get("folder") == str(root):
        return
    if not usable(root):
        make_venv(root)
        done = {}
    stamp.unlink(missing_ok=True)
    unfinished.touch()
    say(f"Installing {LOCKS[command]}, once: {size_in_words(root)}")
    pip(root, ["--require-hashes", "--no-deps", "-r", LOCKS[command]])
    pip(root, ["-r", TORCH])
    # The lock holds setuptools: building without isolation needs no second download.
    pip(root, ["--no-deps", "--no-build-isolation", "-e", "."])
    kept = {name: done[name] for name in LOCKS if done.get(name) == wanted(root, name)}
    stamp.write_text(json.dumps({"folder": str(root), **kept, **hashes}), encoding="utf-8")
    unfinished.unlink()


def next_steps(root: Path) -> str:
    """What to type when everything is installed."""
    if os.name == "nt":
        programs = root / ".venv" / "Scripts"
        active = (
            f"{programs / 'activate.bat'}        in the command prompt, or in PowerShell:\n"
            f"  Set-ExecutionPolicy -Scope Process RemoteSigned; {programs / 'Activate.ps1'}"
        )
    else:
        active = "source .venv/bin/activate"
    return (
        "Ready. Make the environment active in this terminal, then write a config for your pictures:\n"
        f"  {active}\n"
        "  lora-scripts new NAME --data FOLDER --base MODEL.safetensors\n"
        "Without --base it looks for the models of a WebUI on this machine, and says where to get one."
    )


def card_in_words(root: Path) -> str:
    """A line where the machine has an NVIDIA card and the installed torch does not see it; else nothing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    code = "import torch; print(torch.cuda.is_available())"
    seen = subprocess.run([venv_program(root, "python"), "-c", code], capture_output=True, text=True).stdout.strip()
    if seen != "False":
        return ""
    return (
        "This torch does not use your NVIDIA card. Install its CUDA build, of the same version, with the command that "
        "the selector on https://pytorch.org shows; add --force-reinstall --no-deps to it."
    )


# --- the commands ---------------------------------------------------------------------------------------------------


def run(command: Sequence[str | Path], root: Path, extra: Mapping[str, str] | None = None) -> int:
    """Runs a program of the environment to its end and gives its exit code.

    After Ctrl-C the program, which got it too, is given the time to save and leave.
    """
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "HF_HUB_OFFLINE": "1", **(extra or {})})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def shows_pages() -> bool:
    """Whether there is someone, and a screen, to open a page for."""
    if os.environ.get("CI"):
        return False
    has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return os.name == "nt" or sys.platform == "darwin" or has_screen


def demo(root: Path, output: Path, *, open_page: bool, world: str = "pictures") -> int:
    """Trains on the miniature world; the report is named, and opened where that is possible."""
    code = run([venv_program(root, "lora-scripts"), "demo", world, "--output", output], root)
    report = root / output / WORLDS[world][1] / "report.html"
    if code == 0 and report.exists():
        say(f"Report: {report}")
        if open_page and shows_pages():
            opener = threading.Thread(target=webbrowser.open, args=[report.as_uri()], daemon=True)
            opener.start()
            opener.join(timeout=5)  # some browsers stay in the foreground; the command ends all the same
    return code


@contextmanager
def compiling(root: Path) -> Iterator[None]:
    """In a fresh clone compiles, beside what is done meanwhile, all that the tests import: once for both workers."""
    if (root / "tests" / "__pycache__").exists():
        yield
        return
    command: list[str | Path] = [venv_program(root, "python"), "-m", "pytest", "--collect-only"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=root, stdout=quiet, stderr=quiet):
        yield


def test(root: Path, arguments: Sequence[str]) -> int:
    """The checks and then the tests, whose closing line is the last; 1 if anything failed."""
    python = venv_program(root, "python")
    checks: dict[str, list[str | Path]] = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "lint-imports": [venv_program(root, "lint-imports")],
    }
    failed = []
    with compiling(root):
        for name, command in checks.items():
            print(f"== {name}", flush=True)
            if run(command, root):
                failed.append(name)
    print(f"== checks that failed: {', '.join(failed)}" if failed else "== all checks passed", flush=True)
    print("== pytest", flush=True)
    # One thread a worker: two workers fill two cores, and a sum over one thread has one order. A file goes to one
    # worker, which makes once what its tests share.
    tests = run(
        [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *arguments],
        root,
        {"OMP_NUM_THREADS": "1"},
    )
    return 1 if failed or tests else 0


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs one command; gives the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a file or a pipe Windows' code page lacks letters of folders
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(prog="start.py", description="Sets everything up in .venv, then runs one command.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="setup | demo | test")
    about = "install everything into .venv, say what to type next, and do nothing else"
    commands.add_parser("setup", help=about, description=about)
    about = "train a LoRA on the bundled miniature world and open its report; about 3 minutes on 2 cores"
    demo_parser = commands.add_parser("demo", help=about, description=about)
    demo_parser.add_argument("--no-open", action="store_true", help="name the report, do not open it")
    text = "pictures (default), or words: a small language model learns to write reports, in 2 minutes"
    demo_parser.add_argument("world", nargs="?", choices=tuple(WORLDS), default="pictures", help=text)
    demo_parser.add_argument("--output", metavar="DIR", type=Path, help="where it all goes")
    about = "check the code and run the tests; what else is given goes to pytest, as in: test -k buckets, test --slow"
    commands.add_parser("test", help=about, description=about)
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command != "test":
        demo_parser.error(f"unknown option {rest[0]}")
    try:
        set_up(root, "test" if known.command == "test" else "demo")
        if known.command == "setup":
            say("\n".join(filter(None, [next_steps(root), card_in_words(root)])))
            return 0
        if known.command == "demo":
            output = known.output or Path(WORLDS[known.world][0])
            return demo(root, output, open_page=not known.no_open, world=known.world)
        return test(root, rest)
    except Fault as fault:
        say(f"start.py: {fault}", error=True)
    except OSError as fault:
        say(f"start.py: {fault.filename or root}: {fault.strerror or fault}", error=True)
    except KeyboardInterrupt:
        say("start.py: stopped; start again to go on", error=True)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
