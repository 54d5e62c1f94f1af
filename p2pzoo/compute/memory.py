"""Where memory does not suffice: how that is recognised, and what training says of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.plugin import schema
from p2pzoo.utils.errors import UserError

SAID = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class OutOfMemory(UserError):
    """Too much for this machine, in pieces of this size."""


def lacks_memory(error: BaseException) -> bool:
    """Whether that is what the error is. On a CPU torch raises a RuntimeError like any other."""
    named = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return named or any(said in str(error).lower() for said in SAID)


def peak_bytes(device_type: str) -> int | None:
    """The most memory so far: of the tensors on CUDA, of the process on a CPU. None where nobody counts it."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def held_megabytes(device_type: str) -> dict[str, float]:
    """What the process holds now, files that it has mapped left out (on Linux), and its tensors on CUDA."""
    held = {}
    with contextlib.suppress(OSError):
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        held["megabytes"] = round((resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    if device_type == "cuda":
        held["gpu_megabytes"] = round(torch.cuda.memory_allocated() / 1e6, 1)
    return held


@contextlib.contextmanager
def enough_to_train(experiment: Experiment, size: tuple[int, int], device_type: str) -> Iterator[None]:
    """Inside, lack of memory becomes OutOfMemory: what was tried at this (H, W), and what takes less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        peak = peak_bytes(device_type)
    else:
        return
    tried = f"{experiment.train.batch_size} × {size[0]}×{size[1]} px a step"
    so_far = f" ({peak / 1e9:.1f} GB until then)" if peak else ""
    raise OutOfMemory(
        f"out of memory, training with {tried}{so_far}: {_less(experiment, size)}; what was saved is kept"
    )


def _less(experiment: Experiment, size: tuple[int, int]) -> str:
    """What to try. Smaller images or networks are another experiment: said where nothing else is left."""
    batch, dataset, generator = experiment.train.batch_size, experiment.dataset, experiment.generator
    parts = next((parts for parts in range(experiment.train.accumulate + 1, batch + 1) if batch % parts == 0), None)
    tries = [f"train.batch_size={batch // 2}"] if batch > 1 and experiment.train.accumulate == 1 else []
    tries += [f"train.accumulate={parts}"] if parts and _may_accumulate(experiment) else []
    tries += [] if experiment.compute.checkpointing else ["compute.checkpointing=true"]
    if not tries and "size" in dataset.values:
        half = size[0] // 2 if isinstance(dataset.values["size"], int) else [side // 2 for side in size]
        tries += [f"dataset.size={half}"] if _takes(dataset, "size", half) else []
    if not tries:
        half = generator.values.get("width", 0) // 2
        tries += [f"generator.width={half}"] if _takes(generator, "width", half) else []
    switches = [f"-s {shlex.quote(each)}" for each in tries]
    return f"try {' or '.join(switches)}" if switches else "nothing in this recipe can be made smaller"


def _may_accumulate(experiment: Experiment) -> bool:
    return experiment.train.order != "lua" and not experiment.train.zero_biases


def _takes(component: Component, name: str, value: object) -> bool:
    """Whether a recipe may set this."""
    try:
        schema.params_of(component.factory)[name].check(value)
    except (KeyError, ValueError):
        return False
    return True
