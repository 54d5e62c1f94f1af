"""The diversity-sensitive loss: translations of one x with different z differ."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from p2pzoo.plugin import StepOutputs


class DiversitySensitive:
    """−min(τ, |ŷ(z₁) − ŷ(z₂)| / |z₁ − z₂|), −τ to 0 (DSGAN: Yang et al. 2019, arXiv:1901.09024, §3; MSGAN:
    Mao et al. 2019, arXiv:1903.05628, without a limit).

    Both distances are means of absolute differences over the values of an image and of its z; the loss is the mean over
    the images. z₁ and z₂ are new draws, so G translates x twice more in this loss, and gradients flow through both. Its
    norms see these translations too. (The public code of MSGAN takes the ŷ of the step as the first of the two.)

    It needs a generator that takes z as an argument (`takes_z` in `p2pzoo/plugin/networks.py`): `unet` and
    `encoder-decoder` with noise = "gaussian". Recipes with another generator are refused, such as one whose noise is
    dropout. L1 with a large weight works against it: L1 alone wants the median of all y.

    limit  τ; without one, G could always gain by larger differences
    """

    side = "generator"

    def __init__(self, *, limit: Annotated[float, Field(gt=0)] = 1.0) -> None:
        self.limit = limit

    def __call__(self, out: StepOutputs) -> Tensor:
        first, second = (out.G.draw_z(out.x) for _ in range(2))
        distance_of_z = _distance(first, second).clamp(min=torch.finfo(torch.float32).tiny)
        ratio = _distance(out.G(out.x, z=first), out.G(out.x, z=second)) / distance_of_z
        return -ratio.clamp(max=self.limit).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(B,)"""
    return (a.float() - b.float()).abs().flatten(1).mean(1)
