"""Convolutions as matrix products on a CPU. They are faster for small maps with many channels, where the kernels of
torch leave most of the CPU idle.

Three operations are closed under differentiation, so gradients of gradients work too (Dumoulin & Visin 2016,
arXiv:1603.07285, §4). Inside a transposed convolution too, x, W and y are named as in a convolution:

    convolve  (x, W) -> y     a convolution; input gradient of a transposed convolution
    spread    (y, W) -> x     a transposed convolution; input gradient of a convolution
    correlate (x, y) -> W     weight gradient of both

Each operation has up to three algorithms (conv_algorithms.py); `default_algorithm` picks one by the shape:

    library   the kernel of torch
    columns   im2col: the patches of x at all window positions, times the weights
    taps      the product of each pixel with each tap of the window, shifted and summed; for many channels of x and few
              of y

All algorithms give the same values up to rounding. Images and weights are channels-last, so that no weight is copied.

Under autocast to bf16, images, weights and gradients are cast to bf16 where they enter an operation, and its result
stays bf16: norms and activations in between take it as it is. Gradients of the weights are fp32 again.

Imports torch, bf16_on_cpu.py, conv_algorithms.py and shared_copy.py only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.compute.bf16_on_cpu import has_bf16_products
from p2pzoo.compute.conv_algorithms import (
    CONVOLVE,
    CORRELATE,
    SPREAD,
    ConvAlgorithm,
    ConvOperation,
    ConvShape,
    ConvWindow,
    image_size,
)
from p2pzoo.compute.shared_copy import copy_sharing_params

_log = logging.getLogger("p2pzoo")

AlgorithmOverrides = Mapping[str, ConvAlgorithm]


_FEW_CHANNELS = 8  # so few channels do not fill a vector register
_MANY_CHANNELS = 64  # so many channels outweigh what "columns" and "taps" copy and add besides their matrix product


def supported_algorithms(shape: ConvShape) -> tuple[ConvAlgorithm, ...]:
    """Return the algorithms that can compute this shape."""
    return ("library", "columns", "taps") if _has_taps(shape) else ("library", "columns")


def default_algorithm(shape: ConvShape) -> ConvAlgorithm:
    """Return the algorithm for a shape, without a kernels file.

    torch's kernels spend their time on the weights if there are few rows; im2col spends it on the columns if there are
    many. Measured by `p2pzoo tune` (benchmarks/README.md): they are equally fast near half as many rows as y has
    channels. For the weight gradient, which torch computes worst, near sixteen times as many. "taps" sums each window
    of its products: that takes as long as torch's kernel near 64 channels of x per channel of y.
    """
    if shape.y <= _FEW_CHANNELS and shape.x >= _MANY_CHANNELS * shape.y and _has_taps(shape):
        return "taps"
    if shape.operation == "correlate":
        return "columns" if shape.rows <= 16 * shape.y and shape.x >= _MANY_CHANNELS else "library"
    if (
        shape.operation == "spread"
        and shape.window.transposed
        and shape.x <= _FEW_CHANNELS
        and shape.y >= _MANY_CHANNELS
    ):
        return "columns"
    return "columns" if 2 * shape.rows <= shape.y else "library"


def _has_taps(shape: ConvShape) -> bool:
    window = shape.window
    if shape.operation == "convolve":
        return True
    sides = zip(window.kernel, window.padding, strict=True)
    return window.stride == window.dilation == (1, 1) and all(p < k for k, p in sides)


class AlgorithmChooser:
    """Pick the algorithm of each shape: that of a kernels file of `p2pzoo tune`, else `default_algorithm`.

    overrides  algorithm by `ConvShape.key`
    """

    def __init__(self, overrides: AlgorithmOverrides | None = None) -> None:
        self.overrides = dict(overrides or {})
        self.algorithm = functools.cache(self._choose)
        self.uses_only_library = functools.cache(self._uses_only_library)

    def _choose(self, shape: ConvShape) -> ConvAlgorithm:
        return self.overrides.get(shape.key(), default_algorithm(shape))

    def _uses_only_library(
        self, batch: int, size: tuple[int, int], x: int, y: int, window: ConvWindow, bf16: bool
    ) -> bool:
        """Whether torch's kernels compute all three operations: the module then calls torch directly."""
        operations: tuple[ConvOperation, ...] = ("convolve", "spread", "correlate")
        shapes = (ConvShape(operation, batch, size, x, y, window, bf16) for operation in operations)
        return all(self.algorithm(shape) == "library" for shape in shapes)


