"""The losses of pix2pix, on StepOutputs: D's logits for (x, y) and for (x, ŷ), one map per scale.

All are means over the pixels or logits of a map, over the batch, and over the maps if D has several scales.
Equation numbers are those of arXiv:1611.07004 v3.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import AddedLater, StepOutputs


class Vanilla:
    """The conditional GAN, Eq. 1 (Eq. 2 if D is unconditional), with D(·) = sigmoid(logit).

    D maximises log D(x, y) + log(1 − D(x, G(x, z))). This objective is divided by 2 to slow D down (§3.3).
    G maximises log D(x, G(x, z)) instead of minimising log(1 − D(x, G(x, z))), also §3.3.

    halved   divide D's objective by 2, as in the paper and in the PyTorch code. The Lua code halves only the number
             that it prints; the TensorFlow code does not halve
    log_eps  added to D(·) and to 1 − D(·) inside the logarithms: 1e-12 in the Lua and TensorFlow codes, where the
             sigmoid is part of D. A D(·) that rounds to 0 or 1 there has no gradient. 0, as in the PyTorch code,
             computes the loss from the logits, which never saturates
    """

    minimum = (0.0, 0.0)

    def __init__(self, *, halved: bool = True, log_eps: Annotated[float, Field(ge=0, lt=1), AddedLater] = 0.0) -> None:
        self.scale = 0.5 if halved else 1.0
        self.log_eps = log_eps

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: (−log D(x, y) − log(1 − D(x, ŷ))) / 2. It is log 2 if D(·) = 1/2 everywhere."""
        return self.scale * (self._log_loss(out.real, label=1.0) + self._log_loss(out.fake, label=0.0))

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: −log D(x, ŷ)."""
        return self._log_loss(out.fake, label=1.0)

    def _log_loss(self, maps: list[Tensor], *, label: float) -> Tensor:
        return _log_loss_with_eps(self.log_eps, maps, label=label) if self.log_eps else _log_loss(maps, label=label)


class LeastSquares:
    """Least-squares GAN (Mao et al. 2017, arXiv:1611.04076, Eq. 9, a = 0 and b = c = 1), without a sigmoid.

    As in the PyTorch code, only D's side has the factor 1/2 of Eq. 9.
    """

    minimum = (0.0, 0.0)

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: ((D(x, y) − 1)² + D(x, ŷ)²) / 2."""
        return 0.5 * (_squared_error(out.real, label=1.0) + _squared_error(out.fake, label=0.0))

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: (D(x, ŷ) − 1)²."""
        return _squared_error(out.fake, label=1.0)


class L1:
    """E[|y − ŷ|], Eq. 3, as the mean over all values of images in [-1, 1]: 0 to 2. A process may weight the images."""

    side = "generator"
    minimum = 0.0
    uses_sample_weight = True

    def __call__(self, out: StepOutputs) -> Tensor:
        if out.sample_weight is None:
            return F.l1_loss(out.y_hat, out.y)
        return out.weighted_mean((out.y_hat - out.y).abs())


class L2:
    """E[(y − ŷ)²]: 0 to 4. The paper prefers L1, because L2 blurs more (§3.1). A process may weight the images."""

    side = "generator"
    minimum = 0.0
    uses_sample_weight = True

    def __call__(self, out: StepOutputs) -> Tensor:
        if out.sample_weight is None:
            return F.mse_loss(out.y_hat, out.y)
        return out.weighted_mean((out.y_hat - out.y).square())


def _log_loss(maps: list[Tensor], *, label: float) -> Tensor:
    return _mean([F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label)) for logits in maps])


def _log_loss_with_eps(eps: float, maps: list[Tensor], *, label: float) -> Tensor:
    probabilities = [torch.sigmoid(logits) for logits in maps]
    return _mean([-torch.log((p if label else 1 - p) + eps).mean() for p in probabilities])


def _squared_error(maps: list[Tensor], *, label: float) -> Tensor:
    return _mean([(logits - label).square().mean() for logits in maps])


def _mean(scalars: list[Tensor]) -> Tensor:
    return torch.stack(scalars).mean()
