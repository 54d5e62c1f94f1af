"""`crps` and `coverage`: is y like one of several translations of its x? Imports torch.

They see `samples` translations ŷ_1 … ŷ_M of each image, made with the seeds 0 to M - 1. A model without random numbers
gives M equal ones.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.levels import LEVELS, find_range, to_float64, to_levels

LEVELS_PER_UNIT = 127.5  # 8-bit images have 255 steps between -1 and 1
PART = 2**16  # values sorted at a time, so that large images need no memory beyond their samples
Samples = Annotated[int, Field(ge=2)]


class CRPS:
    """Continuous ranked probability score of each pixel value, images in [-1, 1]: 0 (all samples are y) to 2.

    mean_i |ŷ_i − y| − Σ_{i<j} |ŷ_i − ŷ_j| / (M (M − 1)), averaged over pixels, channels and images: the fair form
    (Ferro 2014, doi:10.1002/qj.2270), whose expectation does not depend on M. It is never negative, and has its
    smallest expectation if ŷ and y have the same distribution. With equal samples it is the metric `l1`, in its units.

    samples  translations of each image
    """

    version = "1"
    better = "lower"

    def __init__(self, dataset: Dataset, *, samples: Samples = 19) -> None:
        self.samples = samples

    def measure(self, batch: Batch, y_hats: Tensor) -> dict[str, Tensor]:
        """{"error": (B,), "spread": (B,)}, float32: the two terms for ŷ (B, M, C, H, W)."""
        pairs = [*zip(batch.y.float(), y_hats.float(), strict=True)]
        return {
            "error": torch.stack([mean_error(y, samples) for y, samples in pairs]),
            "spread": torch.stack([mean_half_distance(samples) for _, samples in pairs]),
        }

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean of error - spread over images."""
        return {"value": (statistics["error"].double() - statistics["spread"].double()).mean().item()}


class Coverage:
    """The share of pixel values of y that lie in an interval of the samples: 0 to 1. `width`: its mean width.

    The interval [smallest, largest] of M samples contains a further value of their distribution with probability
    (M − 1) / (M + 1), 90% for 19 (nominal). Less says that the samples vary too little or are wrong; more, that they
    vary too much. So no direction is better: nearest to nominal is best, and of two such models the one with the
    smaller width. Values are clipped to the range of y, as y is.

    Images of 8 bit are rounded to its levels, as in their files: where the dataset's `y_range` is 0 to 255, and where y
    is stored as colours of Lab or as classes. Where many values are equal, as in flat white, coverage may exceed the
    nominal share. Other y, as of 16 bit or in physical units, are compared as they are, because a level of 8 bit may be
    wider than the samples vary. There a G that ends in tanh does not reach the limits of the range: values of y at a
    limit, such as air of a CT at the end of its window, are outside of the interval.

    samples  translations of each image
    level    nominal share of another central interval, such as 0.5 [default: that of smallest to largest]. M samples
             have the shares (M + 1 − 2k) / (M + 1)

    Raises UserError for a level that so many samples do not have.
    """

    version = "1"
    better = None

    def __init__(
        self,
        dataset: Dataset,
        *,
        samples: Samples = 19,
        level: Annotated[float, Field(gt=0, lt=1)] | None = None,
    ) -> None:
        self.samples = samples
        self._outside = 1 if level is None else _count_outside(samples, level)
        self._are_levels = find_range(dataset) == LEVELS
        self.protocol: dict[str, Any] = {"nominal": round(1 - 2 * self._outside / (samples + 1), 6)}
        if self._are_levels:
            self.protocol["levels"] = 256

    def measure(self, batch: Batch, y_hats: Tensor) -> dict[str, Tensor]:
        """{"covered": (B,), "width": (B,)}, float32, for ŷ (B, M, C, H, W). Widths are of images in [-1, 1]: 0 to 2."""
        pairs = zip(self._to_compared(batch.y), self._to_compared(y_hats), strict=True)
        covered, widths = zip(*(self._measure(y, samples) for y, samples in pairs), strict=True)
        return {"covered": torch.stack(covered), "width": torch.stack(widths)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the share of covered values; `width`: the mean width of their intervals."""
        covered, width = (statistics[name].double().mean().item() for name in ("covered", "width"))
        return {"value": covered, "width": width}

    def _to_compared(self, images: Tensor) -> Tensor:
        return to_levels(images) if self._are_levels else images.detach().float().clamp(-1, 1)

    def _measure(self, y: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The share and the mean width of one image, both NaN if a value is."""
        covered = width = y.new_zeros(())
        for part, ordered in zip(y.flatten().split(PART), sorted_parts(samples), strict=True):
            low, high = ordered[self._outside - 1], ordered[-self._outside]
            unknown = part + ordered[-1]  # NaN where y or a sample is: they are sorted to the end
            covered = covered + ((low <= part) & (part <= high)).float().where(~unknown.isnan(), unknown).sum()
            width = width + (high - low + 0 * unknown).sum()
        return covered / y.numel(), width / y.numel() / (LEVELS_PER_UNIT if self._are_levels else 1)


def mean_error(y: Tensor, samples: Tensor) -> Tensor:
    """Mean |ŷ_i − y| of samples (M, C, H, W) and y (C, H, W), float32."""
    y = y.contiguous()
    errors = torch.stack([(y - y_hat.contiguous()).abs().mean() for y_hat in samples])  # each as `l1` computes it
    return to_float64(errors).mean().float()  # exact for equal numbers


def mean_half_distance(samples: Tensor) -> Tensor:
    """Σ_{i<j} |ŷ_i − ŷ_j| / (M (M − 1)), averaged over the values of samples (M, C, H, W): float32.

    In sorted order k (M − k) pairs lie around the k-th gap, so that M log M steps suffice and equal samples give 0.

    >>> mean_half_distance(torch.tensor([0.0, 3.0, 1.0])[:, None, None, None])  # distances 3, 1, 2
    tensor(1.)
    """
    count = len(samples)
    below = torch.arange(1, count, dtype=torch.float64)
    gaps = torch.zeros(count - 1, dtype=torch.float64)
    for ordered in sorted_parts(samples):
        gaps += to_float64(ordered.diff(dim=0).sum(dim=1))
    pairs = below * (count - below) / (count * (count - 1))
    return ((pairs * gaps).sum() / samples[0].numel()).float()


def sorted_parts(samples: Tensor) -> Iterator[Tensor]:
    """The samples (M, C, H, W) of all values, each in ascending order: (M, at most PART) at a time."""
    for part in samples.flatten(1).split(PART, dim=1):
        yield part.sort(dim=0).values


def _count_outside(samples: int, level: float) -> int:
    """k such that the interval from the k-th smallest to the k-th largest of the samples has this nominal share."""
    count = round((1 - level) * (samples + 1) / 2)
    if not 1 <= count <= samples // 2 or abs(1 - 2 * count / (samples + 1) - level) > 1e-6:
        shares = [f"{1 - 2 * k / (samples + 1):.6g}" for k in range(1, samples // 2 + 1)]
        known = shares if len(shares) < 8 else [*shares[:2], "…", shares[-1]]
        raise UserError(
            f"coverage: {samples} samples have no interval of level {level:g}: set level to one of {', '.join(known)}, "
            "or other samples"
        )
    return count
