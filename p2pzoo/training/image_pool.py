"""The image pool (Shrivastava et al. 2017, as CycleGAN uses it): D also sees translations that G made earlier."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pzoo.compute import distributed
from p2pzoo.utils import rng


class ImagePool:
    """Keeps up to `size` (x, ŷ). Once full, each new one is with probability 1/2 swapped for an older one.

    Processes that share a batch all keep the pool of the whole batch, so it is what a single process would have.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, y_hat: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What D is shown in place of this batch: (x, ŷ), each (B, C, H, W) without gradients."""
        draw = rng.numpy_rng(self.seed, "pool", step)
        shown = []
        x, y_hat = distributed.all_gather(x.detach()), distributed.all_gather(y_hat.detach())
        for new in zip(x.split(1), y_hat.split(1), strict=True):
            if len(self.kept) < self.size:
                self.kept.append((new[0].clone(), new[1].clone()))
                shown.append(new)
            elif draw.random() < 0.5:
                index = int(draw.integers(self.size))
                shown.append(self.kept[index])
                self.kept[index] = (new[0].clone(), new[1].clone())
            else:
                shown.append(new)
        xs, ys = zip(*distributed.shard(shown), strict=True)
        return torch.cat(xs), torch.cat(ys)

    def tensors(self) -> dict[str, Tensor]:
        if not self.kept:
            return {}
        xs, ys = zip(*self.kept, strict=True)
        return {"x": torch.cat(xs), "y_hat": torch.cat(ys)}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        pairs = zip(tensors["x"].split(1), tensors["y_hat"].split(1), strict=True) if tensors else ()
        self.kept = [(x.to(device), y_hat.to(device)) for x, y_hat in pairs]
