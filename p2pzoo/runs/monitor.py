"""The doctor while training: what spoils a run without ending it, seen in what is kept of it anyway.

Each kind is told once in a run, with what to try, and shown in its report. These are warnings: nothing is changed.
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

LOG = "findings.jsonl"  # {"images", "kind", "told"} of each, in a run's folder

WON, APART, WINDOWS_WON = 0.01, 0.5, 10  # D's loss; its mean logits of real and fake; windows of the log
STARVED, IDLE, WINDOWS_STARVED = 0.3, 0.05, 5  # of a window's seconds: waiting for batches; for the device, at most
FLAT, SEEN, SAMPLES_FLAT = 0.01, 0.05, 3  # standard deviations in [-1, 1]: of ŷ, at most; of y, at least; in a row
VANISHED = 0.5  # of G's weights
GROWTH, MEGABYTES, WINDOWS_GROWN = 0.02, 100.0, 20  # of memory: from fifth to fifth of a process's windows; in all
KEPT = 1000  # windows that memory's growth is looked for in: of a longer run, every second, fourth, …
MEMORIES = {"megabytes": "the process", "gpu_megabytes": "the GPU"}  # in timings.jsonl


class Diverged(UserError):
    """A loss or a weight is not finite: the one finding that ends a run. what: which, and when."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: training has diverged. {KINDS['diverged'].do.capitalize()}; the last good checkpoint is kept"
        )


@dataclass(frozen=True)
class Kind:
    what: str
    do: str


KINDS: dict[str, Kind] = {
    "diverged": Kind("Training diverged", "try a lower optimizer.lr or a lower weight of the loss"),
    "saturated": Kind(
        "D tells real from translated without fail, and G learns little from it",
        "try a lower optimizer.lr_discriminator, a D that is narrower or has a smaller receptive_field, "
        "train.spectral_norm, a penalty on D's gradient, or augmentations of what D sees",
    ),
    "vanished": Kind(
        "Most of G's weights get no gradient",
        "look for losses of next to no weight, a norm over a single pixel, as at a bottleneck, and layers whose "
        "outputs are all at the flat ends of their activations",
    ),
    "constant": Kind(
        "G gives the same whatever x is",
        "try a lower optimizer.lr or a larger weight of the loss that compares ŷ with y, look for a norm over a single "
        "pixel, and see with `p2pzoo data preview` that x and y belong together",
    ),
    "memory": Kind(
        "Memory grows without end",
        "look for a plugin that keeps what it is given (a tensor keeps the graph it came from: detach it); until then "
        "--max-time stops in time, and the same command goes on",
    ),
    "starved": Kind(
        "Training waits for its images",
        "try compute.store = memory or disk with more store_megabytes, more compute.readers, or smaller image files",
    ),
}  # fmt: skip


class Notes(Protocol):
    def note(self, text: str) -> None: ...


