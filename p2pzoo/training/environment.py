"""What a run was computed with, and what it cost: the content of env.json. Names no host, user or path."""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import version
from typing import Any

from p2pzoo.compute.engine import Engine
from p2pzoo.compute.memory import peak_memory_bytes
from p2pzoo.config.experiment import Experiment
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.version import __version__


def environment(engine: Engine, experiment: Experiment) -> dict[str, Any]:
    """The software, the distributions of all components, the device and the switches of [compute] that are on."""
    components = {name: source for name, source in experiment.sources.items() if name != "core"}
    return software() | {"components": components} | engine.describe()


def software() -> dict[str, Any]:
    """Versions of p2pzoo, Python and the libraries that numbers depend on; system and number of cores.

    >>> list(software())[:3]
    ['p2pzoo', 'python', 'torch']
    """
    return {
        "p2pzoo": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "kornia", "timm", "accelerate", "numpy")},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


_version = functools.cache(version)  # the one that is imported, even if another is installed meanwhile


def training_cost(run: Run, engine: Engine) -> dict[str, Any]:
    """Seconds of training, summed over all parts of a resumed run, and the peak memory of the last part in MB.

    The memory is the device's on a GPU, else the process's.
    """
    seconds = sum(line.get("seconds", 0) for line in run.lines("timings.jsonl"))
    peak = peak_memory_bytes(engine.device_type)
    return {"seconds": round(seconds, 1), "peak_megabytes": peak and round(peak / 1e6)}
