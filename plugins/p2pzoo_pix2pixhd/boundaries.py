"""The boundary map of a label map, an additional input of pix2pixHD's networks (arXiv:1711.11585, §3.3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

HALF_A_LEVEL = 1 / 255  # the 256 levels of an 8-bit image are 2/255 apart in [-1, 1]


def with_boundaries(x: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> (B, C + 1, H, W): x with its boundary map as the last channel.

    The map is 1 at each pixel that differs from one of its four neighbours by more than half a level of an 8-bit image
    in any channel, and 0 elsewhere.

    The paper computes it from instance ids. Here only x is available: it separates objects only if x gives them
    different values, and works only for label maps that were stored without loss. `[train] jitter` blends neighbouring
    values, which makes borders wider than in evaluation: train with jitter = 1.

    >>> with_boundaries(torch.tensor([[[[-1.0, -1.0, 1.0]]]]))[0, 1]
    tensor([[0., 1., 1.]])
    """
    down = ((x[:, :, 1:] - x[:, :, :-1]).abs() > HALF_A_LEVEL).any(dim=1, keepdim=True).to(x.dtype)
    across = ((x[..., 1:] - x[..., :-1]).abs() > HALF_A_LEVEL).any(dim=1, keepdim=True).to(x.dtype)
    above, below = F.pad(down, (0, 0, 1, 0)), F.pad(down, (0, 0, 0, 1))
    left, right = F.pad(across, (1, 0)), F.pad(across, (0, 1))
    return torch.cat([x, above.maximum(below).maximum(left).maximum(right)], dim=1)
