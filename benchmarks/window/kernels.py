"""Which kernels a step has, with and without a CUDA graph, and the time of a replay on the device and in Python."""

from __future__ import annotations

import collections
import statistics
import time
import traceback
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from window.build import Training, experiment
from window.context import Context, Record, say
from window.graphs import RUNS

WARM_UP = 8
PROFILED = 5  # steps
REPLAYS = 50
MAX_KERNELS = 30  # kernels of a table
NAME_LENGTH = 100


def run(context: Context, record: Record) -> None:
    sizes = context.sizes
    for name in ("graph", "eager"):
        made = experiment(context, sizes.graph_size, sizes.graph_width, 1, RUNS[name])
        with Training(made) as training:
            for _ in range(WARM_UP):
                training.step()
            training.wait()
            try:
                record.set(name, profile_steps(training, context.device))
            except Exception as error:  # the profiler needs CUPTI, which a machine may not have
                say(traceback.format_exc())
                record.set(name, {"error": f"{type(error).__name__}: {error}"})
            if name == "graph" and context.device == "cuda":
                record.set("replay", time_replays(training))


def profile_steps(training: Training, device: str) -> dict[str, Any]:
    """The kernels of a step: calls and microseconds per step, those that take longest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    began = time.perf_counter()
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            training.step()
        training.wait()
    seconds = time.perf_counter() - began
    wanted = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    calls: collections.Counter[str] = collections.Counter()
    microseconds: collections.Counter[str] = collections.Counter()
    for event in profiler.events() or ():
        if event.device_type == wanted and not getattr(
            event, "is_user_annotation", False
        ):  # an annotation covers several kernels
            own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            calls[event.name] += 1
            microseconds[event.name] += own
    table = [
        {
            "kernel": name[:NAME_LENGTH],
            "calls": round(calls[name] / PROFILED, 1),
            "microseconds": round(total / PROFILED, 1),
        }
        for name, total in microseconds.most_common(MAX_KERNELS)
    ]
    return {
        "kinds": len(calls),
        "calls": round(sum(calls.values()) / PROFILED, 1),
        "microseconds": round(sum(microseconds.values()) / PROFILED, 1),
        "milliseconds_of_a_profiled_step": round(1e3 * seconds / PROFILED, 3),
        "table": table,
    }


def time_replays(training: Training) -> dict[str, Any]:
    """Milliseconds of a recorded step whose batch is already on the device: on the device, and until Python returns."""
    batch = training.engine.to_device(training.batches[training.taken])
    on_device, in_python = [], []
    for _ in range(REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        began = time.perf_counter()
        training.compiled(batch, training.taken)
        in_python.append(1e3 * (time.perf_counter() - began))
        last.record()
        torch.cuda.synchronize()
        on_device.append(first.elapsed_time(last))
    return {
        "milliseconds_on_the_device": round(statistics.median(on_device), 4),
        "milliseconds_in_python": round(statistics.median(in_python), 4),
        "replays": REPLAYS,
    }
