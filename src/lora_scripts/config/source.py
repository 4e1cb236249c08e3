"""A YAML 1.2 file, or a key=value of the command line, as keys with their values and lines.

PyYAML alone reads YAML 1.1: `2e-4` as text, `no` as false, `010` as 8, `1:30` as 90, and it takes a key twice. So it
only parses here; plain scalars are resolved by the core schema of YAML 1.2 (section 10.3.2 of the specification).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lora_scripts.errors import UserError, raise_all
from lora_scripts.units import HALF
from lora_scripts.utf8 import decoded

MAX_BYTES = 1 << 20
MANY = 20
"""From here on faults of one kind are counted instead of listed: they have one cause."""


FOREIGN_MEND = "lora-scripts new NAME --from {} writes it in our keys"
"""What to do with the config of another trainer."""


class _Loader(yaml.BaseLoader):
    """PyYAML's parser with the core schema of YAML 1.2."""


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", "nN~"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # 40 digits: Python refuses to convert thousands of them.
    ("int", r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), [*_first, ""])


_ELSEWHERE = re.compile("[\x85\u2028\u2029]")
"""What comes along from web pages, unseen. PyYAML would take what follows for the next line: out of a comment, too."""


@dataclass(frozen=True)
class Entry:
    """One key of the config and where it was written; `value` is None, bool, int, float, str, list or dict.

    Groups of keys stand only in lists, as {match: OUT03, rank: 4}; a dict elsewhere is empty: no key takes one.
    """

    key: str
    value: object
    line: int | None
    item_lines: tuple[int, ...] = ()
    override: str | None = None

    def fault(self, message: str, hint: str | None, file: Path, item: int | None = None) -> UserError:
        """The error that names this entry's place: file and line, or the override as it was typed."""
        if item is not None and not self.item_lines and self.override is None:
            item = None  # one value, where a list of them might stand
        if item is not None:
            message = f"item {item + 1} {message}"
        if self.override is not None:
            return UserError(message, file=self.override, hint=hint)
        line = self.line if item is None else self.item_lines[item]
        return UserError(f"{self.key}: {message}", file=file, line=line, hint=hint)


def read_text(file: Path) -> str:
    """The text of a config file; UserError for what is missing, no file, not text or not UTF-8."""
    try:
        if not file.is_file():
            raise _no_file(file)
        if file.stat().st_size > MAX_BYTES:
            raise UserError("is over 1 MB, so not a config file", file=file, hint="--config takes a .yaml file")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=file, hint="check its permissions") from None
    if file.suffix.lower() in (".toml", ".sh", ".bat", ".ps1"):
        raise UserError("is no .yaml file", file=file, hint=FOREIGN_MEND.format(file))
    if b"\0" in data[:64] and not _is_wide(data):
        raise UserError("is not text", file=file, hint="name a .yaml file")
    return decoded(data, file)


def _is_wide(data: bytes) -> bool:
    """Whether it may be UTF-16, which Windows PowerShell writes with > and Notepad as "Unicode": ASCII in it shows as
    every second 0."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    read = [data[:64].decode(way, "replace") for way in ("utf-16-le", "utf-16-be")]
    return b"\n\0" in data and any(all(c.isprintable() or c.isspace() for c in text) for text in read)


def _no_file(file: Path) -> UserError:
    if file.exists():
        return UserError("is not a file", file=file, hint="name a .yaml file")
    other = sorted(p.name for p in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
    hint = f"that folder holds {', '.join(other[:6])}" if other else "copy a template from configs/"
    return UserError("no such file", file=file, hint=hint)


def parse_file(text: str, file: Path) -> tuple[list[Entry], list[UserError]]:
    """The keys of a config in file order, and the faults of keys; UserError where the YAML itself is broken."""
    if end := _ELSEWHERE.search(text):
        message = f"holds the character U+{ord(end[0]):04X}, at which YAML 1.1 ends a line and 1.2 does not"
        raise UserError(message, file=file, line=text.count("\n", 0, end.start()) + 1, hint="remove it")
    node = _compose(text, file)
    if node is None:
        raise UserError("is empty", file=file, hint="copy a template from configs/")
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "one text"
        hint = "write ': ' (the plain colon and a space)" if "：" in text else "write each line as key: value"
        raise UserError(f"expected keys with values, found {found}", file=file, line=_line(node), hint=hint)
    entries: dict[str, Entry] = {}
    faults: list[UserError] = []
    twice = 0
    for key_node, value_node in node.value:
        line = _line(key_node)
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or group"
        if first := entries.get(key):
            twice += 1
            if twice > MANY:
                continue
            hint = f"it stands on line {first.line} too; remove one of the two"
            faults.append(UserError(f"{key}: given twice", file=file, line=line, hint=hint))
            continue
        items = value_node.value if isinstance(value_node, yaml.SequenceNode) else []
        try:
            entries[key] = Entry(key, _value(value_node), line, tuple(_line(item) for item in items))
        except CurlyError as error:
            faults.append(UserError(f"{key}: {error}", file=file, line=line, hint=f"write {error.mended}"))
            if not items:  # as it was meant, so that it is not told as missing, too
                entries[key] = Entry(key, error.mended.strip('"'), line, ())
        except ValueError as error:
            hint = "write the whole" if isinstance(error, HalfError) else "put the value in quotes"
            faults.append(UserError(f"{key}: {error}", file=file, line=line, hint=hint))
    if twice > MANY:
        faults.append(UserError(f"{twice - MANY} further keys are given twice", file=file))
    return list(entries.values()), faults


def parse_overrides(overrides: Sequence[str]) -> list[Entry]:
    """The keys of `epochs=3`, `resolution=[512,768]` …; UserError, all at once, for what is not key=value."""
    entries: dict[str, Entry] = {}
    faults = []
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip().lstrip("-")
        if not equals or not key:
            faults.append(UserError("is not key=value", file=text, hint="write for example epochs=3"))
        elif key in entries:
            faults.append(UserError(f"{key} is given twice on the command line", file=text, hint="keep one of the two"))
        else:
            try:
                entries[key] = Entry(key, _override_value(value), None, (), text)
            except CurlyError as error:
                faults.append(UserError(str(error), file=text, hint=f"write {error.mended}"))
            except (UserError, ValueError) as error:
                message = error.message if isinstance(error, UserError) else str(error)
                faults.append(UserError(message, file=text, hint="put the value in quotes"))
    raise_all(faults)
    return list(entries.values())


def _override_value(text: str) -> object:
    """An override's value: a list or quoted text as YAML says, anything else as one plain scalar."""
    text = text.strip()
    if text[:1] in ("[", "'", '"', "{"):
        node = _compose(text, None)
        return _value(node)
    # A shell has taken the quotes away, so "a: b", "#1" and "*" are texts here, where a YAML file would want quotes.
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))
    return _value(yaml.ScalarNode(tag, text))


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


