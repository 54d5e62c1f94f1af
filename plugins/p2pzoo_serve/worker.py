"""One thread that runs the network for all requests, and a bounded queue before it. Imports no torch.

Torch's random state is global, so one thread alone gives each image the bits of `p2pzoo translate`. A job that nobody
waits for any longer stops before the next layer of the network, where a hook calls `raise_if_stopped`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from p2pzoo.utils.plurals import format_count
from p2pzoo_serve.interface import Refusal

RETRY_SECONDS = 5  # after which a client may ask again: a few translations later


class Stopped(Exception):
    """The client of the running job is gone, or the server stops."""


@dataclass(eq=False)
class Job:
    """Work for the thread, and its result."""

    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    is_stopped: bool = False


class Worker:
    """Runs jobs one after the other, in its own thread.

    places  jobs that may wait besides the running one

    >>> worker = Worker(places=1)
    >>> worker.submit(lambda: 6 * 7).future.result()
    42
    >>> worker.stop()
    >>> worker.join(10)
    True
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def check_free(self) -> None:
        """Raises Refusal if no place is free."""
        if len(self.waiting) + (self._running is not None) > self.places:
            raise Refusal(
                503,
                f"busy: {format_count(len(self.waiting), 'request')} in the queue already; try again in a few seconds",
                {"Retry-After": str(RETRY_SECONDS)},
            )

    def submit(self, work: Callable[[], Any]) -> Job:
        """Put work into the queue. Its future has the result, or the exception. Raises Refusal if no place is free."""
        job = Job(work)
        with self._changed:
            if self._is_closed:
                raise Refusal(503, "the server stops; ask again when it runs")
            self.check_free()
            job.future.set_running_or_notify_cancel()  # else whoever stops waiting for the result would cancel it
            self.waiting.append(job)
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Free the place of a job; a running one ends before the next layer of the network, with `Stopped`."""
        with self._changed:
            job.is_stopped = True
            if job in self.waiting:
                self.waiting.remove(job)
                job.future.set_exception(Stopped())

    def stop(self) -> None:
        """Cancel all jobs and take no others. The running one has its exception at once, before the thread ends."""
        with self._changed:
            self._is_closed = True
            for job in [*self.waiting]:
                self.cancel(job)
            if running := self._running:
                running.is_stopped = True
                _finish(running.future, Stopped())
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end after `stop`; whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while job := self._take():
            result: Any
            try:
                result = job.work()
            except BaseException as error:  # the thread lives on: the next job may be fine
                result = error
            with self._changed:
                self._running = None
                _finish(job.future, result)

    def _take(self) -> Job | None:
        with self._changed:
            while not self.waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            self._running = self.waiting.popleft()
            return self._running

    def raise_if_stopped(self) -> None:
        """Raises Stopped in a job that is cancelled, and does nothing in other threads."""
        job = self._running
        if job and job.is_stopped and threading.current_thread() is self._thread:
            raise Stopped


def _finish(future: Future[Any], result: Any) -> None:
    """Give a future its result or its exception, unless it has one."""
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
