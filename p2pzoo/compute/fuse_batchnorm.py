"""Batch norm with running statistics scales and shifts, which the convolution before it can do. Imports torch only."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def fuse_conv_bn(network: nn.Module) -> nn.Module:
    """A copy in eval mode that says the same up to rounding, its batch norms folded into the convolutions before them.

    Folded is what stands directly behind a convolution in a plain nn.Sequential, which is taken to be called as a
    whole. The norm's place is kept by an nn.Identity. Left as they are: subclasses (what torch parametrizes becomes
    one, by spectral norm for instance), layers with hooks, norms without running statistics, grouped transposed
    convolutions.
    """
    copied = copy.deepcopy(network).eval()
    for chain in copied.modules():
        if type(chain) is not nn.Sequential:
            continue
        for i, (convolution, norm) in enumerate(pairwise(list(chain))):
            if type(convolution) in CONVOLUTIONS and type(norm) is nn.BatchNorm2d and _foldable(convolution, norm):
                transposed = isinstance(convolution, nn.ConvTranspose2d)
                chain[i] = fuse_conv_bn_eval(convolution, norm, transpose=transposed)  # type: ignore[type-var]
                chain[i + 1] = nn.Identity()
    return copied


def _foldable(convolution: nn.Module, norm: nn.BatchNorm2d) -> bool:
    grouped = isinstance(convolution, nn.ConvTranspose2d) and convolution.groups > 1
    return norm.running_mean is not None and not grouped and not _altered(convolution) and not _altered(norm)


def _altered(module: nn.Module) -> bool:
    """Whether more than its class's forward happens when it is called: torch's older spectral norm is a hook."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
