"""Measure which algorithm of each convolution is fastest on this machine (p2pzoo/compute/conv_algorithms.py).

One training step of a recipe records the shapes. Each algorithm is then timed alone and with cold caches: before each
call, a buffer larger than the last-level cache is written, as the rest of a training step would do. The algorithms take
turns, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import functools
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from p2pzoo.compute.conv_algorithms import CONVOLVE, CORRELATE, SPREAD, ConvAlgorithm, ConvShape
from p2pzoo.compute.conv_as_gemm import AlgorithmChooser, default_algorithm, supported_algorithms
from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store
from p2pzoo.training.loop import make_batches, train_step
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

MARGIN = 0.05  # share of the default's time that must be saved: smaller differences are timing noise
CACHE_SIZE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # of the last-level cache, on Linux
MIN_FLUSH_BYTES = 64 << 20  # if the cache size is unknown: more than most last-level caches


@dataclass(frozen=True)
class Measurement:
    """Timings of a shape.

    calls    number of times that a training step computes it
    seconds  median time of one call, by algorithm
    """

    shape: ConvShape
    calls: int
    seconds: Mapping[ConvAlgorithm, float]

    @property
    def default(self) -> ConvAlgorithm:
        return default_algorithm(self.shape)

    @property
    def chosen(self) -> ConvAlgorithm:
        """The fastest algorithm if it beats the default by more than MARGIN, else the default."""
        fastest = min(self.seconds, key=lambda algorithm: self.seconds[algorithm])
        return fastest if self.seconds[fastest] < (1 - MARGIN) * self.seconds[self.default] else self.default

    @property
    def saved(self) -> float:
        """Seconds saved per training step."""
        return self.calls * (self.seconds[self.default] - self.seconds[self.chosen])


class ShapeRecorder(AlgorithmChooser):
    """Counts how often each shape is computed. It disables the shortcut of layers whose three operations all use
    torch's kernels, so that each operation is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[ConvShape] = Counter()
        self.algorithm = self._count  # type: ignore[assignment]

    def _count(self, shape: ConvShape) -> ConvAlgorithm:
        self.calls[shape] += 1
        return default_algorithm(shape)

    def _uses_only_library(self, *_: object) -> bool:
        return False


def record_shapes(experiment: Experiment) -> Counter[ConvShape]:
    """Take one training step on the CPU; return its convolution shapes, and how often it computes each.

    Raises UserError if no convolution has a choice of algorithms.
    """
    if not experiment.compute.lowering:
        raise UserError("[compute] lowering = false: there are no kernels to choose; remove the key")
    recorder, train = ShapeRecorder(), experiment.train
    engine = Engine(replace(experiment.compute, device="cpu", kernels=None), recorder)
    dataset = experiment.dataset.build(split="train")
    store = Store(dataset, enlarge=train.jitter, kernel=train.jitter_kernel)
    objective = build_objective(experiment, engine, store.channels, store.size)
    batches = make_batches(experiment, store, objective.augmentations)
    train_step(objective.step, engine, batches, 0, experiment.optimizer.lr, experiment.seed)
    if not recorder.calls:
        raise UserError("no convolution of this recipe has a choice of kernels on a CPU: there is nothing to tune")
    return recorder.calls


def measure_all(
    calls: Mapping[ConvShape, int], repeats: int, on_done: Callable[[], object] = lambda: None
) -> list[Measurement]:
    """Measure each shape, in the order of their keys. `on_done` is called after each."""
    flush_buffer = torch.empty(_flush_bytes(), dtype=torch.uint8)
    measurements = []
    for shape in sorted(calls, key=ConvShape.key):
        measurements.append(Measurement(shape, calls[shape], measure(shape, repeats, flush_buffer)))
        on_done()
    return measurements


def select_overrides(measurements: list[Measurement]) -> dict[str, ConvAlgorithm]:
    """Return the content of a kernels file: the shapes for which another algorithm than the default is chosen."""
    return {each.shape.key(): each.chosen for each in measurements if each.chosen != each.default}


@torch.no_grad()
def measure(shape: ConvShape, repeats: int, flush_buffer: Tensor) -> dict[ConvAlgorithm, float]:
    """Return the median seconds of each algorithm. Inputs are allocated once, so that allocation is not timed."""
    calls = {algorithm: _make_call(shape, algorithm) for algorithm in supported_algorithms(shape)}
    x, y, weight = _make_inputs(shape)
    seconds: dict[ConvAlgorithm, list[float]] = {algorithm: [] for algorithm in calls}
    for call in calls.values():
        call(x, y, weight)  # the first call of a shape prepares its kernel
    for number in range(repeats):
        order = list(calls.items())
        for algorithm, call in order if number % 2 == 0 else reversed(order):
            flush_buffer.fill_(number % 256)
            start = time.perf_counter()
            call(x, y, weight)
            seconds[algorithm].append(time.perf_counter() - start)
    return {algorithm: statistics.median(times) for algorithm, times in seconds.items()}


def _make_call(shape: ConvShape, algorithm: ConvAlgorithm) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def convolve(x: Tensor, _y: Tensor, weight: Tensor) -> Tensor:
        return CONVOLVE[algorithm](x, weight, shape.window)

    def spread(_x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return SPREAD[algorithm](y, weight, shape.window, shape.size)

    def correlate(x: Tensor, y: Tensor, _weight: Tensor) -> Tensor:
        return CORRELATE[algorithm](x, y, shape.window)

    return {"convolve": convolve, "spread": spread, "correlate": correlate}[shape.operation]


def _make_inputs(shape: ConvShape) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y and the weight with random values, channels-last as in a training step."""
    randn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    sizes = (
        (shape.batch, shape.x, *shape.size),
        (shape.batch, shape.y, *shape.window.positions(shape.size)),
        (shape.y, shape.x, *shape.window.kernel),
    )
    dtype = torch.bfloat16 if shape.bf16 else torch.float32
    x, y, weight = (randn(size).to(dtype, memory_format=torch.channels_last) for size in sizes)
    return x, y, weight


def _flush_bytes() -> int:
    """Return twice the size of the last-level cache, so that a write of this many bytes evicts all of it."""
    try:
        size = re.fullmatch(r"(\d+)K", CACHE_SIZE_FILE.read_text().strip())
    except OSError:
        size = None
    return max(MIN_FLUSH_BYTES, 2 * 1024 * int(size[1]) if size else 0)
