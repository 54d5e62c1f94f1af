"""Augmentation of training pairs by kornia's functional operations. Imports torch and kornia.

Geometry moves x, y and labels alike, so that what lay upon each other still does. Images are (B, C, H, W) in [-1, 1],
labels (B, H, W) int64, random numbers u (B, draws) in [0, 1).
"""

import math
from typing import Annotated, Literal

import torch
from kornia import enhance
from kornia.geometry.transform import get_affine_matrix2d, hflip, vflip, warp_affine
from pydantic import Field
from torch import Tensor

from p2pzoo_augment.ranges import between, per_image, whole

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=4)]
Three = tuple[Tensor, Tensor, Tensor | None]


class FlipRotate:
    """Mirrors pairs, then turns them by 0, 90, 180 or 270 degrees counter-clockwise. Pixels move; none is changed.

    For data without an up and a left of its own, as images from above. `[train] mirror` already mirrors half of the
    pairs left and right.

    Args:
        horizontal: probability of mirroring left and right.
        vertical: probability of mirroring up and down.
        quarter_turns: turn by a multiple of 90 degrees, each as likely. Images must be square.

    Raises ValueError for quarter turns of images that are not.
    """

    where, num_random = "pairs", 3

    def __init__(
        self,
        size: tuple[int, int],
        *,
        horizontal: Probability = 0.5,
        vertical: Probability = 0.5,
        quarter_turns: bool = True,
    ) -> None:
        if quarter_turns and size[0] != size[1]:
            raise ValueError(
                f"quarter_turns = true takes square images, and these are {size[0]}×{size[1]}: "
                "set quarter_turns = false, or another dataset.size"
            )
        self.horizontal, self.vertical, self.quarter_turns = horizontal, vertical, quarter_turns

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, u: Tensor) -> Three:
        return self._moved(x, u), self._moved(y, u), None if labels is None else self._moved(labels[:, None], u)[:, 0]

    def _moved(self, images: Tensor, u: Tensor) -> Tensor:
        mirrored, upended, turned = map(per_image, u.unbind(1))
        images = torch.where(mirrored < self.horizontal, hflip(images), images)
        images = torch.where(upended < self.vertical, vflip(images), images)
        if self.quarter_turns:
            quarters = whole(4, turned)
            for number in (1, 2, 3):
                images = torch.where(quarters == number, torch.rot90(images, number, (2, 3)), images)
        return images


class Affine:
    """Turns, scales and shifts pairs about their centre; what comes in from outside is reflected at the edges.

    All three are resampled: labels to the nearest pixel, x and y as `resampling` says.

    Args:
        degrees: turned by up to this much to either side.
        scale: the least and the greatest factor; above 1 enlarges.
        translate: shifted by up to this share of a side, along each.
        resampling: of x and y. "bilinear" blurs a little, and blends colours where a label map is an image;
            "nearest" keeps every value.

    Raises ValueError where the least factor of `scale` is greater than the greatest.
    """

    where, num_random = "pairs", 4

    def __init__(
        self,
        size: tuple[int, int],
        *,
        degrees: Annotated[float, Field(ge=0, le=180)] = 10.0,
        scale: tuple[Factor, Factor] = (0.9, 1.1),
        translate: Annotated[float, Field(ge=0, le=0.5)] = 0.05,
        resampling: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        if scale[0] > scale[1]:
            raise ValueError(f"scale = [{scale[0]}, {scale[1]}]: give the least factor first")
        self.size, self.degrees, self.scale, self.translate = size, degrees, scale, translate
        self.resampling = resampling

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, u: Tensor) -> Three:
        matrix = self._matrix(u)
        if labels is not None:
            labels = self._moved(labels[:, None].float(), matrix, "nearest")[:, 0].to(labels.dtype)
        return self._moved(x, matrix, self.resampling), self._moved(y, matrix, self.resampling), labels

    def _matrix(self, u: Tensor) -> Tensor:
        """(B, 2, 3): where each pixel (column, row) goes."""
        height, width = self.size
        angle, factor, right, down = u.unbind(1)
        shift = torch.stack([width * self._either_way(right), height * self._either_way(down)], 1)
        centre = u.new_tensor([[(width - 1) / 2, (height - 1) / 2]]).expand(len(u), 2)
        factor = between(*self.scale, factor)[:, None].expand(len(u), 2)
        return get_affine_matrix2d(shift, centre, factor, between(-self.degrees, self.degrees, angle))[:, :2]

    def _either_way(self, u: Tensor) -> Tensor:
        return between(-self.translate, self.translate, u)

    def _moved(self, images: Tensor, matrix: Tensor, mode: str) -> Tensor:
        moved: Tensor = warp_affine(images, matrix, self.size, mode, padding_mode="reflection", align_corners=True)
        return moved


class Photometric:
    """Brightness, contrast, saturation and hue, in this order; pixels stay where they are.

    Strengths are those of images in [0, 1], which is where kornia sees them; 0 leaves a property alone, to the bit.

    Args:
        side: what is changed. "x", the default, asks G to translate the same y from an x seen in another light. "y"
            changes what G is to make, which then varies for no reason that x shows; "both" changes them alike, which
            suits tasks where y keeps the colours of x. Where x is a label map, no side is a good one but "y".
        brightness: added, up to this much to either side.
        contrast: factor 1 ± this about the image's mean (of its grey values).
        saturation: factor 1 ± this, in HSV. Needs RGB.
        hue: turned by up to this share of the circle to either side, in HSV. Needs RGB.

    Raises ValueError for saturation and hue of images that are not RGB.
    """

    where, num_random = "pairs", 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        side: Literal["x", "y", "both"] = "x",
        brightness: Strength = 0.2,
        contrast: Strength = 0.2,
        saturation: Strength = 0.2,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.02,
    ) -> None:
        channels = {"x": in_channels, "y": out_channels}
        for name in ("x", "y") if side == "both" else (side,):
            if channels[name] != 3 and (saturation or hue):
                raise ValueError(
                    f"saturation and hue take RGB, and {name} has {channels[name]} channel(s): "
                    "set saturation = 0 and hue = 0"
                )
        self.side, self.brightness, self.contrast, self.saturation, self.hue = (
            side, brightness, contrast, saturation, hue
        )  # fmt: skip

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, u: Tensor) -> Three:
        if self.side != "y":
            x = self._lit(x, u)
        if self.side != "x":
            y = self._lit(y, u)
        return x, y, labels

    def _lit(self, images: Tensor, u: Tensor) -> Tensor:
        brightness, contrast, saturation, hue = u.unbind(1)
        images = (images + 1) / 2
        if self.brightness:
            images = enhance.adjust_brightness(images, between(-self.brightness, self.brightness, brightness))
        if self.contrast:
            factor = between(1 - self.contrast, 1 + self.contrast, contrast)
            images = enhance.adjust_contrast_with_mean_subtraction(images, factor)
        if self.saturation:
            images = enhance.adjust_saturation(images, between(1 - self.saturation, 1 + self.saturation, saturation))
        if self.hue:
            images = enhance.adjust_hue(images, 2 * math.pi * between(-self.hue, self.hue, hue))
        return images.clamp(0, 1) * 2 - 1
