"""Losses of G that compare ŷ with y by pixel, by gradient, by frequency or by colour, and one that smooths ŷ.

All are means over all values of images in [-1, 1], computed in fp32 even if the networks are not. Charbonnier and
LabColor, which compare pixel with pixel, apply the weights that a process may give the images.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs

MIN_SPECTRUM = 1e-30  # avoids 0 / 0 for equal images; far below the square of any float32 rounding error
XYZ = (  # from linear sRGB (IEC 61966-2-1); the sum of a row is the value of white, D65
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
LINEAR_BELOW = (6 / 29) ** 3  # relative to white: CIELAB replaces the cube root by a line below this value


class Charbonnier:
    """√((y − ŷ)² + ε²): ε if ŷ = y, close to L1 for large differences (LapSRN: Lai et al. 2017, arXiv:1704.03915).

    eps  ε, the width of the smooth minimum; 1e-3 in the paper
    """

    side = "generator"
    uses_sample_weight = True

    def __init__(self, *, eps: Annotated[float, Field(gt=0, le=1)] = 1e-3) -> None:
        self.eps = self.minimum = eps

    def __call__(self, out: StepOutputs) -> Tensor:
        return out.weighted_mean((_difference(out).square() + self.eps**2).sqrt())


class Edge:
    """|∇y − ∇ŷ|, horizontally and vertically, by Sobel filters: ≥ 0, and 0 if ŷ is y plus a constant.

    After the gradient difference of Mathieu et al. 2016 (arXiv:1511.05440, Eq. 6), which uses neighbouring pixels and
    compares the absolute values of the gradients. The absolute weights of a filter sum to 1. There is no padding:
    ValueError for sides below 3 px.
    """

    side = "generator"
    minimum = 0.0

    def __init__(self, size: tuple[int, int]) -> None:
        if min(size) < 3:
            raise ValueError(f"edge needs sides of at least 3 px, not {size[0]}×{size[1]}")

    def __call__(self, out: StepOutputs) -> Tensor:
        difference = _difference(out)
        down, right = _sobel(difference.mT).mT, _sobel(difference)
        return (down.abs().mean() + right.abs().mean()) / 2


class GradientDifference:
    """||∇y| − |∇ŷ||^α of neighbouring pixels (GDL: Mathieu et al. 2016, arXiv:1511.05440, Eq. 6): ≥ 0, and 0 if ŷ = y.

    The mean over vertical neighbours plus the mean over horizontal ones, while the paper sums both. The signs of the
    gradients do not count: an edge from dark to bright may become one from bright to dark, so use it with another loss.
    There is no padding: ValueError for sides below 2 px.

    alpha  exponent α, at least 1
    """

    side = "generator"
    minimum = 0.0

    def __init__(self, size: tuple[int, int], *, alpha: Annotated[float, Field(ge=1)] = 1.0) -> None:
        if min(size) < 2:
            raise ValueError(f"gradient-difference needs sides of at least 2 px, not {size[0]}×{size[1]}")
        self.alpha = alpha

    def __call__(self, out: StepOutputs) -> Tensor:
        return self._along(2, out) + self._along(3, out)

    def _along(self, dim: int, out: StepOutputs) -> Tensor:
        slopes_y, slopes_y_hat = (images.float().diff(dim=dim).abs() for images in (out.y, out.y_hat))
        difference = (slopes_y - slopes_y_hat).abs()
        return (difference if self.alpha == 1 else difference**self.alpha).mean()


class FocalFrequency:
    """w |F(y) − F(ŷ)|² over all frequencies (Jiang et al. 2021, arXiv:2012.12821, §3): ≥ 0, and 0 if ŷ = y.

    F is the orthonormal discrete Fourier transform of a channel, and w = |F(y) − F(ŷ)|^α divided by its maximum over
    the frequencies. No gradient flows through w.

    alpha  exponent α of the weights: 1 in the paper; 0 gives all frequencies the same weight, as in the loss l2
    """

    side = "generator"
    minimum = 0.0

    def __init__(self, *, alpha: Annotated[float, Field(ge=0)] = 1.0) -> None:
        self.alpha = alpha

    def __call__(self, out: StepOutputs) -> Tensor:
        spectrum = torch.fft.fft2(_difference(out), norm="ortho")
        squares = spectrum.real.square() + spectrum.imag.square()
        weight = squares.detach() ** (self.alpha / 2)
        weight = weight / weight.amax((2, 3), keepdim=True).clamp(min=MIN_SPECTRUM)
        return (weight * squares).mean()


class LabColor:
    """The mean of |a − â| and |b − b̂| in CIELAB (D65), in units of that space: 0 to about 200.

    Lightness does not count. Values of ŷ outside of [-1, 1] are clamped and get no gradient. RGB only: ValueError for
    other channel counts.
    """

    side = "generator"
    minimum = 0.0
    uses_sample_weight = True

    def __init__(self, out_channels: int) -> None:
        if out_channels != 3:
            raise ValueError(f"lab-color needs RGB images, 3 channels, not {out_channels}")

    def __call__(self, out: StepOutputs) -> Tensor:
        if out.sample_weight is None:
            return F.l1_loss(_ab(out.y_hat), _ab(out.y))
        return out.weighted_mean((_ab(out.y_hat) - _ab(out.y)).abs())


class TotalVariation:
    """|ŷ(i + 1, j) − ŷ(i, j)| + |ŷ(i, j + 1) − ŷ(i, j)|: ≥ 0, and 0 if ŷ is constant. It does not depend on y.

    The anisotropic form of Rudin, Osher & Fatemi 1992 (doi:10.1016/0167-2789(92)90242-F).
    """

    side = "generator"

    def __call__(self, out: StepOutputs) -> Tensor:
        y_hat = out.y_hat.float()
        return y_hat.diff(dim=2).abs().mean() + y_hat.diff(dim=3).abs().mean()


def _difference(out: StepOutputs) -> Tensor:
    return out.y_hat.float() - out.y.float()


def _sobel(images: Tensor) -> Tensor:
    """The horizontal gradient, (B, C, H, W) -> (B, C, H − 2, W − 2)."""
    smooth = (images[..., :-2, :] + 2 * images[..., 1:-1, :] + images[..., 2:, :]) / 4
    return (smooth[..., 2:] - smooth[..., :-2]) / 2


def _ab(images: Tensor) -> Tensor:
    """(B, 3, H, W) in sRGB -> a and b of CIELAB, (B, 2, H, W)."""
    rgb = (images.float().clamp(-1, 1) + 1) / 2
    red, green, blue = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92).unbind(1)
    x, y, z = (_cube_root((r * red + g * green + b * blue) / (r + g + b)) for r, g, b in XYZ)
    return torch.stack([500 * (x - y), 200 * (y - z)], dim=1)


def _cube_root(t: Tensor) -> Tensor:
    """The function f of CIELAB, for values relative to white."""
    return torch.where(
        t > LINEAR_BELOW, t.clamp(min=LINEAR_BELOW) ** (1 / 3), t / (3 * LINEAR_BELOW ** (2 / 3)) + 4 / 29
    )
