"""What an expression of the code may be as a text, for tests that look whether texts have Chinese."""

from __future__ import annotations

import ast
import itertools


def written(value: ast.expr | None) -> list[str]:
    """The texts that an expression may be, with NUL for a value."""
    if isinstance(value, ast.IfExp):
        return written(value.body) + written(value.orelse)
    if isinstance(value, ast.Tuple):
        return [text for one in value.elts for text in written(one)]
    if isinstance(value, ast.Constant):
        return [value.value] if isinstance(value.value, str) else []
    if isinstance(value, ast.JoinedStr):
        parts = [written(part) if isinstance(part, ast.Constant) else _inner(part) for part in value.values]
        return ["".join(one) for one in itertools.islice(itertools.product(*parts), 8)]
    return []


def _inner(part: ast.expr) -> list[str]:
    """Of a hole of an f-string: what it may be, where it chooses between two texts."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    found = written(value) if isinstance(value, ast.IfExp) else []
    return found if len(found) > 1 else ["\0"]
