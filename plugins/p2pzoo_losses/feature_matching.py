"""Feature matching: G learns from the activations of D's layers, not only from its logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs


class FeatureMatching:
    """Wang et al. 2018 (pix2pixHD, arXiv:1711.11585, §3.2): ≥ 0, and 0 if all activations of D are equal.

    The sum over D's layers of the mean |D⁽ⁱ⁾(x, y) − D⁽ⁱ⁾(x, ŷ)|, and the mean over scales, while the paper sums them.
    The layers are those of `features`, which in this zoo's discriminators do not include the logits, with one
    exception: both lists of `oasis` end with the logits of its classes, so that these have the weight 1, and each of
    its activations 1/2. No gradient flows through the real features. The paper's weight is 10.
    """

    side = "generator"
    minimum = 0.0

    def __call__(self, out: StepOutputs) -> Tensor:
        return torch.stack(
            [
                torch.stack([F.l1_loss(ours, target.detach()) for ours, target in zip(fake, real, strict=True)]).sum()
                for fake, real in zip(out.fake_features, out.real_features, strict=True)
            ]
        ).mean()