# --- the three operations --------------------------------------------------------------------------------------


def apply_convolve(x: Tensor, weight: Tensor, window: ConvWindow, chooser: AlgorithmChooser) -> Tensor:
    """Convolve x (B, X, H, W) with weight (Y, X, kh, kw) to y (B, Y, h, w); differentiable any number of times."""
    y: Tensor = _Convolve.apply(x, weight, window, chooser)
    return y


def apply_spread(
    y: Tensor, weight: Tensor, window: ConvWindow, size: tuple[int, int], chooser: AlgorithmChooser
) -> Tensor:
    """Transposed convolution of y (B, Y, h, w) with weight (Y, X, kh, kw) to x (B, X, *size), size being (H, W).

    Differentiable any number of times.
    """
    x: Tensor = _Spread.apply(y, weight, window, size, chooser)
    return x


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, window: ConvWindow, chooser: AlgorithmChooser) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window, ctx.chooser = window, chooser
        shape = ConvShape("convolve", x.shape[0], image_size(x), x.shape[1], weight.shape[0], window, _is_bf16(x))
        return CONVOLVE[chooser.algorithm(shape)](x, weight, window)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = _Spread.apply(dy, weight, ctx.window, image_size(x), ctx.chooser) if ctx.needs_input_grad[0] else None
        dw = _Correlate.apply(x, dy, ctx.window, ctx.chooser) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, window: ConvWindow, size: tuple[int, int], chooser: AlgorithmChooser
    ) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.window, ctx.chooser = window, chooser
        shape = ConvShape("spread", y.shape[0], size, weight.shape[1], y.shape[1], window, _is_bf16(y))
        return SPREAD[chooser.algorithm(shape)](y, weight, window, size)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        y, weight = ctx.saved_tensors
        dy = _Convolve.apply(dx, weight, ctx.window, ctx.chooser) if ctx.needs_input_grad[0] else None
        dw = _Correlate.apply(dx, y, ctx.window, ctx.chooser) if ctx.needs_input_grad[1] else None
        return dy, dw, None, None, None


class _Correlate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, window: ConvWindow, chooser: AlgorithmChooser) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.window, ctx.chooser = window, chooser
        shape = ConvShape("correlate", x.shape[0], image_size(x), x.shape[1], y.shape[1], window, _is_bf16(x))
        return CORRELATE[chooser.algorithm(shape)](x, y, window)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        dx = _Spread.apply(y, dw, ctx.window, image_size(x), ctx.chooser) if ctx.needs_input_grad[0] else None
        dy = _Convolve.apply(x, dw, ctx.window, ctx.chooser) if ctx.needs_input_grad[1] else None
        return dx, dy, None, None


# --- modules ---------------------------------------------------------------------------------------------------


def convs_as_gemm(module: nn.Module, chooser: AlgorithmChooser | None = None) -> nn.Module:
    """Return a copy whose convolutions pick their algorithm by shape. It shares its weights with `module`.

    Rewritten are nn.Conv2d and nn.ConvTranspose2d with zero padding and one group whose class does not override
    forward; a subclass or parametrization may change the weight. All other layers keep their forward. A module that
    cannot be copied is returned itself. Both cases are logged at debug level.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 4))
    >>> convs_as_gemm(network)(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 8, 13, 13])
    """
    chooser = chooser or AlgorithmChooser()
    copied = copy_sharing_params(module)
    if copied is None:
        return module
    for name, part in copied.named_modules():
        if not isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if reason := _why_unsupported(part):
            _log.debug("%s (%s) is not rewritten: %s", name, type(part).__name__, reason)
            continue
        if isinstance(part, nn.Conv2d):
            part.forward = functools.partial(_forward, part, _window(part), chooser)  # type: ignore[method-assign]
        else:
            part.forward = functools.partial(_transposed_forward, part, _window(part), chooser)  # type: ignore[method-assign]
    return copied


