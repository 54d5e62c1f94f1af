"""One forward pass of D over real and fake images together, if that gives the same result as two passes.

One pass launches half the kernels on twice the images. On a CPU it is faster only for small images (`is_faster`).

Batch norm over cat(real, fake) differs from batch norm over each, so inside such a pass each batch norm handles the two
parts one after the other, as two passes would. Other layers in which images of a batch affect each other or the next
pass (minibatch statistics, power iterations, dropout) rule it out. The class names of D's layers do not show this
reliably, so `is_batch_independent` tries it once on a copy.

Imports torch and p2pzoo.plugin.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from p2pzoo.plugin.networks import Discriminator
    from p2pzoo.plugin.step_outputs import Inputs, RealAndFake

# Relative to the largest logit, in float64: another order of summation changes less than this.
_MAX_RELATIVE_DIFFERENCE = 1e-9
# Pixels of a batch. With one pass a step is 7% shorter at a quarter of this, the same here, 3% longer at four times.
MAX_CPU_PIXELS = 256**2
# The probe adds noise of this standard deviation to the weights: weights initialised to zero would hide their effect.
PROBE_NOISE_STD = 0.1


class BatchedDiscriminator:
    """Calls D once on real and fake images. Changes the batch norms of D so that they can normalise the two apart."""

    def __init__(self, D: nn.Module) -> None:
        batch_norm = nn.modules.batchnorm._BatchNorm
        self.norms: list[Any] = [
            m for m in D.modules() if isinstance(m, batch_norm) and type(m) is not nn.SyncBatchNorm
        ]
        for norm in self.norms:
            norm.parts = 1  # an attribute of the norm, so that activation_checkpointing.py can save and restore it
            norm.forward = functools.partial(_forward_in_parts, norm)

    def __call__(self, D: Discriminator, real: Inputs, fake: Inputs) -> RealAndFake:
        """Return D(*real) and D(*fake).

        real, fake  x and y of equally many images, (B, C, H, W) each, and labels (B, H, W) if D needs them
        """
        inputs = [torch.cat(parts) for parts in zip(real, fake, strict=True)]
        self._set_parts(2)
        try:
            maps = D(*inputs)
        finally:
            self._set_parts(1)
        batch = len(real[1])
        return [logits[:batch] for logits in maps], [logits[batch:] for logits in maps]

    def _set_parts(self, parts: int) -> None:
        for norm in self.norms:
            norm.parts = parts


def _forward_in_parts(norm: Any, h: Tensor) -> Tensor:
    forward = type(norm).forward
    if norm.parts == 1:
        return forward(norm, h)  # type: ignore[no-any-return]
    return torch.cat([forward(norm, part) for part in h.chunk(norm.parts)])


def is_faster(device_type: str, batch: int, size: tuple[int, int]) -> bool:
    """Whether one pass over `batch` real and `batch` fake images of this (H, W) is faster than two passes.

    >>> is_faster("cpu", 1, (256, 256)), is_faster("cpu", 1, (512, 512))
    (True, False)
    """
    return device_type != "cpu" or batch * size[0] * size[1] <= MAX_CPU_PIXELS


@torch.no_grad()
def is_batch_independent(
    D: nn.Module, channels: tuple[int, int], size: tuple[int, int], batch: int, *, with_labels: bool = False
) -> bool:
    """Whether one pass over real and fake images gives the same logits and buffers as two passes, in training mode.

    D must be on the CPU; it is copied, not changed. Returns False for a D that draws random numbers, cannot be copied
    or does not run in float64.

    channels  channels of x and of y
    size      (H, W)
    batch     number of real images, and of fake images
    with_labels  D is called as D(x, y, labels); it is tried with the classes 0 and 1
    """
    rng = torch.Generator().manual_seed(0)

    def images(num_channels: int) -> Tensor:
        return torch.rand(batch, num_channels, *size, generator=rng, dtype=torch.float64) * 2 - 1

    def inputs() -> Inputs:
        labels = [torch.randint(2, (batch, *size), generator=rng)] if with_labels else []
        return (images(channels[0]), images(channels[1]), *labels)

    real, fake = inputs(), inputs()
    with torch.random.fork_rng(devices=[]):
        try:
            probe = copy.deepcopy(D).double().train()
            for weight in probe.parameters():
                weight.add_(torch.randn(weight.shape, generator=rng, dtype=weight.dtype), alpha=PROBE_NOISE_STD)
            batched = copy.deepcopy(probe)
            rng_state = torch.get_rng_state()
            two_passes = (probe(*real), probe(*fake))
            one_pass = BatchedDiscriminator(batched)(batched, real, fake)  # type: ignore[arg-type]
            third_pass = copy.deepcopy(probe)(*real)  # shows state that a pass changes, even outside of buffers
            if not torch.equal(rng_state, torch.get_rng_state()):
                return False
        except Exception:  # of any kind: two passes always work
            return False
    pairs = [*zip(two_passes[0], third_pass, strict=True), *zip(probe.buffers(), batched.buffers(), strict=True)]
    pairs += [pair for maps in zip(two_passes, one_pass, strict=True) for pair in zip(*maps, strict=True)]
    return all(a.shape == b.shape and _is_close(a, b) for a, b in pairs)


def _is_close(a: Tensor, b: Tensor) -> bool:
    return a.numel() == 0 or bool(((a - b).abs().max() <= _MAX_RELATIVE_DIFFERENCE * a.abs().max()).item())
