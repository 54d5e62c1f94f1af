"""The parts of the attention U-Net: time embedding, residual block, self-attention (arXiv:2105.05233, §3)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.group_norm import count_groups

Resize = Literal["none", "down", "up"]

FREQUENCIES = 32  # of sines and of cosines; ADM has half as many as the first level has channels
TIME_SCALE = 1000.0  # t = 1 is the last of the 1000 steps that ADM's frequencies were chosen for
LOWEST_FREQUENCY = 1e-4


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, channels): sines and cosines of 1000 t, then two layers (Vaswani et al. 2017, §3.5).

    [init] does not change its weights: they fit sines and cosines, and not images.

    >>> TimeEmbedding(8)(torch.tensor([0.0, 0.5, 1.0])).shape
    torch.Size([3, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * FREQUENCIES, channels), nn.SiLU(), nn.Linear(channels, channels))

    def init_own_weights(self) -> None:
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float32) / FREQUENCIES
        angles = TIME_SCALE * t.float()[:, None] * (math.log(LOWEST_FREQUENCY) * exponents).exp()
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)  # in float32: bfloat16 has no 1000 different times
        embedding: Tensor = self.layers(waves.to(self.layers[0].weight.dtype))
        return embedding


class TimedResidual(nn.Module):
    """A residual block whose second group norm is scaled and shifted by the time.

        r = conv(resized(SiLU(norm(h))))
        r = conv(dropout(SiLU((1 + scale) · norm(r) + shift)))      scale and shift: a linear layer of SiLU(e)
        h' = skip(resized(h)) + r                                   skip: 1×1 convolution, if the channels change

    The second convolution begins at 0, so that the block begins as its skip.

    h  (B, entering, H, W), e (B, of_time) -> (B, leaving, H, W); half or twice the sides if it resizes

    resize  "down": means of 2×2 pixels; "up": nearest neighbours; "none"

    >>> TimedResidual(4, 8, of_time=16, resize="down")(torch.zeros(2, 4, 6, 6), torch.zeros(2, 16)).shape
    torch.Size([2, 8, 3, 3])
    """

    def __init__(
        self, entering: int, leaving: int, of_time: int, *, dropout: float = 0.0, resize: Resize = "none"
    ) -> None:
        super().__init__()
        self.resize = resize
        self.enter = nn.Sequential(group_norm(entering), nn.SiLU())
        self.first = nn.Conv2d(entering, leaving, 3, padding=1)
        self.scale_and_shift = nn.Sequential(nn.SiLU(), nn.Linear(of_time, 2 * leaving))
        self.norm = group_norm(leaving)
        self.second = nn.Sequential(
            nn.SiLU(), *([nn.Dropout(dropout)] if dropout else []), nn.Conv2d(leaving, leaving, 3, padding=1)
        )
        self.skip = nn.Identity() if entering == leaving else nn.Conv2d(entering, leaving, 1)
        self.init_own_weights()

    def init_own_weights(self) -> None:
        set_to_zero(self.second[-1])

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        r = self.first(self._resized(self.enter(h)))
        scale, shift = self.scale_and_shift(e)[:, :, None, None].chunk(2, dim=1)
        r = self.second((1 + scale) * self.norm(r) + shift)
        added: Tensor = self.skip(self._resized(h)) + r
        return added

    def _resized(self, h: Tensor) -> Tensor:
        match self.resize:
            case "down":
                return F.avg_pool2d(h, 2)
            case "up":
                return F.interpolate(h, scale_factor=2, mode="nearest")
        return h


class SelfAttention(nn.Module):
    """h + attention among all pixels of h, (B, channels, H, W); its last layer begins at 0.

    head_channels  channels of a head, at least. There are as many heads as possible

    >>> SelfAttention(64, 32).heads, SelfAttention(48, 32).heads
    (2, 1)
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = max(n for n in range(1, channels + 1) if n == 1 or _fits(channels, n, head_channels))
        self.norm = group_norm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)
        self.init_own_weights()

    def init_own_weights(self) -> None:
        set_to_zero(self.leave)

    def forward(self, h: Tensor) -> Tensor:
        batch, channels, height, width = h.shape
        qkv = self.to_qkv(self.norm(h)).permute(0, 2, 3, 1)  # without a copy, if images are channels-last
        qkv = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind())
        attended = attended.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        added: Tensor = h + self.leave(attended)
        return added


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(count_groups(channels), channels)


def set_to_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _fits(channels: int, heads: int, head_channels: int) -> bool:
    return channels % heads == 0 and channels // heads >= head_channels
