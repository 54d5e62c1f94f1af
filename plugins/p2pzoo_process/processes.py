"""The processes `bridge`, `flow` and `diffusion`: what G sees besides x in training, and how a trained G translates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from p2pzoo.plugin import AddedLater
from p2pzoo.utils.plurals import format_count
from p2pzoo_process import interpolants
from p2pzoo_process.interpolants import Coefficients, TimeLaw, mean_snr_weight, sample_time, snr_weight
from p2pzoo_process.sampler import GaussianSampler, join, plan_steps

Sigma = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Eta = Annotated[float, Field(ge=0, le=1)]
LossWeight = Literal["none", "snr"]


class GaussianProcess:
    """What the three processes share. G sees x, the mixture s_t and the time t, and predicts ŷ.

    Attributes, those of `p2pzoo.plugin.Process`:

    channels     that G sees in all
    passes_time  whether G is given t as an argument. Else t is one plane among the channels
    loss_weight  t (B,) -> weights (B,) for losses of pixels, of mean 1 over the times of training; None without any

    Arguments, besides the parameters of a recipe, which each process explains:

    coefficients  a, b and c of the mixture (`interpolants`)
    takes_time    whether G has an argument for t; then it is passed
    starts_at_x   whether x is part of the mixture, which ends at it; else it ends at noise

    Raises ValueError if starts_at_x is true, and x and y have different channels.
    """

    at_use = ("steps", "eta")  # training does not depend on them

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        coefficients: Coefficients,
        takes_time: bool,
        *,
        steps: int,
        eta: float,
        loss_weight: LossWeight,
        time_law: TimeLaw,
        starts_at_x: bool = False,
    ) -> None:
        if starts_at_x and in_channels != out_channels:
            raise ValueError(
                f"x has {format_count(in_channels, 'channel')} and y has {out_channels}: this process ends at x, so "
                'both need the same channels; use = "flow" or "diffusion" ends at noise and takes any channels'
            )
        self.channels = in_channels + out_channels + (0 if takes_time else 1)
        self.passes_time = takes_time
        self._coefficients, self._starts_at_x = coefficients, starts_at_x
        self._out_channels, self._steps, self._eta = out_channels, steps, eta
        self._time_law = time_law
        self.loss_weight = None
        if loss_weight == "snr":
            self._mean_weight = mean_snr_weight(coefficients, time_law)
            self.loss_weight = self._weigh

    def _weigh(self, t: Tensor) -> Tensor:
        return snr_weight(self._coefficients, t) / self._mean_weight

    def noised(self, x: Tensor, y: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What G sees of a training pair, (B, channels, H, W), and its times t, (B,) in [0, 1].

        x, y  (B, C, H, W) in [-1, 1]
        u     (B,) uniform numbers in [0, 1)
        z     normal numbers in the shape of y
        """
        t = sample_time(u, self._time_law)
        a, b, c = self._coefficients(t[:, None, None, None])
        s = a * y + c * z
        return join(x, s + b * x if self._starts_at_x else s, None if self.passes_time else t), t

    def sampler(self, G: nn.Module) -> GaussianSampler:
        """The module x -> ŷ around a trained G; see `GaussianSampler`."""
        plan = plan_steps(self._coefficients, self._steps, self._eta)
        return GaussianSampler(
            G, plan, 1 / self._steps,
            out_channels=self._out_channels, starts_at_x=self._starts_at_x, passes_time=self.passes_time,
        )  # fmt: skip


