"""The U-Net of Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (ADM, arXiv:2105.05233, §3).

Residual blocks change the size, self-attention joins distant places at the coarse levels, and the time scales and
shifts the features of every block (adaptive group normalisation). The blocks are in blocks.py.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from p2pzoo.utils.plurals import format_count
from p2pzoo_adm.blocks import Resize, SelfAttention, TimedResidual, TimeEmbedding, group_norm

Positive = Annotated[int, Field(ge=1)]


class AttentionUNet(nn.Module):
    """x and the time t -> ŷ.

        enter   3×3 convolution to `width` channels
        down    for each level `blocks` residual blocks with multipliers[i] · width channels; between two levels one
                that halves the sides
        middle  a residual block, self-attention, a residual block
        up      for each level, from the coarsest on, `blocks` + 1 residual blocks; each also gets the features of one
                step of the way down. Between two levels one that doubles the sides
        leave   group norm, SiLU, 3×3 convolution, Tanh

    Self-attention follows the residual blocks of the levels in `attention`. The last layers of residual blocks and of
    attention begin at 0, and the layers of the time with torch's own initialisation, whatever [init] says: it applies
    to all others.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2 ** (number of levels - 1)
    t  (B,) in [0, 1]; without it, it is 1, so that the network can be trained without a process too
    ŷ  (B, out_channels, H, W) in [-1, 1]

    By default there are 9,710,499 parameters for RGB images.

    in_channels, out_channels  of x and of y
    width          channels of the first level
    multipliers    channels of each level, in units of `width`, from the full size on
    blocks         residual blocks of a level on the way down; there is one more on the way up
    attention      levels with self-attention, by how often their sides are smaller than those of x: 8 is an eighth.
                   Its time grows with the square of their pixels. The middle has it too, unless no level has
    head_channels  channels of an attention head, at least
    dropout        probability of dropout in each residual block: the z of G(x, z), if there is no process. 0: none

    Raises ValueError for a factor of `attention` that no level has, and for a size that does not fit, here or in
    `forward`.

    >>> G = AttentionUNet(6, 3, (16, 8), width=4, multipliers=(1, 2), attention=(2,))
    >>> G(torch.zeros(2, 6, 16, 8), torch.tensor([0.0, 0.5])).shape
    torch.Size([2, 3, 16, 8])
    """

    takes_time = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Positive = 32,
        multipliers: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)] = (1, 1, 2, 4, 5),
        blocks: Positive = 2,
        attention: tuple[Positive, ...] = (8, 16),
        head_channels: Positive = 32,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        factors = _check_factors(len(multipliers), attention)
        self.size_divisor = factors[-1]
        self.check(size)
        of_time = 4 * width
        self.time = TimeEmbedding(of_time)

        def step(entering: int, leaving: int, *, attends: bool = False, resize: Resize = "none") -> Step:
            residual = TimedResidual(entering, leaving, of_time, dropout=dropout, resize=resize)
            return Step(residual, SelfAttention(leaving, head_channels) if attends else None)

        levels = [(factor, multiplier * width) for factor, multiplier in zip(factors, multipliers, strict=True)]
        self.enter = nn.Conv2d(in_channels, width, 3, padding=1)
        channels, skipped = width, [width]
        self.down = nn.ModuleList()
        for factor, leaving in levels:
            if factor > 1:
                self.down.append(step(channels, channels, resize="down"))
                skipped.append(channels)
            for _ in range(blocks):
                self.down.append(step(channels, leaving, attends=factor in attention))
                skipped.append(leaving)
                channels = leaving

        self.middle = nn.ModuleList([step(channels, channels, attends=bool(attention)), step(channels, channels)])

        self.up = nn.ModuleList()
        for factor, leaving in reversed(levels):
            for _ in range(blocks + 1):
                self.up.append(step(channels + skipped.pop(), leaving, attends=factor in attention))
                channels = leaving
            if factor > 1:
                self.up.append(step(channels, channels, resize="up"))

        self.leave = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1), nn.Tanh()
        )

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        self.check(x.shape[2:])
        e = self.time(x.new_ones(x.shape[0]) if t is None else t)
        h = self.enter(x)
        skipped = [h]
        for step in self.down:
            h = step(h, e)
            skipped.append(h)
        for step in self.middle:
            h = step(h, e)
        for step in self.up:
            h = step(h if step.doubles else torch.cat([h, skipped.pop()], dim=1), e)
        y_hat: Tensor = self.leave(h)
        return y_hat

    def check(self, size: Sequence[int]) -> None:
        """Raises ValueError for an (H, W) that the network does not take."""
        divisor = self.size_divisor
        if any(side % divisor or not side for side in size):
            height, width = (max(1, -(-side // divisor)) * divisor for side in size)
            raise ValueError(
                f"adm-unet of {format_count(divisor.bit_length(), 'level')} needs sides that are multiples of "
                f"{divisor}, not {size[0]}×{size[1]}: {height}×{width} would fit"
            )


class Step(nn.Module):
    """A residual block, and self-attention after it if there is any. doubles: whether it doubles the sides."""

    def __init__(self, residual: TimedResidual, attention: SelfAttention | None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention
        self.doubles = residual.resize == "up"

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        h = self.residual(h, e)
        return h if self.attention is None else self.attention(h)


def _check_factors(levels: int, attention: Sequence[int]) -> list[int]:
    """The factor of downsampling of each level."""
    factors = [2**level for level in range(levels)]
    if unknown := sorted({*attention} - {*factors}):
        raise ValueError(
            f"attention = {list(attention)}: no level is smaller by {unknown[0]}; the factors of the levels are "
            f"{', '.join(map(str, factors))}"
        )
    return factors
