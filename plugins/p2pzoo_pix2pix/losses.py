"""The losses of pix2pix, on a Scene: what D says of (x, y) and of (x, ŷ), as logits, one map per scale.

All are means, over the pixels or logits of a map, over the batch, and over the maps where D has several scales.
Equations are those of arXiv:1611.07004 v3. Imports torch and the contracts.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import AddedLater, StepOutputs


class Vanilla:
    """The conditional GAN, Eq. 1 (Eq. 2 where D is unconditional), with D(·) = sigmoid(logit).

    D maximises  log D(x, y) + log(1 − D(x, G(x, z))), the objective divided by 2 to slow D down (§3.3);
    G maximises  log D(x, G(x, z)) instead of minimising log(1 − D(x, G(x, z))), also §3.3.

    Args:
        halved: divide D's objective by 2, as the paper says and the PyTorch code does. The Lua code halves only
            the number that it prints; the TensorFlow code does not.
        log_eps: added to D(·) and to 1 − D(·) inside the logarithms: 1e-12 in the Lua and TensorFlow codes, whose
            sigmoid is part of D. A verdict that rounds to 0 or 1 there has no gradient any more. 0 computes from the
            logits, as the PyTorch code does, and never saturates.
    """

    minimum = (0.0, 0.0)

    def __init__(self, *, halved: bool = True, log_eps: Annotated[float, Field(ge=0, lt=1), AddedLater] = 0.0) -> None:
        self.share = 0.5 if halved else 1.0
        self.log_eps = log_eps

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: (−log D(x, y) − log(1 − D(x, ŷ))) / 2; log 2 when D knows nothing."""
        return self.share * (self._log_loss(out.real, label=1.0) + self._log_loss(out.fake, label=0.0))

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: −log D(x, ŷ)."""
        return self._log_loss(out.fake, label=1.0)

    def _log_loss(self, maps: list[Tensor], *, label: float) -> Tensor:
        return _log_loss_with(self.log_eps, maps, label=label) if self.log_eps else _log_loss(maps, label=label)


class LeastSquares:
    """Least-squares GAN (Mao et al. 2017, arXiv:1611.04076, Eq. 9, a = 0 and b = c = 1), without a sigmoid.

    As in the PyTorch code, the 1/2 of Eq. 9 stands on D's side only.
    """

    minimum = (0.0, 0.0)

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: ((D(x, y) − 1)² + D(x, ŷ)²) / 2."""
        return 0.5 * (_squared_error(out.real, label=1.0) + _squared_error(out.fake, label=0.0))

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: (D(x, ŷ) − 1)²."""
        return _squared_error(out.fake, label=1.0)


class L1:
    """E[|y − ŷ|], Eq. 3, as the mean over all values of images in [-1, 1]: 0 to 2."""

    side = "generator"
    minimum = 0.0

    def __call__(self, out: StepOutputs) -> Tensor:
        return F.l1_loss(out.y_hat, out.y)


class L2:
    """E[(y − ŷ)²], which the paper set aside for L1 because it blurs more (§3.1): 0 to 4."""

    side = "generator"
    minimum = 0.0

    def __call__(self, out: StepOutputs) -> Tensor:
        return F.mse_loss(out.y_hat, out.y)


def _log_loss(maps: list[Tensor], *, label: float) -> Tensor:
    return _mean([F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label)) for logits in maps])


def _log_loss_with(eps: float, maps: list[Tensor], *, label: float) -> Tensor:
    verdicts = [torch.sigmoid(logits) for logits in maps]
    return _mean([-torch.log((verdict if label else 1 - verdict) + eps).mean() for verdict in verdicts])


def _squared_error(maps: list[Tensor], *, label: float) -> Tensor:
    return _mean([(logits - label).square().mean() for logits in maps])


def _mean(scalars: list[Tensor]) -> Tensor:
    return torch.stack(scalars).mean()
