"""Memory of volumes: under a limit of what a process allocates itself, in a process of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from phantoms import write_nifti

SHAPE = (256, 256, 320)
LIMIT = 60  # MB beyond what the process has taken after a small volume: the large one has 42 MB in int16, 84 in float32

CHILD = """
import re, resource, sys
from pathlib import Path

import nibabel, torch
from p2pzoo_medical.body import find_body
from p2pzoo_medical.files import open_volume
from p2pzoo_medical.translate import Options, translate_volume
from p2pzoo_medical.units import Units

from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader

what, limit = sys.argv[1], int(sys.argv[2]) * 2**20
units = Units((0.0, 1000.0), "int16").as_json()
layout = {"axis": "axial", "slices": 3, "x": units, "y": units, "spacing": [1, 1, 1], "mask": None}
header = ModelHeader("generator", "mine", {}, 3, 1, (64, 64), run="r", size_divisor=4, test_mode="eval",
                     as_json={"file_layout": {"volume": layout}})
model = Model(torch.nn.Conv2d(3, 1, 3, padding=1), header, torch.device("cpu"))
work = {
    "whole": lambda name: nibabel.load(f"{name}.nii.gz").get_fdata(),
    "translate": lambda name: translate_volume(model, Path(f"{name}.nii.gz"), Path(f"{name}-y.nii.gz"), Options()),
    "axes": lambda name: translate_volume(model, Path(f"{name}.nii.gz"), Path(f"{name}-y.nii"), Options(axes=3)),
}[what]
work("small")  # libraries are loaded, and threads started
taken = int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + limit, taken + limit))  # maps of files do not count
work("large")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    noise = np.random.default_rng(0).integers(0, 1000, (256, 256, 8), dtype=np.int16)
    write_nifti(folder / "small.nii.gz", np.tile(noise, (1, 1, 24)), np.eye(4))
    write_nifti(folder / "large.nii.gz", np.tile(noise, (1, 1, SHAPE[2] // 8)), np.eye(4))
    return folder


def run(what, folder):
    command = [sys.executable, "-c", CHILD, what, str(LIMIT)]
    environment = {**os.environ, "P2PZOO_CACHE": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and limits the memory")
class TestUnderALimit:
    def test_the_limit_is_too_low_for_a_whole_volume(self, folder):
        result = run("whole", folder)
        assert result.returncode != 0
        assert "memory" in result.stderr.lower()

    @pytest.mark.parametrize("what", ["translate", "axes"])
    def test_a_large_volume_needs_little_more_than_a_small_one(self, folder, what):
        result = run(what, folder)
        assert result.returncode == 0, result.stderr


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, nibabel
from p2pzoo_medical.files import open_volume
from p2pzoo_medical.nifti import make_header, writing_nifti
from p2pzoo_medical.units import Units
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # files of more bytes fail as on a full disk
volume = open_volume(Path("small.nii"))
try:
    with writing_nifti(Path("y.nii.gz"), make_header(volume, Units((0.0, 1.0), "int16"), "")):
        print("written")
except OSError as error:
    print("refused")
print(sorted(path.name for path in Path().iterdir() if path.name.startswith((".", "y"))))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
def test_a_full_disk_is_noticed_before_anything_is_translated(tmp_path):
    write_nifti(tmp_path / "small.nii", np.zeros((64, 64, 8), np.int16), np.eye(4))
    result = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.split("\n")[:2] == ["refused", "[]"], result.stderr
