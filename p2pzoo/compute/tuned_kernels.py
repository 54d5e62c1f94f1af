"""The file that `p2pzoo tune` writes and `[compute] kernels` reads: forms for shapes where the shipped rule has others.

JSON, {the key of a shape: a form of it}, sorted; nothing in it changes from one measurement to the next but what is
found. A file of another machine or thread count is right too, only not as fast.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from p2pzoo.compute.conv_as_gemm import Form, Operation, Shape, Window, forms
from p2pzoo.plugin.schema import show
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import write_text
from p2pzoo.utils.suggest import nearest

FORMS: tuple[Form, ...] = get_args(Form)
TWO = r"(\d+)x(\d+)"
KEY = re.compile(
    rf"({'|'.join(get_args(Operation))}) {TWO}x{TWO} (\d+) "
    rf"kernel {TWO} stride {TWO} padding {TWO} dilation {TWO}( transposed)?"
)


def read_kernels(path: Path) -> dict[str, Form]:
    """The forms by key. Raises UserError, one line, at the first thing that is wrong."""
    try:
        pairs = json.loads(path.read_text("utf-8"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a file of `p2pzoo tune` ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not isinstance(pairs, tuple):
        raise UserError(f"{path}: not a file of `p2pzoo tune` (it holds no table of kernels)")
    found: dict[str, Form] = {}
    for key, form in pairs:
        if fault := _fault(key, form, known=key in found):
            raise UserError(f"{path}: {fault}")
        found[key] = form
    return found


def write_kernels(path: Path, kernels: Mapping[str, Form]) -> None:
    write_text(path, json.dumps(kernels, indent=2, sort_keys=True) + "\n")


def shape_of(key: str) -> Shape | None:
    """The shape that a key names, None if it names none that there can be."""
    match = KEY.fullmatch(key)
    if match is None:
        return None
    operation, *numbers, transposed = match.groups()
    batch, x, height, width, y, *geometry = map(int, numbers)
    kernel, stride, padding, dilation = zip(geometry[::2], geometry[1::2], strict=True)
    if 0 in (batch, x, height, width, y, *kernel, *stride, *dilation):
        return None
    window = Window(kernel, stride, padding, dilation, transposed is not None)
    shape = Shape(operation, batch, (height, width), x, y, window)  # type: ignore[arg-type]
    return shape if min(window.positions(shape.size)) > 0 and shape.key() == key else None


def _fault(key: str, form: Any, *, known: bool) -> str | None:
    shape = shape_of(key)
    if shape is None:
        return f"{show(key)} names no convolution; `p2pzoo tune` writes such files"
    if known:
        return f"{show(key)} stands there twice"
    if form not in FORMS:
        return f"no form {show(form)} of '{key}'{nearest(str(form), FORMS)}"
    if form not in forms(shape):
        return f"'{key}' has no form '{form}': its forms are {', '.join(forms(shape))}"
    return None
