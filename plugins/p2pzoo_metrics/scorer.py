"""The network that judges photos for `fcn_score`, in the form of FCN-8s, and its file. Imports torch and timm.

A scorer's file is a safetensors file (no pickle) with fp16 weights and a header that says how to build the network,
which classes it knows, what it was trained on, and how good it must be on real photos for its numbers to count.
`python -m p2pzoo_metrics.train_scorer` makes one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2pzoo.models.safetensors_io import load_into, load_tensors, save_tensors
from p2pzoo.plugin import Dataset
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo_metrics.confusion import class_scores, confusion, scored_classes
from p2pzoo_metrics.levels import levels

FORMAT = 1
STRIDES = (8, 16, 32)


class FCN8s(nn.Module):
    """What each pixel shows: (B, channels, H, W) of 0 … 255 -> logits (B, classes, H, W).

    Long, Shelhamer, Darrell 2015 (arXiv:1411.4038, §4.2): maps of strides 8, 16 and 32 are each scored by a 1 × 1
    convolution; from the coarsest on scores are enlarged and added to the next finer ones, and the sum is enlarged to
    the photo's size. Here on the first stages of an EfficientNet where they had VGG-16, and enlarged bilinearly where
    they learned it.

    backbone   an EfficientNet of timm, by name
    stages     how many of its stages to keep. timm's `features_only` keeps the last, widest one, too: a quarter of
               the weights that adds no stride
    enlarge    photos are enlarged bilinearly by this whole number first, so that strides are finer in their pixels:
               photos of 128 px are small for a network made for 224
    mean, std  a channel's values become (value - mean) / std
    """

    def __init__(
        self, *, backbone: str, stages: int, channels: int, classes: int, enlarge: int, mean: float, std: float
    ) -> None:
        super().__init__()
        self.enlarge, self.mean, self.std = enlarge, mean, std
        net = timm.create_model(backbone, in_chans=channels, num_classes=0)
        self.stem, self.norm, self.stages = net.conv_stem, net.bn1, net.blocks[:stages]
        with torch.no_grad():
            maps = self.eval().maps(torch.zeros(1, channels, max(STRIDES), max(STRIDES)))
        self.train()
        self.scores = nn.ModuleList([nn.Conv2d(each.shape[1], classes, 1) for each in maps])
        for score in self.scores:
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)

    def forward(self, photo: Tensor) -> Tensor:
        size = photo.shape[-2:]
        if min(size) * self.enlarge < max(STRIDES):
            raise UserError(f"the scorer takes photos from {-(-max(STRIDES) // self.enlarge)} px a side up")
        x = (photo - self.mean) / self.std
        x = _resized(x, tuple(side * self.enlarge for side in size))
        *finer, coarsest = [score(each) for score, each in zip(self.scores, self.maps(x), strict=True)]
        fused = coarsest
        for scores in reversed(finer):
            fused = scores + _resized(fused, scores.shape[-2:])
        return _resized(fused, size)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last map of each of the three coarsest strides: 8, 16 and 32."""
        x, found = self.norm(self.stem(x)), []
        for stage in self.stages:
            finer, x = x, stage(x)
            if x.shape[-2:] != finer.shape[-2:]:
                found.append(finer)
        return [*found, x][-len(STRIDES) :]


class Scorer:
    """A scorer's file in memory; the network is made when it is first asked.

    header   {network: FCN8s' arguments, classes, trained_on, self_check: {name of a number: the least it must be}}
    digest   "sha256:…" of the file, for protocols
    classes  their names, in the order of the network's answers

    Raises UserError where the file is missing, damaged, or not a scorer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors, self.header = load_tensors(path)
        whole = all(key in self.header for key in ("network", "classes", "self_check"))
        if self.header.get("kind") != "scorer" or self.header.get("format") != FORMAT or not whole:
            raise UserError(f"{path}: not a scorer of this version of p2pzoo: train one with {command()}")
        self.digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.classes: list[str] = self.header["classes"]
        self._network: FCN8s | None = None

    @torch.no_grad()
    def classify(self, photo: Tensor, size: Sequence[int]) -> Tensor:
        """What is seen where: (C, H, W) whole numbers 0 … 255, enlarged to `size` first -> (*size) int64."""
        if photo.shape[0] != self.header["network"]["channels"]:
            expected = self.header["network"]["channels"]
            raise UserError(f"{self.path}: judges photos of {expected} channels, these have {photo.shape[0]}")
        network = self._network_on(photo.device)
        with torch.autocast(photo.device.type, enabled=False):
            return network(enlarged(photo, size)).argmax(1)[0]

    def _network_on(self, device: torch.device) -> FCN8s:
        if self._network is None:
            with rng.torch_seed(0):  # making a network draws weights, which are then replaced
                self._network = FCN8s(**self.header["network"], classes=len(self.classes))
            load_into(self._network, self._tensors, str(self.path))
            self._network.eval().requires_grad_(False)
        return self._network.to(device)


def save(path: Path, network: FCN8s, header: Mapping[str, Any]) -> None:
    """Write a scorer's file: weights in fp16, `header` as of `Scorer`."""
    tensors = network.state_dict().items()
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors}
    save_tensors(path, halves, {"kind": "scorer", "format": FORMAT, **header})


def photo_of(dataset: Dataset, index: int) -> tuple[Tensor, Tensor]:
    """A real photo y, (C, H, W) of whole numbers 0 … 255 in float32, and its labels, (H', W') int64."""
    pair = dataset[index]
    if pair.labels is None:
        raise UserError(f"pair '{pair.id}' has no labels, without which no scorer can be trained or checked")
    low, high = dataset.y_range
    y = torch.from_numpy(pair.y.astype("float32")).permute(2, 0, 1)
    return levels((y - low) * (2 / (high - low)) - 1), torch.from_numpy(pair.labels.astype("int64"))


def enlarged(photo: Tensor, size: Sequence[int]) -> Tensor:
    """(C, H, W) -> (1, C, *size), bilinearly: as the evaluator brings 256 × 256 to the labels' 1024 × 2048."""
    return _resized(photo[None], tuple(size))


def measured(scorer: Scorer, dataset: Dataset, device: torch.device | str = "cpu") -> dict[str, float]:
    """The scorer's numbers on a dataset's real photos: {"pixel_accuracy", "class_accuracy", "class_iou"}.

    A class without a pixel of truth is left out of the means: that is not the scorer's fault.
    """
    classes = len(scorer.classes)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    for index in range(len(dataset)):
        photo, labels = (tensor.to(device) for tensor in photo_of(dataset, index))
        matrix += confusion(labels, scorer.classify(photo, labels.shape), classes)
    numbers = class_scores(matrix, scored=scored_classes(dataset, "a scorer"), absent="skip")
    return {"pixel_accuracy": numbers.pop("value"), **numbers}


def command() -> str:
    """How to make a scorer, for messages."""
    return "`python -m p2pzoo_metrics.train_scorer RECIPE -o FILE`"


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
