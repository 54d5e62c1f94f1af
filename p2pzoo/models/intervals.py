"""Intervals of a calibrated model: what its file says of the calibration, and the two bounds of each value.

The promise: over calibration and a new exchangeable block, the expected uncovered share is at most α = 1 - level. It
does not hold per pixel, per image, per class, or on another continent. `p2pzoo calibrate` computes the factor λ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from p2pzoo.config.settings import Translations
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.translator import Translator
from p2pzoo.plugin import schema
from p2pzoo.utils.errors import DamagedFile

HEADER_KEY_OF_CALIBRATION = "calibration"
GREY_LEVEL = 2 / 255  # ε: half the width of an interval is at least this times λ, so that some λ covers every value
MAX_FACTOR = 256.0  # λ: the error |y - ŷ| is at most 2, and 255 ε are 2
MAX_SAMPLES = 1000

_Text = Annotated[str, Field(max_length=200)]


@dataclass(frozen=True)
class Calibration:
    """How the intervals of a model were calibrated, as its file says it.

    level      share of a new block's values that the intervals cover at least, in expectation
    factor     λ, by which the intervals are widened
    samples    1: the bounds are the generator's own, `interval(x)`; more: the smallest and the largest of so many
               translations
    test_mode  of the translations
    blocks     number of blocks that calibrated
    images     a digest of each image that calibrated
    data       the dataset with its parameters, and the splits
    metric     the metric that measures the coverage on other images
    """

    level: Annotated[float, Field(gt=0, lt=1)]
    factor: Annotated[float, Field(ge=0, le=MAX_FACTOR, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    test_mode: Literal["paper", "eval"]
    blocks: Annotated[int, Field(ge=1)]
    images: tuple[_Text, ...]
    data: dict[str, Any]
    metric: _Text

    @classmethod
    def parse(cls, header: Mapping[str, Any], path: Path) -> Calibration | None:
        """The calibration in the header of a model file; None if it has none. Raises DamagedFile, naming the key.

        >>> Calibration.parse({"in_channels": 3}, Path("model.safetensors")) is None
        True
        """
        if HEADER_KEY_OF_CALIBRATION not in header:
            return None
        try:
            return _CALIBRATION.validate_json(json.dumps(header[HEADER_KEY_OF_CALIBRATION]), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, (HEADER_KEY_OF_CALIBRATION, *first["loc"])))
            raise DamagedFile(f"{path}: its header is damaged: {key}: {first['msg'].lower()}") from None

    def as_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return schema.to_jsonable(asdict(self))  # type: ignore[no-any-return]

    def widen(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The calibrated bounds within [-1, 1], from those of `BoundsNetwork`.

        The middle stays; half the width becomes λ × (half the width + ε).
        """
        middle, half = middle_and_half(lower, upper)
        return (middle - self.factor * half).clamp(min=-1), (middle + self.factor * half).clamp(max=1)


_CALIBRATION: TypeAdapter[Calibration] = TypeAdapter(Calibration)


def middle_and_half(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of each interval, and half its width plus ε: λ covers y exactly if |y - middle| <= λ × half.

    >>> middle_and_half(torch.tensor(0.0), torch.tensor(0.5))
    (tensor(0.2500), tensor(0.2578))
    """
    return (lower + upper) / 2, (upper - lower) / 2 + GREY_LEVEL


class BoundsNetwork(nn.Module):
    """x (B, C_x, H, W) -> (B, 2 C_y, H, W) in [-1, 1]: the lower bounds, then the upper ones, before a calibration.

    G        a generator, or the sampler of a process
    samples  1: the bounds are those of `G.interval(x)`. More: the smallest and the largest of so many translations,
             whose random numbers follow each other in torch's global generator
    """

    def __init__(self, G: nn.Module, samples: int) -> None:
        super().__init__()
        self.G, self.samples = G, samples
        self.sees_target = getattr(G, "sees_target", False)  # such a G may draw noise of its own

    def forward(self, x: Tensor) -> Tensor:
        if self.samples == 1:
            lower, upper = self.G.interval(x)  # type: ignore[operator]
        else:
            lower = upper = self.G(x)
            for _ in range(self.samples - 1):
                y_hat = self.G(x)
                lower, upper = torch.minimum(lower, y_hat), torch.maximum(upper, y_hat)
        return torch.cat([lower, upper], dim=1).clamp(-1, 1)


class BoundsTranslator(Translator):
    """Gives the two bounds of a calibrated model, (B, C, H, W) each, where a `Translator` gives samples."""

    def __init__(
        self, G: nn.Module, calibration: Calibration, translations: Translations, size_divisor: int = 1
    ) -> None:
        super().__init__(BoundsNetwork(G, calibration.samples), translations, size_divisor)
        self.calibration = calibration

    def __call__(self, x: Tensor, count: int = 2) -> list[Tensor]:
        [bounds] = super().__call__(x)
        return [*self.calibration.widen(*bounds.chunk(2, dim=1))]


class Interval(NamedTuple):
    """The interval of each value of an image.

    lower, upper  (H, W, C) in the dtype and the range of y, rounded down and up
    width         (H, W) float32: upper - lower of values in [-1, 1]; mean over channels
    """

    lower: np.ndarray
    upper: np.ndarray
    width: np.ndarray


def find_reason_against(header: ModelHeader) -> str | None:
    """Why the values that a model returns have no intervals; None if they have."""
    if header.encodings.y is None:
        return None
    what = "classes" if header.encodings.y == "one-hot" else "colours that are joined with the lightness of x"
    return f"intervals are for images of numbers, and this model gives {what}"


def bounds_header(header: ModelHeader) -> ModelHeader:
    """The header of a model whose translations are the bounds that `BoundsNetwork` gives: floats in [-1, 1]."""
    return replace(
        header, out_channels=2 * header.out_channels, y_dtype="float32", y_range=(-1.0, 1.0), y_labels=None,
        encodings=Encodings(header.encodings.x, None, (header.encodings.palettes[0], None)),
    )  # fmt: skip


def make_interval(bounds: np.ndarray, calibration: Calibration, dtype: str, limits: tuple[float, float]) -> Interval:
    """The calibrated interval of bounds (H, W, 2 C) float32. dtype, limits: of y as it is stored.

    >>> calibration = Calibration(0.8, 1.0, 1, "eval", 4, (), {}, "")
    >>> interval = make_interval(np.zeros((1, 1, 2), np.float32), calibration, "uint8", (0, 255))
    >>> interval.lower.item(), interval.upper.item()  # the middle is 127.5; one level on both sides, rounded outwards
    (126, 129)
    """
    lower, upper = calibration.widen(*torch.from_numpy(bounds).double().chunk(2, dim=2))
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)  # resizing may let them cross
    low, high = limits
    stored = [((bound + 1) * ((high - low) / 2) + low).numpy() for bound in (lower, upper)]
    if dtype != "float32":
        stored = [np.floor(stored[0]), np.ceil(stored[1])]
    width = (upper - lower).mean(dim=2).float().numpy()
    return Interval(stored[0].clip(low, high).astype(dtype), stored[1].clip(low, high).astype(dtype), width)
