"""Puts LoRA layers into a model, by pattern, and takes them out again."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from lora_scripts.errors import UserError, raise_all
from lora_scripts.lora.layer import LoraLayer

Roots = Mapping[str, nn.Module]
"""The parts of a model by name: {"unet": …, "text_encoder": …}; a path is "unet.down_blocks.0…"."""


def select(paths: Iterable[str], targets: Iterable[str], groups: Mapping[str, Callable[[str], bool]]) -> list[str]:
    """The paths that any target names, in their own order.

    A target is a group ("attention") or a pattern with * and ? over the whole path ("unet.up_blocks.*.attn1.to_q").
    One that matches nothing is an error with the nearest names.
    """
    paths = list(paths)
    chosen: set[str] = set()
    faults = []
    for target in targets:
        group = groups.get(target)
        found = {p for p in paths if (group(p) if group else fnmatchcase(p, target))}
        if not found:
            near = difflib.get_close_matches(target, [*groups, *paths], n=3, cutoff=0.3)
            faults.append(UserError(f"targets: {target!r} matches no layer", hint=f"near it are {', '.join(near)}"))
        chosen |= found
    raise_all(faults)
    return [p for p in paths if p in chosen]


def inject(
    roots: Roots,
    paths: Iterable[str],
    ranks: Callable[[str], tuple[int, float]],
    *,
    dropout: float = 0.0,
    seed: int = 0,
) -> dict[str, LoraLayer]:
    """Wraps each path's layer; `ranks(path)` gives (rank, alpha). The start is a function of (seed, path)."""
    layers = {}
    for path in paths:
        parent, name = _parent(roots, path)
        rank, alpha = ranks(path)
        layer = LoraLayer(getattr(parent, name), rank, alpha, dropout)
        digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
        layer.reset(torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))
        layer.base.requires_grad_(False)
        setattr(parent, name, layer)
        layers[path] = layer
    return layers


def remove(roots: Roots, layers: Mapping[str, LoraLayer]) -> None:
    """Takes the outermost LoRA off each path; `layers` as `inject` gave them. The base was never touched."""
    for path, layer in layers.items():
        parent, name = _parent(roots, path)
        assert getattr(parent, name) is layer, f"{path}: another LoRA lies over this one"
        setattr(parent, name, layer.base)


def _parent(roots: Roots, path: str) -> tuple[nn.Module, str]:
    root, _, inner = path.partition(".")
    where, _, name = inner.rpartition(".")
    return roots[root].get_submodule(where), name
