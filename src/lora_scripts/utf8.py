"""What people and other programs wrote, read by one rule and so that nothing in it can end the program.

Text is UTF-8, with or without a byte order mark, which is no part of it. A line ends where Unix, Windows or an old Mac
ends it, and nowhere else: str.splitlines() also cuts at U+2028 and U+0085, which stand inside captions and prompts.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
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
        if path.is_dir():
            hint = "name a file in it, or put a file in its place"
            raise UserError("is a folder, not a file", file=path, hint=hint)
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
        line, known = _line(data[: error.start].decode("latin-1")), b"\0" not in data and len(_guess([data])) == 1
        message = f"not UTF-8 text; it looks like {guess_encoding(data)}"
        raise UserError(message, file=path, line=line, hint=mend if known else _SAVE) from None
    if "\0" in text:
        line = _line(text[: text.index("\0")])
        raise UserError("holds NUL bytes; it looks like UTF-16, or no text at all", file=path, line=line, hint=_SAVE)
    return text


def _line(before: str) -> int:
    return len(NEWLINE.findall(before)) + 1


_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LETTER = "A-Za-zÀ-ÖØ-öø-ÿŒœŠšŽžŸ"
_WORDS = re.compile(rf"([{_LETTER}]+)(.?)", re.DOTALL)
_MARKS = "“”‘’‚„«»‹›¿¡–—…•·°ªº€£§©®™"
_BESIDE = re.compile(
    rf"""(?<![^\s(,."'–—-])[{_MARKS}](?=[\s\w"'(])|(?<=[\s\w"')!?.])[{_MARKS}](?![^\s),.;:!?"'-])
    |(?<=[A-Za-z])[’–—](?=[{_LETTER}“‘])|(?<=[0-9])[°×€£](?=\w)|(?<=[«\w])\xa0(?=[\w»!?:;%°€])
    |(?<!\S)[À-ÖØ-öø-ÿ](?!\S)""",
    re.VERBOSE,
)
"""What stands beside words in Western texts: marks, each on its side; a blank before a colon; a word of one letter."""
_WESTERN = "cp1252", "Windows-1252 (Western European)"
_UNKNOWN = "an encoding that is not known here"


@dataclass(frozen=True)
class _Encoding:
    """Two bytes a sign. Each standard has its common signs together, so the first bytes tell what was written."""

    codec: str
    name: str
    common: tuple[tuple[int, int, float, int], ...]
    """First and last first byte, the share of such signs in its language, and how many there are."""
    rest: int
    """How many rare ones there are, which are one sign in a hundred."""
    added: bool = False
    """Whether signs that came later lie below 0xA1 in either byte: they count as of the first byte `_ADDED`."""

    def fit(self, data: bytes) -> float | None:
        """Logarithm of how likely these bytes are in a text of it; None where they are none, most signs rare, or
        letters among plain ones more likely."""
        try:
            signs = [sign.encode(self.codec) for sign in data.decode(self.codec) if sign > "\x7f"]
        except UnicodeDecodeError:
            return None
        total, rare = 0.0, 0
        for sign in signs:
            lead = _ADDED if self.added and min(sign) < 0xA1 else sign[0]
            known = next((row for row in self.common if row[0] <= lead <= row[1]), None)
            total += math.log(known[2] / known[3] if known else 0.01 / self.rest)
            rare += known is None
        return total if 2 * rare <= len(signs) and total > sum(map(_as_letters, signs)) else None


_ADDED = 0


def _as_letters(sign: bytes) -> float:
    """Logarithm of how likely the bytes of a sign are as accented letters, of which there are 32, among plain ones: two
    are seldom side by side, and a capital or a bracket hardly ever follows one in a word."""
    accented = sum(byte > 0x7F for byte in sign)
    follows = 1.0 if sign[-1] > 0x7F else 0.05 if sign[1:].islower() else 0.0003
    return math.log(follows) - accented * math.log(32) + (accented - 1) * math.log(0.02)


_ENCODINGS = (
    _Encoding("gb18030", "GBK (Chinese)", ((0xA1, 0xA3, 0.15, 250), (0xB0, 0xD7, 0.84, 3755)), 20000, added=True),
    _Encoding(  # in traditional signs, two of five of which GB 2312 lacks
        "gb18030",
        "GBK (Chinese)",
        ((0xA1, 0xA3, 0.15, 250), (0xB0, 0xD7, 0.5, 3755), (_ADDED, _ADDED, 0.34, 14000)),
        6000,
        added=True,
    ),
    _Encoding(
        "shift_jis",
        "Shift-JIS (Japanese)",
        ((0x81, 0x81, 0.1, 150), (0x82, 0x83, 0.45, 250), (0x88, 0x98, 0.44, 2965)),
        3500,
    ),
    _Encoding(
        "euc_jp",
        "EUC-JP (Japanese)",
        ((0xA1, 0xA1, 0.1, 150), (0xA4, 0xA5, 0.45, 170), (0xB0, 0xCF, 0.44, 2965)),
        3500,
    ),
    _Encoding("cp949", "EUC-KR (Korean)", ((0xA1, 0xA3, 0.05, 250), (0xB0, 0xC8, 0.94, 2350)), 13000, added=True),
    _Encoding("big5", "Big5 (Chinese)", ((0xA1, 0xA3, 0.15, 400), (0xA4, 0xC6, 0.84, 5401)), 7652),
)
"""Punctuation, then kana or none, then the everyday signs: of JIS X 0208 the first level, of KS X 1001 Hangul, of
GB 2312 the first level, of Big5 the frequent ones."""
_SURE = math.log(1000)
"""The next best is a thousand times less likely. Of a few signs GBK, EUC-JP and EUC-KR cannot be told apart: the same
bytes are words in each."""


def guess_encoding(data: bytes) -> str:
    """A name for text that is not UTF-8, from the signs it would have in this or that; several where it may be each."""
    if b"\0" in data:
        return "UTF-16, or no text at all"
    return " or ".join(name for _, name in _guess([data])) or _UNKNOWN


def _guess(files: Sequence[bytes]) -> list[tuple[str, str]]:
    """(codec, name) of each encoding that texts of one program may have; none of Cyrillic."""
    if _is_western(b"\n".join(files)):
        return [_WESTERN]
    fits = [(one, [one.fit(data) for data in files]) for one in _ENCODINGS]
    sums = [(sum(filter(None, fit)), one) for one, fit in fits if None not in fit]
    best = max((fit for fit, _ in sums), default=0.0)
    return list(dict.fromkeys((one.codec, one.name) for fit, one in sums if fit > best - _SURE))


def _is_western(data: bytes) -> bool:
    """Whether of four accented letters and signs three stand as in a Western text: letters here and there in a word
    whose capitals are those of a word, or alone between blanks; quotes and the like not between letters."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    usual = len(_BESIDE.findall(text))
    for word, after in _WORDS.findall(text):
        cased = word.islower() or word.istitle() or word.isupper()
        if cased and after not in ("@", *"[\\]^_`{|}~") and re.search("[A-Za-z]", word):
            usual += sum(not letter.isascii() for letter in word) - len(re.findall("œ(?![ui])", word))
    return 4 * usual >= 3 * sum(not sign.isascii() for sign in text)


def read_otherwise(files: Sequence[bytes]) -> tuple[list[str | None], str]:
    """What files say that are not UTF-8, and the names of their encodings: UTF-16 where one begins with its mark, else
    what each is for sure. Those too short for that are what all others are, or what they are together; None for one of
    which that is not sure either, and for what is no text."""
    codecs = [[("utf-16", "UTF-16")] if data[:2] in _UTF16 else _guess([data]) for data in files]
    short = [index for index, found in enumerate(codecs) if len(found) > 1]
    others = {found[0] for found in codecs if len(found) == 1 and found[0][0] != "utf-16"}
    together = [*others] or _guess([files[index] for index in short])
    for index in short:
        codecs[index] = together if len(together) == 1 and together[0] in codecs[index] else []
    texts: list[str | None] = []
    names: dict[str, None] = {}
    for data, found in zip(files, codecs, strict=True):
        try:
            text = data.decode(found[0][0]) if found else "\0"
        except UnicodeDecodeError:
            text = "\0"
        texts.append(None if "\0" in text else text)
        names.update({} if "\0" in text else {found[0][1]: None})
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
