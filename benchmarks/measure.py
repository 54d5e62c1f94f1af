"""How the benchmarks measure: contestants in processes of their own, taking turns in one run; medians and ratios.

A process each, because the allocator's settings and peak memory belong to a process. One works while the others wait.
Absolute times vary with the neighbours of a machine; the ratio of two turns that follow one another varies little.
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
    """A script that calls `serve`, waiting for its turns."""

    def __init__(self, *command: object) -> None:
        arguments = [sys.executable, *map(str, command)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()  # it is ready, and warm

    def turn(self, repeats: int) -> dict[str, Any]:
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
    work: Callable[[], object], about: dict[str, Any] | None = None, *, peak: Callable[[], int] | None = None
) -> None:
    """Take turns: for each number on stdin, do `work` so often and tell the seconds each took, and peak memory.

    peak  tells that memory in bytes, where it is not the process's own
    """
    peak = peak or peak_bytes
    print(json.dumps(about or {}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": seconds, "peak_bytes": peak()}), flush=True)


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def take_turns(contestants: dict[str, Contestant], rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Their `turns`, after which they end."""
    found = turns(contestants, rounds, repeats)
    for contestant in contestants.values():
        contestant.end()
    return found


def turns(contestants: dict[str, Contestant], rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
    """{name: {"seconds": the median of each round, "peak_bytes"}}; every second round in reverse order."""
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
    """How many times faster, round by round."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Of one number a round: the median, and the least and greatest."""
    return {
        "median": round(statistics.median(values), 3),
        "spread": [round(min(values), 3), round(max(values), 3)],
        "rounds": len(values),
    }


def environment() -> dict[str, Any]:
    """What a figure was measured with. Names no host, user or path."""
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
    """Write a result for `write_readmes.py` to show, if a file is given."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
