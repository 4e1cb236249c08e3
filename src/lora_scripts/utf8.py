"""What people and other programs wrote, read by one rule and so that nothing in it can end the program.

Text is UTF-8, with or without a byte order mark, which is no part of it. A line ends where Unix, Windows or an old Mac
ends it, and nowhere else: str.splitlines() also cuts at U+2028 and U+0085, which stand inside captions and prompts.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError

NEWLINE = re.compile(r"\r\n|\n|\r")
_SAVE = "save it as UTF-8"
DEEPEST = 100
"""Lists and objects inside one another. Python itself gives up at about 1000, sooner the deeper it stands."""
TOO_DEEP = "lists or objects nested too deeply"


def read_bytes(path: Path, *, pipe: bool = False) -> bytes:
    """The whole of a regular file. Anything else is refused unopened, for a FIFO would block; with `pipe`, which is for
    what a person names on the command line, it is read. Raises UserError."""
    try:
        if not pipe and not stat.S_ISREG(path.stat().st_mode):
            raise UserError("is not a regular file", file=path, hint="remove it, or put a real file in its place")
        return path.read_bytes()
    except FileNotFoundError:
        what = "is a link that leads nowhere" if path.is_symlink() else "no such file"
        raise UserError(what, file=path) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=path) from None


def read_text(path: Path, *, pipe: bool = False, mend: str = _SAVE) -> str:
    """The text of a file; `pipe` as of `read_bytes`. Raises UserError, as that and `decoded` do."""
    return decoded(read_bytes(path, pipe=pipe), path, mend)


def read_lines(path: Path, *, pipe: bool = False, mend: str = _SAVE) -> list[str]:
    """The lines of a file, without what ends them; the rest as of `read_text`."""
    return NEWLINE.split(read_text(path, pipe=pipe, mend=mend))


def decoded(data: bytes, path: Path, mend: str = _SAVE) -> str:
    """What the bytes of a file say. UserError, which says what another encoding looks like, and the line of it; `mend`
    is what to do where that is known."""
    if data[:2] in _UTF16:
        raise UserError("this is UTF-16 text", file=path, line=1, hint=mend)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, known = _line(data[: error.start].decode("latin-1")), b"\0" not in data and _guess(data)[0]
        message = f"not UTF-8 text; it looks like {guess_encoding(data)}"
        raise UserError(message, file=path, line=line, hint=mend if known else _SAVE) from None
    if "\0" in text:
        line = _line(text[: text.index("\0")])
        raise UserError("holds NUL bytes; it looks like UTF-16, or no text at all", file=path, line=line, hint=_SAVE)
    return text


def _line(before: str) -> int:
    return len(NEWLINE.findall(before)) + 1


_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_HIGH = re.compile(rb"[\x80-\xff]+")
_WESTERN = "cp1252", "Windows-1252 (Western European)"
_UNKNOWN = "", "an encoding that is not known here"
_HAN = "[\u4e00-\u9fff]"
_MOST, _ALL = 0.5, 0.99
_ENCODINGS = (
    ("shift_jis", "Shift-JIS (Japanese)", "[\u3041-\u30ff]", _MOST, 1),
    # The bytes of Hangul are those of half of all Chinese signs, by their sound: ten in a row are no chance.
    ("cp949", "EUC-KR (Korean)", "[\uac00-\ud7a3]", _ALL, 10),
    ("gb2312", "GBK (Chinese)", _HAN, _MOST, 1),
    ("big5", "Big5 (Chinese)", _HAN, _MOST, 1),
    ("gb18030", "GBK (Chinese)", _HAN, _MOST, 1),
)
"""Codec, name, the signs that text in it has, the share of them among all that are not ASCII, and how many there are
at least."""


def guess_encoding(data: bytes) -> str:
    """A name for text that is not UTF-8, from which characters it gives when read as this or that."""
    return "UTF-16, or no text at all" if b"\0" in data else _guess(data)[1]


def _guess(data: bytes) -> tuple[str, str]:
    """Codec and name; no codec where nothing fits, as of Cyrillic."""
    high = _HIGH.findall(data)
    length = sum(map(len, high))
    letters = sum(len(run) == 1 and run[0] >= 0xC0 for run in high)
    if 2 * letters >= len(high) and length < 2 * len(high):
        return _WESTERN  # an accent here and there among plain letters
    for codec, name, wanted, share, least in _ENCODINGS:
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        signs, foreign = len(re.findall(wanted, text)), sum(c > "\x7f" for c in text)
        if signs > share * foreign and signs >= least:
            return codec, name
    return _WESTERN if length < 3 * len(high) else _UNKNOWN  # signs, not whole words


def read_otherwise(files: Sequence[bytes]) -> tuple[list[str | None], str]:
    """What files say that are not UTF-8, and the name of their encoding: UTF-16 where one begins with its mark, else
    guessed from all others together, as they come from one program. None for one that is no text in it."""
    codec, name = _guess(b"\n".join(data for data in files if data[:2] not in _UTF16))
    texts: list[str | None] = []
    names: dict[str, None] = {}
    for data in files:
        own, called = ("utf-16", "UTF-16") if data[:2] in _UTF16 else (codec, name)
        try:
            text = data.decode(own) if own else "\0"
        except UnicodeDecodeError:
            text = "\0"
        texts.append(None if "\0" in text else text)
        names.update({} if "\0" in text else {called: None})
    return texts, " and ".join(names)


def is_utf8(data: bytes) -> bool:
    """Whether the bytes of a file are read here."""
    try:
        decoded(data, Path())
    except UserError:
        return False
    return True


def load_json(text: str) -> Any:
    """The value of a JSON text. ValueError in words for what is none, a JSONDecodeError where it knows the place."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python converts no number of more than 4300 digits
        raise ValueError("a number of thousands of digits") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if _too_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def kind_of(value: object) -> str:
    """What a value is, for people: "a list"."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for group in inside for one in group if isinstance(one, dict | list)]
        if not level:
            return False
    return True
