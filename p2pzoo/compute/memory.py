"""Memory of a run: how much it uses, and what to do if it is too little."""

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
from p2pzoo.utils.errors import OutOfMemory

_OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out. On a CPU torch raises a RuntimeError, so its text decides.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    has_type = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return has_type or any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY_PHRASES)


def peak_memory_bytes(device_type: str) -> int | None:
    """Return the peak memory so far in bytes: of the tensors on CUDA, else of the process. None on Windows."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def current_memory_megabytes(device_type: str) -> dict[str, float]:
    """Return the memory in use now, in MB.

    "megabytes"      resident memory of the process without shared memory and mapped files, on Linux
    "gpu_megabytes"  tensors of the process, on CUDA
    """
    in_use = {}
    with contextlib.suppress(OSError):
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        in_use["megabytes"] = round((resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    if device_type == "cuda":
        in_use["gpu_megabytes"] = round(torch.cuda.memory_allocated() / 1e6, 1)
    return in_use


@contextlib.contextmanager
def explain_out_of_memory(experiment: Experiment, size: tuple[int, int], device_type: str) -> Iterator[None]:
    """Turn an out-of-memory error inside into OutOfMemory, which names the batch, (H, W) and overrides that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peak = peak_memory_bytes(device_type)
    else:
        return
    batch = f"{experiment.train.batch_size} × {size[0]}×{size[1]} px per step"
    used = f" (peak {peak / 1e9:.1f} GB)" if peak else ""
    raise OutOfMemory(
        f"out of memory, training with {batch}{used}: {_suggest_overrides(experiment, size)}; "
        "saved checkpoints are kept"
    )


def _suggest_overrides(experiment: Experiment, size: tuple[int, int]) -> str:
    """Return overrides that need less memory. Smaller images or networks change the experiment: they come last."""
    batch, dataset, generator = experiment.train.batch_size, experiment.dataset, experiment.generator
    parts = next((parts for parts in range(experiment.train.accumulate + 1, batch + 1) if batch % parts == 0), None)
    tries = [f"train.batch_size={batch // 2}"] if batch > 1 and experiment.train.accumulate == 1 else []
    tries += [f"train.accumulate={parts}"] if parts and _may_accumulate(experiment) else []
    tries += [] if experiment.compute.checkpointing else ["compute.checkpointing=true"]
    if not tries and "size" in dataset.values:
        half = size[0] // 2 if isinstance(dataset.values["size"], int) else [side // 2 for side in size]
        tries += [f"dataset.size={half}"] if _accepts(dataset, "size", half) else []
    if not tries:
        half = generator.values.get("width", 0) // 2
        tries += [f"generator.width={half}"] if _accepts(generator, "width", half) else []
    options = [f"-s {shlex.quote(override)}" for override in tries]
    return f"try {' or '.join(options)}" if options else "nothing in this recipe can be made smaller"


def _may_accumulate(experiment: Experiment) -> bool:
    return experiment.train.order != "lua" and not experiment.train.zero_biases


def _accepts(component: Component, name: str, value: object) -> bool:
    """Whether a recipe may set this parameter to this value."""
    try:
        schema.get_params(component.factory)[name].check(value)
    except (KeyError, ValueError):
        return False
    return True
