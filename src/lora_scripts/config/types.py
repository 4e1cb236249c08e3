"""Types of config values, and `Keys`: a group of keys under one heading, which knows what makes them useless."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from lora_scripts.config.prompt_line import parse_line
from lora_scripts.config.values import check_size, parse_device, parse_path
from lora_scripts.errors import UserError

FEATURES = {
    "pictures": "models that draw pictures",
    "vae": "models with a VAE",
    "clip": "models with a CLIP text encoder",
    "text_encoder": "models whose text encoder can be trained",
    "prediction": "models that predict noise or v",
    "unet": "models with a UNet",
    "negative": "models that read a negative prompt",
    "language": "models whose text encoder is a language model",
    "fused": "models whose published file keeps q, k and v as one layer",
    "references": "models that edit pictures",
    "texts": "language models",
}
"""What a key may need of the base's family, and whom it is for, in words."""
SCALING = ("dora", "oft")
"""Adapters whose files scale the base's own weights, which must then be as they are."""

Fault = tuple[str, str, str]
"""(key, what is wrong with it, the mend)"""


class Keys(BaseModel):
    """Some keys of the config, in the order and under the heading in which the resolved config shows them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    TITLE: ClassVar[str]
    NEEDS: ClassVar[Mapping[str, str]] = {}
    """Key -> the one of FEATURES without which it would do nothing."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        """Every key of this group that does nothing, or cannot be, beside the others.

        `values` has each key's value or default; a key whose own value is wrong may be left out. A fault of a key that
        nobody has written is not told.
        """
        yield from ()


def no_effect(key: str, without: str, add: str) -> Fault:
    """The usual fault: `key` does nothing without another key; `add` is what to write for it."""
    return key, f"has no effect without {without}", f"add {add}, or leave {key} out"


def as_tuple(value: object) -> object:
    """A YAML list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


class TargetRule(BaseModel):
    """A set of layers with a size and a learning rate of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    match: str
    rank: Annotated[int, Field(ge=1, le=128)] | None = None
    alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    lr: Annotated[float, Field(gt=0, le=1)] | None = None


def rule_for(path: str, rules: Sequence[TargetRule], groups: Mapping[str, Callable[[str], bool]]) -> TargetRule | None:
    """The one that a layer would get, as `adapters.inject.assign` gives them; None: it is not trained."""
    for rule in reversed(rules):
        group = groups.get(rule.match)
        if group(path) if group else fnmatchcase(path, rule.match):
            return rule
    return None


def _targets(value: tuple[str | TargetRule, ...]) -> tuple[str | TargetRule, ...]:
    if not value or len(set(value)) < len(value):
        raise ValueError("must name at least one group of layers" if not value else "names the same layers twice")
    return value


def _prompt(value: str) -> str:
    if not value.strip():
        raise ValueError("is an empty text")
    try:
        parse_line(value, tags=False)
    except UserError as error:
        raise ValueError(_first(error.errors[0])) from None
    return value


def _first(error: UserError) -> str:
    return f"{error.message}; {error.hint}"


def _prompts(value: object) -> object:
    """A list as a tuple, and the path of a text file as one; any other text stays what it is, a fault."""
    if isinstance(value, str) and value.strip().lower().endswith(".txt"):
        return parse_path(value)
    return as_tuple(value)


def _files(value: object) -> object:
    """One path, or a list of them, as a tuple."""
    paths = tuple(parse_path(one) for one in (value if isinstance(value, list | tuple) else [value]))
    if not paths or len(set(paths)) < len(paths):
        raise ValueError("must name at least one file" if not paths else "names the same file twice")
    return paths


_LONGEST = 200
"""Bytes of a LoRA's name: what stands behind it in the names of files has to fit into 255, too."""


def _output_dir(path: Path) -> Path:
    # The exported LoRA bears the folder's name, and prompts call it as <lora:NAME:0.8>.
    name = Path(os.path.abspath(path)).name
    if not name or set(name) & set("<>:"):
        raise ValueError(
            "the LoRA is named after this folder, and a prompt cannot call a name with < > : or none; choose another"
        )
    if len(os.fsencode(name)) > _LONGEST:
        raise ValueError(f"the LoRA is named after this folder, so {_LONGEST} bytes is the most for its name")
    return path


ConfigPath = Annotated[Path, BeforeValidator(parse_path)]
ConfigPaths = Annotated[tuple[Path, ...], BeforeValidator(_files)]
OutputPath = Annotated[ConfigPath, AfterValidator(_output_dir)]
Size = Annotated[int | tuple[int, int], BeforeValidator(check_size)]
AnyTarget = Annotated[
    Annotated[str, Tag("name")] | Annotated[TargetRule, Tag("rule")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "rule"),
]
Targets = Annotated[tuple[AnyTarget, ...], BeforeValidator(as_tuple), AfterValidator(_targets)]
PromptList = tuple[Annotated[str, AfterValidator(_prompt)], ...]
Prompts = Annotated[
    Annotated[PromptList, Tag("list")] | Annotated[Path, Tag("file")],
    Discriminator(lambda value: "file" if isinstance(value, Path) else "list"),
    BeforeValidator(_prompts),
]
Device = Annotated[str, AfterValidator(parse_device)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Rates = Annotated[
    Annotated[Rate, Tag("one")] | Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, tuple) else "one"),
    BeforeValidator(as_tuple),
]
"""One rate for all, or one for each; 0 is none."""
