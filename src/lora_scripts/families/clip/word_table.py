"""New words: rows of their own behind a text encoder's table of token vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WordTable(nn.Module):
    """A frozen table [n, width], and behind it rows n, n + 1, … that stand for new words.

    Only those can get a gradient; the others are what the table itself gives, bit for bit. `columns`: which numbers of
    the vectors belong here, where they are those of several text encoders.
    """

    def __init__(self, base: nn.Embedding, vectors: Sequence[Tensor], columns: slice = slice(None)) -> None:
        super().__init__()
        self.base, self.columns = base, columns
        made = [v if isinstance(v, nn.Parameter) else nn.Parameter(v.detach(), requires_grad=False) for v in vectors]
        self.vectors = nn.ParameterList(made)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., width]"""
        known = self.base.num_embeddings
        old: Tensor = self.base(ids.clamp(max=known - 1))
        # F.embedding sums its gradient in a fixed order; indexing does not, on a CPU with several threads.
        new = F.embedding((ids - known).clamp(min=0), torch.cat(list(self.vectors))[:, self.columns])
        return torch.where((ids < known)[..., None], old, new.to(old.dtype))


def numbered(words: Mapping[str, Tensor], first: int) -> dict[str, tuple[int, ...]]:
    """Word -> its token numbers, one for each of its vectors [k, width], counted from `first`."""
    numbers = {}
    for word, vectors in words.items():
        numbers[word] = tuple(range(first, first + len(vectors)))
        first += len(vectors)
    return numbers


def spread(rows: Tensor, count: int) -> Tensor:
    """[count, width] from the vectors [n, width] of a phrase: means of neighbours, or each of them several times."""
    n = len(rows)
    if n < count:
        return torch.stack([rows[i * n // count] for i in range(count)])
    return torch.stack([rows[i * n // count : (i + 1) * n // count].mean(0) for i in range(count)])
