"""What the generators and discriminators share: the choice of norm and of convolution biases.

Imports torch only.
"""

from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "instance", "none"]
Bias = Literal["pytorch", "lua"]


def make_norm(norm: Norm, channels: int) -> list[nn.Module]:
    """The norm layer after a convolution, as zero or one modules.

    Instance norm has no affine parameters, as in the PyTorch code. ValueError for an unknown `norm`.
    """
    match norm:
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "instance":
            return [nn.InstanceNorm2d(channels)]
        case "none":
            return []
    raise ValueError(f"norm must be 'batch', 'instance' or 'none', not {norm!r}")


def make_bottleneck_norm(norm: Norm, channels: int) -> list[nn.Module]:
    """The same norm where a map may have shrunk to one value per channel. ValueError for "none"."""
    match norm:
        case "batch":
            return [BottleneckBatchNorm2d(channels)]
        case "instance":
            return [BottleneckInstanceNorm2d(channels)]
    raise ValueError(f"bottleneck_norm = true needs norm = 'batch' or 'instance', not {norm!r}")


def has_bias(bias: Bias, norm: Norm) -> bool:
    """Whether a convolution between two others has a bias.

    "lua": always (models.lua). "pytorch": only under instance norm; that code asks whether the norm layer is
    InstanceNorm2d, so that batch norm, whose beta is a bias, and no norm at all both go without.
    ValueError for an unknown `bias`.
    """
    if bias not in ("pytorch", "lua"):
        raise ValueError(f"bias must be 'pytorch' or 'lua', not {bias!r}")
    return bias == "lua" or norm == "instance"


class BottleneckBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that also takes one value per channel in training: (1, C, 1, 1).

    nn.BatchNorm2d refuses that case. The Torch7 network of the paper did not: a single value equals its mean, so
    the output is beta whatever the input, and the innermost encoder layer is skipped (arXiv:1611.07004 §6.3).
    Gradients are those of the formula: 1 to beta, exactly 0 to gamma and to the input.

    Running statistics are not touched by that case, as one value has no variance to learn from. In eval mode the
    usual formula holds. A network trained only at batch 1 has therefore never seen what its bottleneck emits in
    eval mode; it should be tested as the paper tested it, in training mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        one_value_per_channel = x.numel() == x.shape[1]
        if self.training and one_value_per_channel:
            deviation = x - x  # kept in the graph, so that every parameter has a gradient
            return self.weight.view(1, -1, 1, 1) * deviation + self.bias.view(1, -1, 1, 1)
        return super().forward(x)


class BottleneckInstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm that also takes 1×1 maps, where nn.InstanceNorm2d refuses: it has no bias, so it emits zeros."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:].numel() == 1:
            return x - x
        return super().forward(x)
