"""Adaptive discriminator augmentation: DiffAugment's changes with a probability that follows from D's overfitting."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from p2pzoo_augment.diffaugment import DiffAugment
from p2pzoo_augment.ranges import per_image


class ADA(nn.Module):
    """Each change of `diffaugment` acts on an image with probability p (Karras et al. 2020, arXiv:2006.06676, §3).

    p is 0 at the start. After every `every` updates of D it rises if D overfits, r > `target`, and falls if not: by the
    number of images that D saw since, divided by `images`, within 0 and 1. r = E[sign(D(x, y))] over D's logits for the
    real images that it was trained on, the paper's heuristic r_t (Eq. 1): 0 if D cannot tell, 1 if it is sure of all.
    The mean is over the logits of a map, and over the maps if D has several scales.

    Whether a change acts is drawn for each image and each change: in a pair, x and y change together as in
    `diffaugment`. The paper's pipeline has 18 changes. p and the sums of r are saved with a run; with several processes
    they are over all images. With `[train] accumulate`, each part counts as an update.

    policy      one or more of "color", "translation" and "cutout", each once, in the order in which they act
    color_side  the images whose color changes: "y", "x" or "both"; as of `diffaugment`
    target      r that D is kept at; 0.6 in the paper
    every       updates of D between two changes of p; 4 in the paper
    images      real images in which p can rise from 0 to 1; 500,000 in the paper, for 25 million images in all. A
                shorter training needs fewer
    threshold   logit between real and fake: 0 for a GAN loss whose D is undecided there (vanilla, hinge), 0.5 for
                `lsgan`, which trains real logits to 1 and fake ones to 0

    Raises ValueError for a policy that is empty or has an entry twice.

    >>> ada = ADA(every=1, images=100)
    >>> ada.observe([torch.ones(10, 1, 4, 4)])  # D is sure of 10 real images
    >>> ada.p
    tensor(0.1000)
    """

    where = "discriminator"

    def __init__(
        self,
        *,
        policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout"),
        color_side: Literal["x", "y", "both"] = "y",
        target: Annotated[float, Field(gt=-1, lt=1)] = 0.6,
        every: Annotated[int, Field(ge=1)] = 4,
        images: Annotated[int, Field(ge=1)] = 500_000,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.changes = [
            DiffAugment(policy=(name,), color_side=color_side) for name in DiffAugment(policy=policy).policy
        ]
        self.num_random = sum(1 + change.num_random for change in self.changes)
        self.target, self.every, self.images, self.threshold = target, every, images, threshold
        self.p: Tensor
        self.register_buffer("p", torch.zeros(()))
        self.observed: Tensor  # since p changed: the sum of the signs over images, images, updates of D
        self.register_buffer("observed", torch.zeros(3))

    def forward(
        self, x: Tensor, y: Tensor, labels: Tensor | None, random: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        parts = random.split([1 + change.num_random for change in self.changes], 1)
        for change, part in zip(self.changes, parts, strict=True):
            acts = part[:, 0] < self.p
            x_changed, y_changed, labels_changed = change(x, y, labels, part[:, 1:])
            x, y = torch.where(per_image(acts), x_changed, x), torch.where(per_image(acts), y_changed, y)
            if labels is not None and labels_changed is not None:
                labels = torch.where(acts.view(-1, 1, 1), labels_changed, labels)
        return x, y, labels

    def observe(self, real: Sequence[Tensor]) -> None:
        """Sum up what D says of real images, and change p when it is time. See `Augmentation`.

        Python decides nothing here: a CUDA graph can repeat it.
        """
        sign = torch.stack([(logits.float() - self.threshold).sign().mean() for logits in real]).mean()
        count = torch.full_like(sign, len(real[0]))
        seen = torch.stack([sign * count, count])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(seen)
        self.observed += torch.cat([seen, torch.ones_like(seen[:1])])
        signs, images, updates = self.observed.unbind()
        is_due = updates >= self.every
        moved = self.p + (signs / images - self.target).sign() * images / self.images
        self.p.copy_(torch.where(is_due, moved.clamp(0, 1), self.p))
        self.observed.mul_(~is_due)
