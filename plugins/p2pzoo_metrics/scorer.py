"""The segmentation network of `fcn_score`, in the form of FCN-8s, and its file. Imports torch.

A scorer's file is a safetensors file (no pickle) with fp16 weights. Its header describes the network, its classes, its
training data, and the accuracy it must reach on real photos before its numbers count. `p2pzoo train-scorer` writes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2pzoo.models.safetensors_io import load_into, load_tensors, save_tensors
from p2pzoo.plugin import Dataset
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo_metrics.confusion import class_scores, confusion_matrix, scored_classes
from p2pzoo_metrics.levels import to_levels

FORMAT = 1  # version of the file's header
STRIDES = (8, 16, 32)
TRAIN_COMMAND = "`p2pzoo train-scorer RECIPE -o FILE`"  # for error messages


class FCN8s(nn.Module):
    """The class of each pixel: photos (B, channels, H, W) of 0 … 255 -> logits (B, classes, H, W).

    Long, Shelhamer, Darrell 2015 (arXiv:1411.4038, §4.2): 1 × 1 convolutions score the feature maps of strides 8, 16
    and 32. Beginning with the coarsest, scores are enlarged and added to the next finer ones, and the sum is enlarged
    to the photo's size. They use VGG-16 and learn the enlarging; here it is the first stages of an EfficientNet, and
    bilinear interpolation.

    backbone   name of a timm EfficientNet
    stages     number of its stages to keep. timm's `features_only` would keep the last, widest stage too: a quarter
               of the weights, and no further stride
    channels   channels of the photos
    classes    number of classes
    enlarge    whole number by which photos are enlarged bilinearly before the network. It makes the strides finer in
               pixels of the photo: photos of 128 px are small for a network made for 224
    mean, std  normalisation of the input: (value - mean) / std
    """

    def __init__(
        self, *, backbone: str, stages: int, channels: int, classes: int, enlarge: int, mean: float, std: float
    ) -> None:
        import timm  # takes a second, and most commands only read the parameters of metrics

        super().__init__()
        self.enlarge, self.mean, self.std = enlarge, mean, std
        net = timm.create_model(backbone, in_chans=channels, num_classes=0)
        self.stem, self.norm, self.stages = net.conv_stem, net.bn1, net.blocks[:stages]
        with torch.no_grad():
            maps = self.eval().maps(torch.zeros(1, channels, max(STRIDES), max(STRIDES)))
        self.train()
        self.scores = nn.ModuleList([nn.Conv2d(features.shape[1], classes, 1) for features in maps])
        for score in self.scores:
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)

    def forward(self, photo: Tensor) -> Tensor:
        size = photo.shape[-2:]
        if min(size) * self.enlarge < max(STRIDES):
            raise UserError(f"the scorer takes photos from {-(-max(STRIDES) // self.enlarge)} px a side up")
        x = (photo - self.mean) / self.std
        x = _resize(x, tuple(side * self.enlarge for side in size))
        *finer, coarsest = [score(features) for score, features in zip(self.scores, self.maps(x), strict=True)]
        fused = coarsest
        for scores in reversed(finer):
            fused = scores + _resize(fused, scores.shape[-2:])
        return _resize(fused, size)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each of the three coarsest strides: 8, 16 and 32."""
        x, maps = self.norm(self.stem(x)), []
        for stage in self.stages:
            finer, x = x, stage(x)
            if x.shape[-2:] != finer.shape[-2:]:
                maps.append(finer)
        return [*maps, x][-len(STRIDES) :]


