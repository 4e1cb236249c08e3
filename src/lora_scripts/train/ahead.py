"""Work that needs no model, done in a thread while the model is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T], work: Callable[[T], R], most: int = 1) -> Iterator[tuple[T, R]]:
    """Each item with `work(item)`, in their order; while the caller is busy with one, the next `most` are worked on.

    `work` runs in one thread, one item after the other; `items` is asked in the caller's. What `work` raises comes
    where its item would have come. Whoever leaves early waits for the item under way, and no other is begun.
    """
    pool, begun = ThreadPoolExecutor(1), deque[tuple[T, Future[R]]]()
    try:
        for item in items:
            begun.append((item, pool.submit(work, item)))
            if len(begun) > most:
                yield _done(begun)
        while begun:
            yield _done(begun)
    finally:
        pool.shutdown(cancel_futures=True)


def _done(begun: deque[tuple[T, Future[R]]]) -> tuple[T, R]:
    item, future = begun.popleft()
    return item, future.result()
