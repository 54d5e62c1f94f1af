"""Differentiable Augmentation (Zhao, Liu, Lin, Zhu, Han, NeurIPS 2020, arXiv:2006.10738). Imports torch.

T changes whatever D is shown, real and fake, in its own move and in G's, whose gradients flow back through T. D here
judges pairs (x, y): what moves or hides pixels does so in both, else they would no longer lie upon each other; x keeps
its colors unless it is asked for.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from p2pzoo_augment.ranges import between, per_image, whole

SHIFT = 1 / 8  # of a side, the most (§3)
HIDDEN = 1 / 2  # of a side (§3)
DRAWS = {"color": 3, "translation": 2, "cutout": 2}


class DiffAugment:
    """T of (x, y), each (B, C, H, W) in [-1, 1]; color may leave that range, as in the paper.

    color        brightness: plus [-0.5, 0.5]; saturation: [0, 2] about the mean of the channels, pixel by pixel;
                 contrast: [0.5, 1.5] about the mean of the image
    translation  by up to 1/8 of each side, whole pixels, zeros from outside
    cutout       a square of half the image is zero; its centre lies anywhere, so it may reach over the edge

    Args:
        policy: which of them, in the order in which they act; one at least, each once.
        color_side: what color changes: "y", real or translated; "both" changes x alike, "x" alone.

    Raises ValueError for a policy that is empty or names one twice.
    """

    where = "discriminator"

    def __init__(
        self,
        *,
        policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout"),
        color_side: Literal["x", "y", "both"] = "y",
    ) -> None:
        if not policy or len(set(policy)) != len(policy):
            raise ValueError(f"policy = {list(policy)}: name one or more of {', '.join(DRAWS)}, each once")
        self.policy, self.color_side = policy, color_side
        self.num_random = sum(DRAWS[name] for name in policy)

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        for name, part in zip(self.policy, u.split([DRAWS[name] for name in self.policy], 1), strict=True):
            change = CHANGES[name]
            if name != "color" or self.color_side != "y":
                x = change(x, part)
            if name != "color" or self.color_side != "x":
                y = change(y, part)
        return x, y, labels


def color(images: Tensor, u: Tensor) -> Tensor:
    """u (B, 3): brightness, saturation, contrast."""
    brightness, saturation, contrast = map(per_image, u.unbind(1))
    images = images + between(-0.5, 0.5, brightness)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * between(0, 2, saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * between(0.5, 1.5, contrast) + mean


def translation(images: Tensor, u: Tensor) -> Tensor:
    """u (B, 2): down and right."""
    for dim, share in zip((2, 3), u.unbind(1), strict=True):
        side = images.shape[dim]
        most = int(side * SHIFT + 0.5)
        shift = whole(2 * most + 1, share) - most
        source = torch.arange(side, device=images.device) - shift[:, None]  # (B, side): where each line comes from
        inside = (source >= 0) & (source < side)
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        lines = source.clamp(0, side - 1).view(shape).expand(images.shape)
        images = images.gather(dim, lines) * inside.view(shape)
    return images


def cutout(images: Tensor, u: Tensor) -> Tensor:
    """u (B, 2): the row and the column of the square's centre."""
    hidden = torch.ones((), dtype=torch.bool, device=images.device)
    for dim, share in zip((2, 3), u.unbind(1), strict=True):
        side = images.shape[dim]
        length = int(side * HIDDEN + 0.5)
        first = whole(side + (1 - length % 2), share) - length // 2
        line = torch.arange(side, device=images.device) - first[:, None]
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        hidden = hidden & ((line >= 0) & (line < length)).view(shape)
    return images * ~hidden


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color, "translation": translation, "cutout": cutout
}  # fmt: skip
