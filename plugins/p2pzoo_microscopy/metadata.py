"""What a TIFF of a microscope says about its values: channel names, pixel sizes, times. OME's metadata, or ImageJ's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MICROMETRES = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0}
_IMAGEJ_UNITS = {"micron": "µm", "microns": "µm", "um": "µm", "\\u00b5m": "µm", "μm": "µm", "inch": "in"}


@dataclass(frozen=True)
class Metadata:
    """What a file says about its values.

    names    of its channels; None for one without a name
    unnamed  why there are no names, for messages
    pixel    {"X", "Y" or "Z": (size, unit)} as the file has them
    frame    (time between frames, unit); None if unknown
    """

    names: tuple[str | None, ...] = ()
    unnamed: str = "it has no OME metadata"
    pixel: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    frame: tuple[float, str] | None = None

    def micrometres(self, axis: str) -> float | None:
        """The size of a pixel along "X", "Y" or "Z"; None if it is unknown.

        >>> Metadata(pixel={"X": (325.0, "nm")}).micrometres("X")
        0.325
        """
        size, unit = self.pixel.get(axis, (0.0, ""))
        return size * MICROMETRES[unit] if unit in MICROMETRES and 0 < size < math.inf else None


def read_metadata(tiff: Any, index: int) -> Metadata:
    """The metadata of a series: of OME, else of ImageJ, else none."""
    if tiff.is_ome and tiff.ome_metadata:
        import ome_types

        try:
            return _read_ome(ome_types.from_xml(tiff.ome_metadata).images[index].pixels)
        except Exception as error:  # the XML can hold anything
            return Metadata(unnamed=f"its OME metadata cannot be read ({first_line(error)})")
    if tiff.is_imagej and tiff.imagej_metadata:
        return _read_imagej(tiff)
    return Metadata()


def _read_ome(pixels: Any) -> Metadata:
    pixel = {}
    for axis in "XYZ":
        size, unit = (getattr(pixels, f"physical_size_{axis.lower()}{end}") for end in ("", "_unit"))
        if size:
            pixel[axis] = (float(size), str(unit.value))
    frame = pixels.time_increment and (float(pixels.time_increment), str(pixels.time_increment_unit.value))
    names = tuple(channel.name for channel in pixels.channels)
    return Metadata(names, "its OME metadata name no channels", pixel, frame or None)


def _read_imagej(tiff: Any) -> Metadata:
    facts, tags = tiff.imagej_metadata, tiff.pages[0].tags
    unit = str(facts.get("unit", "")).lower()
    unit = _IMAGEJ_UNITS.get(unit, unit)
    pixel = {}
    if unit in MICROMETRES:
        for axis in "XY":
            tag = tags.get(f"{axis}Resolution")
            if tag is not None and all(tag.value):
                pixel[axis] = (tag.value[1] / tag.value[0], unit)
        if facts.get("spacing"):
            pixel["Z"] = (abs(float(facts["spacing"])), unit)
    frame = (float(facts["finterval"]), "s") if facts.get("finterval") else None
    return Metadata(pixel=pixel, frame=frame)


def first_line(error: Exception) -> str:
    """The first line of an exception's text, for messages."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
