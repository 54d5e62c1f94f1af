"""Convolutions as matrix products, where the library's own kernels leave most of a CPU idle: small maps, many channels.

Three operations are closed under differentiation, so that gradients of gradients are too (Dumoulin & Visin 2016,
arXiv:1603.07285, §4; names of the tensors are those of a convolution also inside a transposed one):

    convolve  (x, W) -> y     a convolution; a transposed one's gradient to its input
    spread    (y, W) -> x     a transposed convolution; a convolution's gradient to its input
    correlate (x, y) -> W     the gradient to the weights of either

Each is computed by torch's kernel or in a form that is one matrix product, as `shipped_rule` says for its shape:

    library   torch's own kernel
    columns   the columns of x (im2col): what each position of the window sees, times the weights
    taps      the products of each pixel with each tap of the window, shifted and added; for few channels of y

All give the same values to rounding. Images and weights lie channels-last in memory, so that no weight is copied.

Imports torch and twins.py only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo.compute.shared_copy import copy_sharing_params

log = logging.getLogger("p2pzoo")

Operation = Literal["convolve", "spread", "correlate"]
Form = Literal["library", "columns", "taps"]
Overrides = Mapping[str, Form]


@dataclass(frozen=True)
class Window:
    """A convolution's geometry, each as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool = False  # which of the two the module is

    def positions(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of y for this (H, W) of x."""
        spans = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in spans)
        return height, width


@dataclass(frozen=True)
class Shape:
    """What the choice between torch's kernel and a product depends on.

    batch, size       images, and (H, W) of x
    x, y              channels
    """

    operation: Operation
    batch: int
    size: tuple[int, int]
    x: int
    y: int
    window: Window

    @property
    def rows(self) -> int:
        """Positions of the window in the whole batch: the rows of the columns."""
        return self.batch * _area(self.window.positions(self.size))

    def key(self) -> str:
        """Its name in an override file: `convolve 1x3x8x8 64 kernel 4x4 stride 2x2 padding 1x1 dilation 1x1`."""
        w, sides = self.window, f"{self.batch}x{self.x}x{self.size[0]}x{self.size[1]}"
        geometry = f"kernel {_by(w.kernel)} stride {_by(w.stride)} padding {_by(w.padding)} dilation {_by(w.dilation)}"
        return f"{self.operation} {sides} {self.y} {geometry}{' transposed' if w.transposed else ''}"


FEW = 8  # channels that fill no vector register


def forms(shape: Shape) -> tuple[Form, ...]:
    """The forms there are for this shape."""
    return ("library", "columns", "taps") if _has_taps(shape) else ("library", "columns")


def shipped_rule(shape: Shape) -> Form:
    """torch's kernels spend their time on the weights where rows are few, products on the columns where they are many.

    Measured by `p2pzoo tune` (benchmarks/README.md): the two meet near half as many rows as y has channels; for the
    gradient to the weights, which the library computes worst, near sixteen times as many.
    """
    if shape.y <= FEW and _has_taps(shape):
        return "taps"
    if shape.operation == "correlate":
        return "columns" if shape.rows <= 16 * shape.y and shape.x >= 64 else "library"
    if shape.operation == "spread" and shape.window.transposed and shape.x <= FEW:
        return "columns"
    return "columns" if 2 * shape.rows <= shape.y else "library"


def _has_taps(shape: Shape) -> bool:
    window = shape.window
    if shape.operation == "convolve":
        return True
    reach = zip(window.kernel, window.padding, strict=True)
    return window.stride == window.dilation == (1, 1) and all(p < k for k, p in reach)


class Chooser:
    """The form of each shape: the shipped rule, but where an override file of `p2pzoo tune` says otherwise."""

    def __init__(self, overrides: Overrides | None = None) -> None:
        self.overrides = dict(overrides or {})
        self.form = functools.cache(self._form)
        self.library_only = functools.cache(self._library_only)

    def _form(self, shape: Shape) -> Form:
        return self.overrides.get(shape.key(), shipped_rule(shape))

    def _library_only(self, batch: int, size: tuple[int, int], x: int, y: int, window: Window) -> bool:
        """Whether torch's kernels do all three operations: then nothing needs to be in between."""
        operations: tuple[Operation, ...] = ("convolve", "spread", "correlate")
        return all(self.form(Shape(each, batch, size, x, y, window)) == "library" for each in operations)


# the three operations


def convolve(x: Tensor, weight: Tensor, window: Window, choose: Chooser) -> Tensor:
    """x (B, X, H, W), weight (Y, X, kh, kw) -> (B, Y, h, w), differentiable any number of times."""
    y: Tensor = _Convolve.apply(x, weight, window, choose)
    return y


def spread(y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], choose: Chooser) -> Tensor:
    """y (B, Y, h, w), weight (Y, X, kh, kw) -> (B, X, *size), differentiable any number of times."""
    x: Tensor = _Spread.apply(y, weight, window, size, choose)
    return x


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, window: Window, choose: Chooser) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window, ctx.choose = window, choose
        shape = Shape("convolve", x.shape[0], _size(x), x.shape[1], weight.shape[0], window)
        return CONVOLVE[choose.form(shape)](x, weight, window)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = _Spread.apply(dy, weight, ctx.window, _size(x), ctx.choose) if ctx.needs_input_grad[0] else None
        dw = _Correlate.apply(x, dy, ctx.window, ctx.choose) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], choose: Chooser) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.window, ctx.choose = window, choose
        shape = Shape("spread", y.shape[0], size, weight.shape[1], y.shape[1], window)
        return SPREAD[choose.form(shape)](y, weight, window, size)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        y, weight = ctx.saved_tensors
        dy = _Convolve.apply(dx, weight, ctx.window, ctx.choose) if ctx.needs_input_grad[0] else None
        dw = _Correlate.apply(dx, y, ctx.window, ctx.choose) if ctx.needs_input_grad[1] else None
        return dy, dw, None, None, None


