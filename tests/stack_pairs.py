"""Small microscope stacks: cells that two channels show, frames and planes, metadata of OME and ImageJ."""

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

MICROMETRES = {"X": 0.325, "Y": 0.325, "Z": 1.0}


def cells(t=1, z=1, c=2, height=64, width=80, seed=0):
    """(T, Z, C, H, W) uint16. All values differ from plane to plane; the channels show the same cells."""
    generator = np.random.default_rng(seed)
    shape = gaussian_filter(generator.standard_normal((t, z, 1, height, width)), (0, 0, 0, 4, 4))
    shape = (shape - shape.min()) / (shape.max() - shape.min())
    gains = np.linspace(2000, 4000, c).reshape(c, 1, 1)
    return (200 + shape * gains + generator.integers(0, 50, (t, z, c, height, width))).astype("uint16")


def ome(names=("BF", "DAPI"), pixel=MICROMETRES, **more):
    """Metadata of tifffile for axes TZCYX."""
    sizes = {f"PhysicalSize{axis}": size for axis, size in pixel.items()}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in pixel}
    channel = {"Channel": {"Name": list(names)}} if names else {}
    return {"axes": "TZCYX", **sizes, **units, **channel, **more}


def write_stack(path, values, names=("BF", "DAPI"), pixel=MICROMETRES, **options):
    """Write (T, Z, C, H, W) as OME-TIFF, in tiles that are compressed, unless options say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"tile": (32, 32), "compression": "zlib", **options}
    tifffile.imwrite(path, values, ome=True, metadata=ome(names, pixel), photometric="minisblack", **options)
    return path


def damage_page(path, number):
    """Overwrite the first values of a page of a TIFF; pages are counted from 0."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[number].dataoffsets[0]
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(b"x" * 50)


def write_pairs(folder, count=4, names=(("BF",), ("DAPI",)), **shape):
    """inputs/00.tif, … with the first channels, and targets/00.tif, … with the last one. Returns the folder."""
    for number in range(count):
        values = cells(seed=number, **shape)
        write_stack(folder / "inputs" / f"{number:02d}.tif", values[:, :, :-1], names[0])
        write_stack(folder / "targets" / f"{number:02d}.tif", values[:, :, -1:], names[1])
    return folder
