"""Signals that stop a command so that it saves first: Ctrl-C, SIGTERM, and SIGHUP of a terminal that was closed.

Windows has no SIGHUP, and os.kill ends a process there at once, before it can save.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

IS_WINDOWS = os.name == "nt"


def stop_signals() -> list[int]:
    """SIGINT, SIGTERM and, where there is one, SIGHUP, unless `nohup` made this process ignore it.

    >>> signal.SIGTERM in stop_signals()
    True
    """
    hangup: int | None = getattr(signal, "SIGHUP", None)
    is_handled = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hangup] if hangup is not None and is_handled else [])]


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], None], signals: list[int]) -> Iterator[dict[int, Any]]:
    """Handle these signals, and yield {signal: handler before}. Changes nothing outside of the main thread."""
    before: dict[int, Any] = {}
    try:
        with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals then
            for number in signals:
                before[number] = signal.signal(number, handler)
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def interrupting() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt(signal), as Ctrl-C does, so that files are left in order.

    Yields the signals that have arrived: inside an import or a library, the exception can come out as another one.
    """
    arrived: list[int] = []

    def interrupt(signum: int, _frame: object) -> None:
        arrived.append(signum)
        raise KeyboardInterrupt(signum)

    with handling(interrupt, [number for number in stop_signals() if number != signal.SIGINT]):
        yield arrived


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """128 + the number of the signal.

    >>> exit_code(KeyboardInterrupt())
    130
    """
    return 128 + int(interrupt.args[0] if interrupt.args else signal.SIGINT)


def stop_this_process() -> None:
    """Send SIGTERM to this process, from any of its threads. On Windows it must have a handler."""
    if IS_WINDOWS:
        _thread.interrupt_main(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)  # not raise_signal: it would not wake the main thread
