"""Memory of stacks, under a limit."""

import numpy as np
import pytest
import tifffile
from memory_limit import ON_LINUX, run_under_limit
from stack_pairs import cells, ome, write_stack

SIDE = 6000
LIMIT = 160  # MB beyond what the process has taken after a small stack: a large plane has 206 MB in x, in its own dtype

PROGRAM = """
import numpy as np, tifffile, torch
from p2pzoo_geo.bands import Bands
from p2pzoo_microscopy.planes import Planes, describe_stack
from p2pzoo_microscopy.stacks import Stacks
from p2pzoo_microscopy.translate import translate_stack

from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader

x = Bands((1, 2, 3), ("A", "B", "C"), ((0.0, 8000.0),) * 3, "uint16")
y = Bands((1,), ("DAPI",), ((0.0, 4000.0),), "uint16")
header = ModelHeader("generator", "mine", {}, 3, 1, (64, 64), run="r", size_divisor=4, test_mode="eval",
                     x_range=(0, 8000), y_range=(0, 4000), x_dtype="uint16", y_dtype="uint16",
                     as_json={"file_layout": {"stack": describe_stack(x, y, Planes(), {})}})
model = Model(torch.nn.Conv2d(3, 1, 3, padding=1), header, torch.device("cpu"))

def window(folder):
    parameters = {"x_channels": (1, 2), "y_channels": (3,), "fractions": (0.5, 0.5, 0.0), "split_seed": 1}
    return Stacks("train", inputs=folder, **parameters)[0].x.shape

work = {
    "translate": lambda folder: translate_stack(model, folder / "a.tif", folder.with_name("y.ome.tif"), tile=256),
    "whole": lambda folder: torch.from_numpy(tifffile.imread(folder / "a.tif").astype(np.float32)) / 4000 - 1,
    "window": window,
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """small/ and large/: stacks of three channels, a.tif and b.tif. The large ones repeat a tile."""
    folder = tmp_path_factory.mktemp("memory")
    tile = cells(c=3, height=512, width=512)[0, 0]
    for name in ("a", "b", "c", "d"):
        write_stack(folder / "small" / f"{name}.tif", cells(c=3, height=512, width=512), None)
    (folder / "large").mkdir()
    options = {"tile": (512, 512), "compression": "zlib", "photometric": "minisblack", "dtype": "uint16"}
    across = -(-SIDE // 512)
    tiles = (channel for channel in tile for _ in range(across * across))
    metadata = ome(None, axes="CYX")
    tifffile.imwrite(folder / "large" / "a.tif", tiles, shape=(3, SIDE, SIDE), ome=True, metadata=metadata, **options)
    for name in ("b", "c", "d"):
        (folder / "large" / f"{name}.tif").hardlink_to(folder / "large" / "a.tif")
    return folder


@ON_LINUX
@pytest.mark.slow
class TestUnderALimit:
    def test_the_limit_is_too_low_for_a_whole_plane(self, folder):
        result = run_under_limit(PROGRAM, "whole", folder, LIMIT)
        assert result.returncode != 0
        assert "memory" in result.stderr.lower()

    @pytest.mark.parametrize("what", ["translate", "window"])
    def test_a_large_plane_needs_little_more_than_a_small_one(self, folder, what):
        result = run_under_limit(PROGRAM, what, folder, LIMIT)
        assert result.returncode == 0, result.stderr
        if what == "translate":
            assert np.prod(tifffile.TiffFile(folder / "y.ome.tif").series[0].shape) == SIDE * SIDE
