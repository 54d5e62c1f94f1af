"""The kernels file, which `p2pzoo tune` writes and `[compute] kernels` reads.

It is JSON: {key of a shape: algorithm}, sorted, for shapes whose fastest algorithm is not the default. It has no dates
or timings, so two measurements with the same outcome give the same file. A file from another machine or thread
count gives correct results too, maybe more slowly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from p2pzoo.compute.conv_algorithms import ConvAlgorithm, ConvOperation, ConvShape, ConvWindow
from p2pzoo.compute.conv_as_gemm import supported_algorithms
from p2pzoo.config.settings import Compute
from p2pzoo.plugin.schema import format_value
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import write_text
from p2pzoo.utils.suggest import did_you_mean

ALGORITHMS: tuple[ConvAlgorithm, ...] = get_args(ConvAlgorithm)
_PAIR = r"(\d+)x(\d+)"
_SHAPE_KEY = re.compile(
    rf"({'|'.join(get_args(ConvOperation))}) {_PAIR}x{_PAIR} (\d+) "
    rf"kernel {_PAIR} stride {_PAIR} padding {_PAIR} dilation {_PAIR}( transposed)?( bf16)?"
)


def read_kernels(path: Path) -> dict[str, ConvAlgorithm]:
    """Return {key of a shape: algorithm}. Raises UserError, one line, for the first mistake in the file."""
    try:
        pairs = json.loads(path.read_text("utf-8"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a file of `p2pzoo tune` ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not isinstance(pairs, tuple):
        raise UserError(f"{path}: not a file of `p2pzoo tune` (it is not a JSON object)")
    kernels: dict[str, ConvAlgorithm] = {}
    for key, algorithm in pairs:
        if fault := _find_fault(key, algorithm, is_duplicate=key in kernels):
            raise UserError(f"{path}: {fault}")
        kernels[key] = algorithm
    return kernels


def read_recipe_kernels(compute: Compute) -> dict[str, ConvAlgorithm]:
    """Return the content of the file that [compute] kernels names; {} if it names none.

    Raises UserError that names the key and the file.
    """
    if compute.kernels is None:
        return {}
    try:
        return read_kernels(compute.kernels)
    except UserError as error:
        raise UserError(*(f"[compute] kernels: {fault}" for fault in error.faults)) from None


def write_kernels(path: Path, kernels: Mapping[str, ConvAlgorithm]) -> None:
    """Write {key of a shape: algorithm} as a kernels file, atomically."""
    write_text(path, json.dumps(kernels, indent=2, sort_keys=True) + "\n")


def parse_shape(key: str) -> ConvShape | None:
    """Return the shape of a key, the inverse of `ConvShape.key`; None if the key is malformed or the shape impossible.

    >>> parse_shape("convolve 1x3x8x8 64 kernel 4x4 stride 2x2 padding 1x1 dilation 1x1").size
    (8, 8)
    """
    match = _SHAPE_KEY.fullmatch(key)
    if match is None:
        return None
    operation, *numbers, transposed, bf16 = match.groups()
    batch, x, height, width, y, *geometry = map(int, numbers)
    kernel, stride, padding, dilation = zip(geometry[::2], geometry[1::2], strict=True)
    if 0 in (batch, x, height, width, y, *kernel, *stride, *dilation):
        return None
    window = ConvWindow(kernel, stride, padding, dilation, transposed is not None)
    shape = ConvShape(operation, batch, (height, width), x, y, window, bf16 is not None)  # type: ignore[arg-type]
    return shape if min(window.positions(shape.size)) > 0 and shape.key() == key else None


def _find_fault(key: str, algorithm: Any, *, is_duplicate: bool) -> str | None:
    shape = parse_shape(key)
    if shape is None:
        return f"{format_value(key)} is not the key of a convolution; write the file with `p2pzoo tune`"
    if is_duplicate:
        return f"{format_value(key)} occurs twice; delete one of the two"
    if algorithm not in ALGORITHMS:
        return f"'{key}': no algorithm {format_value(algorithm)}{did_you_mean(str(algorithm), ALGORITHMS)}"
    if algorithm not in supported_algorithms(shape):
        return f"'{key}': algorithm '{algorithm}' cannot compute it; use {', '.join(supported_algorithms(shape))}"
    return None
