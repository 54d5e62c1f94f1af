"""D's verdicts on real and fake images from one pass over both, where that is the same game.

One pass launches half the kernels on twice the images. On a CPU that pays while images are small (`is_faster`).

BatchNorm over cat(real, fake) is not two BatchNorms, so inside such a pass each batch norm takes the two parts one
after the other, as two passes would. Whatever else lets images meet (minibatch statistics, power iterations, dropout)
forbids it. What D's layers are called says little of that, so it is tried out, once, on a copy.

Imports torch and the contracts.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from p2pzoo.plugin.networks import Discriminator
    from p2pzoo.plugin.step_outputs import Both

ROUNDING = 1e-9  # of the greatest logit, in float64: what the order of a sum may change
CPU_PIXELS = 256**2  # of a batch: at a quarter of it a step is 7% shorter, here it is the same, at four times 3% longer
SHIFT = 0.1  # standard deviation of what the probe adds to weights: those that begin at zero would hide their effect


class BatchedDiscriminator:
    """Asks D, which is given norms that can take real and fake images apart."""

    def __init__(self, D: nn.Module) -> None:
        batch_norm = nn.modules.batchnorm._BatchNorm
        self.norms: list[Any] = [
            m for m in D.modules() if isinstance(m, batch_norm) and type(m) is not nn.SyncBatchNorm
        ]
        for norm in self.norms:
            norm.parts = 1  # on the norm itself, where what computes it again later finds it (see recompute.py)
            norm.forward = functools.partial(_normed, norm)

    def __call__(self, D: Discriminator, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> Both:
        """D(*real) and D(*fake), each (x, y) pairs of as many images, (B, C, H, W)."""
        x, y = (torch.cat(parts) for parts in zip(real, fake, strict=True))
        self._take(2)
        try:
            maps = D(x, y)
        finally:
            self._take(1)
        images = len(real[1])
        return [each[:images] for each in maps], [each[images:] for each in maps]

    def _take(self, parts: int) -> None:
        for norm in self.norms:
            norm.parts = parts


def _normed(norm: Any, h: Tensor) -> Tensor:
    own = type(norm).forward
    if norm.parts == 1:
        return own(norm, h)  # type: ignore[no-any-return]
    return torch.cat([own(norm, part) for part in h.chunk(norm.parts)])


def is_faster(device_type: str, batch: int, size: tuple[int, int]) -> bool:
    """Whether one pass over so many real and fake images of this (H, W) is the faster one."""
    return device_type != "cpu" or batch * size[0] * size[1] <= CPU_PIXELS


@torch.no_grad()
def is_batch_independent(D: nn.Module, channels: tuple[int, int], size: tuple[int, int], batch: int) -> bool:
    """Whether D says of this many real and as many fake images together what it says of the two apart, in training,
    and is left with the same buffers.

    D lies on the CPU and stays as it is. A D that draws random numbers does not, nor does one that cannot be copied, or
    run in float64.
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
            twin = copy.deepcopy(probe)
            random_numbers = torch.get_rng_state()
            apart = (probe(*real), probe(*fake))
            together = BatchedDiscriminator(twin)(twin, real, fake)  # type: ignore[arg-type]
            again = copy.deepcopy(probe)(*real)  # what a first look changed, be it no buffer
            if not torch.equal(random_numbers, torch.get_rng_state()):
                return False
        except Exception:  # whatever it is: apart is how D has always been asked
            return False
    pairs = [*zip(apart[0], again, strict=True), *zip(probe.buffers(), twin.buffers(), strict=True)]
    pairs += [pair for one, other in zip(apart, together, strict=True) for pair in zip(one, other, strict=True)]
    return all(a.shape == b.shape and _near(a, b) for a, b in pairs)


def _near(a: Tensor, b: Tensor) -> bool:
    return a.numel() == 0 or bool(((a - b).abs().max() <= ROUNDING * a.abs().max()).item())
