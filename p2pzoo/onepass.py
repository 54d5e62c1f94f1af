"""D's verdicts on real and fake images from one pass over both, where it judges each image by itself.

One pass launches half the kernels on twice the images. It is the same game only if no image reaches another's logits:
BatchNorm over cat(real, fake) is not two BatchNorms, and minibatch statistics, power iterations and dropout differ too.
What D's layers are called says little of that, so it is tried out, once, on a copy.

Imports torch and the contracts.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from p2pzoo.contracts import Both, Discriminator

ROUNDING = 1e-9  # of the greatest logit, in float64: what the order of a sum may change
SHIFT = 0.1  # standard deviation of what the probe adds to weights: those that begin at zero would hide their effect


def in_one_pass(D: Discriminator, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> Both:
    """D(*real) and D(*fake), each (x, y) pairs of images, (B, C, H, W)."""
    x, y = (torch.cat(parts) for parts in zip(real, fake, strict=True))
    images = len(real[1])
    maps = D(x, y)
    return [each[:images] for each in maps], [each[images:] for each in maps]


@torch.no_grad()
def judges_alone(D: nn.Module, channels: tuple[int, int], size: tuple[int, int], batch: int) -> bool:
    """Whether D says of this many real and as many fake images together what it says of the two apart, in training.

    D lies on the CPU and stays as it is. A D that draws random numbers or changes a buffer in its forward does not; nor
    does one that cannot be copied, or run in float64.
    """
    draw = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.rand(batch, count, *size, generator=draw, dtype=torch.float64) * 2 - 1

    real, fake = [(images(channels[0]), images(channels[1])) for _ in range(2)]
    with torch.random.fork_rng(devices=[]):
        try:
            probe = copy.deepcopy(D).double().train()
            for weight in probe.parameters():
                weight.add_(torch.randn(weight.shape, generator=draw, dtype=weight.dtype), alpha=SHIFT)
            before = _state(probe)
            apart = [probe(*real), probe(*fake), probe(*real)]
            if not all(map(torch.equal, before, _state(probe))):
                return False
            together = in_one_pass(probe, real, fake)  # type: ignore[arg-type]
        except Exception:  # whatever it is: apart is how D has always been asked
            return False
    pairs = [*zip(apart[0], apart[2], strict=True)]
    pairs += [pair for one, other in zip(apart, together, strict=False) for pair in zip(one, other, strict=True)]
    return all(a.shape == b.shape and _near(a, b) for a, b in pairs)


def _state(network: nn.Module) -> list[Tensor]:
    """All that a forward could leave behind: buffers, and the random numbers that it drew."""
    return [torch.get_rng_state(), *(buffer.clone() for buffer in network.buffers())]


def _near(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs().max() <= ROUNDING * a.abs().max()).item())
