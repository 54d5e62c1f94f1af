"""Which planes of a stack one image is made of, and the description of it that a model file keeps. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from p2pzoo_geo.bands import Bands
from p2pzoo_geo.rasters import Box
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from p2pzoo.plugin import FileLayout
from p2pzoo.utils.errors import UserError
from p2pzoo_microscopy.stack_files import Stack, count

PlaneChoice = Literal["max", "mean", "channels", "planes"] | Annotated[int, Field(ge=1)]
DEFAULT_WINDOW = 3


class _StackJson(TypedDict):
    x: dict[str, Any]
    y: dict[str, Any]
    z: PlaneChoice
    z_window: Annotated[int, Field(ge=1, le=999)]


_STACK_JSON = TypeAdapter(_StackJson)


@dataclass(frozen=True)
class Planes:
    """How the planes of a stack become images.

    z       "planes": each plane is one; "channels": each too, and x has its neighbours as further channels; "max" or
            "mean": a projection of all; a number from 1: this plane
    window  how many planes x has around its own, itself included, with z = "channels"; else 1

    >>> Planes("channels", 3).neighbours(0, 5), Planes("max").places(5), Planes(2).places(5)
    ([0, 0, 1], [0], [1])
    """

    z: PlaneChoice = "planes"
    window: int = 1

    @classmethod
    def of(cls, z: PlaneChoice, window: int | None) -> Planes:
        """From the parameters of a recipe. Raises ValueError for a window that does not fit."""
        if z != "channels":
            if window is not None:
                raise ValueError(f'z_window = {window} needs z = "channels"')
            return cls(z)
        window = DEFAULT_WINDOW if window is None else window
        if window % 2 == 0:
            raise ValueError(f"z_window = {window}: must be odd, so that the plane is in its middle")
        return cls(z, window)

    @property
    def is_projection(self) -> bool:
        return self.z in ("max", "mean")

    @property
    def keeps_depth(self) -> bool:
        """Whether there is an image for each plane."""
        return self.z in ("planes", "channels")

    def places(self, depth: int) -> list[int]:
        """For each image of a stack, the plane from 0 that it is of; [0] for a projection."""
        if isinstance(self.z, int):
            return [min(self.z, depth) - 1]
        return [*range(depth)] if self.keeps_depth else [0]

    def neighbours(self, place: int, depth: int) -> list[int]:
        """The planes that x has as channels. Beyond the first and the last plane, these are repeated."""
        return [min(max(place + offset, 0), depth - 1) for offset in range(-(self.window // 2), self.window // 2 + 1)]

    def check_depth(self, stack: Stack) -> None:
        """Raises UserError for a stack with too few planes."""
        depth = stack.sizes["Z"]
        if depth < self.window:
            raise UserError(
                f"{stack.path}: has {count(stack, 'Z')}, and z_window = {self.window} needs {self.window}: make "
                "z_window smaller"
            )
        if isinstance(self.z, int) and self.z > depth:
            raise UserError(f"{stack.path}: has {count(stack, 'Z')}, and z = {self.z}: choose another plane")

    def read_x(self, stack: Stack, channels: Sequence[int], t: int, place: int, box: Box) -> np.ndarray:
        """(C · window, h, w) of a stack: for each channel (a number from 1) its planes. t: from 0."""
        if self.is_projection:
            return self.read_y(stack, channels, t, place, box)
        planes = self.neighbours(place, stack.sizes["Z"])
        return np.stack([stack.read(channel - 1, t, z, box) for channel in channels for z in planes])

    def read_y(self, stack: Stack, channels: Sequence[int], t: int, place: int, box: Box) -> np.ndarray:
        """(C, h, w) of a stack. A projection is computed plane by plane, and has the stack's dtype."""
        if not self.is_projection:
            place = min(place, stack.sizes["Z"] - 1)  # z = 3 of a stack and of a target with one plane
            return np.stack([stack.read(channel - 1, t, place, box) for channel in channels])
        return np.stack([self._project(stack, channel - 1, t, box) for channel in channels])

    def _project(self, stack: Stack, channel: int, t: int, box: Box) -> np.ndarray:
        depth = stack.sizes["Z"]
        planes = (stack.read(channel, t, z, box) for z in range(depth))
        if self.z == "max":
            result = next(planes)
            for plane in planes:
                np.maximum(result, plane, out=result)
            return result
        total = np.zeros((box.bottom - box.top, box.right - box.left))
        for plane in planes:
            total += plane
        mean = total / depth
        return (mean if np.dtype(stack.dtype).kind == "f" else np.rint(mean)).astype(stack.dtype)


@dataclass(frozen=True)
class StackLayout(FileLayout):
    """A file layout that also says which channels and planes x and y are, so that a model can treat other stacks alike.

    stack  {"x": `Bands.as_json()`, one band for each channel of the network; "y": likewise; "z", "z_window": `Planes`;
           "pixel": {"X", "Y", "Z": micrometres}, as far as they are known}
    """

    stack: dict[str, Any] = field(default_factory=dict)


def describe_stack(x: Bands, y: Bands, planes: Planes, pixel: dict[str, float]) -> dict[str, Any]:
    """The value of `StackLayout.stack`. x, y: of their files, one band for each channel."""
    window = planes.window
    return {
        "x": repeat_bands(x, window).as_json(), "y": y.as_json(), "z": planes.z, "z_window": window, "pixel": pixel,
    }  # fmt: skip


def parse_stack(value: Any) -> tuple[Bands, Bands, Planes]:
    """x and y, one band for each channel of their files, and the planes, of `describe_stack`. Raises ValueError."""
    try:
        table = _STACK_JSON.validate_python(value)
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"]).lower()) from None
    x, y, window = Bands.from_json(table["x"]), Bands.from_json(table["y"]), table["z_window"]
    planes = Planes.of(table["z"], window if table["z"] == "channels" else None)
    if len(x) % window or planes.window != window:
        raise ValueError("their number")
    chosen = slice(None, None, window)
    return Bands(x.numbers[chosen], x.names[chosen], x.scales[chosen], x.dtype), y, planes


def repeat_bands(bands: Bands, window: int) -> Bands:
    """One band for each channel of the network: each channel of the file `window` times.

    >>> repeat_bands(Bands((2,), ("BF",), ((0.0, 255.0),), "uint8"), 3).names
    ('BF', 'BF', 'BF')
    """

    def repeated(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value for value in values for _ in range(window))

    return Bands(repeated(bands.numbers), repeated(bands.names), repeated(bands.scales), bands.dtype)
