"""The bands of x and of y, between the values of a raster and those of a dataset. Imports no torch and no rasterio.

A dataset has one value range for all channels, and bands often differ. So bands with one common scale keep their values
and dtype, and others are brought to [0, 1], each by its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from p2pzoo.plugin import FileLayout
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count

KEPT_DTYPES = ("uint8", "uint16", "float32")  # those of a dataset
RASTER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
Limits = tuple[float, float]
UNSCALED = (1.0, 0.0)
MAX_OUTSIDE = 0.5  # share of a band's values outside of its scale, without a warning
Scale = Literal["percentiles"] | Limits | tuple[Limits, ...]  # parameter of a dataset

_Number = Annotated[int, Field(ge=1, le=1 << 16)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _BandsJson(TypedDict):
    numbers: Annotated[list[_Number], Field(min_length=1)]
    names: list[str | None]
    scales: list[tuple[_Finite, _Finite]]
    dtype: str
    nodata: _Finite | str | None
    units: NotRequired[list[str | None]]
    scaling: NotRequired[list[tuple[_Finite, _Finite]]]


_BANDS_JSON = TypeAdapter(_BandsJson)


@dataclass(frozen=True)
class Bands:
    """Some bands of a raster.

    numbers  of the bands in their file, from 1
    names    their descriptions; None for a band without one
    scales   for each band, the values that become -1 and 1
    dtype    of the file
    nodata   the value of pixels without data; None if the file has none
    units    of each band, such as "m"; None for a band without one. (): no band has one
    scaling  (scale, offset) of each band: a value v stands for v · scale + offset in its unit. (): (1, 0) for all.
             Values are used as they are stored; the tag is compared, and written again

    >>> bands = Bands((1, 2), ("height", "slope"), ((0.0, 4000.0), (0.0, 90.0)), "int16", -9999.0)
    >>> stored = bands.encode(np.array([[[1000]], [[45]]], np.int16), np.ones((1, 1), bool))
    >>> stored.tolist(), bands.stored_dtype, bands.stored_range
    ([[[0.25, 0.5]]], 'float32', (0.0, 1.0))
    """

    numbers: tuple[int, ...]
    names: tuple[str | None, ...]
    scales: tuple[Limits, ...]
    dtype: str
    nodata: float | None = None
    units: tuple[str | None, ...] = ()
    scaling: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for values that do not fit together."""
        if not len(self.numbers) == len(self.names) == len(self.scales):
            raise ValueError("a band without a name or a scale")
        if len(self.units) not in (0, len(self)) or len(self.scaling) not in (0, len(self)):
            raise ValueError("a band without a unit or a tag of its scale")
        if self.dtype not in RASTER_DTYPES:
            raise ValueError(f"values of {self.dtype}")
        if any(low >= high for low, high in self.scales):
            raise ValueError("a scale whose first number is not the lower one")

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def stored_dtype(self) -> str:
        """The dtype of the dataset's images."""
        low, high = self.scales[0]
        if len(set(self.scales)) > 1 or self.dtype not in KEPT_DTYPES:
            return "float32"
        if self.dtype != "float32":
            info = np.iinfo(self.dtype)
            if low != int(low) or high != int(high) or low < info.min or high > info.max:
                return "float32"  # it cannot hold the limits
        return self.dtype

    @property
    def stored_range(self) -> Limits:
        """The values of the dataset's images that become -1 and 1: in the bands' units if all have one scale."""
        return self.scales[0] if len(set(self.scales)) == 1 else (0.0, 1.0)

    def labels(self) -> list[str]:
        """A name of each band, for numbers: its description, else its number.

        >>> Bands((1, 3), ("red", None), ((0, 1), (0, 1)), "uint8").labels()
        ['red', '3']
        """
        unique = len({*self.names}) == len(self.names)
        return [name if name and unique else str(number) for number, name in zip(self.numbers, self.names, strict=True)]

    def encode(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(C, H, W) of the raster -> (H, W, C) of the dataset.

        Values beyond a band's scale become its nearest limit, and pixels that are not valid (H, W) the lower one.
        """
        stored = np.empty((*values.shape[1:], len(self)), self.stored_dtype)
        low, high = self.stored_range
        for index, (band, limits) in enumerate(zip(values, self.scales, strict=True)):
            clipped = np.where(valid, np.clip(band, *limits), limits[0])
            if limits != (low, high):
                clipped = (clipped.astype(np.float64) - limits[0]) / (limits[1] - limits[0])
            stored[..., index] = clipped
        return stored

    def to_network(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(C, H, W) of the raster -> (C, H, W) float32 in [-1, 1], as a trained network saw it."""
        result = np.empty(values.shape, np.float32)
        for index, (band, (low, high)) in enumerate(zip(values, self.scales, strict=True)):
            clipped = np.where(valid, np.clip(band, low, high), low).astype(np.float64)
            result[index] = (clipped - low) * (2 / (high - low)) - 1
        return result

    def from_network(self, y_hat: np.ndarray, index: int) -> np.ndarray:
        """One band of ŷ in [-1, 1], of any shape -> values of the raster in its dtype."""
        low, high = self.scales[index]
        values = (np.clip(y_hat, -1, 1).astype(np.float64) + 1) * ((high - low) / 2) + low
        if np.dtype(self.dtype).kind == "f":
            return values.astype(self.dtype)
        info = np.iinfo(self.dtype)
        return np.clip(np.rint(values), info.min, info.max).astype(self.dtype)

    def describe_outside(self, values: np.ndarray, what: str) -> str | None:
        """A line if most of the values (C, N) of a band lie outside of its scale; None if they do not, or N is 0.

        what: the name of one band, for messages

        >>> bands = Bands((1,), ("height",), ((0.0, 100.0),), "int16", units=("m",))
        >>> bands.describe_outside(np.array([[-9, 50, 200, 300]]), "band")
        'band height: 75% of its values lie outside of the range that the model was trained on, [0, 100] m'
        """
        units = self.units or (None,) * len(self)
        for label, band, (low, high), unit in zip(self.labels(), values, self.scales, units, strict=True):
            if band.size and (share := float(((band < low) | (band > high)).mean())) > MAX_OUTSIDE:
                place = f"[{low:g}, {high:g}]" + (f" {unit}" if unit else "")
                return (
                    f"{what} {label}: {share:.0%} of its values lie outside of the range that the model was trained "
                    f"on, {place}"
                )
        return None

    def as_json(self) -> dict[str, Any]:
        nodata = str(self.nodata) if self.nodata is not None and not math.isfinite(self.nodata) else self.nodata
        return {
            "numbers": [*self.numbers],
            "names": [*self.names],
            "scales": [[float(low), float(high)] for low, high in self.scales],
            "dtype": self.dtype,
            "nodata": nodata,
            **({"units": [*self.units]} if any(self.units) else {}),
            **({"scaling": [[*each] for each in self.scaling]} if {*self.scaling} - {UNSCALED} else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> Bands:
        """The bands that `as_json` described. Raises ValueError: a file can hold anything."""
        try:
            table = _BANDS_JSON.validate_python(value)
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).lower()) from None
        nodata = table["nodata"]
        return cls(
            tuple(table["numbers"]),
            tuple(table["names"]),
            tuple((low, high) for low, high in table["scales"]),
            table["dtype"],
            None if nodata is None else float(nodata),
            tuple(table.get("units", ())),
            tuple((scale, offset) for scale, offset in table.get("scaling", ())),
        )


def find_by_name(names: Sequence[str | None], there: Sequence[str | None]) -> tuple[int, ...] | None:
    """The numbers (from 1) of the bands with these names in a file whose bands have the names `there`.

    None where a band has no name, and where one occurs twice on either side or is missing: then names say nothing.

    >>> find_by_name(("red", "blue"), ("blue", "green", "red"))
    (3, 1)
    >>> find_by_name(("NDVI", "NDVI"), ("NDVI", "NDVI")), find_by_name(("red",), ("red", "red"))
    (None, None)
    """
    if None in names or len({*names}) < len(names) or any([*there].count(name) != 1 for name in names):
        return None
    return tuple([*there].index(name) + 1 for name in names)


def find_other_name(
    names: Sequence[str | None], there: Sequence[str | None], numbers: Sequence[int]
) -> tuple[int, str, str] | None:
    """(number, name there, name here) of the first band that is named otherwise there; None if there is none.

    numbers: of the bands there. A band without a name fits all.

    >>> find_other_name(("red", None, "blue"), ("red", "green", "NIR"), (1, 2, 3))
    (3, 'NIR', 'blue')
    """
    for name, number in zip(names, numbers, strict=True):
        other = there[number - 1]
        if name and other and name != other:
            return number, other, name
    return None


def check_scale(name: str, scale: Scale, count: int, what: str = "band") -> tuple[Limits, ...]:
    """The limits of each of `count` bands, from one [low, high] or one for each. what: the name of one, for messages.

    >>> check_scale("x_scale", (0, 255), 2)
    ((0.0, 255.0), (0.0, 255.0))

    Raises UserError for scales that do not fit.
    """
    assert scale != "percentiles"
    limits = tuple((float(low), float(high)) for low, high in (scale if isinstance(scale[0], Sequence) else [scale]))
    limits = limits * count if len(limits) == 1 else limits
    if len(limits) != count:
        raise UserError(
            f"{name} has {format_count(len(limits), 'scale')} for {format_count(count, what)}: give one [low, high], "
            f"or one for each {what}"
        )
    for low, high in limits:
        if not -math.inf < low < high < math.inf:
            raise UserError(f"{name} = [{low:g}, {high:g}]: the first number must be lower than the second")
    return limits


@dataclass(frozen=True)
class SceneLayout(FileLayout):
    """A file layout that also says which bands x and y are, so that a trained model can treat other scenes alike.

    scene  {"x": `Bands.as_json()`, "y": likewise, "pixel": [width, height] in units of the CRS, "crs": its name}
    """

    scene: dict[str, Any] = field(default_factory=dict)
