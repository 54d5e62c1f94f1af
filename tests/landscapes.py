"""Small scenes as satellites give them: correlated values, holes without data, a UTM grid."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

UTM, OTHER_UTM = "EPSG:32633", "EPSG:32632"
TRANSFORM = from_origin(399960, 5300040, 10, 10)


def landscape(height, width, bands, seed=0, low=200, high=6000):
    """(bands, H, W) float64 between low and high: smooth hills and a little noise."""
    generator = np.random.default_rng(seed)
    fields = [gaussian_filter(generator.standard_normal((height, width)), 8) for _ in range(bands)]
    values = np.stack([(f - f.min()) / (f.max() - f.min()) for f in fields])
    values = 0.98 * values + 0.02 * generator.random(values.shape)
    return low + values * (high - low)


def write_raster(
    path, values, *, dtype="uint16", nodata=0, names=None, crs=UTM, transform=TRANSFORM, holes=(), scaling=None,
    unit=None, **options
):  # fmt: skip
    """Write (C, H, W). holes: (rows, columns) slices without data. scaling, unit: tags of all bands."""
    values = np.asarray(values).astype(dtype)
    for rows, columns in holes:
        values[:, rows, columns] = nodata
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=dtype, crs=crs, transform=transform,
        nodata=nodata, **options,
    ) as target:  # fmt: skip
        target.write(values)
        for number, name in enumerate(names or (), 1):
            target.set_band_description(number, name)
        if scaling:
            target.scales, target.offsets = ([each] * count for each in scaling)
        if unit:
            target.units = [unit] * count
    return path


def write_pair(folder, name="a", height=128, width=160, seed=0, holes=(), scaling=(1e-4, -0.1), unit="m"):
    """inputs/NAME.tif with three uint16 bands, and targets/NAME.tif with one of float32 that follows from them.

    scaling: tags of the inputs; unit: of the targets.
    """
    x = landscape(height, width, 3, seed)
    y = (x.mean(axis=0, keepdims=True) - 3000) / 100
    write_raster(folder / "inputs" / f"{name}.tif", x, names=("blue", "green", "red"), holes=holes, scaling=scaling)
    write_raster(
        folder / "targets" / f"{name}.tif", y, dtype="float32", nodata=-9999, names=("height",), holes=holes, unit=unit
    )
    return folder / "inputs", folder / "targets"
