"""Run the stages one after the other, each as a process with a time limit. A failure of one stops no other.

Stages in the background run beside them. Leftover time goes to the stage that takes all that is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2pzoo.utils.files import read_object, write_json
from window.context import Context
from window.plan import BY_NAME, PACK_SECONDS, STAGES, Sizes, Stage

GRACE = 3.0  # seconds between SIGTERM and SIGKILL
ENDED = ("ok", "stopped")  # a stage in the background may be stopped; who misses its results says so
LOG_LINES = 15  # of a failed stage that its JSON keeps


@dataclass
class Running:
    """A stage's process."""

    stage: Stage
    process: subprocess.Popen[bytes]
    began: float
    until: float


class Window:
    """The whole window.

    script   the command that runs one stage when it gets --stage NAME --context JSON
    end      time.time() at which everything has ended
    log      prints a line
    """

    def __init__(self, script: Path, context: Context, end: float, log: Callable[[str], None]) -> None:
        self.script, self.context, self.end, self.log = script, context, end, log
        self.background: list[Running] = []
        self.statuses: dict[str, str] = {}
        (context.out / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, stages: Sequence[Stage]) -> None:
        """Run these stages in their order; `inventory` has run already."""
        try:
            for stage in stages:
                if stage.until:
                    end = self.end - PACK_SECONDS
                    self.background.append(self._start(stage, end))
                    continue
                self._end_background(stage.name)
                self.run_stage(stage)
        finally:
            self._end_background(None)

    def run_stage(self, stage: Stage) -> None:
        """Run one stage to its end, or to the end of its budget."""
        last = self.end - PACK_SECONDS
        until = last if stage.seconds is None else min(last, time.time() + stage.seconds * self._scale())
        if until - time.time() < 1:
            self._describe(stage, "no time left", 0.0, None)
            return
        running = self._start(stage, until)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(until - time.time())
        finally:
            self._finish(running)

    def _scale(self) -> float:
        """Budgets of a rehearsal are longer: its machine may have one core, and loads torch for every process."""
        return 20.0 if self.context.rehearse else 1.0

    def _start(self, stage: Stage, until: float) -> Running:
        context = replace(self.context, until=until)
        command = [sys.executable, str(self.script), "--stage", stage.name, "--context", context.dump()]
        with (self.context.out / "logs" / f"{stage.name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | _caches(self.context.work),
            )  # fmt: skip
        return Running(stage, process, time.time(), until)

    def _end_background(self, before: str | None) -> None:
        """End the stages in the background that may not run beside the stage `before`; None: all of them."""
        names = list(BY_NAME)
        for running in list(self.background):
            is_over = before is None or names.index(before) >= names.index(running.stage.until)
            if is_over:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.process.wait(GRACE)  # it may have written its last result just now
            if is_over or running.process.poll() is not None:
                self.background.remove(running)
                self._finish(running)

    def _finish(self, running: Running) -> None:
        """End the process and its children, and store how it ended in its JSON."""
        code = running.process.poll()
        seconds = time.time() - running.began
        end_group(running.process)
        unfinished = "stopped" if running.stage.until else "timed out"
        status = unfinished if code is None else "ok" if code == 0 else "failed"
        self._describe(running.stage, status, seconds, code)

    def _describe(self, stage: Stage, status: str, seconds: float, code: int | None) -> None:
        file = self.context.out / f"{stage.name}.json"
        values: dict[str, Any] = read_object(file) or {"stage": stage.name, "checks": [], "results": {}}
        values |= {"status": status, "seconds": round(seconds, 2), "budget": stage.seconds}
        if code:
            values |= {"code": code, "log": _last_lines(self.context.out / "logs" / f"{stage.name}.log")}
        write_json(file, values)
        self.statuses[stage.name] = status
        self.log(f"{stage.name}: {status}, {seconds:.1f} s{_failed_checks(values)}")


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, with all of the group: SIGTERM, and SIGKILL after GRACE seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        if not _group_exists(process.pid):
            return


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _caches(work: Path) -> dict[str, str]:
    """Where compilers keep what they made: all stages share it, and it starts empty."""
    folders = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    return {name: os.environ.get(name, str(work / folder)) for name, folder in folders.items()}


def _failed_checks(values: dict[str, Any]) -> str:
    checks = values.get("checks", [])
    failed = [check["check"] for check in checks if check["passed"] is False]
    if failed:
        return f"; {len(failed)} of {len(checks)} checks failed: {', '.join(failed[:3])}"
    return f"; {len(checks)} checks" if checks else ""


def _last_lines(log: Path) -> list[str]:
    return log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]


def select(only: Sequence[str], sizes: Sizes) -> Iterator[Stage]:
    """The stages after the inventory, or those of these names. A rehearsal has fewer cells of speed."""
    for stage in STAGES[1:]:
        has_sizes = stage.module != "speed" or stage.name in sizes.cells
        if has_sizes and (not only or stage.name in only):
            yield stage


def is_good(out: Path) -> bool:
    """Whether every stage of a window ended by itself and no check failed."""
    records = [json.loads(file.read_text("utf-8")) for file in out.glob("*.json")]
    ended = all(record["status"] in ENDED for record in records if record.get("stage") in BY_NAME)
    checks = [check for record in records for check in record.get("checks", [])]
    return ended and all(check["passed"] is not False for check in checks)
