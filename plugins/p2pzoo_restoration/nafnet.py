"""NAFNet: Chen et al. 2022, "Simple Baselines for Image Restoration" (arXiv:2204.04676), §4.

The public code is megvii-research/NAFNet. Its windows at test time (`NAFNetLocal`) are not here.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.plurals import format_count
from p2pzoo_restoration import state_dict_formats as formats
from p2pzoo_restoration.common import LayerNorm2d, add_input, check_residual, check_size, to_unit_range

Positive = Annotated[int, Field(ge=1)]
Levels = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)]

EPS = 1e-6  # of layer norms in the public code


class NAFNet(nn.Module):
    """A U-Net whose only nonlinearities are products: a network without activation functions.

        enter   3×3 convolution to `width` channels
        down    for each level its blocks, then a 2×2 convolution of stride 2 to twice the channels
        middle  blocks at the smallest size
        up      for each level a 1×1 convolution and a pixel shuffle to half the channels and twice the sides, the sum
                with the features of the way down, blocks
        leave   3×3 convolution

    Blocks begin as the identity. The network sees images in [0, 1], as in the public code.

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2 ** (number of levels)
    ŷ  (B, out_channels, H, W) in [-1, 1]: the tanh of the last layer; with `residual`, x plus the last layer, limited
       to [-1, 1]

    By default there are 29,159,715 parameters for RGB images.

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    width           channels of the first level; each further level has twice as many
    encoder_blocks  blocks of each level on the way down; the default is the public code's for denoising (SIDD)
    middle_blocks   blocks at the smallest size
    decoder_blocks  blocks of each level on the way up, from the smallest size on
    residual        add x to ŷ, as in the paper: for restoration, where y is nearly x, and both have the same channels
    dropout         probability of dropout at the end of each half of a block, as z of G(x, z); 0: none, as in the paper

    Raises ValueError for different numbers of levels down and up, for `residual` with other channels in x than in y,
    and for a size that does not fit, here or in `forward`.

    >>> G = NAFNet(3, 1, (16, 8), width=4, encoder_blocks=(1, 1), middle_blocks=1, decoder_blocks=(1, 1))
    >>> G(torch.zeros(2, 3, 16, 8)).shape
    torch.Size([2, 1, 16, 8])
    """

    state_dict_formats = (formats.NAFNET,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Positive = 32,
        encoder_blocks: Levels = (2, 2, 4, 8),
        middle_blocks: Positive = 12,
        decoder_blocks: Levels = (2, 2, 2, 2),
        residual: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        check_residual(residual, in_channels, out_channels)
        if len(encoder_blocks) != len(decoder_blocks):
            raise ValueError(
                f"encoder_blocks has {format_count(len(encoder_blocks), 'level')} and decoder_blocks "
                f"{len(decoder_blocks)}: give as many numbers in both"
            )
        levels = len(encoder_blocks)
        self.size_divisor = 2**levels
        self.check(size)
        self.residual = residual

        def blocks(count: int, channels: int) -> nn.Sequential:
            return nn.Sequential(*(NAFBlock(channels, dropout) for _ in range(count)))

        widths = [width * 2**level for level in range(levels)]
        self.enter = nn.Conv2d(in_channels, width, 3, padding=1)
        self.encoder = nn.ModuleList(map(blocks, encoder_blocks, widths))
        self.down = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, stride=2) for channels in widths)
        self.middle = blocks(middle_blocks, 2 * widths[-1])
        self.up = nn.ModuleList(nn.Conv2d(2 * channels, 4 * channels, 1, bias=False) for channels in widths[::-1])
        self.decoder = nn.ModuleList(map(blocks, decoder_blocks, widths[::-1]))
        self.leave = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape[2:])
        h = self.enter(to_unit_range(x))
        skipped = []
        for encode, down in zip(self.encoder, self.down, strict=True):
            h = encode(h)
            skipped.append(h)
            h = down(h)
        h = self.middle(h)
        for up, decode in zip(self.up, self.decoder, strict=True):
            h = decode(F.pixel_shuffle(up(h), 2) + skipped.pop())
        image = self.leave(h)
        return add_input(x, image) if self.residual else image.tanh()

    def check(self, size: Sequence[int]) -> None:
        """Raises ValueError for an (H, W) that the network does not take."""
        check_size("nafnet", size, self.size_divisor, self.size_divisor)


class NAFBlock(nn.Module):
    """Two halves, each added to its input (§4):

        h + β · project(attend(gate(depthwise(expand(norm(h))))))
        h + γ · project(gate(expand(norm(h))))

    expand, project  1×1 convolutions to twice the channels, and back
    gate             the product of both halves of the channels (SimpleGate)
    attend           h times a 1×1 convolution of its means over the pixels (simplified channel attention)

    β and γ have a value for each channel, and begin at 0.

    h  (B, channels, H, W) -> the same shape
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, eps=EPS)
        self.expand1 = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attend = nn.Conv2d(channels, channels, 1)
        self.project1 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.norm2 = LayerNorm2d(channels, eps=EPS)
        self.expand2 = nn.Conv2d(channels, 2 * channels, 1)
        self.project2 = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        r = gate(self.depthwise(self.expand1(self.norm1(h))))
        r = self.project1(r * self.attend(r.mean((2, 3), keepdim=True)))
        h = h + self.beta * self.dropout(r)
        r = self.project2(gate(self.expand2(self.norm2(h))))
        added: Tensor = h + self.gamma * self.dropout(r)
        return added


def gate(h: Tensor) -> Tensor:
    """The product of both halves of the channels.

    >>> gate(torch.tensor([2.0, 3.0])[None, :, None, None]).item()
    6.0
    """
    first, second = h.chunk(2, dim=1)
    return first * second
