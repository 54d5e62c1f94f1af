"""Prepare batches in threads before the steps that need them, so that an accelerator does not wait for them."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, Self, TypeVar

from p2pzoo.plugin.batch import Batch

READY_BATCHES = 1  # that wait for their step, besides one in the hands of each worker
MAX_WORKERS = 4  # more do not help: the parts of a batch that Python itself computes take turns
CORES_PER_WORKER = 4  # the others are for the training thread, for those that read pairs, and for other programs

_Read = TypeVar("_Read")


class BatchSequence(Protocol):
    """Batches by step: `batches[step]` depends on the step alone."""

    def __getitem__(self, step: int) -> Batch: ...


class SplitBatches(BatchSequence, Protocol):
    """Batches that threads can make: `read` in the order of the steps, in one thread, then `make_stored` in several."""

    def read(self, step: int) -> Any: ...

    def make_stored(self, step: int, pairs: Any) -> Batch: ...


def count_workers(cores: int) -> int:
    """The number of threads that make batches, for a process that may use this many cores.

    >>> [count_workers(cores) for cores in (1, 2, 8, 64)]
    [1, 1, 2, 4]
    """
    return max(1, min(MAX_WORKERS, cores // CORES_PER_WORKER))


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


class Prefetcher(Generic[_Read]):
    """`[step]` is `make(step, read(step))`. While it is used, threads prepare those of the next steps.

    Results do not depend on the number of threads. An error in a thread is raised when its batch is requested. Use it
    in a `with` statement: at the end the threads finish what they are at, and stop.

    read     called in the order of the steps, in one thread
    make     called in `workers` threads
    end      number of steps; nothing is prepared after the last
    workers  number of threads. Besides the batches in their hands one more is ready

    >>> with Prefetcher(["a", "b"].__getitem__, lambda step, text: text.upper(), end=2) as prefetched:
    ...     prefetched[0]
    'A'
    """

    def __init__(
        self, read: Callable[[int], _Read], make: Callable[[int, _Read], Batch], *, end: int, workers: int = 1
    ) -> None:
        self.read, self.make, self.end, self.workers = read, make, end, workers
        self._reader = ThreadPoolExecutor(1, "batches-read")
        self._makers = ThreadPoolExecutor(workers, "batches")
        self._futures: dict[int, Future[Batch]] = {}

    def __getitem__(self, step: int) -> Batch:
        steps = range(step, max(step + 1, min(step + 1 + self.workers + READY_BATCHES, self.end)))
        self._futures = {n: self._futures.get(n) or self._submit(n) for n in steps}
        return self._futures.pop(step).result()

    def _submit(self, step: int) -> Future[Batch]:
        item = self._reader.submit(self.read, step)
        return self._makers.submit(lambda: self.make(step, item.result()))

    def wait(self) -> None:
        """Wait until the next batches are ready. Until a batch is requested, no thread works then."""
        concurrent.futures.wait(self._futures.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)  # first: a maker may be waiting for it
        self._makers.shutdown(cancel_futures=True)
