"""LeCam: D's logits of real images stay near the average logit of fake ones, and the other way round."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs


class LeCam(nn.Module):
    """A regulariser of D for little data (Tseng et al. 2021, arXiv:2104.03310, §3): ≥ 0.

    E[max(0, D(x, y) − α_F)²] + E[max(0, α_R − D(x, ŷ))²], with α_R and α_F the exponential moving averages of D's mean
    logit of real and of fake images. No gradient flows through the averages. The recipe's weight is λ of the paper.
    This is the loss of the authors' code (google/lecam-gan), to which λ = 0.3 belongs: the paper's equation has the
    squares without max, which also pull up real logits below α_F.

    An average is a weighted mean of all logits so far, so it does not depend on an initial value. The logits of a step
    enter it before the step uses it. Several processes share their averages. With `[train] accumulate` and `d_steps`,
    each part and each update of D counts once. The averages are saved with a run.

    D's outputs are logits, one per patch. The mean is over the logits of a map, over the batch, and over the maps if D
    has several scales.

    decay  γ of the averages, 0.99 in the paper

    >>> LeCam(decay=0.9).averages()  # of real and of fake images, before the first step
    tensor([0., 0.])
    """

    side = "discriminator"

    def __init__(self, *, decay: Annotated[float, Field(ge=0, lt=1)] = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.weighted_sums: Tensor  # of the mean logits: real, fake
        self.register_buffer("weighted_sums", torch.zeros(2))
        self.total_weight: Tensor
        self.register_buffer("total_weight", torch.zeros(()))

    def forward(self, out: StepOutputs) -> Tensor:
        of_real, of_fake = out.real, out.fake  # here, since D computes them now: below it would be without gradients
        with torch.no_grad():
            self._update(torch.stack([_mean(of_real), _mean(of_fake)]))
        real, fake = self.averages()
        too_high, too_low = [m.float() - fake for m in of_real], [real - m.float() for m in of_fake]
        return _mean([F.relu(m).square() for m in too_high]) + _mean([F.relu(m).square() for m in too_low])

    def averages(self) -> Tensor:
        """(2,): α_R and α_F, the average logits of real and of fake images; 0 before the first step."""
        return self.weighted_sums / self.total_weight.clamp(min=torch.finfo(torch.float32).tiny)

    def _update(self, means: Tensor) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(means)
            means = means / dist.get_world_size()
        self.weighted_sums.lerp_(means, 1 - self.decay)
        self.total_weight.mul_(self.decay).add_(1 - self.decay)


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([logits.float().mean() for logits in maps]).mean()
