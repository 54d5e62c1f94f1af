"""A UserError has one line for each fault; a fault of many files names some and keeps all."""

import subprocess
import sys

from p2pzoo.utils.errors import SharedFault, UserError


def test_a_user_error_keeps_its_faults_apart():
    error = UserError("a.toml:3  no table 'x'", "a.toml:7  no key 'y'")
    assert error.faults == ("a.toml:3  no table 'x'", "a.toml:7  no key 'y'")
    assert str(error) == "a.toml:3  no table 'x'\na.toml:7  no key 'y'"


def test_a_shared_fault_names_the_first_files_and_keeps_all():
    fault = SharedFault(["2 images are grey:", "a.png", "... and 1 more"], "grey", ["a.png", "b.png"])
    assert fault == "2 images are grey:\n  a.png\n  ... and 1 more"
    assert (fault.lines[0], fault.summary, fault.cases) == ("2 images are grey:", "grey", ("a.png", "b.png"))
    assert UserError(fault).faults[0] is fault


def test_utils_import_no_torch():
    names = "errors, files, launcher, paths, rng, suggest, untar, version"
    code = f"import sys; from p2pzoo.utils import {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