class TrainingMonitor:
    """Looks at a run as it goes on. What the run's folder says was told before is not told again.

    filled  from so many images on this process has seen each pair once, and memory has no reason to grow
    """

    def __init__(self, run: Run, notes: Notes, filled: int = 0) -> None:
        self._filled = filled
        self._run, self._notes = run, notes
        self._told = {finding["kind"] for finding in read_findings(run)}
        self._log: deque[Mapping[str, Any]] = deque(run.lines("metrics.jsonl"), WINDOWS_WON)
        self._timings: deque[Mapping[str, Any]] = deque(maxlen=WINDOWS_STARVED)
        self._held: list[Mapping[str, Any]] = []  # timings of this process alone, as its memory is
        self._passed, self._every = 0, 1
        self._flat = 0

    def logged(self, losses: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Lines of metrics.jsonl and timings.jsonl have been written."""
        self._log.append(losses)
        self._timings.append(timing)
        images = int(losses["images"])
        self._tell("saturated", images, saturated(self._log))
        self._tell("starved", images, starved(self._timings))
        if "memory" not in self._told and images > self._filled and self._hold(timing):
            self._tell("memory", images, growing(self._held))

    def _hold(self, timing: Mapping[str, Any]) -> bool:
        """Whether this line is one of those that are kept."""
        self._passed += 1
        if self._passed % self._every:
            return False
        self._held.append(timing)
        if len(self._held) > KEPT:
            self._held, self._every = self._held[1::2], 2 * self._every
        return True

    def sampled(self, images: int, y_hat: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        """Validation images have been translated: ŷ and y, (B, C, H, W) in [-1, 1] each."""
        told = constant(y_hat, y)
        self._flat = self._flat + 1 if told else 0
        self._tell("constant", images, told if self._flat == SAMPLES_FLAT else None)

    def saved(self, images: int, optimizer: Any) -> None:
        """A checkpoint has been written. optimizer: G's."""
        self._tell("vanished", images, vanished(optimizer))

    def diverged(self, error: Diverged) -> None:
        """Training ends with this."""
        if "diverged" not in self._told:
            self._keep("diverged", int(self._run.status["images"]), str(error))

    def _tell(self, kind: str, images: int, told: str | None) -> None:
        if told and kind not in self._told:
            self._keep(kind, images, told)
            about = KINDS[kind]
            self._notes.note(f"warning: {about.what} ({told}, at {images} images): {about.do}")

    def _keep(self, kind: str, images: int, told: str) -> None:
        self._told.add(kind)
        self._run.append(LOG, [{"images": images, "kind": kind, "told": told}])


def read_findings(run: Run) -> list[dict[str, Any]]:
    """The findings of a run: images, told, and of their kind `what` there is and what to `do`."""
    return [{**finding, **vars(KINDS[finding["kind"]])} for finding in run.lines(LOG) if _whole(finding)]


def _whole(finding: Mapping[str, Any]) -> bool:
    kind, told = finding.get("kind"), finding.get("told")
    return isinstance(kind, str) and isinstance(told, str) and kind in KINDS


# --- each kind: what there is to say, or None ------------------------------------------------------------------


def saturated(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """lines: the newest of metrics.jsonl.

    By D's loss, which a perfect D brings to 0 (vanilla, least squares, hinge, relativistic); a critic's (WGAN) has no
    such end.
    """
    newest = [*lines][-WINDOWS_WON:]
    read: list[list[Any]] = [[line.get(name) for name in ("D.gan", "D.real", "D.fake")] for line in newest]
    if len(read) < WINDOWS_WON or not all(isinstance(value, float) for values in read for value in values):
        return None
    if not all(0 <= loss < WON and real - fake > APART for loss, real, fake in read):
        return None
    return f"its loss is {statistics.mean(loss for loss, _, _ in read):.2g} over {len(read)} lines of the log"


def starved(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """lines: the newest of timings.jsonl.

    A host that waits for batches starves no device that is still busy with what it was given before: then it waits for
    the device too.
    """
    newest = [*lines][-WINDOWS_STARVED:]
    if len(newest) < WINDOWS_STARVED or any("waited" not in line for line in newest):
        return None
    if not all(line["waited"] > STARVED * line["seconds"] and line["read"] < IDLE * line["seconds"] for line in newest):
        return None
    share = sum(line["waited"] for line in newest) / sum(line["seconds"] for line in newest)
    return f"{share:.0%} of the time"


def growing(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """lines: of timings.jsonl, evenly spread over what one process wrote since it had seen each pair once. What fills
    grows slower and slower; a leak goes on as it began.
    """
    for name, whose in MEMORIES.items():
        held = [line[name] for line in lines if name in line]
        if len(held) < WINDOWS_GROWN:
            continue
        fifths = [statistics.median(part) for part in _fifths(held)][1:]
        steps = [after - before for before, after in itertools.pairwise(fifths)]
        if min(steps) > GROWTH * fifths[0] and min(steps) > max(steps) / 2 and sum(steps) > MEGABYTES:
            return f"{whose} held {fifths[0]:,.0f} MB and holds {held[-1]:,.0f} MB"
    return None


def _fifths(values: Sequence[float]) -> list[Sequence[float]]:
    edges = [len(values) * i // 5 for i in range(6)]
    return [values[a:b] for a, b in itertools.pairwise(edges)]


def constant(y_hat: Sequence[Tensor], y: Sequence[Tensor]) -> str | None:
    """Of several images, ŷ and y, (B, C, H, W) in [-1, 1] each: whether all ŷ are one flat colour, or one picture."""
    fake, real = torch.cat([*y_hat]).float(), torch.cat([*y]).float()
    if _over_pixels(fake) < FLAT and _over_pixels(real) > SEEN:
        return "each pixel of an image has the same colour"
    if len(fake) > 1 and _over_images(fake) < FLAT and _over_images(real) > SEEN:
        return f"{len(fake)} images are the same picture"
    return None


def _over_pixels(images: Tensor) -> float:
    return float(images.flatten(2).std(-1, correction=0).max())


def _over_images(images: Tensor) -> float:
    return float(images.std(0, correction=0).mean())


def vanished(optimizer: Any) -> str | None:
    """By Adam's second moment, the mean square of a weight's gradient: where its root is below Adam's eps, a step is
    less than half of what any larger gradient gives. Of other optimizers nothing is known.
    """
    still, count = 0, 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg_sq" not in state or not group.get("eps"):
                continue
            corrected = group["eps"] ** 2 * (1 - group["betas"][1] ** float(state["step"]))
            still += int((state["exp_avg_sq"] < corrected).sum())
            count += parameter.numel()
    return f"{still / count:.0%} of them" if count and still > VANISHED * count else None
