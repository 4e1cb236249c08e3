"""Classes of diffusers, of which an older one has not all."""

from __future__ import annotations

import importlib
from typing import Any

from lora_scripts.errors import UserError

LEAST = "0.42.1"
"""The lowest diffusers that every family was tested with, as pyproject.toml has it."""


def of_diffusers(name: str) -> Any:
    """A class of diffusers by its name. UserError where the installed one has none."""
    diffusers = importlib.import_module("diffusers")
    try:
        return getattr(diffusers, name)
    except AttributeError:
        told = f"this needs diffusers >= {LEAST}: {diffusers.__version__} has no {name}"
        raise UserError(told, hint="pip install -U diffusers") from None
