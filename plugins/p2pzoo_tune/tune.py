"""Measuring which form of each convolution is fastest on this machine (see lowering.py for what the forms are).

One step of a recipe tells the shapes. Each form of each shape is then timed alone and cold: between two calls a buffer
larger than the last cache is written, as the rest of a step would, and the forms take turns, so that a neighbour's load
falls on all of them.
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

from p2pzoo.compute.conv_as_gemm import CONVOLVE, CORRELATE, SPREAD, Chooser, Form, Shape, forms, shipped_rule
from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store, train_batches
from p2pzoo.training.loop import train_step
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

MARGIN = 0.05  # of the shipped form's time; less is noise
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # Linux
WRITTEN_AT_LEAST = 64 << 20  # bytes


@dataclass(frozen=True)
class Finding:
    """A shape, how often a step computes it, and the median seconds of each of its forms."""

    shape: Shape
    calls: int
    seconds: Mapping[Form, float]

    @property
    def shipped(self) -> Form:
        return shipped_rule(self.shape)

    @property
    def chosen(self) -> Form:
        """The fastest form if it beats the shipped one by more than the margin, else the shipped one."""
        fastest = min(self.seconds, key=lambda form: self.seconds[form])
        return fastest if self.seconds[fastest] < (1 - MARGIN) * self.seconds[self.shipped] else self.shipped

    @property
    def saved(self) -> float:
        """Seconds per step."""
        return self.calls * (self.seconds[self.shipped] - self.seconds[self.chosen])


class Recorder(Chooser):
    """Counts what each shape is asked for. Torch's kernels too are asked for one operation at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[Shape] = Counter()
        self.form = self._counted  # type: ignore[assignment]

    def _counted(self, shape: Shape) -> Form:
        self.asked[shape] += 1
        return shipped_rule(shape)

    def _library_only(self, *_: object) -> bool:
        return False


def asked_shapes(experiment: Experiment) -> Counter[Shape]:
    """The shapes of one training step on the CPU, and how often it computes each.

    Raises UserError where no convolution chooses its kernels.
    """
    if not experiment.compute.lowering:
        raise UserError("[compute] lowering = false: there are no kernels to choose")
    recorder, train = Recorder(), experiment.train
    engine = Engine(replace(experiment.compute, device="cpu", kernels=None), recorder)
    dataset = experiment.dataset.build(split="train")
    store = Store(dataset, enlarge=train.jitter, kernel=train.jitter_kernel)
    objective = build_objective(experiment, engine, store.channels, store.size)
    batches = train_batches(store, train, experiment.seed)
    train_step(objective.step, engine, batches, 0, experiment.optimizer.lr, experiment.seed, objective.augmentations)
    if not recorder.asked:
        raise UserError(f"no convolution of this recipe chooses its kernels (precision {engine.precision} on a CPU)")
    return recorder.asked


def find(asked: Mapping[Shape, int], repeats: int, done: Callable[[], object] = lambda: None) -> list[Finding]:
    """Each shape measured, in the order of their keys. `done` is called after each."""
    buffer = torch.empty(_bytes_to_write(), dtype=torch.uint8)
    found = []
    for shape in sorted(asked, key=Shape.key):
        found.append(Finding(shape, asked[shape], measure(shape, repeats, buffer)))
        done()
    return found


def overrides(found: list[Finding]) -> dict[str, Form]:
    """What an override file says: only where another form than the shipped one is chosen."""
    return {each.shape.key(): each.chosen for each in found if each.chosen != each.shipped}


@torch.no_grad()
def measure(shape: Shape, repeats: int, buffer: Tensor) -> dict[Form, float]:
    """Median seconds of each form. The inputs are made once: fresh memory would be timed as well."""
    calls = {form: _call(shape, form) for form in forms(shape)}
    x, y, weight = _inputs(shape)
    seconds: dict[Form, list[float]] = {form: [] for form in calls}
    for call in calls.values():
        call(x, y, weight)  # the first call of a shape prepares its kernel
    for number in range(repeats):
        order = list(calls.items())
        for form, call in order if number % 2 == 0 else reversed(order):
            buffer.fill_(number % 256)
            began = time.perf_counter()
            call(x, y, weight)
            seconds[form].append(time.perf_counter() - began)
    return {form: statistics.median(each) for form, each in seconds.items()}


def _call(shape: Shape, form: Form) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def convolve(x: Tensor, _y: Tensor, weight: Tensor) -> Tensor:
        return CONVOLVE[form](x, weight, shape.window)

    def spread(_x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return SPREAD[form](y, weight, shape.window, shape.size)

    def correlate(x: Tensor, y: Tensor, _weight: Tensor) -> Tensor:
        return CORRELATE[form](x, y, shape.window)

    return {"convolve": convolve, "spread": spread, "correlate": correlate}[shape.operation]


def _inputs(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and the weights, as they lie in a step."""
    drawn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    sizes = (
        (shape.batch, shape.x, *shape.size),
        (shape.batch, shape.y, *shape.window.positions(shape.size)),
        (shape.y, shape.x, *shape.window.kernel),
    )
    x, y, weight = (drawn(size).contiguous(memory_format=torch.channels_last) for size in sizes)
    return x, y, weight


def _bytes_to_write() -> int:
    """Twice the last cache, so that nothing of it is left."""
    try:
        size = re.fullmatch(r"(\d+)K", LAST_CACHE.read_text().strip())
    except OSError:
        size = None
    return max(WRITTEN_AT_LEAST, 2 * 1024 * int(size[1]) if size else 0)
