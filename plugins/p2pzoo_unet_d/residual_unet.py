"""A U-Net of residual blocks: the body of both discriminators. Imports torch and p2pzoo.plugin only."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.plurals import format_count


class ResidualUNet(nn.Module):
    """(B, channels, H, W) -> (activations of the encoder, activations of the decoder), each from the input on.

    Each block of the encoder halves the sides, each block of the decoder doubles them. From its second block on, the
    decoder gets the encoder's activations of the same size too, concatenated. The decoder has as many blocks as the
    encoder, so its last activations have the size of the image.

    channels  of the image
    down, up  channels that leave each block of the encoder and of the decoder, in the order of computation
    slope     negative slope of the LeakyReLUs; 0: ReLU

    H and W are multiples of 2**len(down). `check` raises ValueError for other sizes.

    >>> encoder, decoder = ResidualUNet(3, [4, 8], [4, 4], slope=0.2)(torch.zeros(1, 3, 16, 16))
    >>> [tuple(h.shape[1:]) for h in (*encoder, *decoder)]
    [(4, 8, 8), (8, 4, 4), (4, 8, 8), (4, 16, 16)]
    """

    def __init__(self, channels: int, down: Sequence[int], up: Sequence[int], *, slope: float) -> None:
        super().__init__()
        self.size_divisor = 2 ** len(down)
        self.encoder = nn.ModuleList(
            ResidualBlock(entering, leaving, "down", slope=slope, activate_first=i > 0)
            for i, (entering, leaving) in enumerate(pairwise([channels, *down]))
        )
        skipped = [0, *reversed(down[:-1])]  # channels of the encoder that enter each block of the decoder besides
        self.decoder = nn.ModuleList(
            ResidualBlock(entering + skip, leaving, "up", slope=slope)
            for (entering, leaving), skip in zip(pairwise([down[-1], *up]), skipped, strict=True)
        )

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        encoded, h = [], image
        for block in self.encoder:
            h = block(h)
            encoded.append(h)
        decoded: list[Tensor] = []
        for block, same_size in zip(self.decoder, [None, *reversed(encoded[:-1])], strict=True):
            h = block(h if same_size is None else torch.cat([same_size, h], dim=1))
            decoded.append(h)
        return encoded, decoded

    def check(self, size: Sequence[int]) -> None:
        """Raise ValueError for an (H, W) that the blocks cannot halve."""
        if any(side % self.size_divisor or not side for side in size):
            levels = len(self.encoder)
            raise ValueError(
                f"a U-Net discriminator of {format_count(levels, 'level')} needs sides that are multiples of "
                f"{self.size_divisor}, not {size[0]}×{size[1]}"
            )


class ResidualBlock(nn.Module):
    """(B, entering, H, W) -> (B, leaving, H / 2, W / 2) or (B, leaving, 2H, 2W): two 3×3 convolutions and a shortcut.

    "up" repeats pixels before the first convolution, "down" takes means of 2×2 pixels after the second. The shortcut
    has a 1×1 convolution if the channels differ. It commutes with both changes of size, so it is computed where there
    are fewer pixels.

    activate_first  an activation comes before the first convolution; false for the block that gets the image
    """

    def __init__(
        self,
        entering: int,
        leaving: int,
        resize: Literal["down", "up"],
        *,
        slope: float,
        activate_first: bool = True,
    ) -> None:
        super().__init__()
        self.resize = resize
        self.first_activation = nn.LeakyReLU(slope) if activate_first else nn.Identity()
        self.first = nn.Conv2d(entering, leaving, 3, padding=1)
        self.second_activation = nn.LeakyReLU(slope)
        self.second = nn.Conv2d(leaving, leaving, 3, padding=1)
        self.shortcut = nn.Conv2d(entering, leaving, 1) if entering != leaving else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        residual = self.first_activation(h)
        if self.resize == "up":
            residual = self.second(self.second_activation(self.first(_double(residual))))
            return residual + _double(self.shortcut(h))
        residual = self.second(self.second_activation(self.first(residual)))
        return F.avg_pool2d(residual, 2) + self.shortcut(F.avg_pool2d(h, 2))  # type: ignore[no-any-return]


def _double(h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2.0, mode="nearest")
