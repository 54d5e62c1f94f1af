"""Draw georeferenced scenes: four bands as Sentinel-2 has them (x), and the height of the trees (y), as GeoTIFFs.

    python make_scenes.py scenes --count 3

writes scenes/sentinel/a.tif and scenes/heights/a.tif, b.tif and so on. scenes/new.tif has no heights. It needs
p2pzoo[geo].

Land cover follows from smooth fields: water, meadows, fields with straight edges, and forest with trees of 4 to 35 m.
Bands: the reflectance of each cover, darker and redder in tall forest, shaded by the relief, with correlated noise, and
clouds without data. Heights: as a laser scanner measures them, in strips with gaps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

METRES = 10  # side of a pixel
BANDS = ("B02", "B03", "B04", "B08")  # blue, green, red, near infrared
WATER, MEADOW, FIELD, FOREST = range(4)
REFLECTANCE = np.array(
    [[0.05, 0.04, 0.02, 0.01], [0.05, 0.09, 0.07, 0.34], [0.09, 0.12, 0.16, 0.24], [0.03, 0.05, 0.03, 0.30]]
)  # of each cover, in each band
SCALE, OFFSET = 1e-4, -0.1  # tags: a stored value v stands for v · SCALE + OFFSET
X_NODATA, Y_NODATA = 0, -9999


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], pixels: float) -> np.ndarray:
    """(H, W) Gaussian noise of variance 1, correlated over this distance."""
    noise = gaussian_filter(rng.standard_normal(shape), pixels, mode="wrap")
    return noise / noise.std()


def draw_fields(rng: np.random.Generator, shape: tuple[int, int], count: int) -> np.ndarray:
    """(H, W) the number of the nearest of so many points, by the sum of two skewed distances: straight edges."""
    points = rng.uniform((0, 0), shape, (count, 2))
    pixels = np.indices(shape).reshape(2, -1).T
    skewed = [places @ np.array([[1, 0], [0.3, 1]]) for places in (points, pixels)]
    return cKDTree(skewed[0]).query(skewed[1], p=1)[1].reshape(shape)


def draw_scene(seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(4, H, W) uint16 bands, and (H, W) float32 heights of trees in m, both with pixels without data."""
    rng = np.random.default_rng(seed)
    relief = 200 * smooth_noise(rng, shape, 60) + 40 * smooth_noise(rng, shape, 12)
    wood = smooth_noise(rng, shape, 18) + 0.5 * smooth_noise(rng, shape, 4) + relief / 400
    parcels = draw_fields(rng, shape, max(4, shape[0] * shape[1] // 4000))
    cover = np.where(rng.random(parcels.max() + 1) < 0.5, FIELD, MEADOW)[parcels]
    cover[wood > 0.2] = FOREST
    cover[relief < -260] = WATER

    age = smooth_noise(rng, shape, 25)
    height = np.where(cover == FOREST, 18 + 7 * age + 2 * smooth_noise(rng, shape, 1), 0)
    height = np.where(cover == FOREST, np.clip(height, 4, 35), 0)

    values = REFLECTANCE[cover].transpose(2, 0, 1)
    tone = 1 + 0.12 * rng.standard_normal(parcels.max() + 1)[parcels] * (cover != FOREST)
    values = values * tone * (1 - 0.012 * height) + np.array([0, 0, 0, 0.002])[:, None, None] * height
    sun = np.gradient(relief, axis=1) - np.gradient(relief, axis=0)
    values = gaussian_filter(values, (0, 0.6, 0.6)) * np.clip(1 + 0.02 * sun, 0.5, 1.5)
    values = values + np.stack([0.004 * smooth_noise(rng, shape, 1) for _ in BANDS])
    bands = np.clip(np.rint((values - OFFSET) / SCALE), 1, 65535).astype(np.uint16)
    bands[:, smooth_noise(rng, shape, 30) > 2.0] = X_NODATA

    measured = (height + 0.5 * rng.standard_normal(shape)).clip(0).astype(np.float32)
    strips = np.arange(shape[1]) % 150
    measured[:, strips < 6] = Y_NODATA
    return bands, measured


def write_scene(
    path: Path, values: np.ndarray, nodata: float, names: tuple[str, ...], east: int, **tags: object
) -> None:
    """Write (C, H, W) as a tiled GeoTIFF. east: px from the first scene. tags: scale, offset and unit of all bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, nodata=nodata,
        crs="EPSG:32633", transform=from_origin(399960 + east * METRES, 5300040, METRES, METRES), tiled=True,
        compress="deflate",
    ) as target:  # fmt: skip
        target.write(values)
        target.descriptions = names
        if "unit" in tags:
            target.units = [tags["unit"]] * count
        if "scale" in tags:
            target.scales, target.offsets = [tags["scale"]] * count, [tags["offset"]] * count


def make_scenes(folder: Path, count: int = 3, side: int = 1024) -> None:
    """Write `count` pairs of scenes of `side` px, and new.tif, which is half as wide again."""
    for seed in range(count + 1):
        is_new = seed == count
        bands, heights = draw_scene(seed, (side, side * 3 // 2 if is_new else side))
        name = "new.tif" if is_new else f"{chr(ord('a') + seed)}.tif"
        east = seed * side  # beside each other: scenes at one place would be dates of one ground
        x_folder = folder / ("" if is_new else "sentinel")
        write_scene(x_folder / name, bands, X_NODATA, BANDS, east, scale=SCALE, offset=OFFSET)
        if not is_new:
            write_scene(folder / "heights" / name, heights[None], Y_NODATA, ("tree height",), east, unit="m")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=3, help="pairs of scenes, 1 to 26 [default: 3]")
    parser.add_argument("--side", type=int, default=1024, help="side of a scene in px [default: 1024]")
    arguments = parser.parse_args()
    make_scenes(arguments.folder, arguments.count, arguments.side)
