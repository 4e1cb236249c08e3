"""The one place where templates become pages: what a person wrote is escaped by the template engine itself."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lora_scripts.chinese.catalogue import translated
from lora_scripts.report import data_uris
from lora_scripts.report.chinese import with_chinese
from lora_scripts.units import percent


def fill(template: str, **values: object) -> str:
    """A whole page from a file of `templates`, in English and Chinese: `language` is the one that it opens in (en, zh,
    or auto: the browser's). An unknown name in a template raises, as does a template in error."""
    return with_chinese(_html().get_template(template).render({"language": "auto", **values}))


def fill_markdown(template: str, language: str = "en", **values: object) -> str:
    """A text in Markdown: what is not `verbatim` or `yaml` is escaped for a line or a cell of it.

    `said` in the template gives a text in Chinese for language "zh", where that is known.
    """

    def said(text: str) -> str:
        return (translated(text) if language == "zh" else None) or text

    return _markdown().get_template(template).render({**values, "said": said})


@cache
def _html() -> Environment:
    environment = Environment(
        loader=PackageLoader("lora_scripts.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["asset"] = _asset
    environment.filters |= {
        "breakable": _breakable,
        "room": _room,
        "sentence": _sentence,
        "percent": _percent,
        "share": percent,
        "pixels": _pixels,
        "data_uri": lambda image: Markup(data_uris.data_uri(image)),
        "reduced_uri": lambda image: Markup(data_uris.reduced_uri(image)),
        "file_uri": lambda data: Markup(data_uris.file_uri(data)),
    }
    return environment


@cache
def _markdown() -> Environment:
    environment = _html().overlay(autoescape=False, finalize=_plain)
    environment.filters = {**environment.filters, "verbatim": Markup, "yaml": _yaml}
    return environment


def _asset(name: str) -> Markup:
    """The text of a style sheet or script that ships with the package, as it is."""
    return Markup((files("lora_scripts.report") / "assets" / name).read_text(encoding="utf-8"))


def _breakable(name: str) -> Markup:
    """A name that may be broken behind each underscore."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))


def _room(value: str) -> Markup:
    """The class of a fact that needs two columns, or all: for its length, or for a word that one would break."""
    widest = max(map(len, str(value).split()), default=0)
    needs = "longest" if len(value) > 72 or widest > 50 else "long" if len(value) > 36 or widest > 24 else ""
    return Markup(' class="{}"').format(needs) if needs else Markup("")


def _sentence(text: str) -> str:
    """With a capital at its start; the rest as it is."""
    return text[:1].upper() + text[1:]


def _percent(share: float, digits: int = 0) -> str:
    """ "12%" for 0.12, as style sheets have it."""
    return f"{share:.{digits}%}"


def _pixels(size: tuple[int, int]) -> str:
    """Width and height, never broken at the ×."""
    return f"{size[0]}\u00a0×\u00a0{size[1]}"


def _plain(value: object) -> str:
    """Safe inside a line or a cell of Markdown."""
    if isinstance(value, Markup):
        return value
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _yaml(text: str) -> Markup:
    """A JSON string is a YAML string."""
    return Markup(json.dumps(text, ensure_ascii=False))
