"""A generator. Positional arguments come from the zoo, keyword-only ones are what a recipe may set."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn


class Residual(nn.Module):
    """Residual blocks (He et al. 2016, arXiv:1512.03385) that keep the image's size.

    x  (B, in_channels, H, W) in [-1, 1], of any size
    ŷ  (B, out_channels, H, W) in [-1, 1]

    Args:
        width: channels between the layers.
        blocks: how many residual blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: Annotated[int, Field(ge=1)] = 64,
        blocks: Annotated[int, Field(ge=0)] = 4,
    ) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width),
            )
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.Conv2d(width, out_channels, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h)
