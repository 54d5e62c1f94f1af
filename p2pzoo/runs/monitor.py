"""The training monitor: finds what spoils a run without ending it, from what the run logs anyway.

Each problem is reported once in a run, with what to try, and shown in the report. These are warnings: the monitor
changes nothing.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError

FINDINGS_FILE = "findings.jsonl"  # in the run's folder; one {"images", "kind", "message"} a line

# D has won: near-zero losses and far apart logits, over so many lines of the log that it is no accident
NEAR_ZERO_D_LOSS = 0.01
MIN_LOGIT_GAP = 0.5  # a critic's logits start close to each other, with a loss near 0
SATURATED_WINDOWS = 10

# the device starves: shares of the seconds of a log line
STARVED_SHARE = 0.3  # spent waiting for batches
MAX_DEVICE_SHARE = 0.05  # spent waiting for the device; above it, the device is busy
STARVED_WINDOWS = 5

# standard deviations in [-1, 1]: 0.01 is about one of 256 levels
FLAT_STD = 0.01  # ŷ is constant below this
VARIED_STD = 0.05  # y varies above this
FLAT_SAMPLES = 3  # in a row: an untrained G can be flat once

VANISHED_SHARE = 0.5  # of G's weights
# A gate that starts at 0 stops the gradients of what is behind it in the first steps, and they grow as it opens. From
# one checkpoint to the next, gradients that vanish for good change by less than this:
MAX_FALL = 0.02  # of the share
MAX_GROWTH = 1.25  # of the gradients, a factor

# a leak grows from each fifth of the log to the next by similar amounts; a cache that fills grows slower and slower
MIN_GROWTH_PER_FIFTH = 0.02
MIN_GROWTH_MEGABYTES = 100.0
MIN_MEMORY_LINES = 20
MAX_MEMORY_LINES = 1000  # kept of a long run: every second line, then every fourth, …
MEMORY_KEYS = {"megabytes": "the process", "gpu_megabytes": "the GPU"}  # in timings.jsonl


class Diverged(UserError):
    """A loss or a weight is not finite: the only problem that ends a run. what: the number, and when."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: training has diverged. {TRAINING_PROBLEMS['diverged'].do.capitalize()}; the last good checkpoint "
            "is kept"
        )


@dataclass(frozen=True)
class TrainingProblem:
    """what: what is wrong; do: what to try."""

    what: str
    do: str


TRAINING_PROBLEMS: dict[str, TrainingProblem] = {
    "diverged": TrainingProblem("Training diverged", "try a lower optimizer.lr or a lower weight of the loss"),
    "saturated": TrainingProblem(
        "D always separates real from fake images, so G learns little from it",
        "try a lower optimizer.lr_discriminator, a narrower D or one with a smaller receptive_field, "
        "train.spectral_norm, a penalty on D's gradient, or augmentations of D's input",
    ),
    "vanished": TrainingProblem(
        "Most of G's weights get no gradient",
        "look for losses with tiny weights, for a norm over a single pixel, as at a bottleneck, and for layers whose "
        "activations are saturated",
    ),
    "constant": TrainingProblem(
        "G gives the same image for every x",
        "try a lower optimizer.lr or a larger weight of the loss that compares ŷ with y, look for a norm over a single "
        "pixel, and check with `p2pzoo data preview` that x and y belong together",
    ),
    "memory": TrainingProblem(
        "Memory keeps growing",
        "look for a plugin that keeps tensors (a tensor keeps its graph: detach it); until it is fixed, --max-time "
        "stops the run in time, and the same command resumes it",
    ),
    "starved": TrainingProblem(
        "Training waits for its images",
        "try compute.store = memory or disk with more store_megabytes, more compute.readers, or smaller image files",
    ),
}  # fmt: skip


class NoteWriter(Protocol):
    """Shows a line to the user, as every `Progress` does."""

    def note(self, text: str) -> None: ...


