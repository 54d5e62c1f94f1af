"""Differentiable Augmentation (Zhao, Liu, Lin, Zhu, Han, NeurIPS 2020, arXiv:2006.10738).

T changes all images for D, real and fake, in the steps of D and of G. Gradients reach G through T. D classifies pairs
(x, y), so a change that moves or hides pixels acts on both, which keeps them aligned. The colors of x change only with
`color_side`.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from p2pzoo_augment.ranges import per_image, scale_to, to_integer

MAX_SHIFT = 1 / 8  # relative to a side (§3)
CUTOUT_SIDE = 1 / 2  # relative to a side (§3)
NUM_RANDOM = {"color": 3, "translation": 2, "cutout": 2}


class DiffAugment:
    """T of (x, y), each (B, C, H, W) in [-1, 1]. "color" may leave that range, as in the paper.

        color        brightness: adds up to ±0.5; saturation: a factor of 0 to 2 about the mean over a pixel's channels;
                     contrast: a factor of 0.5 to 1.5 about the mean of the image
        translation  shifts by up to 1/8 of each side, by whole pixels, with zeros from outside; labels, for a D that
                     needs them, move along, and those at the edge are repeated
        cutout       sets a rectangle of half of each side to zero; its centre may be anywhere, so it may cross the edge

    policy      one or more of "color", "translation" and "cutout", each once, in the order in which they act
    color_side  the images whose color changes: "y" (real or translated), "x" or "both", which changes both alike

    Raises ValueError for a policy that is empty or has an entry twice.
    """

    where = "discriminator"

    def __init__(
        self,
        *,
        policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout"),
        color_side: Literal["x", "y", "both"] = "y",
    ) -> None:
        if not policy or len(set(policy)) != len(policy):
            raise ValueError(f"policy = {list(policy)}: name one or more of {', '.join(NUM_RANDOM)}, each once")
        self.policy, self.color_side = policy, color_side
        self.num_random = sum(NUM_RANDOM[name] for name in policy)

    def __call__(
        self, x: Tensor, y: Tensor, labels: Tensor | None, random: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        for name, part in zip(self.policy, random.split([NUM_RANDOM[name] for name in self.policy], 1), strict=True):
            change = CHANGES[name]
            if name != "color" or self.color_side != "y":
                x = change(x, part)
            if name != "color" or self.color_side != "x":
                y = change(y, part)
            if name == "translation" and labels is not None:
                labels = shift(labels[:, None], part)[:, 0]
        return x, y, labels


def color(images: Tensor, u: Tensor) -> Tensor:
    """u (B, 3): random numbers for brightness, saturation and contrast."""
    brightness, saturation, contrast = map(per_image, u.unbind(1))
    images = images + scale_to(-0.5, 0.5, brightness)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * scale_to(0, 2, saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * scale_to(0.5, 1.5, contrast) + mean


def translation(images: Tensor, u: Tensor) -> Tensor:
    """u (B, 2): random numbers for the shifts down and right."""
    for dim, u_dim in zip((2, 3), u.unbind(1), strict=True):
        source = _sources(images, dim, u_dim)
        inside = (source >= 0) & (source < images.shape[dim])
        images = _take(images, dim, source) * inside
    return images


def shift(maps: Tensor, u: Tensor) -> Tensor:
    """As `translation`, but repeats the values at the edge: 0 is a class of label maps, (B, 1, H, W)."""
    for dim, u_dim in zip((2, 3), u.unbind(1), strict=True):
        maps = _take(maps, dim, _sources(maps, dim, u_dim))
    return maps


def _sources(images: Tensor, dim: int, u: Tensor) -> Tensor:
    """The row or column that each is taken from, (B, 1, H, 1) or (B, 1, 1, W); it may be outside of the image."""
    side = images.shape[dim]
    max_shift = int(side * MAX_SHIFT + 0.5)
    by = to_integer(2 * max_shift + 1, u) - max_shift
    shape = [len(images), 1, 1, 1]
    shape[dim] = side
    return (torch.arange(side, device=images.device) - by[:, None]).view(shape)


def _take(images: Tensor, dim: int, source: Tensor) -> Tensor:
    return images.gather(dim, source.clamp(0, images.shape[dim] - 1).expand(images.shape))


def cutout(images: Tensor, u: Tensor) -> Tensor:
    """u (B, 2): random numbers for the row and the column of the centre."""
    hidden = torch.ones((), dtype=torch.bool, device=images.device)
    for dim, u_dim in zip((2, 3), u.unbind(1), strict=True):
        side = images.shape[dim]
        length = int(side * CUTOUT_SIDE + 0.5)
        first = to_integer(side + (1 - length % 2), u_dim) - length // 2
        line = torch.arange(side, device=images.device) - first[:, None]
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        hidden = hidden & ((line >= 0) & (line < length)).view(shape)
    return images * ~hidden


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color, "translation": translation, "cutout": cutout
}  # fmt: skip