class Bridge(GaussianProcess):
    """A Brownian bridge from x to y: s_t = (1 - t) y + t x + σ √(t (1 - t)) z.

    Li et al. 2023 (BBDM, arXiv:2205.07680), Liu et al. 2023 (I²SB, arXiv:2302.05872). x and y have the same channels.
    With steps = 1, G(x, x, t = 1) is the translation: no noise is drawn, and it is what regression answers.

    Samples have the right law only where G learns the mean of y given x and s, that is with an L2 loss. With L1, a
    perceptual loss or a discriminator there is no such guarantee.

    sigma        σ, the noise in the middle of the bridge, in units of images in [-1, 1]. 0: a flow from x to y without
                 noise
    steps        calls of G for one translation
    eta          new noise in each step: 0 none (after a bridge's first draw), 1 as much as in ancestral sampling
    loss_weight  "snr": in the losses of pixels, an image at t counts min(1 + a² / c², 25), divided by the mean over
                 training: more at small t, where details are learnt. "none": all count the same
    time_law     of t in training, but for the tenth with t = 1: "uniform", or "logit-normal", which has more near 1/2

    Raises ValueError if x and y have different channels.

    >>> import torch
    >>> x, y, z = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    >>> noised, t = Bridge(3, 3).noised(x, y, torch.tensor([0.55]), z)
    >>> noised.shape, t
    (torch.Size([1, 7, 8, 8]), tensor([0.5000]))
    >>> noised[0, :, 0, 0]
    tensor([0.0000, 0.0000, 0.0000, 0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        takes_time: bool = False,
        *,
        sigma: Sigma = 0.5,
        steps: Steps = 10,
        eta: Eta = 0.0,
        loss_weight: Annotated[LossWeight, AddedLater] = "none",
        time_law: Annotated[TimeLaw, AddedLater] = "uniform",
    ) -> None:
        super().__init__(
            in_channels, out_channels, interpolants.bridge(sigma), takes_time,
            steps=steps, eta=eta, loss_weight=loss_weight, time_law=time_law, starts_at_x=True,
        )  # fmt: skip


class Flow(GaussianProcess):
    """A flow from noise to y: s_t = (1 - t) y + t z. Lipman et al. 2023 (flow matching, arXiv:2210.02747).

    G predicts ŷ; the velocity of flow matching is (s - ŷ) / t. x and y may have different channels.

    Samples have the right law only where G learns the mean of y given x and s, that is with an L2 loss. With L1, a
    perceptual loss or a discriminator there is no such guarantee.

    steps        calls of G for one translation
    eta          new noise in each step: 0 none after the first, 1 as much as in ancestral sampling
    loss_weight  "snr": in the losses of pixels, an image at t counts min(1 + a² / c², 25), divided by the mean over
                 training: more at small t, where details are learnt. "none": all count the same
    time_law     of t in training, but for the tenth with t = 1: "uniform", or "logit-normal", which has more near 1/2

    >>> import torch
    >>> x, y, z = torch.zeros(1, 1, 8, 8), torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    >>> Flow(1, 3).noised(x, y, torch.tensor([0.55]), z)[0][0, :, 0, 0]
    tensor([0.0000, 0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        takes_time: bool = False,
        *,
        steps: Steps = 10,
        eta: Eta = 0.0,
        loss_weight: Annotated[LossWeight, AddedLater] = "none",
        time_law: Annotated[TimeLaw, AddedLater] = "uniform",
    ) -> None:
        super().__init__(
            in_channels, out_channels, interpolants.flow, takes_time,
            steps=steps, eta=eta, loss_weight=loss_weight, time_law=time_law,
        )  # fmt: skip


class Diffusion(GaussianProcess):
    """Diffusion from noise to y: s_t = cos(πt / 2) y + sin(πt / 2) z. Saharia et al. 2022 (Palette, arXiv:2111.05826).

    G predicts ŷ, not the noise. x and y may have different channels.

    Samples have the right law only where G learns the mean of y given x and s, that is with an L2 loss. With L1, a
    perceptual loss or a discriminator there is no such guarantee.

    steps        calls of G for one translation
    eta          new noise in each step: 0 none after the first (DDIM), 1 as much as in ancestral sampling (DDPM)
    loss_weight  "snr": in the losses of pixels, an image at t counts min(1 + a² / c², 25), divided by the mean over
                 training: more at small t, where details are learnt. "none": all count the same
    time_law     of t in training, but for the tenth with t = 1: "uniform", or "logit-normal", which has more near 1/2

    >>> import torch
    >>> x, y, z = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    >>> Diffusion(1, 1).noised(x, y, torch.tensor([0.0]), z)[0][0, :, 0, 0]
    tensor([0., 1., 1.])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        takes_time: bool = False,
        *,
        steps: Steps = 50,
        eta: Eta = 0.0,
        loss_weight: Annotated[LossWeight, AddedLater] = "none",
        time_law: Annotated[TimeLaw, AddedLater] = "uniform",
    ) -> None:
        super().__init__(
            in_channels, out_channels, interpolants.diffusion, takes_time,
            steps=steps, eta=eta, loss_weight=loss_weight, time_law=time_law,
        )  # fmt: skip
