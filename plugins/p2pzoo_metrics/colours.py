"""`lab_histogram`: do the translations have the colours of the photos? Figure 7 of the paper. Imports torch, kornia.

The paper says only "histogram intersection" of marginal distributions in Lab, over all pixels of all images
(its author, phillipi/pix2pix#164: "divide by number of pixels, take log"). Our own choices: the intersection is
Σ min(p, q), after Swain and Ballard 1991; bins are one unit wide and centred on whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from kornia.color import rgb_to_lab
from pydantic import Field
from torch import Tensor

from p2pzoo.plugin import Batch, Dataset
from p2pzoo_metrics.levels import check_channels, to_float64, to_levels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS = ("L", "a", "b")


class Curve(NamedTuple):
    """One channel's distribution, as Figure 7 plots it: float64 tensors of one length.

    centres  bin centres in Lab units
    y_hat    natural logarithm of the fraction of ŷ's pixels in each bin; -inf for empty bins
    y        the same for the real photos
    """

    centres: Tensor
    y_hat: Tensor
    y: Tensor


class LabHistogram:
    """Intersection Σ min(p, q) of the marginal colour distributions of ŷ and y: 0 (disjoint) to 1 (equal).

    Images must be RGB (UserError). They are rounded to 8 bit as in an image file: the photos have 256 levels, which
    bins of one unit show as a comb, and the levels of ŷ must not differ from that. They are read as sRGB and converted
    to CIE Lab (D65) in double precision on the CPU, so that counts do not depend on the device.

    bin_width  width of a bin in Lab units. Each multiple of it is the centre of a bin, so that rounding does not spread
               grey (a = b = 0) over two bins
    ab_limit   a and b have bins up to ± this; sRGB reaches from -86 to 98 in a and from -108 to 94 in b. L has bins
               from 0 to 100. The outermost bins also count all values beyond them

    An image with a NaN makes all numbers NaN.
    """

    version = "1"
    better = "higher"

    def __init__(
        self,
        dataset: Dataset,
        *,
        bin_width: Annotated[float, Field(gt=0, le=10)] = 1.0,
        ab_limit: Annotated[float, Field(ge=10, le=200)] = 110.0,
    ) -> None:
        self.protocol = {"levels": 256, "colours": "sRGB -> Lab (D65)", "beyond": "counted in the outermost bins"}
        self._width = bin_width
        reach = math.floor(ab_limit / bin_width)
        self._lowest = {"L": 0, "a": -reach, "b": -reach}
        self._highest = {"L": math.ceil(100 / bin_width), "a": reach, "b": reach}

    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"y_hat_L", "y_hat_a", "y_hat_b", "y_L", …: (B, bins)}: counts of pixels, float32."""
        check_channels((3,), y_hat, "lab_histogram")
        histograms = {"y_hat": self._count(y_hat), "y": self._count(batch.y)}
        return {
            f"{image}_{channel}": counts
            for image, by_channel in histograms.items()
            for channel, counts in by_channel.items()
        }

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`L`, `a`, `b`: intersections over all pixels of all images; `value`: their mean."""
        fractions = self._fractions(statistics)
        intersections = {channel: torch.minimum(*fractions[channel]).sum().item() for channel in CHANNELS}
        return {"value": sum(intersections.values()) / len(intersections), **intersections}

    def log_probabilities(self, statistics: Mapping[str, Tensor]) -> dict[str, Curve]:
        """The curves of Figure 7, {"L": Curve, "a": …, "b": …}, from statistics that `measure` returned."""
        fractions = self._fractions(statistics)
        return {
            channel: Curve(self._bins(channel).double() * self._width, *(f.log() for f in fractions[channel]))
            for channel in CHANNELS
        }

    def draw(self, rows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
        """Figure 7: log-probabilities of L, a and b, a curve for each row (label: its statistics) and the photos."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.2), layout="constrained")
        curves = {label: self.log_probabilities(statistics) for label, statistics in rows.items()}
        for axes, channel in zip(figure.subplots(1, 3), CHANNELS, strict=True):
            non_empty = []
            for label, by_channel in curves.items():
                curve = by_channel[channel]
                axes.plot(curve.centres, curve.y_hat, label=label, linewidth=1)
                non_empty += [curve.centres[values > -math.inf] for values in (curve.y_hat, curve.y)]
            axes.plot(curve.centres, curve.y, "k--", label="ground truth", linewidth=1)
            limits = torch.cat(non_empty)
            axes.set_xlim(float(limits.min()), float(limits.max()))
            axes.set_xlabel(channel)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("log probability")
        figure.axes[-1].legend(frameon=False, fontsize=8)
        return figure

    def _count(self, images: Tensor) -> dict[str, Tensor]:
        """{channel: (B, bins)}: how many pixels of each image are in each bin; NaN for images with a NaN."""
        pictures = to_float64(to_levels(images)) / 255
        lab = rgb_to_lab(pictures.nan_to_num()).unbind(1)
        has_nan = pictures.isnan().flatten(1).any(1)
        histograms = {}
        for channel, values in zip(CHANNELS, lab, strict=True):
            lowest, highest = self._lowest[channel], self._highest[channel]
            index = (values / self._width).round().long().clamp(lowest, highest) - lowest
            bins = highest - lowest + 1
            counts = torch.stack([image.flatten().bincount(minlength=bins) for image in index]).float()
            counts[has_nan] = float("nan")
            histograms[channel] = counts
        return histograms

    def _fractions(self, statistics: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """{channel: (of ŷ, of y)}: the fraction of all pixels in each bin."""
        pooled = {name: counts.double().sum(0) for name, counts in statistics.items()}
        fractions = {name: counts / counts.sum() for name, counts in pooled.items()}
        return {channel: (fractions[f"y_hat_{channel}"], fractions[f"y_{channel}"]) for channel in CHANNELS}

    def _bins(self, channel: str) -> Tensor:
        return torch.arange(self._lowest[channel], self._highest[channel] + 1)
