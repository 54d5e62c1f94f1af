"""Augmentation of training pairs by kornia's functional operations.

Geometric changes act on x, y and labels alike, which keeps them aligned. Images are (B, C, H, W) in [-1, 1], labels
(B, H, W) int64, random numbers (B, num_random) in [0, 1).
"""

import math
from typing import Annotated, Literal

import torch
from kornia import enhance
from kornia.color import rgb_to_grayscale
from kornia.geometry.transform import get_affine_matrix2d, hflip, vflip, warp_affine
from pydantic import Field
from torch import Tensor

from p2pzoo.utils.plurals import format_count
from p2pzoo_augment.ranges import per_image, scale_to, to_integer

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=4)]
Augmented = tuple[Tensor, Tensor, Tensor | None]


class FlipRotate:
    """Mirror pairs, then rotate them by 0, 90, 180 or 270 degrees counter-clockwise. Pixel values do not change.

    For data without a preferred direction, such as images from above. `[train] mirror` already mirrors half of the
    pairs left and right.

    horizontal     probability of mirroring left and right
    vertical       probability of mirroring up and down
    quarter_turns  rotate by 0, 90, 180 or 270 degrees with equal probability; images must be square

    Raises ValueError for quarter turns of images that are not square.
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
                f"quarter_turns = true needs square images, but these are {size[0]}×{size[1]}: "
                "set quarter_turns = false, or another dataset.size"
            )
        self.horizontal, self.vertical, self.quarter_turns = horizontal, vertical, quarter_turns

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, random: Tensor) -> Augmented:
        labels = None if labels is None else self._transform(labels[:, None], random)[:, 0]
        return self._transform(x, random), self._transform(y, random), labels

    def _transform(self, images: Tensor, random: Tensor) -> Tensor:
        u_horizontal, u_vertical, u_turns = map(per_image, random.unbind(1))
        images = torch.where(u_horizontal < self.horizontal, hflip(images), images)
        images = torch.where(u_vertical < self.vertical, vflip(images), images)
        if self.quarter_turns:
            turns = to_integer(4, u_turns)
            for number in (1, 2, 3):
                images = torch.where(turns == number, torch.rot90(images, number, (2, 3)), images)
        return images


class Affine:
    """Rotate, scale and shift pairs about their centre. Pixels from outside are reflected at the edges.

    x, y and labels are resampled: labels to the nearest pixel, x and y according to `resampling`.

    degrees     maximum rotation to either side
    scale       minimum and maximum factor; a factor above 1 enlarges
    translate   maximum shift along each side, relative to that side
    resampling  "bilinear" or "nearest", for x and y. "bilinear" blurs a little, and mixes the colours of a label map;
                "nearest" keeps all values

    Raises ValueError if the minimum factor of `scale` is larger than the maximum.
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
            raise ValueError(f"scale = [{scale[0]}, {scale[1]}]: give the minimum factor first")
        self.size, self.degrees, self.scale, self.translate = size, degrees, scale, translate
        self.resampling = resampling

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, random: Tensor) -> Augmented:
        matrix = self._matrix(random)
        if labels is not None:
            labels = self._warp(labels[:, None].float(), matrix, "nearest")[:, 0].to(labels.dtype)
        return self._warp(x, matrix, self.resampling), self._warp(y, matrix, self.resampling), labels

    def _matrix(self, random: Tensor) -> Tensor:
        """(B, 2, 3): the affine map of pixel coordinates (column, row)."""
        height, width = self.size
        u_angle, u_factor, u_right, u_down = random.unbind(1)
        shift = torch.stack([width * self._shift(u_right), height * self._shift(u_down)], 1)
        # new_full, not new_tensor, which copies from the host and waits for the device
        centre = torch.cat([random.new_full((len(random), 1), (side - 1) / 2) for side in (width, height)], 1)
        factor = scale_to(*self.scale, u_factor)[:, None].expand(len(random), 2)
        return get_affine_matrix2d(shift, centre, factor, scale_to(-self.degrees, self.degrees, u_angle))[:, :2]

    def _shift(self, u: Tensor) -> Tensor:
        return scale_to(-self.translate, self.translate, u)

    def _warp(self, images: Tensor, matrix: Tensor, mode: str) -> Tensor:
        warped: Tensor = warp_affine(images, matrix, self.size, mode, padding_mode="reflection", align_corners=True)
        return warped


class Photometric:
    """Change brightness, contrast, saturation and hue, in this order. Pixels keep their places.

    Strengths are for images in [0, 1], kornia's range. 0 leaves a property unchanged, bit-identically.

    side        the images that change: "x", "y" or "both". "x": G learns to give the same y for other colours of x.
                "y": the target changes without a reason in x. "both" changes both alike, for tasks where y keeps the
                colours of x. If x is a label map, only "y" makes sense
    brightness  maximum value that is added or subtracted
    contrast    strength c: a factor of 1 - c to 1 + c about the mean grey value of the image
    saturation  strength s: a factor of 1 - s to 1 + s in HSV; needs RGB
    hue         maximum rotation to either side in HSV, relative to the full circle; needs RGB

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
                    f"saturation and hue need RGB, but {name} has {format_count(channels[name], 'channel')}: "
                    "set saturation = 0 and hue = 0"
                )
        self.side, self.brightness, self.contrast, self.saturation, self.hue = (
            side, brightness, contrast, saturation, hue
        )  # fmt: skip

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, random: Tensor) -> Augmented:
        if self.side != "y":
            x = self._adjust(x, random)
        if self.side != "x":
            y = self._adjust(y, random)
        return x, y, labels

    def _adjust(self, images: Tensor, random: Tensor) -> Tensor:
        brightness, contrast, saturation, hue = random.unbind(1)
        images = (images + 1) / 2
        if self.brightness:
            images = enhance.adjust_brightness(images, scale_to(-self.brightness, self.brightness, brightness))
        if self.contrast:
            factor = per_image(scale_to(1 - self.contrast, 1 + self.contrast, contrast))
            # not kornia's function: before 0.9 its mean is over the whole batch where images are not RGB
            grey = rgb_to_grayscale(images) if images.shape[1] == 3 else images
            images = (images * factor + grey.mean((1, 2, 3), keepdim=True) * (1 - factor)).clamp(0, 1)
        if self.saturation:
            images = enhance.adjust_saturation(images, scale_to(1 - self.saturation, 1 + self.saturation, saturation))
        if self.hue:
            images = enhance.adjust_hue(images, 2 * math.pi * scale_to(-self.hue, self.hue, hue))
        return images.clamp(0, 1) * 2 - 1
