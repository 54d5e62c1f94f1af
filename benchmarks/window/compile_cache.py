"""In the background: compile what `resume` and `speed_256_1` compile, so that they find it in the compilers' caches."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from window import resume
from window.context import Context, Record
from window.plan import Cell
from window.speed import CONTESTANTS

CELL = "speed_256_1"


def run(context: Context, record: Record) -> None:
    began = time.time()
    started: dict[str, subprocess.Popen[Any]] = {}
    if "compile" in resume.variants(context):
        recipe = resume.write_recipe(context)
        started["resume"] = resume.start(context, recipe, "compile", context.work / "compiled", "cache")
    cell: Cell = context.sizes.cells[CELL]
    for name in cell.contestants:
        if "compile" in name:
            command = [sys.executable, str(CONTESTANTS), "--context", context.dump(), "--cell", CELL]
            started[name] = subprocess.Popen([*command, "--name", name, "--warm-up-only"], stdin=subprocess.DEVNULL)
    ended: dict[str, Any] = {}
    while started:
        for name, process in list(started.items()):
            if (code := process.poll()) is not None:
                ended[name] = {"code": code, "seconds": round(time.time() - began, 1)}
                record.set("compiled", ended)
                del started[name]
        time.sleep(0.1)
