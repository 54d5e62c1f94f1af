"""What the fault campaign's tests share. One that is marked with a promise inflicts a fault and holds the promise.

One that asks for `chance` is repeated --times times, each time elsewhere; `benchmarks/faults.py` makes the long run.
"""

import random

import numpy as np
import pytest
from disturbed import bytes_lost, outcome

from p2pzoo.images.io import write_png


def pytest_configure(config):
    config.addinivalue_line("markers", "promise(text): what holds under this fault")


def pytest_generate_tests(metafunc):
    if "chance" in metafunc.fixturenames:
        metafunc.parametrize("chance", range(metafunc.config.getoption("--times")), indirect=True)


@pytest.fixture
def chance(request):
    """Where and when the fault strikes."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.name}")


# --- a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unharmed(complete_once):
    """The outcome of a run that met no fault."""
    return outcome(complete_once)


@pytest.fixture
def photos(tmp_path):
    """(folder, overrides that train on the pictures in it): eight pairs for training, two for the rest."""
    folder = tmp_path / "photos"
    drawn = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            write_png(folder / split / f"{number}.png", drawn.integers(0, 256, (64, 128, 3), dtype=np.uint8))
    use = f'dataset={{use="side-by-side", root="{folder}"}}'
    return folder, (use,)


@pytest.fixture
def refused():
    """refused(answer): the last line of one that is an error of the user's."""

    def refused(answer):
        assert answer.exit_code == 2, answer.output
        assert "Traceback" not in answer.output
        return answer.output.splitlines()[-1]

    return refused


@pytest.fixture
def goes_on(run, record_property):
    """goes_on(runs, before, expected): the same command again ends as if nothing had happened, and nothing is lost of
    what was on disk `before` it (`on_disk`, of the moment after the fault)."""

    def goes_on(runs, before, expected, *overrides, flags=()):
        answer = run(runs, *overrides, flags=flags)
        assert answer.exit_code == 0, answer.output
        assert outcome(runs) == expected
        lost = bytes_lost(before)
        record_property("bytes_lost", lost)
        record_property("observed", "was complete" if answer.began is None else "went on from a checkpoint")
        assert lost == 0
        assert list(runs.rglob(".*.tmp")) == []
        return answer

    return goes_on
