"""Files of other trainers as plain data: TOML, JSON, YAML, and the command line that a script holds."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lora_scripts.errors import UserError
from lora_scripts.utf8 import decoded

MAX_BYTES = 4 << 20
SCRIPT = re.compile(r"(?:^|[\\/\s\"'])(\w*train\w*|fine_tune)\.py\b")
"""What starts one of kohya's trainers."""
NETWORK = re.compile(r"(?:\w+_)?train_network")
"""The one of them that trains a LoRA."""
_LATER = re.compile(r"[ \t]*[\\^`][ \t]*\r?\n[ \t]*")
"""The end of a line that goes on on the next, in sh, cmd and PowerShell."""
_ENDS = ("&&", "||", "|", ";", ">", ">>", "&", "2>&1")


def text_of(file: Path) -> str:
    """The text of a file; UserError for what is missing, too large or no text."""
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "no such file"
        raise UserError(what, file=file, hint="give the config of the other trainer, or the script that starts it")
    if file.stat().st_size > MAX_BYTES:
        raise UserError("is over 4 MB, so not a config", file=file, hint="give the config of the other trainer")
    data = file.read_bytes()
    if b"\0" in data[:64] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError("is not text", file=file, hint="give the config of the other trainer")
    return decoded(data, file)


def parsed(text: str, file: Path) -> dict[str, Any] | list[Any]:
    """What the text says by the language that the file's name tells; UserError with the line where that is broken."""
    suffix = file.suffix.lower()
    if suffix == ".toml":
        return _toml(text, file)
    if suffix == ".json":
        return _json(text, file)
    if suffix in (".yaml", ".yml"):
        return _yaml(text, file)
    return {"": command_line(text, file)}


def _toml(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        message = str(error).partition(" (at")[0]
        mend = "write a text in quotes, true and false in small letters, and a path in 'single quotes'"
        raise UserError(
            f"not valid TOML: {message}", file=file, line=int(found[1]) if found else None, hint=mend
        ) from None
    except RecursionError:
        raise UserError("is nested too deeply", file=file, hint="give the config of the other trainer") from None


def _json(text: str, file: Path) -> Any:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON: {error.msg}", file=file, line=error.lineno, hint="save it again in the other trainer"
        ) from None
    except RecursionError:
        raise UserError("is nested too deeply", file=file, hint="give the config of the other trainer") from None
    if not isinstance(found, dict | list):
        raise UserError("holds no settings", file=file, hint="give the config of the other trainer")
    return found


class _Loader(yaml.SafeLoader):
    """YAML as other trainers read it, but that 1e-4 is a number, and without aliases, which can grow without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not followed here", mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str, file: Path) -> dict[str, Any]:
    try:
        found = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(
            f"not valid YAML: {problem}", file=file, line=mark.line + 1 if mark else None, hint="mend that line"
        ) from None
    except (RecursionError, ValueError):
        raise UserError("is no YAML that can be read", file=file, hint="give the config of the other trainer") from None
    if not isinstance(found, dict):
        raise UserError("holds no settings", file=file, hint="give the config of the other trainer")
    return found


def command_line(text: str, file: Path) -> dict[str, Any]:
    """The options of the command line in a script that starts one of kohya's trainers: {"script": …, "key": value}.

    A flag without a value is True, several values are a list. Variables that the script sets to plain texts are put in.
    UserError where there is no such command.
    """
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|rem\b|::)", line, re.IGNORECASE)]
    whole = _LATER.sub(" ", "\n".join(lines) + "\n")
    line = next((line for line in whole.splitlines() if SCRIPT.search(line)), None)
    if line is None:
        mend = "give a .toml, .json or .yaml config of another trainer, or the script with its command line"
        raise UserError("holds no command that starts a trainer", file=file, hint=mend)
    words = words_of(_filled(line, whole), file, windows=file.suffix.lower() in (".bat", ".cmd", ".ps1"))
    start = next((i for i, word in enumerate(words) if SCRIPT.search(word)), None)
    if start is None:
        raise UserError("holds no command that starts a trainer", file=file, hint="give the script with the command")
    found = SCRIPT.search(words[start])
    assert found is not None
    return {"script": found[1], **options_of_words(words[start + 1 :])}


def options_of_words(words: list[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--flag` as keys with values; what belongs to no option stands under ""."""
    options: dict[str, Any] = {}
    key = ""
    for word in words:
        if word in _ENDS:
            break
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            options[key] = value if equals else True
        else:
            before = options.get(key, True)
            options[key] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return options


def words_of(line: str, file: Path, *, windows: bool) -> list[str]:
    """Of a command line that stands in a file; `windows`: backslashes are parts of paths. UserError for open quotes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if windows:
        lexer.escape = ""
    try:
        return list(lexer)
    except ValueError as error:
        text = f"the command line cannot be read: {str(error)[:1].lower()}{str(error)[1:]}"
        raise UserError(text, file=file, hint="close the quotes") from None


def _filled(line: str, script: str) -> str:
    """The line with the values of variables that the script sets to plain texts."""
    sets = re.findall(
        r"^\s*(?:export\s+|set\s+\"?|\$(?:env:)?)?(\w+)\s*=\s*[\"']?([^\"'\n]*?)[\"']?\s*$", script, re.M | re.I
    )
    for name, value in reversed(sets):
        line = re.sub(rf"\$\{{{name}\}}|%{name}%|\$(?:env:)?{name}\b", lambda _: value, line)  # noqa: B023 (used at once)
    return line


def flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Groups in groups as keys with dots between."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