class TrainingMonitor:
    """Watches a run while it trains. Does not report again what the run's folder has already.

    filled  images after which this process has seen each pair once, so that caches no longer grow
    """

    def __init__(self, run: Run, notes: NoteWriter, filled: int = 0) -> None:
        self._filled = filled
        self._run, self._notes = run, notes
        self._reported = {finding["kind"] for finding in read_findings(run)}
        self._log: deque[Mapping[str, Any]] = deque(run.lines("metrics.jsonl"), SATURATED_WINDOWS)
        self._timings: deque[Mapping[str, Any]] = deque(maxlen=STARVED_WINDOWS)
        self._memory_lines: list[Mapping[str, Any]] = []  # of this process only: memory belongs to a process
        self._seen_lines, self._keep_every = 0, 1
        self._flat_samples = 0
        self._vanished: tuple[float, float] | None = None  # share and size, at the last checkpoint

    def logged(self, losses: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Check new lines of metrics.jsonl and timings.jsonl."""
        self._log.append(losses)
        self._timings.append(timing)
        images = int(losses["images"])
        self._report("saturated", images, detect_saturation(self._log))
        self._report("starved", images, detect_starvation(self._timings))
        if "memory" not in self._reported and images > self._filled and self._keep_memory_line(timing):
            self._report("memory", images, detect_memory_growth(self._memory_lines))

    def _keep_memory_line(self, timing: Mapping[str, Any]) -> bool:
        """Keep every n-th line; n doubles whenever there are too many. Returns whether it kept this one."""
        self._seen_lines += 1
        if self._seen_lines % self._keep_every:
            return False
        self._memory_lines.append(timing)
        if len(self._memory_lines) > MAX_MEMORY_LINES:
            self._memory_lines, self._keep_every = self._memory_lines[1::2], 2 * self._keep_every
        return True

    def sampled(self, images: int, y_hat: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        """Check translations of validation images: ŷ and y, (B, C, H, W) in [-1, 1] each."""
        message = detect_constant_output(y_hat, y)
        self._flat_samples = self._flat_samples + 1 if message else 0
        self._report("constant", images, message if self._flat_samples == FLAT_SAMPLES else None)

    def saved(self, images: int, optimizer: Any) -> None:
        """Check G's optimizer, after a checkpoint. Reports what two checkpoints in a row have."""
        before, self._vanished = self._vanished, measure_vanished_gradients(optimizer)
        (share, size), (share_before, size_before) = self._vanished, before or (0.0, 0.0)
        lasts = VANISHED_SHARE < share_before <= share + MAX_FALL and size <= MAX_GROWTH * size_before
        self._report("vanished", images, detect_vanished_gradients(optimizer) if lasts else None)

    def diverged(self, error: Diverged) -> None:
        """Record the error that ends the training."""
        if "diverged" not in self._reported:
            self._record("diverged", int(self._run.status["images"]), str(error))

    def _report(self, kind: str, images: int, message: str | None) -> None:
        if message and kind not in self._reported:
            self._record(kind, images, message)
            problem = TRAINING_PROBLEMS[kind]
            self._notes.note(f"warning: {problem.what} ({message}, at {images} images): {problem.do}")

    def _record(self, kind: str, images: int, message: str) -> None:
        self._reported.add(kind)
        self._run.append(FINDINGS_FILE, [{"images": images, "kind": kind, "message": message}])


def read_findings(run: Run) -> list[dict[str, Any]]:
    """The findings of a run: {"images", "kind", "message"}, and `what` and `do` of the kind. Skips damaged lines."""
    return [
        {
            "images": line["images"],
            "kind": line["kind"],
            "message": line["message"],
            **vars(TRAINING_PROBLEMS[line["kind"]]),
        }
        for line in run.lines(FINDINGS_FILE)
        if _is_intact(line)
    ]


def _is_intact(line: Mapping[str, Any]) -> bool:
    kind, message = line.get("kind"), line.get("message")
    return isinstance(kind, str) and isinstance(message, str) and kind in TRAINING_PROBLEMS


# --- one function per problem: the message, or None ------------------------------------------------------------


def detect_saturation(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """Whether D has won for a while. lines: the newest of metrics.jsonl.

    A perfect D brings its loss to 0 (vanilla, least squares, hinge, relativistic). A critic (WGAN) is never reported:
    its loss has no lower bound.

    >>> detect_saturation([{"images": i, "D.gan": 0.001, "D.real": 6.0, "D.fake": -6.0} for i in range(10)])
    'its loss is 0.001 over 10 lines of the log'
    """
    newest = [*lines][-SATURATED_WINDOWS:]
    values: list[list[Any]] = [[line.get(name) for name in ("D.gan", "D.real", "D.fake")] for line in newest]
    if len(values) < SATURATED_WINDOWS or not all(isinstance(value, float) for row in values for value in row):
        return None
    if not all(0 <= loss < NEAR_ZERO_D_LOSS and real - fake > MIN_LOGIT_GAP for loss, real, fake in values):
        return None
    return f"its loss is {statistics.mean(loss for loss, _, _ in values):.2g} over {len(values)} lines of the log"


def detect_starvation(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """Whether the device waits for batches. lines: the newest of timings.jsonl.

    A host that waits for a batch does no harm while the device still computes earlier steps. The host then waits for
    the device too.
    """
    newest = [*lines][-STARVED_WINDOWS:]
    if len(newest) < STARVED_WINDOWS or any("waited" not in line for line in newest):
        return None
    if not all(
        line["waited"] > STARVED_SHARE * line["seconds"] and line["read"] < MAX_DEVICE_SHARE * line["seconds"]
        for line in newest
    ):
        return None
    share = sum(line["waited"] for line in newest) / sum(line["seconds"] for line in newest)
    return f"{share:.0%} of the time"


def detect_memory_growth(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether memory leaks. lines: of timings.jsonl, evenly spread over what one process wrote after it had seen each
    pair once.
    """
    for key, owner in MEMORY_KEYS.items():
        megabytes = [line[key] for line in lines if key in line]
        if len(megabytes) < MIN_MEMORY_LINES:
            continue
        medians = [statistics.median(part) for part in _split_into_fifths(megabytes)][1:]  # the first one warms up
        steps = [after - before for before, after in itertools.pairwise(medians)]
        if (
            min(steps) > MIN_GROWTH_PER_FIFTH * medians[0]
            and min(steps) > max(steps) / 2
            and sum(steps) > MIN_GROWTH_MEGABYTES
        ):
            return f"{owner} held {medians[0]:,.0f} MB and holds {megabytes[-1]:,.0f} MB"
    return None


def _split_into_fifths(values: Sequence[float]) -> list[Sequence[float]]:
    edges = [len(values) * i // 5 for i in range(6)]
    return [values[a:b] for a, b in itertools.pairwise(edges)]


def detect_constant_output(y_hat: Sequence[Tensor], y: Sequence[Tensor]) -> str | None:
    """Whether all ŷ are flat colours, or all are the same image, while y varies. (B, C, H, W) in [-1, 1] each.

    >>> flat, varied = torch.zeros(2, 3, 4, 4), torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    >>> detect_constant_output([flat], [varied])
    'each pixel of an image has the same colour'
    """
    fake, real = torch.cat([*y_hat]).float(), torch.cat([*y]).float()
    if _std_over_pixels(fake) < FLAT_STD and _std_over_pixels(real) > VARIED_STD:
        return "each pixel of an image has the same colour"
    if len(fake) > 1 and _std_over_images(fake) < FLAT_STD and _std_over_images(real) > VARIED_STD:
        return f"{len(fake)} images are the same picture"
    return None


def _std_over_pixels(images: Tensor) -> float:
    return float(images.flatten(2).std(-1, correction=0).max())


def _std_over_images(images: Tensor) -> float:
    return float(images.std(0, correction=0).mean())


def detect_vanished_gradients(optimizer: Any) -> str | None:
    """Whether most weights get next to no gradient; see `measure_vanished_gradients`."""
    share, _ = measure_vanished_gradients(optimizer)
    return f"{share:.0%} of them" if share > VANISHED_SHARE else None


def measure_vanished_gradients(optimizer: Any) -> tuple[float, float]:
    """(share of weights with next to no gradient, root mean square of their gradients), by Adam's second moment.

    It is the mean square of a weight's gradient. Where its root is below Adam's eps, a step is less than half of that
    for any larger gradient. Returns (0, 0) for other optimizers, which keep no such moment.
    """
    kept = [(group, optimizer.state.get(p, {})) for group in optimizer.param_groups for p in group["params"]]
    kept = [(group, state) for group, state in kept if "exp_avg_sq" in state and group.get("eps")]
    if not kept:
        return 0.0, 0.0
    counts, totals = [], []  # on the device
    steps = torch.stack([torch.as_tensor(state["step"]) for _, state in kept]).tolist()
    for (group, state), step in zip(kept, steps, strict=True):
        relative = state["exp_avg_sq"] / (group["eps"] ** 2 * (1 - group["betas"][1] ** step))
        is_small = relative < 1
        counts.append(is_small.sum())
        totals.append(relative.masked_fill(~is_small, 0).sum() * group["eps"])  # times eps² would underflow
    vanished = sum(torch.stack(counts).tolist())  # a wait for the device per list, not per parameter
    total = sum(total * group["eps"] for (group, _), total in zip(kept, torch.stack(totals).tolist(), strict=True))
    count = sum(state["exp_avg_sq"].numel() for _, state in kept)
    return vanished / count, (total / vanished) ** 0.5 if vanished else 0.0
