"""The Gaussian interpolants behind the processes: s_t = a(t) · y + b(t) · x + c(t) · z, for t from 0 (y) to 1 (start).

Stochastic interpolants, Albergo et al. 2023 (arXiv:2303.08797): three functions of the time say how the target y, the
input x and noise z ~ N(0, I) are mixed. At t = 0 the mixture is y. At t = 1 it is what a translation starts with.

Imports torch only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Coefficients = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # t in [0, 1] -> a, b, c, each in the shape of t

TimeLaw = Literal["uniform", "logit-normal"]

MAX_WEIGHT = 25.0  # of a time in `snr_weight`: near t = 0 the ratio has no bound
_MIDPOINTS = 100_000  # the mean of the weights is exact to four digits

# Share of the training samples with t = 1. Each translation starts there, and a uniform t alone is never exactly 1.
START_PROBABILITY = 0.1


def bridge(sigma: float) -> Coefficients:
    """a = 1 - t, b = t, c = σ √(t (1 - t)): a Brownian bridge from x to y.

    Li et al. 2023 (BBDM, arXiv:2205.07680); Liu et al. 2023 (I²SB, arXiv:2302.05872).

    >>> a, b, c = bridge(2.0)(torch.tensor([0.0, 0.5, 1.0]))
    >>> a.tolist(), b.tolist(), c.tolist()
    ([1.0, 0.5, 0.0], [0.0, 0.5, 1.0], [0.0, 1.0, 0.0])
    """

    def coefficients(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 1 - t, t, sigma * (t * (1 - t)).sqrt()

    return coefficients


def flow(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a = 1 - t, b = 0, c = t: a straight line from noise to y. Lipman et al. 2023 (arXiv:2210.02747)."""
    return 1 - t, torch.zeros_like(t), t


def diffusion(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a = cos(πt / 2), b = 0, c = sin(πt / 2): variance-preserving diffusion with the cosine schedule.

    Nichol & Dhariwal 2021 (arXiv:2102.09672), as Saharia et al. 2022 use it between images (Palette, arXiv:2111.05826).
    The cosine is computed as the sine of (1 - t), which is exactly 0 at t = 1.
    """
    return (math.pi / 2 * (1 - t)).sin(), torch.zeros_like(t), (math.pi / 2 * t).sin()


def sample_time(u: Tensor, law: TimeLaw = "uniform") -> Tensor:
    """Uniform numbers u in [0, 1) -> times t in [0, 1]: t = 1 with START_PROBABILITY, else by the law.

    "logit-normal": the sigmoid of a normal number, which is near 1/2 more often (Esser et al. 2024, arXiv:2403.03206,
    §3.1, with location 0 and scale 1).

    >>> sample_time(torch.tensor([0.05, 0.1, 0.55]))
    tensor([1.0000, 0.0000, 0.5000])
    >>> sample_time(torch.tensor([0.05, 0.1, 0.55]), "logit-normal")
    tensor([1.0000, 0.0000, 0.5000])
    """
    t = (u - START_PROBABILITY) / (1 - START_PROBABILITY)
    if law == "logit-normal":
        t = (math.sqrt(2) * (2 * t - 1).erfinv()).sigmoid()  # the quantile function of N(0, 1), by its formula
    return torch.where(u < START_PROBABILITY, torch.ones_like(u), t)


def snr_weight(coefficients: Coefficients, t: Tensor) -> Tensor:
    """min(1 + a² / c², MAX_WEIGHT): one more than the signal-to-noise ratio of the mixture, and 1 at t = 1.

    Of a flow this is nearly the weight 1 / t² that an error of ŷ has in the loss of its velocity (a factor of 2 at
    most). MAX_WEIGHT where there is no noise (c = 0, but for t = 1).

    >>> snr_weight(flow, torch.tensor([0.0, 0.5, 1.0]))
    tensor([25.,  2.,  1.])
    """
    a, _, c = coefficients(t)
    weight = torch.where(c == 0, MAX_WEIGHT, 1 + (a / c).square()).clamp(max=MAX_WEIGHT)
    return torch.where(t == 1, 1.0, weight)


def mean_snr_weight(coefficients: Coefficients, law: TimeLaw) -> float:
    """The mean of `snr_weight` over the times of training, by the midpoint rule for u.

    >>> round(mean_snr_weight(flow, "uniform"), 2)
    6.62
    """
    u = (torch.arange(_MIDPOINTS, dtype=torch.float64, device="cpu") + 0.5) / _MIDPOINTS
    return float(snr_weight(coefficients, sample_time(u, law)).mean())
