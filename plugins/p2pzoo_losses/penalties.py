"""Penalties on the gradient of D, and the gradient itself.

D(x, y) of an image is the mean of its logits over the map, and over the maps if D has several scales, as in the GAN
losses. Gradients are with respect to y; x is fixed.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from p2pzoo.plugin import StepOutputs


class GradientPenalty:
    """The base class of R1 and R2: E[‖∇ D‖²] / 2. The recipe's weight is γ of the paper, 10 in its experiments.

    every  compute the penalty only in each k-th step, from step 0 on, and multiply it by k (lazy regularisation, Karras
           et al. 2020, arXiv:1912.04958, §3.1, with 16). It is 0 in the other steps, so the logged mean is the same as
           with 1. That paper also changes Adam's learning rate and betas; this loss does not. With `every` above 1 the
           step is not recorded as a CUDA graph, because the steps differ
    """

    side = "discriminator"

    def __init__(self, *, every: Annotated[int, Field(ge=1)] = 1) -> None:
        self.every = every

    def __call__(self, out: StepOutputs) -> Tensor:
        if self.every > 1 and out.step % self.every:
            return out.y.new_zeros(())
        gradients = discriminator_gradients(out, *self._images(out))
        return self.every * gradients.square().sum(1).mean() / 2

    @staticmethod
    def _images(out: StepOutputs) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class R1(GradientPenalty):
    """The penalty at real images (Mescheder et al. 2018, arXiv:1801.04406, §4.1): ≥ 0, and 0 if D is constant."""

    @staticmethod
    def _images(out: StepOutputs) -> tuple[Tensor, Tensor]:
        return out.x, out.y


class R2(GradientPenalty):
    """The penalty at the fake images that D gets (Mescheder et al. 2018, arXiv:1801.04406, §4.1).

    It is ≥ 0, and 0 if D is constant.
    """

    @staticmethod
    def _images(out: StepOutputs) -> tuple[Tensor, Tensor]:
        return out.x_fake, out.y_hat


def discriminator_gradients(out: StepOutputs, x: Tensor, y: Tensor) -> Tensor:
    """∇_y D(x, y), (B, C·H·W), one row per image, differentiable with respect to D's weights.

    Each row depends only on its image, unless D has layers that mix a batch, such as batch norm. Raises ValueError if
    the recipe has no discriminator.
    """
    if out.D is None:
        raise ValueError("one of the losses needs a discriminator, but the recipe has no [discriminator]")
    y = y.detach().requires_grad_()
    maps = out.D(x, y)
    outputs = torch.stack([logits.float().flatten(1).mean(1) for logits in maps]).mean(0)
    [gradients] = torch.autograd.grad(outputs.sum(), y, create_graph=True)
    return gradients.flatten(1)
