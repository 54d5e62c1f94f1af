"""Options that stop a command with SIGTERM, so that it saves.

--max-time stops it before a limit of wall-clock time, --with-parent when the process that started it is gone.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Any

import click

from p2pzoo.utils.signals import stop_this_process

# the time to save and to end, before the limit: 30 s suffice for a checkpoint; a tenth of short limits, as in tests
MAX_HEADROOM_SECONDS, HEADROOM_SHARE = 30.0, 0.1
UNITS = re.compile(r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?")
CLOCK = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>[0-5]\d):(?P<s>[0-5]\d)")
SECONDS_PER_UNIT = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in click 8.3 only
    """A duration, "3h50m" or as SLURM writes it "1-3:50:00" -> seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises click.BadParameter for other forms, and for a duration of 0."""
        match = UNITS.fullmatch(value) or CLOCK.fullmatch(value)
        parts = match.groupdict().items() if match else ()
        seconds = sum(SECONDS_PER_UNIT[unit] * int(count) for unit, count in parts if count)
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            self.fail(f"'{value}' is not a duration: write 3h50m, 90m, or 3:50:00", param, ctx)
        return float(seconds)


def _start_timer(ctx: click.Context, _param: click.Parameter, limit: float | None) -> None:
    if limit is None or ctx.resilient_parsing:
        return
    timer = start_timer(limit - min(MAX_HEADROOM_SECONDS, HEADROOM_SHARE * limit))
    ctx.call_on_close(timer.cancel)


def start_timer(seconds: float) -> threading.Timer:
    """Send SIGTERM to this process after this time, in a thread that does not keep the process alive."""
    timer = threading.Timer(seconds, stop_this_process)
    timer.daemon = True
    timer.start()
    return timer


def _watch_stdin(ctx: click.Context, _param: click.Parameter, enabled: bool) -> None:
    if enabled and not ctx.resilient_parsing:
        watch_stdin()


def watch_stdin() -> None:
    """Send SIGTERM to this process when its standard input is closed."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: the daemon thread would hold its lock when the process ends
            pass
        stop_this_process()

    threading.Thread(target=wait, daemon=True).start()


with_parent_option = click.option(
    "--with-parent", is_flag=True, hidden=True, callback=_watch_stdin, expose_value=False,
    help="Stop and save when standard input is closed: the process that started this one is gone.",
)  # fmt: skip
max_time_option = click.option(
    "--max-time", type=Duration(), metavar="TIME", callback=_start_timer, expose_value=False,
    help="Stop and save before the command has run this long (3h50m, or 3:50:00); the same command resumes.",
)  # fmt: skip
