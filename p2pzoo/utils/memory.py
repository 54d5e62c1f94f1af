"""How much memory is free, and a refusal of what needs more."""

from __future__ import annotations

import contextlib
from pathlib import Path

from p2pzoo.utils.errors import UserError

ALWAYS_FREE = 256 * 1024**2  # bytes that are not worth a look at how much memory is free


def available_bytes() -> int | None:
    """Bytes that this process can still allocate, by the machine and by the limit of its container. None: unknown."""
    limits: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        in_use = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        in_use -= int(cached.get("inactive_file", 0)) + int(cached.get("active_file", 0))
        limits.append(int((group / "memory.max").read_text()) - in_use)  # "max" is no number: no limit
    return min(limits, default=None)


def check_available(needed: int, what: str, advice: str = "") -> None:
    """Raises UserError if fewer than `needed` bytes are free.

    what    the subject of the message, in the plural: "a.png: 20,000 × 20,000 px"
    advice  follows after a colon
    """
    if needed <= ALWAYS_FREE:
        return
    available = available_bytes()
    if available is not None and needed > available:
        problem = f"{what} need {_gigabytes(needed)} of memory, and {_gigabytes(available)} is free"
        raise UserError(f"{problem}: {advice}" if advice else problem)


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number > 5e7 else f"{number / 1e9:.4f} GB"
