"""Feature matching: G hears what D sees, layer by layer, and not its verdict alone. Imports torch and the contracts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import StepOutputs


class FeatureMatching:
    """Wang et al. 2018 (pix2pixHD, arXiv:1711.11585, §3.2): ≥ 0, 0 where D sees no difference.

    Σ over D's layers of the mean |D⁽ⁱ⁾(x, y) − D⁽ⁱ⁾(x, ŷ)|; the mean over scales, where the paper has their sum. The
    layers are those of `features`, which in the zoo's discriminators leave out the logits. Real features are a target:
    no gradient goes through them. Weight 10 in the paper.
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
