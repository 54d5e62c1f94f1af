"""`lab_histogram`: do the translations have the colours of the photos? Figure 7 of the paper. Imports torch, kornia.

The paper says no more than "histogram intersection" of marginal distributions in Lab, over all pixels of all images
(its author, phillipi/pix2pix#164: "divide by number of pixels, take log"). What is ours: intersection is Σ min(p, q),
after Swain and Ballard 1991; bins are one unit wide, centred on whole numbers.
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
from p2pzoo_metrics.levels import levels, refuse_unless

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS = ("L", "a", "b")


class Curve(NamedTuple):
    """One channel's distribution, as Figure 7 plots it: float64 tensors of one length.

    centres  of the bins, in Lab units
    y_hat    natural logarithm of the share of ŷ's pixels in each bin; -inf where there are none
    y        the same of the real photos
    """

    centres: Tensor
    y_hat: Tensor
    y: Tensor


class LabHistogram:
    """Intersection Σ min(p, q) of the marginal distributions of ŷ's and y's colours: 0 (disjoint) to 1 (the same).

    Images are RGB (UserError), rounded to 8 bit as in a picture file: the photos come in 256 levels, which unit bins
    show as a comb, and a ŷ between those levels would be judged by that. They are taken for sRGB and converted to
    CIE Lab (D65) in double precision on the CPU, so that counts do not depend on the device.

    bin_width  in Lab units. A bin is centred on each of its multiples, so that grey (a = b = 0) falls into the middle
               of one and is not split by rounding
    ab_limit   a and b have bins up to ± this; sRGB reaches from -86 to 98 in a and from -108 to 94 in b. L has bins
               from 0 to 100. Values beyond the outermost bins are counted in those

    An image with a value that is not a number makes all numbers NaN.
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
        refuse_unless((3,), y_hat, "lab_histogram")
        counted = {"y_hat": self._counts(y_hat), "y": self._counts(batch.y)}
        return {f"{who}_{channel}": counts for who, each in counted.items() for channel, counts in each.items()}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`L`, `a`, `b`: intersections, each over all pixels of all images; `value`: their mean."""
        shares = self._shares(statistics)
        found = {channel: torch.minimum(*shares[channel]).sum().item() for channel in CHANNELS}
        return {"value": sum(found.values()) / len(found), **found}

    def log_probabilities(self, statistics: Mapping[str, Tensor]) -> dict[str, Curve]:
        """What Figure 7 plots, {"L": Curve, "a": …, "b": …}, from statistics that `measure` gave for any images."""
        shares = self._shares(statistics)
        return {
            channel: Curve(self._bins(channel).double() * self._width, *(share.log() for share in shares[channel]))
            for channel in CHANNELS
        }

    def draw(self, rows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
        """Figure 7: log-probabilities of L, a and b, a curve for each row (label: its statistics) and the photos."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.2), layout="constrained")
        curves = {label: self.log_probabilities(statistics) for label, statistics in rows.items()}
        for axes, channel in zip(figure.subplots(1, 3), CHANNELS, strict=True):
            seen = []
            for label, each in curves.items():
                curve = each[channel]
                axes.plot(curve.centres, curve.y_hat, label=label, linewidth=1)
                seen += [curve.centres[share > -math.inf] for share in (curve.y_hat, curve.y)]
            axes.plot(curve.centres, curve.y, "k--", label="ground truth", linewidth=1)
            shown = torch.cat(seen)
            axes.set_xlim(float(shown.min()), float(shown.max()))
            axes.set_xlabel(channel)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("log probability")
        figure.axes[-1].legend(frameon=False, fontsize=8)
        return figure

    def _counts(self, images: Tensor) -> dict[str, Tensor]:
        pictures = levels(images).cpu().double() / 255
        lab = rgb_to_lab(pictures.nan_to_num()).unbind(1)
        unknown = pictures.isnan().flatten(1).any(1)
        counted = {}
        for channel, values in zip(CHANNELS, lab, strict=True):
            lowest, highest = self._lowest[channel], self._highest[channel]
            index = (values / self._width).round().long().clamp(lowest, highest) - lowest
            bins = highest - lowest + 1
            counts = torch.stack([image.flatten().bincount(minlength=bins) for image in index]).float()
            counts[unknown] = float("nan")
            counted[channel] = counts
        return counted

    def _shares(self, statistics: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """{channel: (of ŷ, of y)}: what share of all pixels falls into each bin."""
        pooled = {name: counts.double().sum(0) for name, counts in statistics.items()}
        shares = {name: counts / counts.sum() for name, counts in pooled.items()}
        return {channel: (shares[f"y_hat_{channel}"], shares[f"y_{channel}"]) for channel in CHANNELS}

    def _bins(self, channel: str) -> Tensor:
        return torch.arange(self._lowest[channel], self._highest[channel] + 1)
