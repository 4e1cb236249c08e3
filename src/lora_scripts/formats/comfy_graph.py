"""The prompt of a picture from the graph that ComfyUI saves with it. Without torch.

A graph is node number -> {"class_type": …, "inputs": {name: value, or a link [node number, output]}}.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

_TEXTS = ("text", "prompt", "text_g", "text_l", "clip_g", "clip_l", "t5xxl")
"""Inputs of nodes that encode a text: one for all encoders of a model, or one for each."""
_STRINGS = ("value", "text")
"""Inputs of nodes that hold a text."""
_PASSED = ("conditioning", "cond1", "positive")
"""How inputs begin that hand on what was encoded: conditioning, conditioning_1, conditioning_to …; cond1 is the
positive one of DualCFGGuider."""
_MOST = 2000
"""Nodes that are looked at, so that a circle comes to an end."""


def prompts_of(graph: Mapping[str, Any]) -> list[str]:
    """The positive prompts that the pictures of a graph are drawn from, each once; none where none is found.

    A file does not say which of its graph's pictures it is, so several are several possibilities.
    """
    try:
        return _Graph(graph).prompts()
    except (RecursionError, _TooMany):
        return []


class _TooMany(Exception):
    pass


class _Graph:
    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.nodes = {name: node for name, node in graph.items() if isinstance(node, dict) and _inputs(node)}
        self.left = _MOST

    def prompts(self) -> list[str]:
        used = {link[0] for node in self.nodes.values() for _, link in _links(node)}
        last = [name for name in self.nodes if name not in used]
        return list(dict.fromkeys(filter(None, map(self._drawn, last))))

    def _node(self, name: str) -> Mapping[str, Any]:
        self.left -= 1
        if self.left < 0:
            raise _TooMany
        return self.nodes.get(name, {})

    def _drawn(self, last: str) -> str:
        """The prompt of the sampler that is next before a node that saves."""
        ahead, seen = deque([last]), {last}
        while ahead:
            node = self._node(ahead.popleft())
            links = _links(node)
            wanted = [link for key, link in links if key in ("positive", "guider")]
            if text := self._join(wanted):
                return text
            for _, (name, _) in links:
                if name not in seen:
                    seen.add(name)
                    ahead.append(name)
        return ""

    def _join(self, links: list[tuple[str, int]]) -> str:
        return ", ".join(dict.fromkeys(text for link in links for text in self._encoded(link)))

    def _encoded(self, link: tuple[str, int]) -> Iterator[str]:
        """The texts behind a link to what was encoded."""
        node = self._node(link[0])
        inputs = _inputs(node)
        if node.get("class_type") == "ConditioningZeroOut":
            return
        if texts := [text for key in _TEXTS if (text := self._string(inputs.get(key)).strip())]:
            yield from texts
            return
        # A ControlNet gives both on: its second output is the negative one.
        passed = ("negative",) if link[1] == 1 and "negative" in inputs else _PASSED
        for key, behind in _links(node):
            if key.startswith(passed):
                yield from self._encoded(behind)

    def _string(self, value: object) -> str:
        """A text that stands there, or that a node behind a link holds; "" for one that is only made while drawing."""
        if isinstance(value, str):
            return value
        if (link := _link(value)) is None:
            return ""
        node = self._node(link[0])
        inputs = _inputs(node)
        if node.get("class_type") == "StringConcatenate":
            return str(inputs.get("delimiter", "")).join(self._string(inputs.get(f"string_{end}")) for end in "ab")
        return next((text for key in _STRINGS if (text := self._string(inputs.get(key)))), "")


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _link(value: object) -> tuple[str, int] | None:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int):
        return str(value[0]), value[1]
    return None


def _links(node: Mapping[str, Any]) -> list[tuple[str, tuple[str, int]]]:
    return [(key, link) for key, value in _inputs(node).items() if (link := _link(value))]
