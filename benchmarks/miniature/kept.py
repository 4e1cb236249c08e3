"""What a long making keeps to go on from: nested dicts, lists, numbers and tensors, as safetensors with JSON in its
header. No pickle: what is loaded can only be looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from lora_scripts.formats.io import save_safetensors


def save(value: Any, path: Path) -> None:
    """Writes it, whole or not at all."""
    tensors: dict[str, Tensor] = {}

    def plain(node: Any) -> Any:
        if isinstance(node, Tensor):
            tensors[str(len(tensors))] = node
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(node, dict):
            return {"dict": [[key, plain(one)] for key, one in node.items()]}
        if isinstance(node, list | tuple):
            return {type(node).__name__: [plain(one) for one in node]}
        return {"value": node}

    tree = plain(value)
    save_safetensors(path, tensors, {"tree": json.dumps(tree)})


def load(path: Path) -> Any:
    """What `save` was given; tensors on the CPU."""
    with safe_open(path, "pt") as file:

        def whole(node: dict[str, Any]) -> Any:
            ((kind, content),) = node.items()
            if kind == "tensor":
                return file.get_tensor(content)
            if kind == "dict":
                return {key: whole(one) for key, one in content}
            if kind in ("list", "tuple"):
                return (list if kind == "list" else tuple)(whole(one) for one in content)
            return content

        return whole(json.loads(file.metadata()["tree"]))
