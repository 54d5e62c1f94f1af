"""Losses on G that compare ŷ with y by pixel, by gradient, by frequency or by colour; and one that smooths ŷ.

All are means over all values of images in [-1, 1], in fp32 whatever the networks are computed in. Imports torch,
kornia and the contracts.
"""

from typing import Annotated

import torch
from kornia.color import rgb_to_lab
from kornia.filters import spatial_gradient
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.contracts import Scene

NOTHING = 1e-30  # a spectrum that differs by less differs nowhere


class Charbonnier:
    """√((y − ŷ)² + ε²): ε where ŷ = y, L1 where they are far apart (LapSRN: Lai et al. 2017, arXiv:1704.03915).

    Args:
        eps: 1e-3 in the paper.
    """

    side = "generator"

    def __init__(self, *, eps: Annotated[float, Field(gt=0, le=1)] = 1e-3) -> None:
        self.eps = eps

    def __call__(self, scene: Scene) -> Tensor:
        return (_difference(scene).square() + self.eps**2).sqrt().mean()


class Edge:
    """|∇y − ∇ŷ|, horizontally and vertically, by Sobel's filters: ≥ 0, 0 also where ŷ is y and a constant.

    After the gradient difference of Mathieu et al. 2016 (arXiv:1511.05440, Eq. 6), which takes neighbouring pixels and
    compares the gradients' absolute values. Filters have weights of sum 1 in absolute value; images are continued by
    their edges.
    """

    side = "generator"

    def __call__(self, scene: Scene) -> Tensor:
        with torch.autocast(scene.y.device.type, enabled=False):
            return spatial_gradient(_difference(scene)).abs().mean()


class FocalFrequency:
    """w |F(y) − F(ŷ)|² over all frequencies (Jiang et al. 2021, arXiv:2012.12821, §3): ≥ 0, 0 where ŷ = y.

    F is the orthonormal discrete Fourier transform of an image's channel, and w = |F(y) − F(ŷ)|^α over its greatest
    value there, which is no function of G to be learnt: no gradient goes through it.

    Args:
        alpha: 1 in the paper; 0 weighs all frequencies alike, which is the loss l2.
    """

    side = "generator"

    def __init__(self, *, alpha: Annotated[float, Field(ge=0)] = 1.0) -> None:
        self.alpha = alpha

    def __call__(self, scene: Scene) -> Tensor:
        spectrum = torch.fft.fft2(_difference(scene), norm="ortho")
        squares = spectrum.real.square() + spectrum.imag.square()
        weight = squares.detach() ** (self.alpha / 2)
        weight = weight / weight.amax((2, 3), keepdim=True).clamp(min=NOTHING)
        return (weight * squares).mean()


class LabColor:
    """|a − â| and |b − b̂| in CIELAB (D65), their mean, in units of that space: 0 to about 200.

    Says nothing of lightness. Values of ŷ outside of [-1, 1] count as the nearest inside, and get no gradient. RGB
    only: ValueError for other channel counts.
    """

    side = "generator"

    def __init__(self, out_channels: int) -> None:
        if out_channels != 3:
            raise ValueError(f"lab-color takes RGB images, 3 channels, not {out_channels}")

    def __call__(self, scene: Scene) -> Tensor:
        with torch.autocast(scene.y.device.type, enabled=False):
            return F.l1_loss(_ab(scene.y_hat), _ab(scene.y))


class TotalVariation:
    """|ŷ(i + 1, j) − ŷ(i, j)| + |ŷ(i, j + 1) − ŷ(i, j)|, the anisotropic form of Rudin, Osher & Fatemi 1992
    (doi:10.1016/0167-2789(92)90242-F): ≥ 0, and 0 where ŷ is flat. It knows nothing of y."""

    side = "generator"

    def __call__(self, scene: Scene) -> Tensor:
        y_hat = scene.y_hat.float()
        return y_hat.diff(dim=2).abs().mean() + y_hat.diff(dim=3).abs().mean()


def _difference(scene: Scene) -> Tensor:
    return scene.y_hat.float() - scene.y.float()


def _ab(images: Tensor) -> Tensor:
    return rgb_to_lab((images.float().clamp(-1, 1) + 1) / 2)[:, 1:]
