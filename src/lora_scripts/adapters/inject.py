"""Puts LoRA layers into a model, by pattern, and takes them out again."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

import torch
from torch import nn

from lora_scripts.adapters.layer import Adapter
from lora_scripts.errors import UserError, raise_all
from lora_scripts.seeds import seed_of

Roots = Mapping[str, nn.Module]
"""The parts of a model by name: {"unet": …, "text_encoder": …}; a path is "unet.down_blocks.0…"."""


class Rule(Protocol):
    """Which layers, by group or pattern."""

    @property
    def match(self) -> str: ...


R = TypeVar("R", bound=Rule)


def assign(paths: Iterable[str], rules: Iterable[R], groups: Mapping[str, Callable[[str], bool]]) -> dict[str, R]:
    """path -> the last rule that matches it, in the paths' own order; paths without a rule are left out.

    A rule matches a group ("attention", "OUT03") or a pattern with * and ? over the whole path
    ("unet.up_blocks.*.attn1.to_q"). One that matches nothing is an error with the nearest names.
    """
    paths, faults = list(paths), []
    chosen: dict[str, R] = {}
    for rule in rules:
        group = groups.get(rule.match)
        found = [p for p in paths if (group(p) if group else fnmatchcase(p, rule.match))]
        if not found:
            near = difflib.get_close_matches(rule.match, [*groups, *paths], n=3, cutoff=0.3)
            faults.append(UserError(f"targets: {rule.match!r} matches no layer", hint=f"near it are {', '.join(near)}"))
        chosen |= dict.fromkeys(found, rule)
    raise_all(faults)
    return {p: chosen[p] for p in paths if p in chosen}


def inject(
    roots: Roots,
    paths: Iterable[str],
    make: Callable[[str, nn.Module], Adapter],
    *,
    seed: int = 0,
    reset: bool = True,
) -> dict[str, Adapter]:
    """Wraps each path's layer in `make(path, layer)`. The start is a function of (seed, path).

    `reset=False`: the layers are made with their values, or get them afterwards.
    """
    layers = {}
    for path in paths:
        parent, name = _parent(roots, path)
        layer = make(path, getattr(parent, name))
        if reset:
            layer.reset(torch.Generator().manual_seed(seed_of(f"{seed}/{path}")))
        layer.base.requires_grad_(False)
        setattr(parent, name, layer)
        layers[path] = layer
    return layers


def remove(roots: Roots, layers: Mapping[str, Adapter]) -> None:
    """Takes the outermost LoRA off each path; `layers` as `inject` gave them. The base was never touched."""
    for path, layer in layers.items():
        parent, name = _parent(roots, path)
        assert getattr(parent, name) is layer, f"{path}: another LoRA lies over this one"
        setattr(parent, name, layer.base)


def put_back(roots: Roots, layers: Mapping[str, nn.Module]) -> None:
    """Sets the layer of each path, whatever stands there."""
    for path, layer in layers.items():
        parent, name = _parent(roots, path)
        setattr(parent, name, layer)


def _parent(roots: Roots, path: str) -> tuple[nn.Module, str]:
    root, _, inner = path.partition(".")
    where, _, name = inner.rpartition(".")
    return roots[root].get_submodule(where), name
