"""A backbone of timm as a feature pyramid: one map for each of its strides."""

import copy
import difflib
import inspect
from collections.abc import Sequence
from math import lcm, log2
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame, Format
from timm.models import get_pretrained_cfg, is_model_in_modules
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo_timm.block_layers import choose_layers, resize_to_patches
from p2pzoo_timm.group_norm import replace_batch_norms
from p2pzoo_timm.weights import weight_arguments

# Their windows are built for a size, and their weights fit any
SWIN_TRANSFORMERS = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Backbone(nn.Module):
    """Any network of timm that supports `features_only=True`.

    x         (B, in_channels, H, W) in [-1, 1]; it is normalised with the mean and standard deviation that the network
              was trained with. For other channel counts, timm adapts the first convolution, and the mean over the
              channels replaces both statistics
    features  one (B, channels[i], H / strides[i], W / strides[i]) for each stride, from the input on: the last of those
              that share a stride. Strides are powers of two. Features of other strides, such as 14, and features that
              are smaller because of unpadded convolutions are resized bilinearly to this size

    With `layers`, it gives so many features of one stride: those of evenly spaced blocks of a vision transformer, the
    last included. x is resized bilinearly to the nearest multiple of its patches before that, such as 128 to 126 px for
    patches of 14 px; without `layers`, patches cut off what is left over at the borders.

    H and W are multiples of `size_divisor`: of the strides and, if the network accepts more than one size, of its own
    reduction factors.

    The weights are timm's: pretrained, or timm's own initialisation. The constructor does not load them;
    `init_own_weights` does (see p2pzoo.plugin.Generator). So a model file loads without the weights and without a
    download.

    name           the name in timm, with or without a tag
    in_channels    channels of x
    size           (H, W) of x, and the only valid size if the network has a `fixed_size`
    pretrained     timm's weights, downloaded to its cache at the first use
    weights        a file with the weights instead
    frozen_stages  the number of features, from the input on, that are frozen: no parameter before them gets a gradient,
                   and norms there stay in eval mode. None: all features
    group_norm     replace its batch norms by group norms
    layers         the number of features of a network whose features have one stride; None: one for each stride

    Raises ValueError for a name that timm does not know, for a network without such features, for a size that the
    network does not accept, and for group norm in place of batch norms that the weights belong to.
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
        group_norm: bool = False,
        layers: int | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            raise ValueError(f"timm has no network '{name}'" + (f": did you mean '{near[0]}'?" if near else ""))
        self.name = name
        self._patch, indices = choose_layers(name, layers) if layers else (None, None)
        self._arguments, self._group_norm = (in_channels, resize_to_patches(size, self._patch), indices), group_norm
        self._weights_source: dict[str, Any] = {"pretrained": pretrained, "weights": weights}
        self.net = _create_features(name, *self._arguments)
        if group_norm and self._replace_batch_norms(self.net) and (pretrained or weights):
            source = "pretrained = true" if pretrained else "weights"
            raise ValueError(
                f"{source}: the weights of '{name}' belong to its batch norm, which norm = \"group\" replaces: leave "
                'them out, or choose a backbone without batch norm, such as "convnext_atto"'
            )
        for part in self.net.modules():
            if type(part) is Conv2dSame:
                part.__class__ = EvenlyPadded
        self._has_windows = _takes_other_sizes(name)
        self.fixed_size = size if _has_fixed_size(name) and not self._has_windows else None

        reductions = [int(reduction) for reduction in self.net.feature_info.reduction()]
        last = {2 ** round(log2(reduction)): i for i, reduction in enumerate(reductions)}
        self.strides = sorted(last) * (layers or 1)
        self._feature_indices = [*range(layers)] if layers else [last[stride] for stride in self.strides]
        self.size_divisor = self.strides[-1] if self.fixed_size or layers else lcm(*self.strides, *reductions)
        self.check(size)
        self._trace(in_channels, size, frozen_stages)

        mean, std = _statistics(get_pretrained_cfg(name), in_channels)
        self.register_buffer("scale", 0.5 / std)  # [-1, 1] to [0, 1], then to the network's statistics
        self.register_buffer("shift", (0.5 - mean) / std)

    def init_own_weights(self) -> None:
        """Load timm's weights or initialisation. Raises UserError if weights cannot be loaded or do not fit."""
        weights = weight_arguments(self.name, **self._weights_source)
        try:
            fresh = _create_features(self.name, *self._arguments, **weights)
        except Exception as error:  # timm, its download and its cache have no common exception class
            reason = f"cannot load weights of '{self.name}': {_first_line(error)}"
            advice = "" if self._weights_source["weights"] else '; to load a file instead: weights = "FILE"'
            raise UserError(reason + advice) from error
        if self._group_norm:
            self._replace_batch_norms(fresh)
        self.net.load_state_dict(fresh.state_dict())

    def _replace_batch_norms(self, net: nn.Module) -> int:
        try:
            return replace_batch_norms(net)
        except ValueError as error:
            raise ValueError(f"backbone '{self.name}': {error}") from None

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check(x.shape[2:])
        if self._has_windows and any(isinstance(side, torch.SymInt) for side in x.shape[2:]):
            raise ValueError(
                f"backbone '{self.name}': torch.export does not end for free sides, because of its windows"
            )
        features = self._features(self.net, x * self.scale + self.shift)
        return [_resize_to_stride(e, x.shape[2:], stride) for e, stride in zip(features, self.strides, strict=True)]

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def check(self, size: Sequence[int]) -> None:
        """Raise ValueError for an (H, W) that the backbone does not accept."""
        if self.fixed_size and tuple(size) != self.fixed_size:
            height, width = self.fixed_size
            raise ValueError(f"backbone '{self.name}' accepts only the size {height}×{width}, not {size[0]}×{size[1]}")
        divisor = self.size_divisor
        if any(side % divisor or not side for side in size):
            smaller, larger = zip(*(_nearest(side, divisor) for side in size), strict=True)
            nearest = " or ".join(f"{height}×{width}" for height, width in sorted({smaller, larger}))
            raise ValueError(
                f"size {size[0]}×{size[1]} does not fit: backbone '{self.name}' needs sides that are multiples of "
                f"{divisor}; the nearest that fit: {nearest}"
            )

    def check_batch_norms(self, size: Sequence[int]) -> None:
        """Raise ValueError if batch norms that are in training get a single value per channel of an image of this size.

        They fail then. Norms for which no larger size helps, such as those after a global mean, are not counted.
        """
        stride = self.strides[-1]
        if self.fixed_size or any(side != stride for side in size):
            return
        if self._single_value_norms(size) - self._single_value_norms((2 * stride, 2 * stride)):
            raise ValueError(
                f"size {stride}×{stride} does not fit: batch norms of backbone '{self.name}' cannot be trained on the "
                f"single value per channel that an image leaves at stride {stride}; the nearest that fit: "
                f"{stride}×{2 * stride} or {2 * stride}×{stride}; square: {2 * stride}×{2 * stride}"
            )

    def _single_value_norms(self, size: Sequence[int]) -> set[str]:
        """The names of batch norms in training mode that get one value per channel of one image of this size."""
        found = set()

        def note(norm: Any, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                found.add(names[norm])

        norms = {name: part for name, part in self.net.named_modules() if isinstance(part, BATCH_NORMS)}
        probe = copy.deepcopy(self.net).to("meta").eval()
        names = {probe.get_submodule(name): name for name, norm in norms.items() if norm.training}
        for norm in names:
            norm.register_forward_pre_hook(note)
        self._features(probe, torch.zeros(1, self._arguments[0], *size, device="meta"))
        return found

    def _features(self, net: nn.Module, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) for each stride, at the size that the network gives."""
        if (size := resize_to_patches(x.shape[2:], self._patch)) != tuple(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        features = net(x)
        features = [features[i] for i in self._feature_indices]
        if getattr(net, "output_fmt", None) == Format.NHWC:
            features = [e.permute(0, 3, 1, 2) for e in features]
        return features

    @torch.enable_grad()
    def _trace(self, in_channels: int, size: tuple[int, int], frozen_stages: int | None) -> None:
        """Find the channels of each feature and the parameters it depends on, by a forward pass on the meta device."""
        probe = copy.deepcopy(self.net).to("meta").eval().requires_grad_(True)
        try:
            features = self._features(probe, torch.zeros(1, in_channels, *size, device="meta"))
        except Exception as error:  # networks raise any exception for a wrong size, also assertions
            raise ValueError(
                f"backbone '{self.name}' does not accept {size[0]}×{size[1]}: {_first_line(error)}"
            ) from error
        self.channels = [e.shape[1] for e in features]

        stages = len(features) if frozen_stages is None else frozen_stages
        if stages > len(features):
            raise ValueError(
                f"frozen_stages = {stages}: backbone '{self.name}' has only {format_count(len(features), 'feature')}"
            )
        all_frozen = stages == len(features)
        trainable = (
            set() if all_frozen else reached_parameters(probe, features) - reached_parameters(probe, features[:stages])
        )
        for name, parameter in self.net.named_parameters():  # also freezes parameters that no feature depends on
            parameter.requires_grad_(name in trainable)
        self._frozen = [self.net] if all_frozen else [part for part in self.net.modules() if _is_frozen(part)]
        self.train()


class EvenlyPadded(Conv2dSame):
    """timm's convolution with TensorFlow's padding: with stride s, H and W become H / s and W / s, rounded up.

    If s divides them, as it does for images that are multiples of `size_divisor`, the padding does not depend on H and
    W and is a constant here. timm's formula depends on H and W; nested through all layers it keeps torch.export busy
    for minutes if H and W are dynamic.
    """

    def forward(self, x: Tensor) -> Tensor:
        if any(side % stride for side, stride in zip(x.shape[2:], self.stride, strict=True)):
            return super().forward(x)
        padding: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            padding = [total // 2, total - total // 2, *padding]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def reached_parameters(net: nn.Module, features: list[Tensor]) -> set[str]:
    """The names of the parameters that the features depend on, from autograd's graph: on meta tensors a backward pass
    takes seconds."""
    waiting = [e.grad_fn for e in features]
    visited, leaves = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):  # the node of a leaf, which accumulates its gradient
            leaves.add(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                waiting.append(following)
    return {name for name, parameter in net.named_parameters() if parameter in leaves}


def _is_frozen(part: nn.Module) -> bool:
    """Whether the module has parameters, and none of them is trainable."""
    trainable = [parameter.requires_grad for parameter in part.parameters()]
    return bool(trainable) and not any(trainable)


def _create_features(
    name: str, in_channels: int, size: tuple[int, int], indices: list[int] | None, **weights: Any
) -> nn.Module:
    options: dict[str, Any] = {"img_size": size} if _has_fixed_size(name) else {}
    if _takes_other_sizes(name):
        options["strict_img_size"] = False  # bit-identical at `size`
    if indices is not None:
        options["out_indices"] = indices
    try:
        return timm.create_model(name, features_only=True, in_chans=in_channels, **options, **weights)
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        if weights:
            raise
        raise ValueError(
            f"timm cannot build a feature pyramid of '{name}' for {size[0]}×{size[1]} ({_first_line(error)})"
        ) from error


def _has_fixed_size(name: str) -> bool:
    """Whether timm builds the network for one size, which then is an argument."""
    return bool(get_pretrained_cfg(name).fixed_input_size)


def _takes_other_sizes(name: str) -> bool:
    """Whether it takes other sizes too than the one that it is built for, with a timm that can."""
    can_be_free = "strict_img_size" in inspect.signature(SwinTransformer).parameters
    return can_be_free and is_model_in_modules(name, SWIN_TRANSFORMERS)


def _statistics(config: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (channels, 1, 1) of pixels in [0, 1]."""
    statistics = (torch.tensor(config.mean), torch.tensor(config.std))
    mean, std = (each if len(each) == channels else each.mean().expand(channels) for each in statistics)
    return mean[:, None, None].clone(), std[:, None, None].clone()


def _resize_to_stride(e: Tensor, size: Sequence[int], stride: int) -> Tensor:
    expected = (size[0] // stride, size[1] // stride)
    return e if e.shape[2:] == expected else F.interpolate(e, expected, mode="bilinear", align_corners=False)


def _nearest(side: int, divisor: int) -> tuple[int, int]:
    """The multiples of `divisor` just below and above `side`, at least `divisor` itself."""
    return max(divisor, side // divisor * divisor), max(divisor, -(-side // divisor) * divisor)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__
