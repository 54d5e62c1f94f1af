"""A command that stops itself, as if it had been told to (SIGTERM): --max-time, before a limit on wall-clock time;
--with-parent, when whoever started it is gone.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

import click

HEADROOM, SHARE = 30.0, 0.1  # seconds before the limit, or that share of it if that is less: to save, and to end
WORDS = re.compile(r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?")
CLOCK = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>[0-5]\d):(?P<s>[0-5]\d)")
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in click 8.3 alone
    """A time as people and SLURM write it -> seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails for what is neither 3h50m nor 3:50:00, and for none at all."""
        found = WORDS.fullmatch(value) or CLOCK.fullmatch(value)
        seconds = sum(SECONDS[unit] * int(count) for unit, count in found.groupdict().items() if count) if found else 0
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            self.fail(f"'{value}' is no time: write 3h50m, 90m, or 3:50:00", param, ctx)
        return float(seconds)


def _begin(ctx: click.Context, _param: click.Parameter, limit: float | None) -> None:
    if limit is None or ctx.resilient_parsing:
        return
    timer = threading.Timer(limit - min(HEADROOM, SHARE * limit), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    ctx.call_on_close(timer.cancel)


def _follow(ctx: click.Context, _param: click.Parameter, follows: bool) -> None:
    if not follows or ctx.resilient_parsing:
        return

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock a daemon thread would hold at the process's end
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


with_parent_option = click.option(
    "--with-parent", is_flag=True, hidden=True, callback=_follow, expose_value=False,
    help="Stop and save when standard input ends, as it does when the process that holds its other end is gone.",
)  # fmt: skip
max_time_option = click.option(
    "--max-time", type=Duration(), metavar="TIME", callback=_begin, expose_value=False,
    help="Stop and save before the command has run this long (3h50m, or 3:50:00); the same command goes on.",
)  # fmt: skip
