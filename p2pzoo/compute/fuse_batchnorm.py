"""Fuse batch norms into the convolutions before them for inference. Imports torch only."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

_FUSABLE_CONVS = (nn.Conv2d, nn.ConvTranspose2d)


def fuse_conv_bn(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode with batch norms fused into convolutions. Its output is the same up to rounding.

    A batch norm with running statistics is a scale and a shift, which the convolution before it can apply. Fused are
    batch norms directly after a convolution in a plain nn.Sequential; this assumes that the Sequential is called as a
    whole. An nn.Identity replaces the norm. Not fused are subclasses (a parametrized layer, for example with spectral
    norm, is one), layers with hooks, norms without running statistics, and grouped transposed convolutions.

    >>> fuse_conv_bn(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))[1]
    Identity()
    """
    copied = copy.deepcopy(network).eval()
    for chain in copied.modules():
        if type(chain) is not nn.Sequential:
            continue
        for i, (convolution, norm) in enumerate(pairwise(list(chain))):
            if type(convolution) in _FUSABLE_CONVS and type(norm) is nn.BatchNorm2d and _can_fuse(convolution, norm):
                transposed = isinstance(convolution, nn.ConvTranspose2d)
                chain[i] = fuse_conv_bn_eval(convolution, norm, transpose=transposed)  # type: ignore[type-var]
                chain[i + 1] = nn.Identity()
    return copied


def _can_fuse(convolution: nn.Module, norm: nn.BatchNorm2d) -> bool:
    grouped = isinstance(convolution, nn.ConvTranspose2d) and convolution.groups > 1
    return norm.running_mean is not None and not grouped and not _has_hooks(convolution) and not _has_hooks(norm)


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs more than its forward: torch's older spectral norm is a hook."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
