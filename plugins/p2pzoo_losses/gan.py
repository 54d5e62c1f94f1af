"""Other games than that of pix2pix, on D's logits of (x, y) and of (x, ŷ).

All are means, over the logits of a map, over the batch, and over the maps where D has several scales. None is halved on
D's side. Imports torch and the contracts.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs
from p2pzoo_losses.penalties import verdict_gradients


class Hinge:
    """The hinge loss (Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957, Eq. 16 and 17).

    D is not rewarded for logits beyond ±1; G's side has no bound.
    """

    minimum = (0.0, None)

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: max(0, 1 − D(x, y)) + max(0, 1 + D(x, ŷ))."""
        return _mean([F.relu(1 - logits) for logits in out.real]) + _mean([F.relu(1 + logits) for logits in out.fake])

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises: −D(x, ŷ)."""
        return -_mean(out.fake)


class WassersteinGP:
    """WGAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, Algorithm 1).

    D is a critic, D(x, y) the mean of its logits. Its gradient is held to length 1 at ỹ = ε y + (1 − ε) ŷ, one ε of
    U[0, 1] for each image from torch's generator; x, where D sees it, stays what it is. The paper's penalty is of each
    image alone, so its critics have no batch norm (§4). It moves D five times for each move of G; here the two take
    turns.

    Args:
        penalty: λ of the paper, 10 there.
    """

    def __init__(self, *, penalty: Annotated[float, Field(gt=0)] = 10.0) -> None:
        self.penalty = penalty

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises: D(x, ŷ) − D(x, y) + λ (‖∇ D(x, ỹ)‖ − 1)², the gradient being that to ỹ."""
        share = torch.rand(len(out.y), 1, 1, 1, device=out.y.device)
        between = share * out.y + (1 - share) * out.y_hat
        lengths = torch.linalg.vector_norm(verdict_gradients(out, out.x, between), dim=1)
        return _mean(out.fake) - _mean(out.real) + self.penalty * (lengths - 1).square().mean()

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises: −D(x, ŷ)."""
        return -_mean(out.fake)


class Relativistic:
    """The relativistic log loss (Jolicoeur-Martineau 2018, arXiv:1807.00734).

    D(a, b) is how sure D is that a is more real than b: sigmoid(a − b) of logits. Both sides ask D of real images, so
    that G also learns by making these less real than its own.

    Args:
        variant: "average" (RaSGAN): each logit against the mean of the other kind's, over batch and positions;
            "pairing" (RSGAN): against the other image's logit in its place, (x, y) beside (x, ŷ).
    """

    def __init__(self, *, variant: Literal["average", "pairing"] = "average") -> None:
        self.variant = variant

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: −log D(y, ŷ), and against averages also −log(1 − D(ŷ, y)); log 2 each at ignorance."""
        return self._log_loss(out.real, out.fake)

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: the same with y and ŷ exchanged."""
        return self._log_loss(out.fake, out.real)

    def _log_loss(self, winners: Sequence[Tensor], losers: Sequence[Tensor]) -> Tensor:
        """Where the winners should be the more real ones. −log σ(a) is softplus(−a)."""
        pairs = list(zip(winners, losers, strict=True))
        if self.variant == "pairing":
            return _mean([F.softplus(lost - won) for won, lost in pairs])
        won_beside = _mean([F.softplus(lost.mean() - won) for won, lost in pairs])
        return won_beside + _mean([F.softplus(lost - won.mean()) for won, lost in pairs])


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([each.mean() for each in maps]).mean()
