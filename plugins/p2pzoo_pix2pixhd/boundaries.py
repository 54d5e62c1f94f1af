"""The boundary map of a label map, a further input of pix2pixHD's networks (arXiv:1711.11585, §3.3). Imports torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

HALF_A_LEVEL = 1 / 255  # of the 256 that an image has from -1 to 1


def with_boundaries(x: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> (B, C + 1, H, W): x and, as its last channel, its boundary map: 1 at each pixel that
    differs from one of its four neighbours, in any channel by more than half a level of an 8-bit image, else 0.

    The paper computes it from instance ids. Here x is all there is: it parts objects only where x gives them different
    values, and has meaning only for maps that were stored without loss. `[train] jitter` blends the values of
    neighbours, which makes borders wider than in evaluation: train with jitter = 1.
    """
    down = ((x[:, :, 1:] - x[:, :, :-1]).abs() > HALF_A_LEVEL).any(dim=1, keepdim=True).to(x.dtype)
    across = ((x[..., 1:] - x[..., :-1]).abs() > HALF_A_LEVEL).any(dim=1, keepdim=True).to(x.dtype)
    above, below = F.pad(down, (0, 0, 1, 0)), F.pad(down, (0, 0, 0, 1))
    left, right = F.pad(across, (1, 0)), F.pad(across, (0, 1))
    return torch.cat([x, above.maximum(below).maximum(left).maximum(right)], dim=1)