_CURLY = set(zip("“””“‘’「『＂", "”“”“’’」』＂", strict=True))
"""What keyboards and word processors write for quotes; to YAML they are letters."""


class HalfError(ValueError):
    """A text holds half of a character."""

    def __init__(self) -> None:
        super().__init__("half of a character (a lone surrogate)")


class CurlyError(ValueError):
    """A value stands in quotes that YAML does not know."""

    def __init__(self, text: str) -> None:
        super().__init__(f"stands in Chinese or curly quotes ({text[0]} {text[-1]}), which YAML takes for letters")
        self.mended = f'"{text[1:-1]}"'


def _value(node: Any, depth: int = 0) -> object:
    """The Python value of a node: a list, and groups in it; deeper nothing is expanded, so aliases cannot grow."""
    if isinstance(node, yaml.MappingNode):
        return _group(node) if depth == 1 else {}
    if isinstance(node, yaml.SequenceNode):
        return [] if depth else [_value(item, depth=1) for item in node.value]
    text = str(node.value)
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        if len(text) > 1 and (text[0], text[-1]) in _CURLY and node.style is None:
            raise CurlyError(text)
        if HALF.search(text):
            raise HalfError
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise ValueError(f"the tag {node.tag} is not known here")


def _group(node: Any) -> dict[str, object]:
    group: dict[str, object] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in group:
            raise ValueError("a group of keys has one of them twice, or a list or group as a key")
        group[key.value] = _value(value, depth=2)
    return group


_ESCAPE = "a backslash in double quotes starts an escape", "write the path with / or in single quotes"
# PyYAML's words -> what is wrong, the mend, and whether it is told at the line where the construct began.
_SYNTAX: tuple[tuple[str, tuple[str, str], bool], ...] = (
    ("unknown escape", _ESCAPE, False),
    ("escape sequence", _ESCAPE, False),
    ("found character '\\t'", ("a tab stands where YAML wants spaces", "use spaces"), False),
    ("that cannot start any token", ("a value starts with a character that YAML reserves", "put it in quotes"), False),
    ("undefined alias", ("a value that starts with * is an alias in YAML", "put it in quotes"), False),
    ("expected alphabetic or numeric", ("a value starts with * or &, which YAML reserves", "put it in quotes"), True),
    ("could not find expected ':'", ("this line is not key: value", "write a colon and a space after the key"), True),
    ("mapping values are not allowed", ("a second ': ' stands in this line", "put the value in quotes"), False),
    ("expected ',' or", ("a [ or { is not closed", "close it"), True),
    ("another document", ("a second document follows after ---", "keep one in the file"), False),
    ("found '<stream end>'", ("a [ or { is not closed", "close it"), False),
    ("expected <block end>", ("this line does not fit those above", "check its indentation and quotes"), False),
)


def _compose(text: str, file: Path | None) -> Any:
    """The one document of a text as a node with marks, or None; UserError with the line for a fault of syntax."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_fault(error, text, file) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"holds the character U+{error.character:04X}, which no text has"
        raise UserError(message, file=file, line=line, hint="remove it") from None
    except RecursionError:
        raise UserError("is nested too deeply", file=file, hint="write one key: value a line") from None


def _syntax_fault(error: Any, text: str, file: Path | None) -> UserError:
    """PyYAML's error of several lines as one line with the mend."""
    problem = str(error.problem)
    if "could not find expected ':'" in problem or "mapping values" in problem:
        lines = text.splitlines()
        for number in range(min(error.problem_mark.line, len(lines) - 1), -1, -1):
            if re.match(r"\s*\w+：", lines[number]):
                message = "a Chinese colon (：) stands behind the key"
                return UserError(message, file=file, line=number + 1, hint="write ': ' (the plain colon and a space)")
            if re.match(r"\w+:", lines[number]) and number < error.problem_mark.line:
                break
    context, mark = error.context_mark, error.problem_mark or error.context_mark
    end = text.rstrip().count("\n") + 1  # what is missed at the end is told on the last line that says something
    if "quoted scalar" in str(error.context) and "end of stream" in problem:
        return UserError("a quote is not closed", file=file, line=context.line + 1, hint="close it")
    for words, (message, hint), at_start in _SYNTAX:
        if words in problem:
            line = min((context if at_start and context else mark).line + 1, end)
            return UserError(f"not valid YAML: {message}", file=file, line=line, hint=hint)
    line = min(mark.line + 1, end)
    return UserError(f"not valid YAML: {problem}", file=file, line=line, hint="put the value in quotes")
