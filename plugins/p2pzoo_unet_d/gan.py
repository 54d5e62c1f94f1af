"""The GAN loss of OASIS (Schönfeld et al. 2021, arXiv:2012.04781): D segments real images, and finds fake pixels."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs
from p2pzoo.utils.errors import UserError

NO_LABEL = 255  # of pixels without a class, as in the datasets of the zoo; negative labels too


class Oasis:
    """Cross-entropy of N + 1 classes, where a real pixel is of its class and a fake one of class N.

    The terms of real pixels and those of G are balanced: they are the mean over the classes in the batch of the mean
    over their pixels, so that rare classes count as much as frequent ones. Pixels without a label are left out of them.
    The term of D on ŷ counts all pixels alike; all are fake.

    LabelMix makes an image of the areas of some classes in y and of those of all others in ŷ. It brings the N + 1
    logits of this image to those of y and of ŷ in the same areas: the mean squared difference. Each class of each image
    is taken from y or ŷ with the same probability, drawn by torch's generator; pixels without a label are one more
    class. D is computed once more for it: the logits of y and ŷ are those of the other terms. (Three times more with an
    image pool, with augmentations of what D sees, and for another D.)

    All this is for D `oasis`. The maps of any other D have one logit for each place, so a place is real or fake
    there. Its labels are resized to its maps, and LabelMix compares its last activations.

    labelmix  weight of LabelMix, 10 in the public code; 0: none

    Raises UserError on a CPU if the batch has labels that D does not know, up to 254.
    """

    minimum = (0.0, 0.0)

    def __init__(self, *, labelmix: Annotated[float, Field(ge=0)] = 10.0) -> None:
        self.labelmix = labelmix

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """What D minimises, ≥ 0: −log p_own(x, y), balanced, − log p_fake(x, ŷ), and LabelMix."""
        labels = self._labels(out)
        if self.labelmix and _segments(out) and _is_plain(out):  # D once on y and on ŷ, for all terms and the log
            D: Any = out.D
            out.real, out.fake = (D.decide(f[0][-1], labels) for f in (out.real_features, out.fake_features))
        of_own, _ = _decisions(out, out.real)
        _, of_real = _decisions(out, out.fake)
        loss = _balanced_loss(of_own, labels, _count_classes(out)) + _mean([F.softplus(m) for m in of_real])
        return loss + self.labelmix * self._mixing_loss(out, labels) if self.labelmix else loss

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """What G minimises, ≥ 0: −log p_own(x, ŷ), balanced."""
        of_own, _ = _decisions(out, out.fake)
        return _balanced_loss(of_own, self._labels(out), _count_classes(out))

    def _mixing_loss(self, out: StepOutputs, labels: Tensor) -> Tensor:
        num_classes = _count_classes(out)
        is_taken = torch.rand(len(labels), num_classes + 1, device=labels.device) < 0.5
        assert out.batch.labels is not None
        mixed = torch.where(class_mask(out.batch.labels, is_taken), out.y, out.y_hat)
        assert out.D is not None
        of_mixed = out.D.features(out.x, mixed)
        if _is_plain(out):
            features = (out.real_features, out.fake_features, of_mixed)
        else:  # all three augmented as y is, and with its x
            features = (out.D.features(out.x, out.y), out.D.features(out.x, out.y_hat), of_mixed)
        real, fake, both = ([activations[-1] for activations in each] for each in features)
        return _mean(
            [
                F.mse_loss(m, torch.where(class_mask(_resize(labels, m), is_taken), r, f))
                for r, f, m in zip(real, fake, both, strict=True)
            ]
        )

    @staticmethod
    def _labels(out: StepOutputs) -> Tensor:
        """(B, H, W) labels of y as D gets them. Raises UserError if they do not fit D."""
        labels = out.real_labels
        if labels is None:
            raise UserError(
                "[gan_loss] oasis needs the labels of the images that D sees, but [augmentations] move these for a "
                'discriminator without labels: use [discriminator] "oasis", or augment the pairs'
            )
        num_classes = _count_classes(out)
        if labels.device.type == "cpu":  # on other devices this would wait for them in each step
            highest = int(labels.masked_fill(labels >= NO_LABEL, -1).max())
            if highest >= num_classes:
                raise UserError(
                    f"[discriminator] num_classes = {num_classes}, but the dataset has labels up to {highest}: set "
                    f"num_classes to the number of its classes; pixels without a class have the label {NO_LABEL}"
                )
        return labels


def class_mask(labels: Tensor, is_taken: Tensor) -> Tensor:
    """(B, 1, H, W) bool: the pixels of the taken classes.

    labels    (B, H, W); all outside 0 … N − 1 are one class, the last
    is_taken  (B, N + 1) bool

    >>> class_mask(torch.tensor([[[0, 1, 255]]]), torch.tensor([[False, True, True]]))
    tensor([[[[False,  True,  True]]]])
    """
    last = is_taken.shape[1] - 1
    index = torch.where((labels >= 0) & (labels < last), labels, last)
    return is_taken.gather(1, index.flatten(1)).view(labels.shape)[:, None]


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(B, 1, H, W) weights of the pixels, of mean 1, with which each class in the batch has the same sum.

    0 where a label is outside 0 … num_classes − 1.

    >>> balanced_weights(torch.tensor([[[0, 0, 0, 2]]]), 3)
    tensor([[[[0.6667, 0.6667, 0.6667, 2.0000]]]])
    """
    is_class = labels[:, None] == torch.arange(num_classes, device=labels.device)[None, :, None, None]
    counts = is_class.sum((0, 2, 3))
    of_class = labels.numel() / ((counts > 0).sum().clamp(min=1) * counts.clamp(min=1))
    return (is_class * of_class[None, :, None, None]).sum(1, keepdim=True)


def _balanced_loss(maps: Sequence[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    return _mean([balanced_weights(_resize(labels, m), num_classes) * F.softplus(-m) for m in maps])


def _decisions(out: StepOutputs, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The maps "is it a real pixel of its class?", and those "is it real?": the same if D knows no classes."""
    return (maps[:1], maps[1:]) if _segments(out) else (maps, maps)


def _segments(out: StepOutputs) -> bool:
    return bool(getattr(out.D, "segments", False))


def _is_plain(out: StepOutputs) -> bool:
    """D gets y and ŷ as they are, with the x and the labels of this batch."""
    return out.augment is None and out.x_fake is out.x


def _count_classes(out: StepOutputs) -> int:
    return int(getattr(out.D, "num_classes", NO_LABEL))


def _resize(labels: Tensor, like: Tensor) -> Tensor:
    """The labels (B, H, W) at the size of a map (B, C, h, w), by the nearest pixel."""
    size = like.shape[2:]
    return labels if labels.shape[1:] == size else F.interpolate(labels[:, None].float(), size)[:, 0].long()


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([each.mean() for each in maps]).mean()
