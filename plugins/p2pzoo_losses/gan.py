"""GAN losses other than that of pix2pix, on D's logits for (x, y) and for (x, ŷ).

All are means over the logits of a map, over the batch, and over the maps if D has several scales. None is halved on D's
side.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs
from p2pzoo_losses.penalties import discriminator_gradients


class Hinge:
    """The hinge loss (Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957, Eq. 16 and 17).

    Logits beyond ±1 lower D's loss no further. G's loss has no lower bound.
    """

    minimum = (0.0, None)

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: max(0, 1 − D(x, y)) + max(0, 1 + D(x, ŷ))."""
        return _mean([F.relu(1 - logits) for logits in out.real]) + _mean([F.relu(1 + logits) for logits in out.fake])

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises: −D(x, ŷ)."""
        return -_mean(out.fake)


class NonSaturating:
    """The non-saturating logistic loss (Goodfellow et al. 2014, arXiv:1406.2661, §3), as StyleGAN2 trains with it.

    StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, appendix B) adds `r1` with weight 10 (γ) and `every` = 16 (k). It
    also scales the learning rate of D by k / (k + 1), which is a setting of the recipe: see the README. `vanilla` is
    the same loss with D's side halved, as in pix2pix.
    """

    minimum = (0.0, 0.0)

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: −log σ(D(x, y)) − log(1 − σ(D(x, ŷ))), as softplus of −D(x, y) and of D(x, ŷ)."""
        return _mean([F.softplus(-logits) for logits in out.real]) + _mean([F.softplus(logits) for logits in out.fake])

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: −log σ(D(x, ŷ))."""
        return _mean([F.softplus(-logits) for logits in out.fake])


class WassersteinGP:
    """WGAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, Algorithm 1).

    D is a critic, and D(x, y) is the mean of its logits. The penalty brings the length of its gradient to 1 at
    ỹ = ε y + (1 − ε) ŷ, with one ε from U[0, 1] per image, drawn by torch's generator; x does not change. The penalty
    is defined for single images, so the paper's critics have no batch norm (§4). The paper trains D for five steps per
    step of G; here the two alternate.

    penalty  weight λ of the gradient penalty, 10 in the paper
    """

    def __init__(self, *, penalty: Annotated[float, Field(gt=0)] = 10.0) -> None:
        self.penalty = penalty

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises: D(x, ŷ) − D(x, y) + λ (‖∇ D(x, ỹ)‖ − 1)², with the gradient with respect to ỹ."""
        eps = torch.rand(len(out.y), 1, 1, 1, device=out.y.device)
        interpolated = eps * out.y + (1 - eps) * out.y_hat
        lengths = torch.linalg.vector_norm(discriminator_gradients(out, out.x, interpolated), dim=1)
        return _mean(out.fake) - _mean(out.real) + self.penalty * (lengths - 1).square().mean()

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises: −D(x, ŷ)."""
        return -_mean(out.fake)


class Relativistic:
    """The relativistic log loss (Jolicoeur-Martineau 2018, arXiv:1807.00734).

    D(a, b) = sigmoid(a − b) of two logits is the probability that a is more real than b. Both losses use the logits of
    real images, so G also learns to make these less real than its own.

    variant  "average" (RaSGAN): compare each logit to the mean of the other kind, over batch and positions. "pairing"
             (RSGAN): compare the logits of (x, y) and (x, ŷ) at the same position
    """

    def __init__(self, *, variant: Literal["average", "pairing"] = "average") -> None:
        self.variant = variant

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: −log D(y, ŷ), for "average" plus −log(1 − D(ŷ, y)). Each is log 2 if D(·) = 1/2."""
        return self._log_loss(out.real, out.fake)

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: the same with y and ŷ exchanged."""
        return self._log_loss(out.fake, out.real)

    def _log_loss(self, higher: Sequence[Tensor], lower: Sequence[Tensor]) -> Tensor:
        """The loss that makes `higher` the more real ones. −log σ(a) is softplus(−a)."""
        pairs = list(zip(higher, lower, strict=True))
        if self.variant == "pairing":
            return _mean([F.softplus(low - high) for high, low in pairs])
        loss_of_higher = _mean([F.softplus(low.mean() - high) for high, low in pairs])
        return loss_of_higher + _mean([F.softplus(low - high.mean()) for high, low in pairs])


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([each.mean() for each in maps]).mean()
