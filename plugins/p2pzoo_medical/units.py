"""The values of x and of y: between those of a volume and those of a dataset. Imports no torch and no nibabel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from p2pzoo.plugin import FileLayout

KEPT_DTYPES = ("uint8", "uint16", "float32")  # those of a dataset
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
NOTICE = "p2pzoo is not a medical device: its translations are for research, not for diagnosis or treatment."

AxisName = Literal["axial", "coronal", "sagittal"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _UnitsJson(TypedDict):
    window: tuple[_Finite, _Finite]
    dtype: str
    modality: str | None


class MaskRule(TypedDict):
    """A body mask by a threshold: voxels `above` a value of the volume `of` ("y" if it is left out)."""

    above: _Finite
    of: NotRequired[Literal["x", "y"]]


class _VolumeJson(TypedDict):
    axis: AxisName
    slices: Annotated[int, Field(ge=1)]
    x: _UnitsJson
    y: _UnitsJson
    spacing: tuple[_Length, _Length, _Length]
    mask: MaskRule | None


_VOLUME_JSON = TypeAdapter(_VolumeJson)


def common_dtype(dtypes: Iterable[str]) -> str:
    """The smallest dtype of a volume that holds the values of all: scanners of one modality store them differently.

    >>> common_dtype(["int16", "int16"]), common_dtype(["int16", "float32"])
    ('int16', 'float32')
    """
    common = np.result_type(*dtypes).name
    return common if common in DTYPES else "float64"  # int64 of uint32 and int32


@dataclass(frozen=True)
class Units:
    """What the values of a volume are.

    window    the values that become -1 and 1; values beyond are clipped
    dtype     of the values, such as "int16" for Hounsfield units
    modality  DICOM's name of it, such as "CT"; None if the files do not say

    >>> units = Units((-1000.0, 2000.0), "int16")
    >>> units.encode(np.array([[-3000, 40, np.nan]])).tolist(), units.stored_dtype
    ([[-1000.0, 40.0, -1000.0]], 'float32')
    """

    window: tuple[float, float]
    dtype: str
    modality: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for values that do not fit together."""
        if self.dtype not in DTYPES:
            raise ValueError(f"values of {self.dtype}")
        if not self.window[0] < self.window[1]:
            raise ValueError("a window whose first number is not the lower one")

    @property
    def stored_dtype(self) -> str:
        """The dtype of the dataset's images: that of the values where a dataset can have it and it holds the window."""
        if self.dtype not in KEPT_DTYPES:
            return "float32"
        if self.dtype != "float32":
            info = np.iinfo(self.dtype)
            if any(limit != int(limit) or not info.min <= limit <= info.max for limit in self.window):
                return "float32"
        return self.dtype

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape, within the window, in float64. NaN becomes the lower end."""
        low, high = self.window
        return np.clip(np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low), low, high)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape -> as the dataset stores them."""
        return self.clip(values).astype(self.stored_dtype)

    def to_network(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape -> float32 in [-1, 1], as a trained network saw them."""
        low, high = self.window
        return ((self.clip(values) - low) * (2 / (high - low)) - 1).astype(np.float32)

    def from_network(self, y_hat: np.ndarray) -> np.ndarray:
        """ŷ in [-1, 1], of any shape -> values in their dtype."""
        low, high = self.window
        return self.to_dtype((np.clip(y_hat, -1, 1).astype(np.float64) + 1) * ((high - low) / 2) + low)

    def to_dtype(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape -> in their dtype, rounded to the nearest that it holds."""
        if np.dtype(self.dtype).kind == "f":
            return values.astype(self.dtype)
        info = np.iinfo(self.dtype)
        return np.clip(np.rint(values), info.min, info.max).astype(self.dtype)

    def as_json(self) -> dict[str, Any]:
        return {"window": [*map(float, self.window)], "dtype": self.dtype, "modality": self.modality}


@dataclass(frozen=True)
class VolumeLayout(FileLayout):
    """A file layout that also says what x and y are, so that a trained model can treat other volumes alike.

    volume  {"axis", "slices": of the dataset, "x", "y": `Units.as_json()`, "spacing": mm from voxel to voxel down and
            across a slice, and from slice to slice, the medians; "mask": the rule of the body mask or None}
    """

    volume: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What a model file says about the volumes that the model was trained on; see `VolumeLayout`."""

    axis: AxisName
    slices: int
    x: Units
    y: Units
    spacing: tuple[float, float, float]
    mask: MaskRule | None

    @classmethod
    def from_json(cls, value: Any) -> Trained:
        """Raises ValueError: a file can hold anything."""
        try:
            table = _VOLUME_JSON.validate_python(value)
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).lower()) from None
        x, y = (Units(tuple(side["window"]), side["dtype"], side["modality"]) for side in (table["x"], table["y"]))
        return cls(table["axis"], table["slices"], x, y, tuple(table["spacing"]), table["mask"])
