"""The algorithms of the three operations of a convolution (conv_as_gemm.py): library, columns and taps.

Images and weights are channels-last, so that no weight is copied. Every view is taken in one step (`as_strided`): at
small maps a training step spends a third of its time on the calls of torch, and each slice, permute and view is two.

Imports torch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ConvOperation = Literal["convolve", "spread", "correlate"]
ConvAlgorithm = Literal["library", "columns", "taps"]


@dataclass(frozen=True)
class ConvWindow:
    """Geometry of a convolution; each pair is (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool = False  # whether the module is an nn.ConvTranspose2d

    def positions(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (H, W) of y for this (H, W) of x.

        >>> ConvWindow(kernel=(4, 4), stride=(2, 2), padding=(1, 1), dilation=(1, 1)).positions((256, 256))
        (128, 128)
        """
        spans = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in spans)
        return height, width


@dataclass(frozen=True)
class ConvShape:
    """Shape of an operation; the choice of the algorithm depends on it alone.

    operation    "convolve", "spread" or "correlate"
    batch        number of images
    size         (H, W) of x
    x, y         channels of x and of y
    window       geometry of the convolution
    bf16         whether images and weights are bfloat16
    """

    operation: ConvOperation
    batch: int
    size: tuple[int, int]
    x: int
    y: int
    window: ConvWindow
    bf16: bool = False

    @property
    def rows(self) -> int:
        """Number of window positions in the batch: rows of the im2col matrix."""
        return self.batch * _area(self.window.positions(self.size))

    def key(self) -> str:
        """Return the key of this shape in a kernels file.

        >>> ConvShape("convolve", 1, (8, 8), 3, 64, ConvWindow((4, 4), (2, 2), (1, 1), (1, 1))).key()
        'convolve 1x3x8x8 64 kernel 4x4 stride 2x2 padding 1x1 dilation 1x1'
        """
        w, sides = self.window, f"{self.batch}x{self.x}x{self.size[0]}x{self.size[1]}"
        parts = {"kernel": w.kernel, "stride": w.stride, "padding": w.padding, "dilation": w.dilation}
        geometry = " ".join(f"{name} {height}x{width}" for name, (height, width) in parts.items())
        marks = f"{' transposed' if w.transposed else ''}{' bf16' if self.bf16 else ''}"
        return f"{self.operation} {sides} {self.y} {geometry}{marks}"


# --- algorithm "columns" ---------------------------------------------------------------------------------------


def _columns_convolve(x: Tensor, weight: Tensor, window: ConvWindow) -> Tensor:
    height, width = window.positions(image_size(x))
    return _image(matmul_transposed(_im2col(x, window), _matrix(weight)), x.shape[0], height, width)


def _columns_correlate(x: Tensor, y: Tensor, window: ConvWindow) -> Tensor:
    matrix = matmul_transposed(_transposed(_rows(y)), _transposed(_im2col(x, window)))
    (kernel_h, kernel_w), channels = window.kernel, x.shape[1]
    row = kernel_w * channels
    return matrix.as_strided((y.shape[1], channels, kernel_h, kernel_w), (kernel_h * row, 1, row, channels))


def _columns_spread(y: Tensor, weight: Tensor, window: ConvWindow, size: tuple[int, int]) -> Tensor:
    (kernel_h, kernel_w), (stride_h, stride_w) = window.kernel, window.stride
    parts = matmul_transposed(_rows(y), _transposed(_matrix(weight)))
    if kernel_h % stride_h or kernel_w % stride_w or window.dilation != (1, 1):
        return _overlap_add(parts.view(*_nhw(y), kernel_h, kernel_w, -1), window, size)
    return _overlap_add_blocks(parts, _nhw(y), window, size)


def _im2col(x: Tensor, window: ConvWindow) -> Tensor:
    """Return the patches of x (B·h·w, kh·kw·X) at all window positions, padded with zeros."""
    (batch, channels), (height, width) = x.shape[:2], window.positions(image_size(x))
    (kernel_h, kernel_w), (pad_h, pad_w) = window.kernel, window.padding
    if pad_h or pad_w:
        x = _pad(x, (pad_h, pad_w))
    image, channel, row, column = x.stride()
    (stride_h, stride_w), (dilation_h, dilation_w) = window.stride, window.dilation
    patches = x.as_strided(
        (batch, height, width, kernel_h, kernel_w, channels),
        (image, stride_h * row, stride_w * column, dilation_h * row, dilation_w * column, channel),
        x.storage_offset(),
    )
    return patches.reshape(batch * height * width, kernel_h * kernel_w * channels)


def _pad(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Surround x (B, X, H, W) with zeros; channels-last. F.pad makes three times as many calls."""
    (batch, channels, height, width), (pad_h, pad_w) = x.shape, padding
    padded = x.new_zeros((batch, height + 2 * pad_h, width + 2 * pad_w, channels))
    image, row = padded.stride()[:2]
    strides = (image, 1, row, channels)
    padded.as_strided(x.shape, strides, pad_h * row + pad_w * channels).copy_(x)
    return padded.as_strided((batch, channels, *padded.shape[1:3]), strides)


def _overlap_add(parts: Tensor, window: ConvWindow, size: tuple[int, int]) -> Tensor:
    """Sum overlapping windows (B, h, w, kh, kw, X), one per position of y, into x (col2im)."""
    batch, height, width = parts.shape[:3]
    (pad_h, pad_w), (stride_h, stride_w) = window.padding, window.stride
    dilation_h, dilation_w = window.dilation
    x = parts.new_zeros(batch, size[0] + 2 * pad_h, size[1] + 2 * pad_w, parts.shape[-1])
    for i in range(window.kernel[0]):
        top = i * dilation_h
        rows = slice(top, top + stride_h * (height - 1) + 1, stride_h)
        for j in range(window.kernel[1]):
            left = j * dilation_w
            x[:, rows, left : left + stride_w * (width - 1) + 1 : stride_w].add_(parts[:, :, :, i, j])
    return x[:, pad_h : pad_h + size[0], pad_w : pad_w + size[1]].permute(0, 3, 1, 2)


def _overlap_add_blocks(
    parts: Tensor, positions: tuple[int, int, int], window: ConvWindow, size: tuple[int, int]
) -> Tensor:
    """Do the same as `_overlap_add` if the stride divides the kernel: sum blocks of stride × stride taps at once.

    parts      (B·h·w, kh·kw·X)
    positions  B, h and w
    """
    batch, height, width = positions
    (kernel_h, kernel_w), (pad_h, pad_w), (stride_h, stride_w) = window.kernel, window.padding, window.stride
    channels = parts.shape[1] // (kernel_h * kernel_w)
    blocks_h, blocks_w = kernel_h // stride_h, kernel_w // stride_w
    total_h, total_w = (height + blocks_h - 1) * stride_h, (width + blocks_w - 1) * stride_w
    total = parts.new_empty((batch, total_h, total_w, channels))

    covered = (batch, height, stride_h, width, stride_w, channels)  # the pixels of all blocks with the same i and j
    row, position = total_w * channels, kernel_h * kernel_w * channels
    in_total = (total_h * row, stride_h * row, row, stride_w * channels, channels, 1)
    in_parts = (height * width * position, width * position, kernel_w * channels, position, channels, 1)
    for i in range(blocks_h):
        for j in range(blocks_w):
            target = total.as_strided(covered, in_total, stride_h * i * row + stride_w * j * channels)
            block = parts.as_strided(covered, in_parts, (i * stride_h * kernel_w + j * stride_w) * channels)
            if i or j:
                target.add_(block)
            else:
                target.copy_(block)
                _zero_outside(total, height * stride_h, width * stride_w)
    return _crop(total, (pad_h, pad_w), size)


def _zero_outside(nhwc: Tensor, height: int, width: int) -> None:
    """Fill all rows from `height` on, and all columns from `width` on, with zeros."""
    if height < nhwc.shape[1]:
        nhwc[:, height:].zero_()
    if width < nhwc.shape[2]:
        nhwc[:, :, width:].zero_()


def _crop(nhwc: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the pixels (B, X, *size) from this corner on, channels-last; zeros where there are none."""
    batch, height, width, channels = nhwc.shape
    top, left = corner
    there = min(size[0], height - top), min(size[1], width - left)
    strides = (height * width * channels, 1, width * channels, channels)
    x = nhwc.as_strided((batch, channels, *there), strides, (top * width + left) * channels)
    if there != size:
        x = F.pad(x, (0, size[1] - there[1], 0, size[0] - there[0]))
    return x.contiguous(memory_format=torch.channels_last)


# --- algorithm "taps" ------------------------------------------------------------------------------------------


def _taps_convolve(x: Tensor, weight: Tensor, window: ConvWindow) -> Tensor:
    """Multiply every pixel of x with every tap, then sum the products in each window."""
    taps = matmul_transposed(_rows(x), weight.permute(2, 3, 0, 1).reshape(-1, x.shape[1]))
    (pad_h, pad_w), (stride_h, stride_w) = window.padding, window.stride
    dilation_h, dilation_w = window.dilation
    taps = _pad(_image(taps, *_nhw(x)), (pad_h, pad_w))
    image, _, row, column = taps.stride()
    channels = weight.shape[0]
    tap_row, tap_column = dilation_h * row + window.kernel[1] * channels, dilation_w * column + channels
    windows = taps.as_strided(
        (x.shape[0], *window.positions(image_size(x)), *window.kernel, channels),
        (image, stride_h * row, stride_w * column, tap_row, tap_column, 1),
    )
    return windows.sum((3, 4)).permute(0, 3, 1, 2)


def _taps_correlate(x: Tensor, y: Tensor, window: ConvWindow) -> Tensor:
    weight = matmul_transposed(_transposed(_im2col_flipped(y, window)), _transposed(_rows(x)))
    weight = weight.view(*window.kernel, y.shape[1], x.shape[1]).flip(0, 1)
    # the copy also gives a dimension of size 1 (Y) the stride of channels-last memory
    ykkx = weight.permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format)
    return ykkx.permute(0, 3, 1, 2)


def _taps_spread(y: Tensor, weight: Tensor, window: ConvWindow, size: tuple[int, int]) -> Tensor:
    flipped = weight.flip(2, 3).permute(1, 2, 3, 0).reshape(weight.shape[1], -1)
    return _image(matmul_transposed(_im2col_flipped(y, window), flipped), y.shape[0], *size)


def _im2col_flipped(y: Tensor, window: ConvWindow) -> Tensor:
    """Return (B·H·W, kh·kw·Y): for each pixel of x the values of y whose windows cover it, last tap first."""
    (kernel_h, kernel_w), (pad_h, pad_w) = window.kernel, window.padding
    padding = (kernel_h - 1 - pad_h, kernel_w - 1 - pad_w)
    return _im2col(y, ConvWindow(window.kernel, (1, 1), padding, (1, 1)))


def matmul_transposed(a: Tensor, b: Tensor) -> Tensor:
    """Return a (M, K) times the transpose of b (N, K).

    Uses oneDNN in float32 where torch has it: MKL is half as fast on AMD.

    >>> matmul_transposed(torch.ones(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return result
    return a @ b.t()


def _matrix(weight: Tensor) -> Tensor:
    """(Y, X, kh, kw) -> (Y, kh·kw·X), without a copy if it is channels-last."""
    return _flatten(weight, weight.shape[0])


def _rows(y: Tensor) -> Tensor:
    """(B, Y, h, w) -> (B·h·w, Y), without a copy if it is channels-last."""
    return _flatten(y, y.numel() // y.shape[1])


def _flatten(image: Tensor, rows: int) -> Tensor:
    """(A, B, C, D) -> (rows, A·B·C·D / rows) in the order (A, C, D, B), without a copy if it is channels-last."""
    if not image.is_contiguous(memory_format=torch.channels_last):
        image = image.contiguous(memory_format=torch.channels_last)
    columns = image.numel() // rows
    return image.as_strided((rows, columns), (columns, 1), image.storage_offset())


def _transposed(matrix: Tensor) -> Tensor:
    (rows, columns), (row, column) = matrix.shape, matrix.stride()
    return matrix.as_strided((columns, rows), (column, row), matrix.storage_offset())


def _nhw(image: Tensor) -> tuple[int, int, int]:
    return image.shape[0], image.shape[2], image.shape[3]


def _image(rows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """(B·h·w, Y), contiguous -> (B, Y, h, w), channels-last."""
    channels = rows.shape[1]
    row = width * channels
    return rows.as_strided((batch, channels, height, width), (height * row, 1, row, channels))


def image_size(image: Tensor) -> tuple[int, int]:
    """(H, W) of images (B, C, H, W)."""
    return image.shape[-2], image.shape[-1]


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


# --- algorithm "library" ---------------------------------------------------------------------------------------


def _library_convolve(x: Tensor, weight: Tensor, window: ConvWindow) -> Tensor:
    return F.conv2d(x, weight, None, window.stride, window.padding, window.dilation)


def _library_spread(y: Tensor, weight: Tensor, window: ConvWindow, size: tuple[int, int]) -> Tensor:
    if not window.transposed:
        like = y.new_empty(()).expand(y.shape[0], weight.shape[1], *size)
        like = torch.empty_like(like, memory_format=torch.channels_last)
        return _library_gradients(y, like, weight, window, (True, False, False))[0]
    spans = zip(size, image_size(y), window.kernel, window.stride, window.padding, window.dilation, strict=True)
    extra = [side - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for side, n, k, s, p, d in spans]
    return F.conv_transpose2d(y, weight, None, window.stride, window.padding, extra, 1, window.dilation)


def _library_correlate(x: Tensor, y: Tensor, window: ConvWindow) -> Tensor:
    weight = torch.empty((y.shape[1], *window.kernel, x.shape[1]), dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)
    return _library_gradients(y, x, weight, window, (False, True, False))[1]


def _library_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, window: ConvWindow, output_mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        dy, x, weight, None, window.stride, window.padding, window.dilation, False, (0, 0), 1, output_mask
    )
    return gradients


CONVOLVE = {"library": _library_convolve, "columns": _columns_convolve, "taps": _taps_convolve}
SPREAD = {"library": _library_spread, "columns": _columns_spread, "taps": _taps_spread}
CORRELATE = {"library": _library_correlate, "columns": _columns_correlate, "taps": _taps_correlate}
