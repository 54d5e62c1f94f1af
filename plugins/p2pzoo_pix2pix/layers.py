"""Norm layers and convolution biases, for the generators and the discriminators of pix2pix."""

from typing import Literal

from torch import Tensor, nn

from p2pzoo.utils.group_norm import count_groups

Norm = Literal["batch", "instance", "none", "group"]
Bias = Literal["pytorch", "lua"]


def make_norm(norm: Norm, channels: int) -> list[nn.Module]:
    """The norm layer after a convolution: a list of one module, or of none for "none".

    Instance norm has no affine parameters, as in the PyTorch code. Raises ValueError for an unknown `norm`.

    >>> [norm] = make_norm("instance", 8)
    >>> norm.affine
    False
    """
    match norm:
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "instance":
            return [nn.InstanceNorm2d(channels)]
        case "none":
            return []
        case "group":
            return [nn.GroupNorm(count_groups(channels), channels)]
    raise ValueError(f"norm must be 'batch', 'instance', 'group' or 'none', not {norm!r}")


def make_bottleneck_norm(norm: Norm, channels: int) -> list[nn.Module]:
    """The norm layer where a map may have only one value per channel. Raises ValueError for "none"."""
    match norm:
        case "batch":
            return [BottleneckBatchNorm2d(channels)]
        case "instance":
            return [BottleneckInstanceNorm2d(channels)]
        case "group":
            return make_norm(norm, channels)
    raise ValueError(f"bottleneck_norm = true needs norm = 'batch', 'instance' or 'group', not {norm!r}")


def has_bias(bias: Bias, norm: Norm) -> bool:
    """Whether a convolution between two others has a bias.

    "lua": always (models.lua). "pytorch": only with instance norm. That code tests whether the norm layer is
    InstanceNorm2d, so convolutions have no bias with batch norm, whose beta is one, nor without a norm. Group norm has
    a beta too.
    Raises ValueError for an unknown `bias`.

    >>> has_bias("pytorch", "batch"), has_bias("lua", "batch")
    (False, True)
    """
    if bias not in ("pytorch", "lua"):
        raise ValueError(f"bias must be 'pytorch' or 'lua', not {bias!r}")
    return bias == "lua" or norm == "instance"


class BottleneckBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that also takes one value per channel in training: (1, C, 1, 1).

    nn.BatchNorm2d refuses that case. The Torch7 network of the paper did not: a single value equals its mean, so
    the output is beta for any input, which skips the innermost encoder layer (arXiv:1611.07004 §6.3).
    Gradients follow from the formula: 1 for beta, exactly 0 for gamma and for the input.

    This case does not change the running statistics, because one value has no variance. Eval mode uses the usual
    formula. A network trained only at batch 1 has therefore never seen the values that its bottleneck gives in eval
    mode: test it as the paper does, in training mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        one_value_per_channel = x.numel() == x.shape[1]
        if self.training and one_value_per_channel:
            deviation = x - x  # part of the graph, so that each parameter has a gradient
            return self.weight.view(1, -1, 1, 1) * deviation + self.bias.view(1, -1, 1, 1)
        return super().forward(x)


class BottleneckInstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm that also takes 1×1 maps, which nn.InstanceNorm2d refuses. Without a bias its output is zero."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:].numel() == 1:
            return x - x
        return super().forward(x)
