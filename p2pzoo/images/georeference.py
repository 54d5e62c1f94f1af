"""Where a GeoTIFF lies on the map: its tags, to be copied to an image of the same size and place.

GeoTIFF 1.1 (OGC 19-008r4) and GDAL's own tags. Imports only Pillow.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import TiffImagePlugin

from p2pzoo.images.io import PILLOW_ERRORS, TiffTag

GEO_TAGS = {
    33550: "ModelPixelScale", 33922: "ModelTiepoint", 34264: "ModelTransformation", 34735: "GeoKeyDirectory",
    34736: "GeoDoubleParams", 34737: "GeoAsciiParams", 42112: "GDAL_METADATA", 42113: "GDAL_NODATA",
}  # fmt: skip
TIFF_SUFFIXES = (".tif", ".tiff")
_ORIENTATION = 274
_BIG_TIFF = 43


def read_georeference(path: Path) -> tuple[TiffTag, ...]:
    """The tags of GEO_TAGS in a file; none if it is no TIFF, has none or is damaged, or if the image is turned."""
    tags = _read_tags(path)
    if _is_turned(tags):
        return ()
    return tuple(
        (code, kind, len(value) if isinstance(value, tuple) else 1, value, True)
        for code, (kind, value) in tags.items()
        if code in GEO_TAGS
    )


def warn_of_losses(targets: Iterable[tuple[Path, Path]], *, is_cut: bool = False) -> None:
    """Warn once for each reason that images made from GeoTIFFs have no place on the map.

    targets: pairs of a source and the file made from it. is_cut: whether that is a part of the image.
    """
    losses: dict[str, list[Path]] = {}
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged files, which are reported when they are read
        for source, target in targets:
            if loss := _explain_loss(source, target, is_cut):
                losses.setdefault(loss, []).append(source)
    for loss, sources in losses.items():
        more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        warnings.warn(f"{sources[0]}{more}: the georeference is lost: {loss}", stacklevel=2)


def _explain_loss(source: Path, target: Path, is_cut: bool) -> str | None:
    tags = _read_tags(source)
    if not any(code in GEO_TAGS for code in tags):
        return None
    if target.suffix.lower() not in TIFF_SUFFIXES:
        return f"{target.suffix} cannot hold it, .tif can"
    if is_cut:
        return "the image is cut"
    return "the image is turned (EXIF orientation)" if _is_turned(tags) else None


def _is_turned(tags: dict[int, tuple[int, Any]]) -> bool:
    return bool(tags.get(_ORIENTATION, (3, 1))[1] != 1)


def _read_tags(path: Path) -> dict[int, tuple[int, Any]]:
    """{code: (type, value)} of GEO_TAGS and the orientation in the first page of a TIFF."""
    if not path.is_file():
        return {}
    with contextlib.suppress(*PILLOW_ERRORS, EOFError), path.open("rb") as file:
        header = file.read(8)
        if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return {}
        header += file.read(8) if _BIG_TIFF in header[2:4] else b""
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
        codes = [code for code in (*GEO_TAGS, _ORIENTATION) if code in directory]
        return {code: (directory.tagtype[code], directory[code]) for code in codes}
    return {}
