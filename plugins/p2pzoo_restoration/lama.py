"""LaMa: Suvorov et al. 2022, "Resolution-robust Large Mask Inpainting with Fourier Convolutions" (arXiv:2109.07161),
§2.1, with the fast Fourier convolutions of Chi et al. (NeurIPS 2020). The public code is advimman/lama.
"""

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from p2pzoo_restoration import state_dict_formats as formats
from p2pzoo_restoration.common import Norm, check_size, in_float32, make_norm, to_unit_range

Positive = Annotated[int, Field(ge=1)]
Padding = Literal["reflect", "zeros"]

MAX_CHANNELS = 1024  # of a layer, in the public code


class LaMa(nn.Module):
    """A residual generator; in its blocks most channels pass through a Fourier transform, and see the whole image.

        enter   7×7 convolution to `width` channels
        down    3×3 convolutions of stride 2, each to twice the channels, at most 1024. The last one has two outputs:
                `ratio` of its channels are global, the others local
        middle  residual blocks of two fast Fourier convolutions each
        up      3×3 transposed convolutions of stride 2, each to half the channels
        leave   7×7 convolution

    Norm and ReLU follow each layer but the last. The network sees images in [0, 1] and ends with a sigmoid z -> ŷ in
    [0, 1], as in the public code; in [-1, 1] this is tanh(z / 2).

    x  (B, in_channels, H, W) in [-1, 1]; H and W are multiples of `size_divisor` = 2**downsamplings, at least twice
       that. For the public weights it is the masked image, and as one more channel the mask: 1 in the hole, else -1
    ŷ  (B, out_channels, H, W) in [-1, 1]

    By default there are 27,045,699 parameters for RGB images.

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    width          channels of the first layer
    downsamplings  how often the sides are halved
    blocks         residual blocks: 9 in the paper's LaMa, 18 in its Big LaMa
    ratio          share of global channels in the blocks
    norm           "batch" (the paper's), or "group" (Wu & He 2018, arXiv:1803.08494), which a process needs: groups of
                   at least 4 channels, at most 32
    padding        "reflect"; or "zeros", if CUDA must be deterministic: the gradient of torch's reflection padding is
                   not

    Raises ValueError for an unknown norm or padding, for a `ratio` that leaves too few channels on one side, and for a
    size that does not fit, here or in `forward`.

    >>> G = LaMa(4, 3, (16, 24), width=4, downsamplings=2, blocks=1)
    >>> G(torch.zeros(2, 4, 16, 24)).shape
    torch.Size([2, 3, 16, 24])
    """

    state_dict_formats = (formats.LAMA_CHECKPOINT, formats.LAMA)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: Positive = 64,
        downsamplings: Annotated[int, Field(ge=1, le=8)] = 3,
        blocks: Positive = 9,
        ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        norm: Norm = "batch",
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        self.size_divisor = 2**downsamplings
        self.check(size)
        widths = [min(width * 2**level, MAX_CHANNELS) for level in range(downsamplings + 1)]
        split = _split_channels(widths[-1], ratio)

        def with_norm(layers: Sequence[nn.Module], channels: int) -> nn.Sequential:
            return nn.Sequential(*layers, make_norm(norm, channels), nn.ReLU())

        self.enter = with_norm([_pad(padding, 3), nn.Conv2d(in_channels, width, 7, bias=False)], width)
        self.down = nn.Sequential(
            *(
                with_norm([_pad(padding, 1), nn.Conv2d(entering, leaving, 3, stride=2, bias=False)], leaving)
                for entering, leaving in pairwise(widths[:-1])
            )
        )
        self.split = FastFourierConvolution((widths[-2], 0), split, norm, padding, stride=2)
        self.blocks = nn.ModuleList(FourierResidualBlock(split, norm, padding) for _ in range(blocks))
        self.up = nn.Sequential(
            *(
                with_norm([nn.ConvTranspose2d(entering, leaving, 3, 2, padding=1, output_padding=1)], leaving)
                for entering, leaving in pairwise(widths[::-1])
            )
        )
        self.leave = nn.Sequential(_pad(padding, 3), nn.Conv2d(width, out_channels, 7))

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape[2:])
        local, global_ = self.split(self.down(self.enter(to_unit_range(x))))
        for block in self.blocks:
            local, global_ = block(local, global_)
        z = self.leave(self.up(torch.cat([local, global_], dim=1)))
        return (z / 2).tanh()  # 2 · sigmoid(z) - 1

    def check(self, size: Sequence[int]) -> None:
        """Raises ValueError for an (H, W) that the network does not take: the blocks need two pixels per side."""
        check_size("lama", size, self.size_divisor, 2 * self.size_divisor)


