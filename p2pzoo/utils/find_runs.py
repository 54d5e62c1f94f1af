"""The run that a folder stands for: itself, or the only one inside it. Imports nothing heavy."""

from __future__ import annotations

import warnings
from pathlib import Path

from p2pzoo.utils.errors import UserError

MAX_NAMED = 4  # runs in a message


def is_run(folder: Path) -> bool:
    """Whether this is a run folder, or one that holds a model."""
    return (folder / "status.json").is_file() or is_finished(folder)


def is_finished(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def find_only_run(folder: Path) -> Path:
    """`folder` itself if it is a run or holds none up to two levels below; else the only run, or finished run, in it.

    `runs/` and `runs/RECIPE/` are such folders. Warns where unfinished runs are left out. Raises UserError, with the
    runs, where there is a choice.
    """
    if not folder.is_dir() or is_run(folder):
        return folder
    runs = sorted(inner for pattern in ("*", "*/*") for inner in folder.glob(pattern) if is_run(inner))
    finished = [run for run in runs if is_finished(run)]
    if not runs:
        return folder
    if len(runs) == 1:
        return runs[0]
    if len(finished) == 1:
        others = f"{len(runs) - 1} that {'is' if len(runs) == 2 else 'are'} not finished"
        warnings.warn(f"{folder}: {finished[0].relative_to(folder)} is taken, and not {others}", stacklevel=1)
        return finished[0]
    choice = finished or runs
    names = ", ".join(str(run) for run in choice[:MAX_NAMED])
    more = f" … and {len(choice) - MAX_NAMED} more" if len(choice) > MAX_NAMED else ""
    state = "finished " if finished else "unfinished "
    raise UserError(f"{folder}: holds {len(choice)} {state}runs; give one: {names}{more}")
