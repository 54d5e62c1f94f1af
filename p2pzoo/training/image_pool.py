"""The image pool (Shrivastava et al. 2017, used by CycleGAN): D also trains on translations of earlier steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pzoo.compute import distributed
from p2pzoo.utils import rng


class ImagePool:
    """Keeps up to `size` pairs (x, ŷ). Once it is full, each new pair replaces a stored one with probability 1/2, and D
    trains on the stored one.

    Processes that share a batch all keep the pool of the whole batch, so it equals that of a single process.

    >>> pool = ImagePool(size=1, seed=0)
    >>> x = torch.zeros(1, 3, 8, 8)
    >>> x_fake, y_hat_fake = pool(x, x + 1, step=0)  # while the pool fills, D trains on the new pair
    >>> y_hat_fake.mean()
    tensor(1.)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, y_hat: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The (x, ŷ) that D trains on in place of this batch, (B, C, H, W) each, without gradients."""
        random = rng.numpy_rng(self.seed, "pool", step)
        chosen = []
        x, y_hat = distributed.all_gather(x.detach()), distributed.all_gather(y_hat.detach())
        for new in zip(x.split(1), y_hat.split(1), strict=True):
            if len(self.kept) < self.size:
                self.kept.append((new[0].clone(), new[1].clone()))
                chosen.append(new)
            elif random.random() < 0.5:
                index = int(random.integers(self.size))
                chosen.append(self.kept[index])
                self.kept[index] = (new[0].clone(), new[1].clone())
            else:
                chosen.append(new)
        xs, y_hats = zip(*distributed.shard(chosen), strict=True)
        return torch.cat(xs), torch.cat(y_hats)

    def tensors(self) -> dict[str, Tensor]:
        """The stored pairs, for a checkpoint: {"x", "y_hat"}, (N, C, H, W) each; empty if the pool is empty."""
        if not self.kept:
            return {}
        xs, y_hats = zip(*self.kept, strict=True)
        return {"x": torch.cat(xs), "y_hat": torch.cat(y_hats)}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Replace the stored pairs by those that `tensors` returned."""
        pairs = zip(tensors["x"].split(1), tensors["y_hat"].split(1), strict=True) if tensors else ()
        self.kept = [(x.to(device), y_hat.to(device)) for x, y_hat in pairs]
