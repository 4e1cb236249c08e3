"""Which language a person reads, as the project's own variable or the system says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

Language = Literal["en", "zh"]
VARIABLE = "LORA_SCRIPTS_LANG"
"""zh or en, before what the system says."""
_CHINESE = 0x04
"""Windows' number of it, in the lower ten bits of a language's."""


def language(environ: Mapping[str, str] = os.environ, asked: Callable[[], str] | None = None) -> Language:
    """ "zh" for those who read Chinese, else "en". `asked` gives the language of a system whose environment names none
    ("zh-Hans-CN"): that of Windows or macOS, if it is one of them."""
    wanted = environ.get(VARIABLE) or _of_environment(environ)
    if wanted is None:
        wanted = (asked or _SYSTEMS.get(sys.platform, str))()
    return "zh" if wanted.lower().startswith("zh") else "en"


def _of_environment(environ: Mapping[str, str]) -> str | None:
    """As gettext has it: LANGUAGE goes first, but not where the locale is C. None where nothing is said."""
    locale = next((found for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (found := environ.get(name))), None)
    if locale is None or re.fullmatch(r"(C|POSIX)(\..*)?", locale):
        return locale
    return environ.get("LANGUAGE") or locale


def _of_windows() -> str:
    """The language of the user's menus."""
    import ctypes

    number: int = ctypes.windll.kernel32.GetUserDefaultUILanguage()  # type: ignore[attr-defined, unused-ignore]
    return "zh" if number & 0x3FF == _CHINESE else ""


@cache
def _of_macos() -> str:
    """The first of the user's languages: a terminal there may set no LANG."""
    command = ["defaults", "read", "-g", "AppleLanguages"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return "".join(re.findall(r"[\w-]+", told)[:1])


_SYSTEMS: Mapping[str, Callable[[], str]] = {"win32": _of_windows, "darwin": _of_macos}
