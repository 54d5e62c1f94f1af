"""A backbone of timm as a pyramid of features: one map for each of its strides. Imports torch and timm."""

import copy
import difflib
from collections.abc import Sequence
from math import lcm, log2
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame, Format
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.errors import UserError
from p2pzoo_timm.weights import source


class Backbone(nn.Module):
    """Any network of timm that gives features, `features_only=True`.

    x         (B, in_channels, H, W) in [-1, 1]; it is brought to the mean and deviation that the network was trained
              on. For other channels than its own, timm adapts the first convolution, and the means of both are taken
    features  one (B, channels[i], H / strides[i], W / strides[i]) for each stride, from the input side on: the last of
              those that share a stride. Strides are powers of two; features are brought to this size bilinearly where
              the network reduces by others, such as 14, or its convolutions leave out the edges

    H and W are multiples of `size_divisor`: of the strides and, where the network takes more than one size, of what it
    itself reduces by.

    Its weights are timm's: pretrained, or timm's own initialisation. They are not put there by the constructor but by
    `init_own_weights` (see contracts.py), so a model file needs neither the weights' file nor a download.

    Args:
        name: as timm has it, with its tag or without.
        in_channels, size: of x; size is (H, W), and the only one that a network with `fixed_size` takes.
        pretrained: timm's weights, downloaded to its cache at the first use.
        weights: a file to take them from instead.
        frozen_stages: so many of the first features are fixed: whatever they depend on gets no gradient, and norms
            there stay in eval mode. None: all.

    Raises:
        ValueError: a name that timm does not know, a network without such features, a size that it does not take.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        size: tuple[int, int],
        *,
        pretrained: bool,
        weights: Path | None,
        frozen_stages: int | None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            raise ValueError(f"timm has no network '{name}'" + (f": did you mean '{near[0]}'?" if near else ""))
        self.name = name
        self._made_of = (in_channels, size)
        self._source: dict[str, Any] = {"pretrained": pretrained, "weights": weights}
        self.net = _features_of(name, in_channels, size)
        for part in self.net.modules():
            if type(part) is Conv2dSame:
                part.__class__ = EvenlyPadded
        self.fixed_size = size if _has_fixed_size(name) else None

        reductions = [int(reduction) for reduction in self.net.feature_info.reduction()]
        last = {2 ** round(log2(reduction)): i for i, reduction in enumerate(reductions)}
        self.strides = sorted(last)
        self._taken = [last[stride] for stride in self.strides]
        self.size_divisor = self.strides[-1] if self.fixed_size else lcm(*self.strides, *reductions)
        self.check(size)
        self._observe(in_channels, size, frozen_stages)

        mean, std = _statistics(get_pretrained_cfg(name), in_channels)
        self.register_buffer("scale", 0.5 / std)  # of [-1, 1] to [0, 1], and from there on
        self.register_buffer("shift", (0.5 - mean) / std)

    def init_own_weights(self) -> None:
        """Raises UserError, in one line, where pretrained weights are not to be had or do not fit."""
        given = source(self.name, **self._source)
        try:
            fresh = _features_of(self.name, *self._made_of, **given)
        except Exception as error:  # whatever the network, its mirror or its cache raise
            reason = f"no weights of '{self.name}': {_first_line(error)}"
            advice = "" if self._source["weights"] else '; a file needs no network: weights = "FILE"'
            raise UserError(reason + advice) from error
        self.net.load_state_dict(fresh.state_dict())

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check(x.shape[2:])
        features = self._features(self.net, x * self.scale + self.shift)
        return [_sized(e, x.shape[2:], stride) for e, stride in zip(features, self.strides, strict=True)]

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for part in self._fixed:
            part.eval()
        return self

    def check(self, size: Sequence[int]) -> None:
        """Raises ValueError for an (H, W) that the backbone does not take."""
        if self.fixed_size and tuple(size) != self.fixed_size:
            height, width = self.fixed_size
            raise ValueError(f"backbone '{self.name}' was made for {height}×{width} and takes no {size[0]}×{size[1]}")
        divisor = self.size_divisor
        if any(side % divisor or not side for side in size):
            smaller, larger = zip(*(_nearest(side, divisor) for side in size), strict=True)
            nearest = " or ".join(f"{height}×{width}" for height, width in sorted({smaller, larger}))
            raise ValueError(
                f"size {size[0]}×{size[1]} does not fit: backbone '{self.name}' takes sides that are multiples of "
                f"{divisor}; the nearest that fit: {nearest}"
            )

    def _features(self, net: nn.Module, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) of each stride, as the network has them."""
        features = net(x)
        features = [features[i] for i in self._taken]
        if getattr(net, "output_fmt", None) == Format.NHWC:
            features = [e.permute(0, 3, 1, 2) for e in features]
        return features

    @torch.enable_grad()
    def _observe(self, in_channels: int, size: tuple[int, int], frozen_stages: int | None) -> None:
        """What a forward pass tells, on the meta device: each feature's channels and what it depends on."""
        probe = copy.deepcopy(self.net).to("meta").eval().requires_grad_(True)
        try:
            features = self._features(probe, torch.zeros(1, in_channels, *size, device="meta"))
        except Exception as error:  # an assertion, or whatever else a network has to say of a size
            raise ValueError(
                f"backbone '{self.name}' does not take {size[0]}×{size[1]}: {_first_line(error)}"
            ) from error
        self.channels = [e.shape[1] for e in features]

        stages = len(features) if frozen_stages is None else frozen_stages
        if stages > len(features):
            raise ValueError(f"frozen_stages = {stages}: the features of backbone '{self.name}' are {len(features)}")
        everything = stages == len(features)
        moving = set() if everything else _reached(probe, features) - _reached(probe, features[:stages])
        for name, parameter in self.net.named_parameters():  # those that no feature depends on never learn either
            parameter.requires_grad_(name in moving)
        self._fixed = [self.net] if everything else [part for part in self.net.modules() if _is_frozen(part)]
        self.train()