class _Correlate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, window: Window, choose: Chooser) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.window, ctx.choose = window, choose
        shape = Shape("correlate", x.shape[0], _size(x), x.shape[1], y.shape[1], window)
        return CORRELATE[choose.form(shape)](x, y, window)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        dx = _Spread.apply(y, dw, ctx.window, _size(x), ctx.choose) if ctx.needs_input_grad[0] else None
        dy = _Convolve.apply(x, dw, ctx.window, ctx.choose) if ctx.needs_input_grad[1] else None
        return dx, dy, None, None


# in columns


def _columns_convolve(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    height, width = window.positions(_size(x))
    return _image(product(_columns(x, window), _matrix(weight)), x.shape[0], height, width)


def _columns_correlate(x: Tensor, y: Tensor, window: Window) -> Tensor:
    weight = product(_rows(y).t(), _columns(x, window).t())
    return weight.view(y.shape[1], *window.kernel, x.shape[1]).permute(0, 3, 1, 2)


def _columns_spread(y: Tensor, weight: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    (kernel, across), (down, right) = window.kernel, window.stride
    parts = product(_rows(y), _matrix(weight).t()).view(*_nhw(y), kernel, across, -1)
    if kernel % down or across % right or window.dilation != (1, 1):
        return _added(parts, window, size)
    return _added_in_blocks(parts, window, size)


def _columns(x: Tensor, window: Window) -> Tensor:
    """(B·h·w, kh·kw·X): what each position of the window sees, padded with zeros."""
    height, width = window.positions(_size(x))
    seen = x.permute(0, 2, 3, 1)
    if any(window.padding):
        vertical, horizontal = window.padding
        seen = F.pad(seen, (0, 0, horizontal, horizontal, vertical, vertical))
    image, row, column, channel = seen.stride()
    (down, right), (below, beside) = window.stride, window.dilation
    columns = seen.as_strided(
        (x.shape[0], height, width, *window.kernel, x.shape[1]),
        (image, down * row, right * column, below * row, beside * column, channel),
        seen.storage_offset(),
    )
    return columns.reshape(x.shape[0] * height * width, -1)


def _added(parts: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Parts (B, h, w, kh, kw, X), one window for each position of y, laid over one another (col2im)."""
    batch, height, width = parts.shape[:3]
    (vertical, horizontal), (down, right), (below, beside) = window.padding, window.stride, window.dilation
    x = parts.new_zeros(batch, size[0] + 2 * vertical, size[1] + 2 * horizontal, parts.shape[-1])
    for i in range(window.kernel[0]):
        rows = slice(i * below, i * below + down * (height - 1) + 1, down)
        for j in range(window.kernel[1]):
            x[:, rows, j * beside : j * beside + right * (width - 1) + 1 : right] += parts[:, :, :, i, j]
    return x[:, vertical : vertical + size[0], horizontal : horizontal + size[1]].permute(0, 3, 1, 2)


def _added_in_blocks(parts: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """The same where the stride divides the kernel: whole blocks of stride × stride taps are added at once."""
    batch, height, width, kernel, across, channels = parts.shape
    (vertical, horizontal), (down, right) = window.padding, window.stride
    over, beside = kernel // down, across // right
    blocks = parts.view(batch, height, width, over, down, beside, right, channels).permute(3, 5, 0, 1, 4, 2, 6, 7)
    added = parts.new_empty(batch, height + over - 1, down, width + beside - 1, right, channels)
    added[:, :height, :, :width] = blocks[0, 0]
    added[:, height:] = 0
    added[:, :height, :, width:] = 0
    for i in range(over):
        for j in range(beside):
            if i or j:
                added[:, i : i + height, :, j : j + width] += blocks[i, j]
    padded = added.view(batch, (height + over - 1) * down, (width + beside - 1) * right, channels)
    x = padded[:, vertical : vertical + size[0], horizontal : horizontal + size[1]]
    short = (size[0] - x.shape[1], size[1] - x.shape[2])  # of rows and columns that no window reaches
    x = F.pad(x, (0, 0, 0, short[1], 0, short[0])) if any(short) else x.contiguous()
    return x.permute(0, 3, 1, 2)


# in taps


def _taps_convolve(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Every pixel of x times every tap, and for each position the sum of the products that its window holds."""
    taps = product(_rows(x), weight.permute(2, 3, 0, 1).reshape(-1, x.shape[1]))
    (vertical, horizontal), (down, right), (below, beside) = window.padding, window.stride, window.dilation
    taps = F.pad(taps.view(*_nhw(x), -1), (0, 0, horizontal, horizontal, vertical, vertical))
    image, row, column, _ = taps.stride()
    channels = weight.shape[0]
    held = taps.as_strided(
        (x.shape[0], *window.positions(_size(x)), *window.kernel, channels),
        (image, down * row, right * column, below * row + window.kernel[1] * channels, beside * column + channels, 1),
    )
    return held.sum((3, 4)).permute(0, 3, 1, 2)


def _taps_correlate(x: Tensor, y: Tensor, window: Window) -> Tensor:
    weight = product(_taps_of(y, window).t(), _rows(x).t())
    weight = weight.view(*window.kernel, y.shape[1], x.shape[1]).flip(0, 1)
    laid = weight.permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format)  # where Y is 1, its stride too
    return laid.permute(0, 3, 1, 2)


def _taps_spread(y: Tensor, weight: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    turned = weight.flip(2, 3).permute(1, 2, 3, 0).reshape(weight.shape[1], -1)
    return _image(product(_taps_of(y, window), turned), y.shape[0], *size)


def _taps_of(y: Tensor, window: Window) -> Tensor:
    """(B·H·W, kh·kw·Y): for each pixel of x the values of y whose windows hold it, the last tap first (stride 1)."""
    (kernel, across), (vertical, horizontal) = window.kernel, window.padding
    around = (kernel - 1 - vertical, across - 1 - horizontal)
    return _columns(y, Window(window.kernel, (1, 1), around, (1, 1)))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) times the transpose of b (N, K). oneDNN's kernel where torch has it: MKL's is half as fast on AMD."""
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return found
    return a @ b.t()


def _matrix(weight: Tensor) -> Tensor:
    """(Y, X, kh, kw) -> (Y, kh·kw·X), without a copy where it lies channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _rows(y: Tensor) -> Tensor:
    """(B, Y, h, w) -> (B·h·w, Y), without a copy where it lies channels-last."""
    return y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def _nhw(image: Tensor) -> tuple[int, int, int]:
    return image.shape[0], image.shape[2], image.shape[3]


def _image(rows: Tensor, batch: int, height: int, width: int) -> Tensor:
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"


# by torch's kernels


def _library_convolve(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    return F.conv2d(x, weight, None, window.stride, window.padding, window.dilation)


def _library_spread(y: Tensor, weight: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    if not window.transposed:
        like = y.new_empty(()).expand(y.shape[0], weight.shape[1], *size)
        like = torch.empty_like(like, memory_format=torch.channels_last)
        return _library_gradients(y, like, weight, window, (True, False, False))[0]
    spans = zip(size, _size(y), window.kernel, window.stride, window.padding, window.dilation, strict=True)
    extra = [side - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for side, n, k, s, p, d in spans]
    return F.conv_transpose2d(y, weight, None, window.stride, window.padding, extra, 1, window.dilation)


def _library_correlate(x: Tensor, y: Tensor, window: Window) -> Tensor:
    weight = torch.empty((y.shape[1], *window.kernel, x.shape[1]), dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)
    return _library_gradients(y, x, weight, window, (False, True, False))[1]


def _library_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, window: Window, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        dy, x, weight, None, window.stride, window.padding, window.dilation, False, (0, 0), 1, wanted
    )
    return gradients


CONVOLVE = {"library": _library_convolve, "columns": _columns_convolve, "taps": _taps_convolve}
SPREAD = {"library": _library_spread, "columns": _columns_spread, "taps": _taps_spread}
CORRELATE = {"library": _library_correlate, "columns": _columns_correlate, "taps": _taps_correlate}


# modules


def convs_as_gemm(module: nn.Module, choose: Chooser | None = None) -> nn.Module:
    """A copy whose convolutions choose their kernels by shape. It shares every parameter and buffer with `module`.

    What a convolution must be: nn.Conv2d or nn.ConvTranspose2d with their own forward (a subclass or parametrization
    may change the weight), zero padding, one group. Anything else stays as it is, and so does a module that cannot
    be copied; logged at debug level.
    """
    choose = choose or Chooser()
    twin = copy_sharing_params(module)
    if twin is None:
        return module
    for name, part in twin.named_modules():
        if not isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if reason := _unfit(part):
            log.debug("%s (%s) stays as it is: %s", name, type(part).__name__, reason)
            continue
        if isinstance(part, nn.Conv2d):
            part.forward = functools.partial(_forward, part, _window(part), choose)  # type: ignore[method-assign]
        else:
            part.forward = functools.partial(_transposed_forward, part, _window(part), choose)  # type: ignore[method-assign]
    return twin


def _unfit(part: nn.Conv2d | nn.ConvTranspose2d) -> str | None:
    own = nn.ConvTranspose2d if isinstance(part, nn.ConvTranspose2d) else nn.Conv2d
    if type(part).forward is not own.forward or type(part)._conv_forward is not own._conv_forward:
        return "it has a forward of its own"
    if part.padding_mode != "zeros" or isinstance(part.padding, str):
        return f"padding {part.padding!r}, {part.padding_mode}"
    return f"{part.groups} groups" if part.groups != 1 else None


def _forward(part: nn.Conv2d, window: Window, choose: Chooser, x: Tensor) -> Tensor:
    weight = part.weight  # read once: a parametrized weight is computed at each reading
    if (
        not _holds(x, weight, part.in_channels)
        or min(window.positions(_size(x))) < 1
        or choose.library_only(x.shape[0], _size(x), part.in_channels, part.out_channels, window)
    ):
        return F.conv2d(x, weight, part.bias, window.stride, window.padding, window.dilation)
    y = convolve(x, weight, window, choose)
    return y if part.bias is None else y + part.bias[:, None, None]


def _transposed_forward(
    part: nn.ConvTranspose2d, window: Window, choose: Chooser, y: Tensor, output_size: list[int] | None = None
) -> Tensor:
    weight = part.weight
    given = (part.stride, part.padding, part.kernel_size, 2, part.dilation)
    extra = part._output_padding(y, output_size, *given)  # type: ignore[arg-type]
    sides = zip(_size(y), window.kernel, window.stride, window.padding, window.dilation, extra, strict=True)
    height, width = ((n - 1) * s - 2 * p + d * (k - 1) + 1 + e for n, k, s, p, d, e in sides)
    if (
        not _holds(y, weight, part.in_channels)
        or min(height, width) < 1
        or choose.library_only(y.shape[0], (height, width), part.out_channels, part.in_channels, window)
    ):
        return F.conv_transpose2d(y, weight, part.bias, window.stride, window.padding, extra, 1, window.dilation)
    x = spread(y, weight, window, (height, width), choose)
    return x if part.bias is None else x + part.bias[:, None, None]


def _holds(image: Tensor, weight: Tensor, channels: int) -> bool:
    """Whether the products are for this: batches on a CPU, in the precision of the weights. torch refuses the rest."""
    plain = image.ndim == 4 and image.dtype == weight.dtype and image.numel() > 0 and image.shape[1] == channels
    return plain and image.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _window(part: nn.Conv2d | nn.ConvTranspose2d) -> Window:
    kernel, stride, dilation = part.kernel_size, part.stride, part.dilation
    padding = part.padding
    assert not isinstance(padding, str)  # _unfit
    transposed = isinstance(part, nn.ConvTranspose2d)
    return Window(kernel, stride, padding, dilation, transposed)  # type: ignore[arg-type]
