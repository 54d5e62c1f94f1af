"""A run that the tests of several formats export."""

import pytest


@pytest.fixture(scope="session")
def trained(run, tmp_path_factory):
    """A run at 64 px whose network halves images three times and has no dropout. A page must escape its title."""
    runs = tmp_path_factory.mktemp("runs")
    result = run(runs, "generator.depth=3", "generator.noise=none", "title=Photos </script><b>of & earth")
    assert result.exit_code == 0, result.output
    return next(runs.glob("*/*"))