class Scorer:
    """A scorer's file in memory; the network is built when it is first used.

    header   {network: arguments of FCN8s, classes, trained_on, self_check: {name of a number: its minimum}}
    digest   "sha256:…" of the file, for protocols
    classes  class names, in the order of the network's logits

    Raises UserError if the file is missing, damaged, or not a scorer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors, self.header = load_tensors(path)
        is_complete = all(key in self.header for key in ("network", "classes", "self_check"))
        if self.header.get("kind") != "scorer" or self.header.get("format") != FORMAT or not is_complete:
            raise UserError(f"{path}: not a scorer of this version of p2pzoo: train one with {TRAIN_COMMAND}")
        self.digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.classes: list[str] = self.header["classes"]
        self._network: FCN8s | None = None

    @torch.no_grad()
    def classify(self, photo: Tensor, size: Sequence[int]) -> Tensor:
        """The class of each pixel: (C, H, W) whole numbers 0 … 255, first enlarged to `size` -> (*size) int64."""
        if photo.shape[0] != self.header["network"]["channels"]:
            expected = format_count(self.header["network"]["channels"], "channel")
            raise UserError(f"{self.path}: takes photos of {expected}, and these have {photo.shape[0]}")
        network = self._get_network(photo.device)
        with torch.autocast(photo.device.type, enabled=False):
            return network(enlarge_photo(photo, size)).argmax(1)[0]

    def _get_network(self, device: torch.device) -> FCN8s:
        if self._network is None:
            with rng.torch_seed(0):  # building a network draws random weights, which are then replaced
                self._network = FCN8s(**self.header["network"], classes=len(self.classes))
            load_into(self._network, self._tensors, str(self.path))
            self._network.eval().requires_grad_(False)
        return self._network.to(device)


def save_scorer(path: Path, network: FCN8s, header: Mapping[str, Any]) -> None:
    """Write a scorer's file with fp16 weights; for `header` see `Scorer`."""
    tensors = network.state_dict().items()
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors}
    save_tensors(path, halves, {"kind": "scorer", "format": FORMAT, **header})


def load_photo(dataset: Dataset, index: int) -> tuple[Tensor, Tensor]:
    """A real photo y, (C, H, W) whole numbers 0 … 255 in float32, and its labels, (H', W') int64.

    Raises UserError if the pair has no labels.
    """
    pair = dataset[index]
    if pair.labels is None:
        raise UserError(f"pair '{pair.id}' has no labels: they are needed to train or check a scorer")
    low, high = dataset.y_range
    y = torch.from_numpy(pair.y.astype("float32")).permute(2, 0, 1)
    return to_levels((y - low) * (2 / (high - low)) - 1), torch.from_numpy(pair.labels.astype("int64"))


def enlarge_photo(photo: Tensor, size: Sequence[int]) -> Tensor:
    """(C, H, W) -> (1, C, *size), bilinearly: as the authors' evaluator enlarges 256 × 256 to 1024 × 2048 labels."""
    return _resize(photo[None], tuple(size))


def measure_scorer(scorer: Scorer, dataset: Dataset, device: torch.device | str = "cpu") -> dict[str, float]:
    """The scorer's numbers on a dataset's real photos: {"pixel_accuracy", "class_accuracy", "class_iou"}, 0 to 1.

    The means omit classes without a true pixel: the scorer cannot find those.
    """
    classes = len(scorer.classes)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    for index in range(len(dataset)):
        photo, labels = (tensor.to(device) for tensor in load_photo(dataset, index))
        matrix += confusion_matrix(labels, scorer.classify(photo, labels.shape), classes)
    numbers = class_scores(matrix, scored=scored_classes(dataset, "a scorer"), absent="skip")
    return {"pixel_accuracy": numbers.pop("value"), **numbers}


_measured: dict[tuple[str, str, str], dict[str, float]] = {}


def measure_scorer_once(scorer: Scorer, dataset: Dataset, device: torch.device | str = "cpu") -> dict[str, float]:
    """`measure_scorer`, once in a process for equal files, photos, labels and devices: a table's metrics, folds and
    snapshots ask many times."""
    photos = hashlib.sha256(json.dumps(scored_classes(dataset, "a scorer")).encode())
    for index in range(len(dataset)):
        for tensor in load_photo(dataset, index):
            photos.update(f"{tuple(tensor.shape)}".encode())
            photos.update(tensor.numpy().tobytes())
    key = (scorer.digest, photos.hexdigest(), str(device))
    if key not in _measured:
        _measured[key] = measure_scorer(scorer, dataset, device)
    return _measured[key]


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
