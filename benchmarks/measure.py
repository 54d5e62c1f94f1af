"""Measurement for the benchmarks: contestants in separate processes take turns in one run; medians and ratios.

Each contestant is a process, because allocator settings and peak memory belong to a process. One works while the others
wait. Absolute times vary with the other load of a machine; the ratio of two consecutive turns varies little.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Contestant:
    """A process that runs a script which calls `serve`; it works when `turn` is called."""

    def __init__(self, *command: object) -> None:
        self.start(*command)
        self.about = self._answer()  # the process has finished its warm-up

    def start(self, *command: object) -> None:
        arguments = [sys.executable, *map(str, command)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self, repeats: int) -> dict[str, Any]:
        """Do the work `repeats` times. Return {"seconds": of each repeat, "peak_bytes"}, and what `serve` adds."""
        assert self.process.stdin
        self.process.stdin.write(f"{repeats}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))}: ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(
    work: Callable[[], object],
    about: dict[str, Any] | None = None,
    *,
    peak: Callable[[], int] | None = None,
    facts: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Be a contestant: for each number on stdin, do `work` that often, and print the seconds of each and peak memory.

    work   one repeat
    about  facts about this contestant, printed first
    peak   returns peak memory in bytes; that of the process if not given
    facts  returns what to add to the answer of a turn
    """
    peak = peak or peak_bytes
    print(json.dumps(about or {}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "peak_bytes": peak(), **facts()}), flush=True)


def peak_bytes() -> int:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def take_turns(contestants: dict[str, Contestant], rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Return `turns`, and end the contestants."""
    measured = turns(contestants, rounds, repeats)
    for contestant in contestants.values():
        contestant.end()
    return measured


def turns(contestants: dict[str, Contestant], rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Return {name: {"seconds": median of each round, "peak_bytes"}}. Every second round is in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    peak: dict[str, int] = {}
    for number in range(rounds):
        order = list(contestants.items())
        for name, contestant in order if number % 2 == 0 else reversed(order):
            answer = contestant.turn(repeats)
            seconds[name].append(statistics.median(answer["seconds"]))
            peak[name] = answer["peak_bytes"]
    return {name: {"seconds": seconds[name], "peak_bytes": peak[name]} for name in contestants}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, Any]:
    """Return the spread over the rounds of slow / fast."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, minimum and maximum of one number per round."""
    return {
        "median": round(statistics.median(values), 3),
        "spread": [round(min(values), 3), round(max(values), 3)],
        "rounds": len(values),
    }


def environment() -> dict[str, Any]:
    """Return versions and hardware of a measurement. Contains no host, user or path."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("p2pzoo", "torch", "numpy", "pillow")},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    features = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in lines}
    avx = "AVX-512" if "avx512f" in features.get("flags", "") else "no AVX-512"
    return f"{features.get('model name', platform.machine())}, family {features.get('cpu family')}, {avx}"


def keep(result: dict[str, Any], file: Path | None) -> None:
    """Write a result as JSON, which `write_readmes.py` reads, if a file is given."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