def _why_unsupported(part: nn.Conv2d | nn.ConvTranspose2d) -> str | None:
    base = nn.ConvTranspose2d if isinstance(part, nn.ConvTranspose2d) else nn.Conv2d
    if type(part).forward is not base.forward or type(part)._conv_forward is not base._conv_forward:
        return "its class overrides forward"
    if part.padding_mode != "zeros" or isinstance(part.padding, str):
        return f"padding {part.padding!r}, {part.padding_mode}"
    return f"{part.groups} groups" if part.groups != 1 else None


def _forward(part: nn.Conv2d, window: ConvWindow, chooser: AlgorithmChooser, x: Tensor) -> Tensor:
    def layer(dtype: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        channels = part.in_channels, part.out_channels
        if (
            dtype is None
            or min(window.positions(image_size(x))) < 1
            or chooser.uses_only_library(x.shape[0], image_size(x), *channels, window, dtype == torch.bfloat16)
        ):
            return F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation)
        y = apply_convolve(x.to(dtype), weight.to(dtype), window, chooser)
        return y if bias is None else y + bias.to(dtype)[:, None, None]

    weight = part.weight  # read once: each access recomputes a parametrized weight
    return _compute(layer, _gemm_dtype(x, weight, part.in_channels), x, weight, part.bias)


def _transposed_forward(
    part: nn.ConvTranspose2d,
    window: ConvWindow,
    chooser: AlgorithmChooser,
    y: Tensor,
    output_size: list[int] | None = None,
) -> Tensor:
    geometry = (part.stride, part.padding, part.kernel_size, 2, part.dilation)
    extra = part._output_padding(y, output_size, *geometry)  # type: ignore[arg-type]
    sides = zip(image_size(y), window.kernel, window.stride, window.padding, window.dilation, extra, strict=True)
    height, width = ((n - 1) * s - 2 * p + d * (k - 1) + 1 + e for n, k, s, p, d, e in sides)

    def layer(dtype: torch.dtype | None, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        channels = part.out_channels, part.in_channels
        if (
            dtype is None
            or min(height, width) < 1
            or chooser.uses_only_library(y.shape[0], (height, width), *channels, window, dtype == torch.bfloat16)
        ):
            return F.conv_transpose2d(y, weight, bias, window.stride, window.padding, extra, 1, window.dilation)
        x = apply_spread(y.to(dtype), weight.to(dtype), window, (height, width), chooser)
        return x if bias is None else x + bias.to(dtype)[:, None, None]

    weight = part.weight
    return _compute(layer, _gemm_dtype(y, weight, part.in_channels), y, weight, part.bias)


def _compute(layer: Callable[..., Tensor], dtype: torch.dtype | None, *tensors: Tensor | None) -> Tensor:
    """Call `layer` with a dtype and the image, weight and bias.

    On a CPU without bf16 products, a training step of torch's bf16 kernels takes twenty times as long as one in fp32.
    There the numbers, rounded to bf16, are multiplied in fp32, where their products are exact, and the result is
    rounded: only the order of the sums differs.
    """
    if dtype != torch.bfloat16 or has_bf16_products() is not False:
        return layer(dtype, *tensors)
    with torch.autocast("cpu", enabled=False):
        rounded = (None if tensor is None else tensor.bfloat16().float() for tensor in tensors)
        return layer(torch.float32, *rounded).bfloat16()


def _gemm_dtype(image: Tensor, weight: Tensor, channels: int) -> torch.dtype | None:
    """The dtype to compute in: bf16 under autocast to it, else that of the image and the weights.

    None if the input is not a non-empty batch on the CPU, or has another dtype than the weights. Then torch's layer is
    called, and raises its own errors.
    """
    if image.ndim != 4 or image.numel() == 0 or image.shape[1] != channels or image.device.type != "cpu":
        return None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        kinds = {image.dtype, weight.dtype}
        return dtype if dtype == torch.bfloat16 and kinds <= {torch.float32, torch.bfloat16} else None
    return image.dtype if image.dtype == weight.dtype else None


def _is_bf16(image: Tensor) -> bool:
    return image.dtype == torch.bfloat16


def _window(part: nn.Conv2d | nn.ConvTranspose2d) -> ConvWindow:
    kernel, stride, dilation = part.kernel_size, part.stride, part.dilation
    padding = part.padding
    assert not isinstance(padding, str)  # _unfit
    transposed = isinstance(part, nn.ConvTranspose2d)
    return ConvWindow(kernel, stride, padding, dilation, transposed)  # type: ignore[arg-type]
