"""The Attention U-Net: Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas"
(arXiv:1804.03999), §2, in two dimensions. The public code is ozan-oktay/Attention-Gated-Networks.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo_restoration.common import Norm, check_size, make_norm

Positive = Annotated[int, Field(ge=1)]


class AttentionUNet(nn.Module):
    """A U-Net with an attention gate on each skip connection but the first.

        down   for each level twice (3×3 convolution, norm, ReLU); between two levels the maxima of 2×2 pixels
        up     for each level, from the coarsest on: bilinear upsampling, the concatenation with the gated features of
               the way down, and twice (3×3 convolution, norm, ReLU)
        leave  1×1 convolution, Tanh

    The coarser level is the gating signal; at the coarsest a 1×1 convolution, norm and ReLU come first. The first skip
    connection has no gate, because its features are not yet high-dimensional (§2). The paper's deep supervision,
    which is for classes at each level, is not here.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2 ** (levels - 1), at least twice
       that
    ŷ  (B, out_channels, H, W) in [-1, 1]

    By default there are 35,193,478 parameters for RGB images.

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    width   channels of the first level; each further level has twice as many
    levels  sizes of the features, the full one included; 5 in the public code
    norm    "batch" (the paper's), or "group" (Wu & He 2018, arXiv:1803.08494), which a process needs: groups of at
            least 4 channels, at most 32

    Raises ValueError for an unknown norm, and for a size that does not fit, here or in `forward`.

    >>> G = AttentionUNet(3, 1, (16, 8), width=4, levels=3)
    >>> G(torch.zeros(2, 3, 16, 8)).shape
    torch.Size([2, 1, 16, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Positive = 64,
        levels: Annotated[int, Field(ge=2, le=8)] = 5,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.size_divisor = 2 ** (levels - 1)
        self.check(size)
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(map(_two_convs, [in_channels, *widths], widths, [norm] * levels))
        self.to_gating_signal = nn.Sequential(*_conv(widths[-1], widths[-1], norm, kernel=1), nn.ReLU())
        pairs = list(pairwise(widths))[::-1]  # channels of a level and of the coarser one
        self.gates = nn.ModuleList(AttentionGate(finer, coarser, norm) for finer, coarser in pairs[:-1])
        self.up = nn.ModuleList(_two_convs(finer + coarser, finer, norm) for finer, coarser in pairs)
        self.leave = nn.Sequential(nn.Conv2d(width, out_channels, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape[2:])
        h, skipped = self.down[0](x), []
        for down in self.down[1:]:
            skipped.append(h)
            h = down(F.max_pool2d(h, 2))
        signal = self.to_gating_signal(h)
        for i, up in enumerate(self.up):
            finer = skipped.pop()
            gated = self.gates[i](finer, signal) if skipped else finer
            h = signal = up(torch.cat([gated, _double(h)], dim=1))
        y_hat: Tensor = self.leave(h)
        return y_hat

    def check(self, size: Sequence[int]) -> None:
        """Raises ValueError for an (H, W) that the network does not take: norms need more than one pixel."""
        check_size("attention-unet", size, self.size_divisor, 2 * self.size_divisor)


class AttentionGate(nn.Module):
    """Features h, times a coefficient at each pixel that depends on them and on a gating signal g (§2):

        α = sigmoid(ψ · ReLU(W_x h + W_g g)), at the size of g, then bilinear upsampling
        leave(α · h)

    W_x halves the sides. As in the public code, `leave` is twice (1×1 convolution, norm), then ReLU.

    h  (B, channels, H, W), g (B, of_signal, H / 2, W / 2) -> (B, channels, H, W)

    >>> AttentionGate(4, 8, "batch")(torch.zeros(1, 4, 6, 4), torch.zeros(1, 8, 3, 2)).shape
    torch.Size([1, 4, 6, 4])
    """

    def __init__(self, channels: int, of_signal: int, norm: Norm) -> None:
        super().__init__()
        self.from_features = nn.Conv2d(channels, channels, 2, stride=2, bias=False)
        self.from_signal = nn.Conv2d(of_signal, channels, 1)
        self.to_coefficient = nn.Conv2d(channels, 1, 1)
        self.leave = nn.Sequential(
            *_conv(channels, channels, norm, kernel=1), *_conv(channels, channels, norm, kernel=1), nn.ReLU()
        )

    def forward(self, h: Tensor, g: Tensor) -> Tensor:
        left: Tensor = self.leave(_double(self.coefficients(h, g)) * h)
        return left

    def coefficients(self, h: Tensor, g: Tensor) -> Tensor:
        """α (B, 1, H / 2, W / 2) in [0, 1]."""
        return self.to_coefficient((self.from_features(h) + self.from_signal(g)).relu()).sigmoid()


def _two_convs(entering: int, leaving: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*_conv(entering, leaving, norm), nn.ReLU(), *_conv(leaving, leaving, norm), nn.ReLU())


def _conv(entering: int, leaving: int, norm: Norm, *, kernel: int = 3) -> list[nn.Module]:
    """A convolution that keeps H and W, and its norm. A bias would change nothing before batch norm."""
    bias = norm != "batch"
    return [nn.Conv2d(entering, leaving, kernel, padding=kernel // 2, bias=bias), make_norm(norm, leaving)]


def _double(h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
