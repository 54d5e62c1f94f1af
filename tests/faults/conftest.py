"""Fixtures of the fault campaign. A test marked with a promise injects a fault and checks the promise.

A test with the fixture `chance` is repeated --times times with other random numbers; `benchmarks/faults.py` makes the
long run.
"""

import functools
import random
import shutil

import numpy as np
import pytest
from fault_injection import bytes_lost, outcome

from p2pzoo.images.io import write_png


def pytest_configure(config):
    config.addinivalue_line("markers", "promise(text): what holds under this fault")


def pytest_generate_tests(metafunc):
    if "chance" in metafunc.fixturenames:
        metafunc.parametrize("chance", range(metafunc.config.getoption("--times")), indirect=True)


@pytest.fixture
def chance(request):
    """Random numbers that decide where and when the fault happens."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.name}")


# --- a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def unharmed(shared_complete):
    """The outcome of a run without a fault."""
    return outcome(shared_complete)


@pytest.fixture(scope="module")
def photos_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("photos") / "pairs"


@pytest.fixture
def photos(photos_folder):
    """(folder, overrides that train on its images): eight pairs for training, two for val and test each.

    In each test of a module it is the same folder with the same files: see `unharmed_on_photos`.
    """
    shutil.rmtree(photos_folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        (photos_folder / split).mkdir(parents=True)
        for number in range(count):
            write_png(photos_folder / split / f"{number}.png", rng.integers(0, 256, (64, 128, 3), dtype=np.uint8))
    use = f'dataset={{use="side-by-side", root="{photos_folder}"}}'
    return photos_folder, (use,)


@pytest.fixture(scope="module")
def unharmed_on_photos(run, tmp_path_factory):
    """unharmed_on_photos(*overrides): the outcome of a run without a fault. Call it before photos are changed."""

    @functools.cache
    def unharmed_on_photos(*overrides):
        runs = tmp_path_factory.mktemp("unharmed")
        assert run(runs, *overrides).exit_code == 0
        return outcome(runs)

    return unharmed_on_photos


@pytest.fixture
def refused():
    """refused(result): the last line of a result with exit code 2."""

    def refused(result):
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        return result.output.splitlines()[-1]

    return refused


@pytest.fixture
def goes_on(run, record_property):
    """goes_on(runs, before, expected): run the same command again; its outcome must be `expected`, and no file of
    `before` (`on_disk` right after the fault) may be lost."""

    def goes_on(runs, before, expected, *overrides, flags=()):
        result = run(runs, *overrides, flags=flags)
        assert result.exit_code == 0, result.output
        assert outcome(runs) == expected
        lost = bytes_lost(before)
        record_property("bytes_lost", lost)
        record_property("observed", "was complete" if result.first_step is None else "resumed from a checkpoint")
        assert lost == 0
        assert list(runs.rglob(".*.tmp")) == []
        return result

    return goes_on
