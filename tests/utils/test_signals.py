"""Signals that stop a command, also where there is no SIGHUP and os.kill ends the process at once (Windows)."""

import os
import re
import signal
import threading
from pathlib import Path

import pytest

import p2pzoo
from p2pzoo.utils import signals

ROOT = Path(p2pzoo.__file__).parents[1]
ONLY_POSIX = r"os\.kill\(|os\.fork|signal\.SIG(HUP|KILL|USR1|USR2|PIPE|ALRM|CHLD)\b|import (fcntl|pwd|grp|termios)"


@pytest.fixture
def windows(monkeypatch):
    """No SIGHUP; os.kill fails the test."""
    monkeypatch.setattr(signals, "IS_WINDOWS", True)
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("os.kill is TerminateProcess on Windows"))


def wait_until(condition):
    deadline = threading.Event()
    for _ in range(1000):
        if condition():
            return
        deadline.wait(0.01)
    pytest.fail("waited 10 s")


def test_another_thread_stops_this_process(windows):
    received = []
    with signals.handling(lambda signum, _: received.append(signum), [signal.SIGTERM]):
        thread = threading.Thread(target=signals.stop_this_process)
        thread.start()
        thread.join()
        wait_until(lambda: received)
    assert received == [signal.SIGTERM]


def test_the_time_limit_and_the_watch_of_the_parent_stop_without_kill(windows, monkeypatch):
    from p2pzoo.cli import time_limit

    read, write = os.pipe()
    monkeypatch.setattr(time_limit.os, "read", lambda _fd, count, read=os.read: read(stdin, count))
    stdin = read
    received = []
    with signals.handling(lambda signum, _: received.append(signum), [signal.SIGTERM]):
        time_limit.start_timer(0.01)
        wait_until(lambda: len(received) == 1)
        time_limit.watch_stdin()
        os.close(write)
        wait_until(lambda: len(received) == 2)
    os.close(read)


def test_commands_run_without_sighup(windows, run_cli):
    assert run_cli("list", "metric").exit_code == 0


def test_stop_signals_follow_nohup_and_the_platform(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals.stop_signals() == [signal.SIGINT, signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signals.stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)
    monkeypatch.delattr(signal, "SIGHUP")
    assert signals.stop_signals() == [signal.SIGINT, signal.SIGTERM]


def test_only_one_file_uses_what_windows_lacks():
    """`signals.py` has the forms that work everywhere."""
    files = [file for folder in ("p2pzoo", "plugins") for file in (ROOT / folder).rglob("*.py")]
    found = {str(file.relative_to(ROOT)) for file in files if re.search(ONLY_POSIX, file.read_text("utf-8"))}
    assert found == {"p2pzoo/utils/signals.py"}
