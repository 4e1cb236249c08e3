"""What the layers of a language model are called: as its own files call them, with the part's name "lm" in front.

Each architecture has names of its own, so there is no table: what looks like a layer of a stack of blocks is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, KeysView, Mapping
from functools import cached_property

from lora_scripts.families.names import Names

ROOT = "lm"
"""The first word of every path: "lm.model.layers.0.self_attn.q_proj"."""
_LAYER = re.compile(rf"{ROOT}\.(?:(?:[\w-]+\.)*(?:layers|h|blocks|block)\.\d+\.[\w.-]+|lm_head|embed_out)")


class _AnyLayer(Mapping[str, str]):
    """Every name that a layer of a language model may have -> itself. It knows them, but cannot list them."""

    def __getitem__(self, stem: str) -> str:
        if stem not in self:
            raise KeyError(stem)
        return stem

    def __contains__(self, stem: object) -> bool:
        return isinstance(stem, str) and _LAYER.fullmatch(stem) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class AnyNames(Names):
    """Names without a table."""

    @cached_property
    def paths(self) -> Mapping[str, str]:  # type: ignore[override]
        return _AnyLayer()

    @cached_property
    def stems(self) -> KeysView[str]:  # type: ignore[override]
        return self.paths.keys()

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return (ROOT,)


def names() -> Names:
    """Of every causal language model."""
    return AnyNames("causal_lm", "a language model", {}, {}, {})
