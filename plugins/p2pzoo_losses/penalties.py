"""Penalties on the gradient of D, and the gradient itself. Imports torch and the contracts.

D(x, y) of an image is here the mean of its logits, over the map and over the maps where D has several scales, as it is
in the GAN losses. Gradients are those to y; x, where D sees it, is given.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from p2pzoo.plugin import StepOutputs


class GradientPenalty:
    """What R1 and R2 share: E[‖∇ D‖²] / 2, weighed by the recipe (γ of the paper, 10 in its experiments).

    Args:
        every: act in every k-th step only, from step 0 on, and k times as strongly (lazy regularisation, Karras et al.
            2020, arXiv:1912.04958, §3.1: 16 there). 0 in the steps between, so that the mean told is what 1 would tell.
            That paper also has another rate and other betas for Adam then, which is not done here. A step that differs
            from others is not recorded as a CUDA graph.
    """

    side = "discriminator"

    def __init__(self, *, every: Annotated[int, Field(ge=1)] = 1) -> None:
        self.every = every

    def __call__(self, out: StepOutputs) -> Tensor:
        if self.every > 1 and out.step % self.every:
            return out.y.new_zeros(())
        gradients = verdict_gradients(out, *self._at(out))
        return self.every * gradients.square().sum(1).mean() / 2

    @staticmethod
    def _at(out: StepOutputs) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class R1(GradientPenalty):
    """At real images (Mescheder et al. 2018, arXiv:1801.04406, §4.1): ≥ 0, 0 where D is flat.

    Args:
        every: act in every k-th step only, k times as strongly; see GradientPenalty.
    """

    @staticmethod
    def _at(out: StepOutputs) -> tuple[Tensor, Tensor]:
        return out.x, out.y


class R2(GradientPenalty):
    """At fake images, as D is shown them (Mescheder et al. 2018, arXiv:1801.04406, §4.1): ≥ 0, 0 where D is flat.

    Args:
        every: act in every k-th step only, k times as strongly; see GradientPenalty.
    """

    @staticmethod
    def _at(out: StepOutputs) -> tuple[Tensor, Tensor]:
        return out.x_fake, out.y_hat


def verdict_gradients(out: StepOutputs, x: Tensor, y: Tensor) -> Tensor:
    """∇_y D(x, y), (B, C·H·W), one row per image; differentiable by D's weights. ValueError where there is no D.

    Rows are each image's own where D takes images one by one. Batch norm mixes those of a batch.
    """
    if out.D is None:
        raise ValueError("this recipe has no [discriminator], and one of its losses asks for it")
    y = y.detach().requires_grad_()
    maps = out.D(x, y)
    verdicts = torch.stack([logits.float().flatten(1).mean(1) for logits in maps]).mean(0)
    [gradients] = torch.autograd.grad(verdicts.sum(), y, create_graph=True)
    return gradients.flatten(1)
