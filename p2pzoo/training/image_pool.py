"""The image pool (Shrivastava et al. 2017, used by CycleGAN): D also trains on translations of earlier steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pzoo.compute import distributed
from p2pzoo.utils import rng

_NAMES = ("x", "y_hat", "labels")  # of the tensors in a checkpoint


class ImagePool:
    """Keeps up to `size` pairs (x, ŷ). Once it is full, each new pair replaces a stored one with probability 1/2, and D
    trains on the stored one. For a D that needs labels, the labels of x are kept with the pair.

    Processes that share a batch all keep the pool of the whole batch, so it equals that of a single process.

    >>> pool = ImagePool(size=1, seed=0)
    >>> x = torch.zeros(1, 3, 8, 8)
    >>> x_fake, y_hat_fake = pool(x, x + 1, step=0)  # while the pool fills, D trains on the new pair
    >>> y_hat_fake.mean()
    tensor(1.)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.kept: list[tuple[Tensor, ...]] = []

    def __call__(self, x: Tensor, y_hat: Tensor, step: int, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """The (x, ŷ) that D trains on in place of this batch, (B, C, H, W) each, without gradients.

        With labels, (B, H, W), also those of the chosen x.
        """
        random = rng.numpy_rng(self.seed, "pool", step)
        chosen = []
        given = (x, y_hat) if labels is None else (x, y_hat, labels)
        gathered = [distributed.all_gather(tensor.detach()).split(1) for tensor in given]
        for new in zip(*gathered, strict=True):
            if len(self.kept) < self.size:
                self.kept.append(_cloned(new))
                chosen.append(new)
            elif random.random() < 0.5:
                index = int(random.integers(self.size))
                chosen.append(self.kept[index])
                self.kept[index] = _cloned(new)
            else:
                chosen.append(new)
        return tuple(map(torch.cat, zip(*distributed.shard(chosen), strict=True)))

    def tensors(self) -> dict[str, Tensor]:
        """The stored pairs, for a checkpoint: {"x", "y_hat"}, (N, C, H, W) each, and "labels" (N, H, W) if they are
        kept; empty if the pool is empty."""
        return dict(zip(_NAMES, map(torch.cat, zip(*self.kept, strict=True)), strict=False))

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Replace the stored pairs by those that `tensors` returned."""
        stored = [tensors[name].to(device).split(1) for name in _NAMES if name in tensors]
        self.kept = list(zip(*stored, strict=True))


def _cloned(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)
