"""Prepare batches in a thread before the step that needs them, so that an accelerator does not wait for them."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from p2pzoo.plugin.batch import Batch

PREFETCH_DEPTH = 2  # batches: one is ready, one is being made


class BatchSequence(Protocol):
    """Batches by step: `batches[step]` depends on the step alone."""

    def __getitem__(self, step: int) -> Batch: ...


class TimedBatches:
    """The same batches; measures how long training waits for them.

    >>> TimedBatches(["batch of step 0"])[0]
    'batch of step 0'
    """

    def __init__(self, batches: BatchSequence) -> None:
        self._batches, self._seconds = batches, 0.0

    def __getitem__(self, step: int) -> Batch:
        start = time.perf_counter()
        batch = self._batches[step]
        self._seconds += time.perf_counter() - start
        return batch

    def pop_seconds(self) -> float:
        """Return the seconds waited since the last call of this method."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Prefetcher:
    """The same batches. While one is used, a thread prepares those of the next PREFETCH_DEPTH steps.

    An error in the thread is raised when its batch is requested. Use it in a `with` statement: at the end the thread
    finishes its current batch and stops. Nothing else may read `batches` meanwhile.

    batches  batches by step
    prepare  applied to each batch in the thread
    end      number of steps; the thread prepares no batch after the last

    >>> with Prefetcher(["a", "b"], str.upper, end=2) as prefetched:
    ...     prefetched[0]
    'A'
    """

    def __init__(self, batches: BatchSequence, prepare: Callable[[Batch], Batch], end: int) -> None:
        self.batches, self.prepare, self.end = batches, prepare, end
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._futures: dict[int, Future[Batch]] = {}

    def __getitem__(self, step: int) -> Batch:
        steps = range(step, max(step + 1, min(step + 1 + PREFETCH_DEPTH, self.end)))
        self._futures = {n: self._futures.get(n) or self._thread.submit(self._make, n) for n in steps}
        return self._futures.pop(step).result()

    def _make(self, step: int) -> Batch:
        return self.prepare(self.batches[step])

    def wait(self) -> None:
        """Wait until the next batches are ready. Until a batch is requested, no thread works then."""
        concurrent.futures.wait(self._futures.values())

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