class FourierResidualBlock(nn.Module):
    """Two fast Fourier convolutions; local and global channels are each added to what they were (Figure 2)."""

    def __init__(self, channels: tuple[int, int], norm: Norm, padding: Padding) -> None:
        super().__init__()
        self.first = FastFourierConvolution(channels, channels, norm, padding)
        self.second = FastFourierConvolution(channels, channels, norm, padding)

    def forward(self, local: Tensor, global_: Tensor) -> tuple[Tensor, Tensor]:
        new_local, new_global = self.second(*self.first(local, global_))
        return local + new_local, global_ + new_global


class FastFourierConvolution(nn.Module):
    """Local and global channels exchange what they have (Figure 2); norm and ReLU follow both:

        local'  = conv(local) + conv(global)
        global' = conv(local) + spectral(global)

    local, global  (B, channels, H, W) -> the same; half the sides with stride 2

    entering, leaving  channels of both; without global channels that enter, the terms with them are absent
    """

    def __init__(
        self,
        entering: tuple[int, int],
        leaving: tuple[int, int],
        norm: Norm,
        padding: Padding,
        *,
        stride: Literal[1, 2] = 1,
    ) -> None:
        super().__init__()

        def conv(channels: int, to: int) -> nn.Conv2d:
            return nn.Conv2d(channels, to, 3, stride=stride, bias=False)

        self.pad = _pad(padding, 1)
        self.local_to_local, self.local_to_global = (conv(entering[0], to) for to in leaving)
        self.global_to_local = conv(entering[1], leaving[0]) if entering[1] else None
        self.global_to_global = SpectralTransform(entering[1], leaving[1], norm) if entering[1] else None
        self.finish_local, self.finish_global = (
            nn.Sequential(make_norm(norm, channels), nn.ReLU()) for channels in leaving
        )

    def forward(self, local: Tensor, global_: Tensor | None = None) -> tuple[Tensor, Tensor]:
        local = self.pad(local)
        new_local, new_global = self.local_to_local(local), self.local_to_global(local)
        if global_ is not None and self.global_to_local is not None and self.global_to_global is not None:
            new_local = new_local + self.global_to_local(self.pad(global_))
            new_global = new_global + self.global_to_global(global_)
        return self.finish_local(new_local), self.finish_global(new_global)


class SpectralTransform(nn.Module):
    """A Fourier unit around which the image passes, at half of the channels (without Chi et al.'s local Fourier unit).

    h  (B, entering, H, W) -> (B, leaving, H, W)
    """

    def __init__(self, entering: int, leaving: int, norm: Norm) -> None:
        super().__init__()
        half = leaving // 2
        self.reduce = nn.Sequential(nn.Conv2d(entering, half, 1, bias=False), make_norm(norm, half), nn.ReLU())
        self.fourier = FourierUnit(half, norm)
        self.expand = nn.Conv2d(half, leaving, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        h = self.reduce(h)
        expanded: Tensor = self.expand(h + self.fourier(h))
        return expanded


class FourierUnit(nn.Module):
    """A 1×1 convolution, norm and ReLU of the spectrum: each of its values depends on all pixels of h.

    Real and imaginary parts are channels. All of it is computed in float32, also under autocast: half of the digits of
    a spectrum would be lost in bfloat16, and cuFFT has no bfloat16.

    h  (B, channels, H, W) -> the same shape

    >>> FourierUnit(4, "batch")(torch.zeros(2, 4, 6, 5)).shape
    torch.Size([2, 4, 6, 5])
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.finish = nn.Sequential(make_norm(norm, 2 * channels), nn.ReLU())

    def forward(self, h: Tensor) -> Tensor:
        with _without_autocast(h.device.type):
            spectrum = torch.view_as_real(torch.fft.rfftn(in_float32(h), dim=(-2, -1), norm="ortho"))
            parts = spectrum.permute(0, 1, 4, 2, 3).flatten(1, 2)  # (B, 2 · channels, H, W // 2 + 1)
            parts = self.finish(self.mix(parts.to(self.mix.weight.dtype)))
            spectrum = in_float32(parts).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2).contiguous()
            transformed = torch.fft.irfftn(torch.view_as_complex(spectrum), h.shape[2:], dim=(-2, -1), norm="ortho")
        return transformed.to(h.dtype)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[None]:
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def _split_channels(channels: int, ratio: float) -> tuple[int, int]:
    """Local and global channels. Raises ValueError if there are too few of one."""
    global_channels = round(channels * ratio)
    if global_channels < 2 or global_channels == channels:
        raise ValueError(
            f"ratio = {ratio}: {global_channels} of the {channels} channels of a block would be global; at least 2 "
            "must be global and 1 local: set another ratio, or a larger width"
        )
    return channels - global_channels, global_channels


def _pad(padding: Padding, pixels: int) -> nn.Module:
    match padding:
        case "reflect":
            return nn.ReflectionPad2d(pixels)
        case "zeros":
            return nn.ZeroPad2d(pixels)
    raise ValueError(f"padding must be 'reflect' or 'zeros', not {padding!r}")
