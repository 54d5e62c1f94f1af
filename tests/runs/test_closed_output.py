"""When nobody reads standard error any more, a command is stopped as by SIGTERM, once, so that it saves."""

import errno
import io
import signal
import sys

import pytest
from p2pzoo_bench.progress import LiveTableProgress, PlainTableProgress
from rich.console import Console

from p2pzoo.runs.progress import LiveProgress, PlainProgress
from p2pzoo.utils.signals import handling


class Closed(io.StringIO):
    """A stream whose reader is gone."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, "no reader")

    flush = write_through = lambda self: None


KINDS = {
    "plain": lambda stream: PlainProgress(10, 1),
    "live": lambda stream: LiveProgress(10, 1, Console(file=stream)),
    "plain table": lambda stream: PlainTableProgress(),
    "live table": lambda stream: LiveTableProgress(Console(file=stream)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_line_that_nobody_reads_stops_the_command(kind, monkeypatch):
    received = []
    stream = Closed(errno.EPIPE)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = KINDS[kind](stream)
    with handling(lambda signum, _: received.append(signum), [signal.SIGTERM]):
        for _ in range(3):
            progress.note("a line")
    assert received == [signal.SIGTERM]


def test_a_full_disk_is_another_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Closed(errno.ENOSPC))
    with pytest.raises(OSError, match="no reader"):
        PlainProgress(10, 1).note("a line")
