"""Memory of volumes, under a limit of what a process allocates itself; a full disk."""

import numpy as np
import pytest
from fault_injection import largest_file
from memory_limit import ON_LINUX, run_under_limit
from p2pzoo_medical.files import open_volume
from p2pzoo_medical.nifti import make_header, writing_nifti
from p2pzoo_medical.units import Units
from phantoms import write_nifti

SHAPE = (256, 256, 320)
LIMIT = 60  # MB beyond what the process has taken after a small volume: the large one has 42 MB in int16, 84 in float32

PROGRAM = """
import nibabel, torch
from p2pzoo_medical.body import find_body
from p2pzoo_medical.files import open_volume
from p2pzoo_medical.translate import Options, translate_volume
from p2pzoo_medical.units import Units

from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader

units = Units((0.0, 1000.0), "int16").as_json()
layout = {"axis": "axial", "slices": 3, "x": units, "y": units, "spacing": [1, 1, 1], "mask": None}
header = ModelHeader("generator", "mine", {}, 3, 1, (64, 64), run="r", size_divisor=4, test_mode="eval",
                     as_json={"file_layout": {"volume": layout}})
model = Model(torch.nn.Conv2d(3, 1, 3, padding=1), header, torch.device("cpu"))
work = {
    "whole": lambda name: nibabel.load(f"{name}.nii.gz").get_fdata(),
    "translate": lambda name: translate_volume(model, Path(f"{name}.nii.gz"), Path(f"{name}-y.nii.gz"), Options()),
    "axes": lambda name: translate_volume(model, Path(f"{name}.nii.gz"), Path(f"{name}-y.nii"), Options(axes=3)),
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    noise = np.random.default_rng(0).integers(0, 1000, (256, 256, 8), dtype=np.int16)
    write_nifti(folder / "small.nii.gz", np.tile(noise, (1, 1, 24)), np.eye(4))
    write_nifti(folder / "large.nii.gz", np.tile(noise, (1, 1, SHAPE[2] // 8)), np.eye(4))
    return folder


@ON_LINUX
@pytest.mark.slow
class TestUnderALimit:
    def test_the_limit_is_too_low_for_a_whole_volume(self, folder):
        result = run_under_limit(PROGRAM, "whole", folder, LIMIT, of="data")
        assert result.returncode != 0
        assert "memory" in result.stderr.lower()

    @pytest.mark.parametrize("what", ["translate", "axes"])
    def test_a_large_volume_needs_little_more_than_a_small_one(self, folder, what):
        result = run_under_limit(PROGRAM, what, folder, LIMIT, of="data")
        assert result.returncode == 0, result.stderr


def test_a_full_disk_is_noticed_before_anything_is_translated(tmp_path):
    small = write_nifti(tmp_path / "small.nii", np.zeros((64, 64, 8), np.int16), np.eye(4))
    header = make_header(open_volume(small), Units((0.0, 1.0), "int16"), "")
    with (
        largest_file(20_000),
        pytest.raises(OSError, match="File too large"),
        writing_nifti(tmp_path / "y.nii.gz", header),
    ):
        pytest.fail("there is no room")
    assert [*tmp_path.iterdir()] == [small]
