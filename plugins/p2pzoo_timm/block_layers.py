"""Which blocks of a vision transformer give features, and the size that its patches fit. Imports timm and torch."""

from collections.abc import Sequence

import timm
import torch

from p2pzoo.utils.plurals import format_count


def choose_layers(name: str, layers: int) -> tuple[int, list[int]]:
    """(side of a patch in pixels, indices of evenly spaced blocks, the last included).

    Raises ValueError for a network of timm whose features have several strides, or with fewer blocks.

    >>> choose_layers("vit_small_patch14_dinov2", 4)
    (14, [2, 5, 8, 11])
    """
    with torch.device("meta"):
        info = timm.create_model(name, features_only=True).feature_info.info
    strides = sorted({int(each["reduction"]) for each in info})
    if len(strides) > 1:
        raise ValueError(
            f"layers = {layers}: '{name}' already has features of the strides {', '.join(map(str, strides))}; leave "
            "layers out, which is for networks of one stride, such as vision transformers"
        )
    if layers > len(info):
        raise ValueError(f"layers = {layers}: '{name}' has only {format_count(len(info), 'block')}")
    return strides[0], [(i + 1) * len(info) // layers - 1 for i in range(layers)]


def resize_to_patches(size: Sequence[int], patch: int | None) -> tuple[int, int]:
    """The (H, W) nearest to a size that are multiples of the patch; the size itself without one.

    >>> resize_to_patches((128, 256), 14)
    (126, 252)
    """
    height, width = size if patch is None else (max(1, round(side / patch)) * patch for side in size)
    return height, width
