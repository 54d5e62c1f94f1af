"""Memory of scenes, under a limit; a full disk."""

import numpy as np
import pytest
import rasterio
from fault_injection import largest_file
from landscapes import TRANSFORM, UTM, landscape, write_raster
from memory_limit import ON_LINUX, run_under_limit

SIDE = 6000
LIMIT = 160  # MB beyond what the process has taken after a small scene: the large one has 206 MB in x, in its own dtype

PROGRAM = """
import numpy as np, rasterio, torch
from p2pzoo_geo import rasters
from p2pzoo_geo.bands import Bands
from p2pzoo_geo.scenes import Scenes
from p2pzoo_geo.translate import translate_scene

from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader

rasters.CACHE_MEGABYTES = 32  # of 256, which would hold the whole scene
x = Bands((1, 2, 3), (None,) * 3, ((0.0, 8000.0),) * 3, "uint16", 0.0)
y = Bands((1,), (None,), ((0.0, 4000.0),), "uint16", 0.0)
layout = {"scene": {"x": x.as_json(), "y": y.as_json(), "pixel": [10, 10], "crs": "EPSG:32633"}}
header = ModelHeader("generator", "mine", {}, 3, 1, (64, 64), run="r", size_divisor=4, test_mode="eval",
                     as_json={"file_layout": layout})
model = Model(torch.nn.Conv2d(3, 1, 3, padding=1), header, torch.device("cpu"))

def read_whole(scene):
    with rasterio.open(scene) as source:
        return torch.from_numpy(source.read().astype(np.float32)) / 4000 - 1

def window(folder):
    files = {"inputs": folder / "x.tif", "targets": folder / "y.tif"}
    dataset = Scenes("train", **files, max_nodata=0.9, block=1024, split_seed=8)
    return dataset[0].x.shape

work = {
    "translate": lambda folder: translate_scene(model, folder / "x.tif", folder / "out.tif"),
    "whole": lambda folder: read_whole(folder / "x.tif"),
    "window": window,
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """small/ and large/: x.tif of three bands and y.tif. The large one repeats a block, with gaps without data."""
    folder = tmp_path_factory.mktemp("memory")
    for name, bands in (("x", 3), ("y", 1)):
        block = landscape(2048, 2048, 1).repeat(bands, axis=0).astype("uint16")
        block += np.random.default_rng(0).integers(0, 100, block.shape, dtype=np.uint16)
        write_raster(folder / "small" / f"{name}.tif", block, tiled=True)
        (folder / "large").mkdir(exist_ok=True)
        with rasterio.open(
            folder / "large" / f"{name}.tif", "w", driver="GTiff", height=SIDE, width=SIDE, count=bands, nodata=0,
            dtype="uint16", crs=UTM, transform=TRANSFORM, tiled=True, blockxsize=512, blockysize=512, sparse_ok=True,
        ) as large:  # fmt: skip
            for top in (0, 2048, 4096 - 2048 + 1536):
                for left in (0, 2560):
                    large.write(block, window=((top, top + 2048), (left, left + 2048)))
    return folder


@ON_LINUX
@pytest.mark.slow
class TestUnderALimit:
    def test_the_limit_is_too_low_for_a_whole_scene(self, folder):
        result = run_under_limit(PROGRAM, "whole", folder, LIMIT)
        assert result.returncode != 0
        assert "memory" in result.stderr.lower()

    @pytest.mark.parametrize("what", ["translate", "window"])
    def test_a_large_scene_needs_little_more_than_a_small_one(self, folder, what):
        result = run_under_limit(PROGRAM, what, folder, LIMIT)
        assert result.returncode == 0, result.stderr


def test_a_full_disk_is_reported_in_one_line(run_cli, tmp_path):
    scene = write_raster(tmp_path / "x.tif", np.random.default_rng(0).integers(0, 255, (3, 256, 256)), dtype="uint8")
    with largest_file(20_000):
        result = run_cli("translate-scene", "zoo:earth-small", scene, "-o", tmp_path / "out.tif", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert "cannot be written" in result.output.splitlines()[-1]
    assert not (tmp_path / "out.tif").exists()
