"""`interval-coverage`: do the intervals of a calibrated model cover y on new blocks as promised? Imports torch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from p2pzoo_bench.intervals import Interval, paired_over_blocks
from torch import Tensor
from torch.nn.functional import interpolate

from p2pzoo.plugin import Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count

if TYPE_CHECKING:
    from p2pzoo.models.intervals import Calibration


class IntervalCoverage:
    """The share of y's values inside the intervals of a calibrated model: the mean over the blocks of the test images.

    The promise: over calibration and a new exchangeable block, the expected uncovered share is at most 1 - level; not
    per pixel, image, class, or on another continent. So a test may miss the level by chance; a warning says by how
    much, and whether the 95% interval over blocks holds the level. Of two models that reach it, the one with the
    smaller width is better. Images without a block are blocks of their own.

    Only `p2pzoo evaluate` measures it, because a model is calibrated after its training.
    """

    version = "1"
    better = None
    samples = 2  # the lower and the upper bound
    calibration: Calibration | None = None

    def __init__(self, dataset: Dataset) -> None:
        self._classes = tuple(dataset.classes or ())

    @property
    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on besides: the calibration, without the digests of its images."""
        if self.calibration is None:
            return {}
        values = self.calibration.as_json()
        del values["images"]
        return {"calibration": values}

    def trust(self, device: torch.device) -> None:
        """Raises UserError for a model without a calibration."""
        if self.calibration is None:
            raise UserError(
                "interval-coverage: there is no calibrated model yet: remove this metric from the recipe, train, then "
                "`p2pzoo calibrate RUN --level 0.8`, then `p2pzoo evaluate RUN`"
            )

    def measure(self, batch: Batch, y_hats: Tensor) -> dict[str, Tensor]:
        """{"covered", "width": (B,) float64; "block": (B,) int64; "seen": (B,) bool}, for bounds (B, 2, C, H, W); with
        labels also {"class_covered", "class_values": (B, number of classes) int64}."""
        self.trust(batch.y.device)
        assert self.calibration is not None
        lower, upper = y_hats.unbind(1)
        inside = (lower <= batch.y) & (batch.y <= upper)
        digests = [digest_pair(x, y) for x, y in zip(batch.x, batch.y, strict=True)]
        blocks = [
            block or name for block, name in zip(batch.blocks or (None,) * len(batch.ids), batch.ids, strict=True)
        ]
        statistics = {
            # float64 on the CPU: Apple's GPUs have none
            "covered": inside.flatten(1).cpu().double().mean(1),
            "width": (upper - lower).flatten(1).cpu().double().mean(1),
            "block": torch.tensor([_hash_name(block) for block in blocks]),
            "seen": torch.tensor([digest in self.calibration.images for digest in digests]),
        }
        if self._classes and batch.labels is not None:
            statistics |= self._count_by_class(inside, batch.labels)
        return statistics

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean of the blocks' coverages; `low`, `high`: its 95% interval, with four blocks or more;
        `level`: the target; `width`: the mean width; `class.NAME`: the coverage of all values of a class."""
        assert self.calibration is not None
        level, blocks = self.calibration.level, statistics["block"]
        coverages = np.array([statistics["covered"][blocks == block].mean().item() for block in blocks.unique()])
        interval = paired_over_blocks(lambda chosen: float(coverages[chosen].mean()), range(len(coverages)))
        numbers = {"value": interval.value, "level": level, "width": statistics["width"].mean().item()}
        if interval.low is not None and interval.high is not None:
            numbers |= {"low": max(0.0, interval.low), "high": min(1.0, interval.high)}
        if "class_values" in statistics:
            covered, values = (statistics[f"class_{name}"].sum(0).double() for name in ("covered", "values"))
            shares = zip(self._classes, (covered / values).tolist(), values.tolist(), strict=True)
            numbers |= {f"class.{name}": share for name, share, count in shares if count}
        self._warn(interval, level, len(coverages), int(statistics["seen"].sum()))
        return numbers

    def _count_by_class(self, inside: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Covered values and values of each class. Labels of another resolution are those of the nearest pixel."""
        if labels.shape[1:] != inside.shape[2:]:
            labels = interpolate(labels[:, None].float(), inside.shape[2:], mode="nearest-exact")[:, 0].long()
        covered = [[inside.movedim(1, -1)[i][labels[i] == k].sum() for k in self._indices] for i in range(len(labels))]
        values = [[(labels[i] == k).sum() * inside.shape[1] for k in self._indices] for i in range(len(labels))]
        return {"class_covered": _stack(covered), "class_values": _stack(values)}

    @property
    def _indices(self) -> range:
        return range(len(self._classes))

    def _warn(self, interval: Interval, level: float, blocks: int, seen: int) -> None:
        if seen:
            warnings.warn(
                f"interval-coverage: {seen} of these images calibrated the model, so this is no test of it: measure "
                "another split (--split)",
                stacklevel=3,
            )
        if interval.value < level:
            if interval.low is None or interval.high is None:
                how = "too few blocks for an interval"
            else:
                holds = "holds the target: it may be chance" if interval.high >= level else "is below the target"
                how = f"the 95% interval, {interval.low:.3f} to {interval.high:.3f}, {holds}"
            warnings.warn(
                f"interval-coverage: {interval.value:.3f} on {format_count(blocks, 'block')} misses its target "
                f"{level:g}; {how}",
                stacklevel=3,
            )


def digest_pair(x: Tensor, y: Tensor) -> str:
    """16 hexadecimal digits for a pair (C, H, W) in [-1, 1], to recognise it: many pairs may have an empty y."""
    pixels = hashlib.sha256()
    for image in (x, y):
        pixels.update(image.cpu().float().contiguous().numpy().tobytes())
    return pixels.hexdigest()[:16]


def _hash_name(name: str) -> int:
    """A block's name as a number, for tensors."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:7], "big")


def _stack(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row) for row in rows])
