"""What the networks of this plugin share: value ranges, the residual of the input, sizes, norms."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from p2pzoo.utils.group_norm import count_groups
from p2pzoo.utils.plurals import format_count

Norm = Literal["batch", "group"]


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel: (B, channels, H, W) -> the same shape.

    >>> LayerNorm2d(2)(torch.tensor([1.0, 3.0])[None, :, None, None]).flatten().round().tolist()
    [-1.0, 1.0]
    """

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # views, if images are channels-last


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Raises ValueError for an unknown norm."""
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(count_groups(channels), channels)
    raise ValueError(f"norm must be 'batch' or 'group', not {norm!r}")


def to_unit_range(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], the range of the public codes. Zero padding then means black."""
    return (x + 1) / 2


def add_input(x: Tensor, residual: Tensor) -> Tensor:
    """ŷ = x + 2 · residual, limited to [-1, 1]; the residual is that of images in [0, 1].

    The gradient passes as if there was no limit. Otherwise a pixel beyond it would have none, and could not come back.

    >>> x = torch.tensor([0.5, 0.9])
    >>> residual = torch.tensor([0.1, 0.2], requires_grad=True)
    >>> y_hat = add_input(x, residual)
    >>> y_hat.sum().backward()
    >>> y_hat.tolist(), residual.grad.tolist()
    ([0.699999988079071, 1.0], [2.0, 2.0])
    """
    y = x + 2 * residual
    return y.detach().clamp(-1, 1) + (y - y.detach())


def check_residual(residual: bool, in_channels: int, out_channels: int) -> None:
    """Raises ValueError if x cannot be added to ŷ."""
    if residual and in_channels != out_channels:
        raise ValueError(
            f"residual = true adds x to ŷ, but G sees {format_count(in_channels, 'channel')} and ŷ has {out_channels}: "
            "set residual = false"
        )


def check_size(network: str, size: Sequence[int], divisor: int, smallest: int) -> None:
    """Raises ValueError for an (H, W) whose sides are not multiples of `divisor`, or are below `smallest`.

    >>> check_size("nafnet", (30, 100), 16, 16)
    Traceback (most recent call last):
    ValueError: nafnet needs sides that are multiples of 16, not 30×100; the nearest that fit: 16×96 or 32×112
    """
    if not any(side % divisor or side < smallest for side in size):
        return
    smaller, larger = zip(*(_nearest(side, divisor, smallest) for side in size), strict=True)
    nearest = " or ".join(f"{height}×{width}" for height, width in sorted({smaller, larger}))
    least = f", at least {smallest}" if smallest > divisor else ""
    raise ValueError(
        f"{network} needs sides that are multiples of {divisor}{least}, not {size[0]}×{size[1]}; "
        f"the nearest that fit: {nearest}"
    )


def _nearest(side: int, divisor: int, smallest: int) -> tuple[int, int]:
    """The valid sides just below and above `side`."""
    return max(smallest, side // divisor * divisor), max(smallest, -(-side // divisor) * divisor)


def in_float32(h: Tensor) -> Tensor:
    """h in float32, or in float64 if it is float64."""
    return h.to(torch.promote_types(h.dtype, torch.float32))