class EvenlyPadded(Conv2dSame):
    """timm's convolution that pads as TensorFlow does: of stride s, H and W become H / s and W / s, rounded up.

    Where s divides them, as it does for images that are multiples of `size_divisor`, the padding does not depend on
    them, and is a constant here: timm's formula of H and W, nested through the layers of a network, is more than
    torch.export gets done with in minutes where H and W are to stay free.
    """

    def forward(self, x: Tensor) -> Tensor:
        if any(side % stride for side, stride in zip(x.shape[2:], self.stride, strict=True)):
            return super().forward(x)
        padding: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            both = max(dilation * (kernel - 1) + 1 - stride, 0)
            padding = [both // 2, both - both // 2, *padding]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _reached(net: nn.Module, features: list[Tensor]) -> set[str]:
    """The names of the parameters that the features depend on."""
    if not features:
        return set()
    names, parameters = zip(*net.named_parameters(), strict=True)
    whole = sum(e.sum() for e in features)
    gradients = torch.autograd.grad(whole, parameters, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def _is_frozen(part: nn.Module) -> bool:
    """Whether it has parameters, and none of them learns."""
    learns = [parameter.requires_grad for parameter in part.parameters()]
    return bool(learns) and not any(learns)


def _features_of(name: str, in_channels: int, size: tuple[int, int], **given: Any) -> nn.Module:
    fixed = {"img_size": size} if _has_fixed_size(name) else {}
    try:
        return timm.create_model(name, features_only=True, in_chans=in_channels, **fixed, **given)
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        if given:
            raise
        raise ValueError(
            f"timm makes no pyramid of features of '{name}' for {size[0]}×{size[1]} ({_first_line(error)})"
        ) from error


def _has_fixed_size(name: str) -> bool:
    return bool(get_pretrained_cfg(name).fixed_input_size)


def _statistics(config: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (channels, 1, 1) of pixels in [0, 1]."""
    both = (torch.tensor(config.mean), torch.tensor(config.std))
    mean, std = (each if len(each) == channels else each.mean().expand(channels) for each in both)
    return mean[:, None, None].clone(), std[:, None, None].clone()


def _sized(e: Tensor, size: Sequence[int], stride: int) -> Tensor:
    expected = (size[0] // stride, size[1] // stride)
    return e if e.shape[2:] == expected else F.interpolate(e, expected, mode="bilinear", align_corners=False)


def _nearest(side: int, divisor: int) -> tuple[int, int]:
    """The multiples of `divisor` just below and above `side`, from one on."""
    return max(divisor, side // divisor * divisor), max(divisor, -(-side // divisor) * divisor)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__
