"""What a stage gets (`Context`) and what it writes (`Record`)."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from p2pzoo.utils.files import read_object, write_json
from window.plan import FULL, TOY, Sizes

SEED = 0  # of everything random outside the training runs, which have seeds of their own
VARIABLES = ("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "TORCH", "TRITON_", "PYTORCH_", "OMP_", "MKL_", "NCCL_")
PACKAGES = ("p2pzoo", "torch", "triton", "accelerate", "numpy", "pillow", "safetensors", "kornia", "timm")


@dataclass(frozen=True)
class Context:
    """Settings of one stage.

    out       folder of the results
    work      folder for files that are not kept
    device    "cuda" or "cpu"
    rehearse  toy sizes
    computes  false for a device that runs no kernel: numbers are recorded and not compared
    until     time.time() at which the stage is stopped
    """

    out: Path
    work: Path
    device: str
    rehearse: bool
    computes: bool
    until: float

    @property
    def sizes(self) -> Sizes:
        return TOY if self.rehearse else FULL

    def left(self) -> float:
        """Seconds until the stage is stopped."""
        return self.until - time.time()

    def dump(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def parse(cls, text: str) -> Context:
        values = json.loads(text)
        return cls(**values | {"out": Path(values["out"]), "work": Path(values["work"])})


class Record:
    """The results of a stage: NAME.json. It is written after each change, so a stage that is killed keeps its results.

    >>> record.check("a graph was recorded", "cuda_graphs" in on)
    >>> record.compare("equal to the bit", difference["different"] == 0, **difference)
    """

    def __init__(self, name: str, context: Context) -> None:
        self.file, self.context = context.out / f"{name}.json", context
        self.values: dict[str, Any] = {
            "stage": name,
            "status": "running",
            "seed": SEED,
            "device": context.device,
            "rehearsal": context.rehearse,
            "environment": environment(),
            "checks": [],
            "results": {},
        }
        self.write()

    def set(self, name: str, value: Any) -> None:
        """Store a result and write the file."""
        self.values["results"][name] = value
        self.write()

    def check(self, name: str, passed: bool, **figures: Any) -> None:
        """Store whether something happened as it must."""
        self.values["checks"].append({"check": name, "passed": bool(passed), **figures})
        self.write()

    def compare(self, name: str, passed: bool, **figures: Any) -> None:
        """Store whether numbers are as they must be. On a device that computes nothing, `passed` is stored as None."""
        self.values["checks"].append(
            {"check": name, "passed": bool(passed) if self.context.computes else None, **figures}
        )
        self.write()

    def end(self, status: str, **facts: Any) -> None:
        self.values |= {"status": status, **facts}
        self.write()

    def write(self) -> None:
        write_json(self.file, _finite(self.values))


def read_record(file: Path) -> dict[str, Any]:
    """What a Record wrote, with nan and inf as numbers; {} if there is none."""
    return {key: _with_numbers(value) for key, value in (read_object(file) or {}).items()}


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value


def _finite(value: Any) -> Any:
    """The value with text in place of nan and inf, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, Any]:
    """Versions, and the variables that change how torch computes. Contains no host, user or path."""
    found = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES) and "/" not in value}
    return {
        "python": platform.python_version(),
        **{name: number for name in PACKAGES if (number := _version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "variables": dict(sorted(found.items())),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def say(text: str) -> None:
    """Print a line into the log of the stage."""
    print(text, file=sys.stderr, flush=True)
