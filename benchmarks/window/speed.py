"""The speed of one cell: its contestants start together, and then take turns while nothing else uses the device.

A contestant that fails, or is not ready in time, is left out. Ratios are of turns in the same round.
"""

from __future__ import annotations

import select
import statistics
import time
from pathlib import Path
from typing import Any

import measure

from window.context import Context, Record, say

CONTESTANTS = Path(__file__).with_name("contestants.py")
READY_SHARE = 0.7  # of the budget: contestants that are not ready then are left out
RESERVE = 1.5  # seconds before the end after which no round begins


class Contestant(measure.Contestant):
    """A contestant that warms up while others do."""

    def __init__(self, *command: object) -> None:
        self.start(*command)
        self.about: dict[str, Any] = {}

    def is_ready(self, seconds: float) -> bool:
        """Whether it is ready within this time. Raises SystemExit if its process ended."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], max(0.0, seconds))[0]:
            return False
        self.about = self._answer()
        return True


def run(context: Context, record: Record) -> None:
    name = record.values["stage"]
    cell = context.sizes.cells[name]
    record.set("cell", {"size": cell.size, "width": cell.width, "batch": cell.batch, "steps": cell.steps})
    latest = time.time() + READY_SHARE * context.left()
    command = (CONTESTANTS, "--context", context.dump(), "--cell", name)
    started = {who: Contestant(*command, "--name", who) for who in cell.contestants}
    left_out: dict[str, str] = {}
    for who, contestant in list(started.items()):
        try:
            reason = "" if contestant.is_ready(latest - time.time()) else "not ready in time"
        except SystemExit as error:
            reason = f"failed ({contestant.process.returncode}): {str(error)[-80:]}"
        if reason:
            left_out[who] = reason
            contestant.process.kill()
            del started[who]
    record.set("left_out", left_out)
    record.check("every contestant was ready", not left_out, left_out=left_out)
    take_turns(started, cell.rounds, context, record)
    for contestant in started.values():
        contestant.end()


def take_turns(started: dict[str, Contestant], rounds: int, context: Context, record: Record) -> None:
    """Time the contestants round by round, as long as there is time. Every second round is in reverse order."""
    seconds: dict[str, list[float]] = {who: [] for who in started}
    waited: dict[str, list[dict[str, float]]] = {who: [] for who in started}
    peak: dict[str, int] = {}
    steps = record.values["results"]["cell"]["steps"]
    slowest = 0.0
    for number in range(rounds):
        if context.left() < RESERVE + slowest:
            say(f"{number} of {rounds} rounds: no time for more")
            break
        began = time.time()
        order = list(started)
        for who in order if number % 2 == 0 else order[::-1]:
            answer = started[who].turn(1)
            seconds[who].append(answer["seconds"][0] / steps)
            waited[who].append({name: value / answer["seconds"][0] for name, value in answer["waited"].items()})
            peak[who] = answer["peak_bytes"]
        slowest = max(slowest, time.time() - began)
        record.set("contestants", {
            who: figures(started[who].about, seconds[who], waited[who], peak[who], seconds.get("p2pzoo"))
            for who in started
        })  # fmt: skip


def figures(
    about: dict[str, Any], seconds: list[float], waited: list[dict[str, float]], peak: int, ours: list[float] | None
) -> dict[str, Any]:
    """The figures of one contestant: seconds of a step, and how many times as long as p2pzoo's that is."""
    shares = {name: round(statistics.median(each[name] for each in waited), 4) for name in waited[0]}
    flop = about.get("flop", 0)
    return {
        **about,
        "milliseconds": round(1e3 * statistics.median(seconds), 4),
        "rounds": [round(1e3 * each, 4) for each in seconds],
        "peak_megabytes": round(peak / 1e6),
        **({"times_as_long": measure.ratio(seconds, ours)} if ours else {}),
        **({"share_of_time_waiting_for": shares} if shares else {}),
        **({"gigaflops": round(flop / statistics.median(seconds) / 1e9, 1)} if flop else {}),
    }
