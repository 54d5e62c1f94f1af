"""Draw pairs of microscope stacks: transmitted light and stained nuclei of the same cells, as OME-TIFF.

    python make_stacks.py stacks --wells 12

Each file has two channels, BF and DAPI, of one field of a well. Nuclei are ellipsoids in a few layers of cells. DAPI:
their fluorescence, blurred by a point spread function that is longer along z, with light from out of focus and the
noise of photons and of the camera. BF: their phase, which is bright on one side of the focus and dark on the other,
with uneven illumination and correlated noise. The nuclei can be seen in BF, and not easily: that is the task.
"""

import argparse
from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

PIXEL, STEP = 0.325, 1.0  # µm: of a 20x lens, and between planes
RADII = (4.0, 8.0)  # µm: of nuclei, across
METADATA = {
    "axes": "ZCYX",
    "PhysicalSizeX": PIXEL,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeY": PIXEL,
    "PhysicalSizeYUnit": "µm",
    "PhysicalSizeZ": STEP,
    "PhysicalSizeZUnit": "µm",
}


def draw_cells(planes: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """(Z, H, W) in [0, 1]: how much of each voxel is a nucleus, with the texture of chromatin."""
    z, y, x = np.meshgrid(np.arange(planes) * STEP, *[np.arange(side) * PIXEL] * 2, indexing="ij", sparse=True)
    volume = np.zeros((planes, side, side), np.float32)
    count = int(side * side * PIXEL**2 / 600)  # a cell on each 600 µm²
    for _ in range(count):
        radius = generator.uniform(*RADII)
        stretch, angle = generator.uniform(1, 1.6), generator.uniform(0, np.pi)
        centre = generator.uniform((0.2 * planes * STEP, 0, 0), (0.8 * planes * STEP, side * PIXEL, side * PIXEL))
        along = (y - centre[1]) * np.cos(angle) + (x - centre[2]) * np.sin(angle)
        across = (x - centre[2]) * np.cos(angle) - (y - centre[1]) * np.sin(angle)
        distance = np.sqrt((along / stretch) ** 2 + across**2 + ((z - centre[0]) * 2.5) ** 2) / radius
        inside = 1 / (1 + np.exp(np.clip((distance - 1) * 12, -30, 30)))  # a soft edge
        np.maximum(volume, inside * generator.uniform(0.6, 1.0), out=volume)
    texture = gaussian_filter(generator.standard_normal(volume.shape), (1, 3, 3))
    return np.clip(volume * (1 + 0.25 * texture / texture.std()), 0, 1).astype(np.float32)


def stain(cells: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(Z, H, W) uint16: the channel DAPI."""
    sharp, out_of_focus = gaussian_filter(cells, (1.2, 1.5, 1.5)), gaussian_filter(cells, (3, 12, 12))
    photons = generator.poisson(1500 * sharp + 400 * out_of_focus + 15)
    return to_uint16(2 * photons + 100 + 8 * generator.standard_normal(cells.shape))


def transmit(cells: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(Z, H, W) uint16: the channel BF."""
    planes, side = cells.shape[:2]
    body = gaussian_filter(cells, (1.5, 10, 10))  # the cytoplasm around a nucleus
    refraction = gaussian_filter(cells, (0, 1, 1)) - gaussian_filter(cells, (0, 3, 3)) + 0.6 * body
    along_z = np.gradient(gaussian_filter(refraction, (1, 0, 0)), axis=0) if planes > 1 else 0
    slope = np.gradient(refraction, axis=2)
    light = 1 + 0.15 * np.cos(np.linspace(-1, 1, side))[:, None] * np.cos(np.linspace(-1.2, 0.8, side))
    grain = gaussian_filter(generator.standard_normal(cells.shape), (0, 1.2, 1.2))
    values = light * (1 + 1.2 * along_z + 0.2 * slope - 0.3 * refraction + 0.02 * grain / grain.std())
    return to_uint16(9000 * values + 120 * generator.standard_normal(cells.shape))


def to_uint16(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 65535).astype(np.uint16)


def write(path: Path, channels: dict[str, np.ndarray]) -> None:
    """Write (Z, H, W) of each channel as one OME-TIFF."""
    metadata = {**METADATA, "Channel": {"Name": list(channels)}}
    values = np.stack([*channels.values()], axis=1)
    options = {"tile": (256, 256), "compression": "zlib", "photometric": "minisblack"}
    tifffile.imwrite(path, values, ome=True, metadata=metadata, **options)


def make_stacks(folder: Path, wells: int = 12, fields: int = 2, planes: int = 7, side: int = 256) -> None:
    """Write `fields` stacks of each well into the folder, as A01_f1.ome.tif. new.ome.tif beside it has no DAPI."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)][:wells]
    for number, name in enumerate(f"{well}_f{field}" for well in names for field in range(1, fields + 1)):
        generator = np.random.default_rng(number)
        cells = draw_cells(planes, side, generator)
        write(folder / f"{name}.ome.tif", {"BF": transmit(cells, generator), "DAPI": stain(cells, generator)})
    generator = np.random.default_rng(10_000)
    cells = draw_cells(planes, 2 * side, generator)
    write(folder.parent / "new.ome.tif", {"BF": transmit(cells, generator)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write; new.ome.tif is written beside it")
    parser.add_argument("--wells", type=int, default=12, help="how many wells, 1 to 96 [default: 12]")
    parser.add_argument("--fields", type=int, default=2, help="stacks of each well [default: 2]")
    parser.add_argument("--planes", type=int, default=7, help="planes of a stack [default: 7]")
    parser.add_argument("--side", type=int, default=256, help="side of a plane in px [default: 256]")
    arguments = parser.parse_args()
    make_stacks(arguments.folder, arguments.wells, arguments.fields, arguments.planes, arguments.side)
