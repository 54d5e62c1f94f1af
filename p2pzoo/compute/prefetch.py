"""Batches made ahead of the step that takes them, by a thread, so that an accelerator never waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from p2pzoo.plugin.batch import Batch

DEPTH = 2  # batches: one ready, one in the making


class Batches(Protocol):
    """`[step]` is the batch of that step; which one it is follows from the step alone."""

    def __getitem__(self, step: int) -> Batch: ...


class Clocked:
    """The same batches, and how long they were waited for."""

    def __init__(self, batches: Batches) -> None:
        self._batches, self._seconds = batches, 0.0

    def __getitem__(self, step: int) -> Batch:
        began = time.perf_counter()
        batch = self._batches[step]
        self._seconds += time.perf_counter() - began
        return batch

    def taken(self) -> float:
        """Seconds since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Ahead:
    """The same batches. While one is used, a thread makes those of the next steps, up to `end`.

    What goes wrong in the thread is raised where that batch is asked for. To be closed (`with`): the thread then ends
    with the batch that it is at. Nobody else may ask `batches` for anything meanwhile.
    """

    def __init__(self, batches: Batches, prepare: Callable[[Batch], Batch], end: int) -> None:
        self.batches, self.prepare, self.end = batches, prepare, end
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._made: dict[int, Future[Batch]] = {}

    def __getitem__(self, step: int) -> Batch:
        wanted = range(step, max(step + 1, min(step + 1 + DEPTH, self.end)))
        self._made = {at: self._made.get(at) or self._thread.submit(self._make, at) for at in wanted}
        return self._made.pop(step).result()

    def _make(self, step: int) -> Batch:
        return self.prepare(self.batches[step])

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
