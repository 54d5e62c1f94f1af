"""A number that was measured on too few images says so wherever it is printed."""

import json

import pytest
from fault_injection import only

from p2pzoo.runs.results import read_results

pytestmark = pytest.mark.usefixtures("with_reports")

PLUGIN = """
from p2pzoo.plugin import hookimpl

class Distance:
    version, better, minimum_images = "1", None, 5000
    def measure(self, batch, y_hat):
        return {"a": (y_hat - batch.y).flatten(1).mean(1)}
    def reduce(self, statistics):
        return {"value": float(statistics["a"].mean()), "again": 1.0}

@hookimpl
def register_metrics(register):
    register("distance", Distance, summary="x", paper="none")
"""


@pytest.fixture
def trained(install, run, tmp_path):
    """(the run's folder, the text that `p2pzoo run` printed)"""
    install("few_zoo", PLUGIN)
    result = run(tmp_path, "train.images=2", "metrics.far.use=distance")
    assert result.exit_code == 0, result.output
    return only(tmp_path), result.output


def test_every_place_that_prints_the_number(trained, run_cli, tmp_path):
    folder, printed = trained
    results = read_results(folder / "results.json")
    images = results["protocols"][results["metrics"]["far"]["protocol"]]["images"]
    few = f"too few images: {images} of at least 5000"
    marked = [line.split()[0] for line in printed.splitlines() if few in line]
    assert marked == ["far", "far.again"]
    assert (folder / "report.html").read_text().count(few) == 2
    assert run_cli("card", folder, "-o", tmp_path / "card").exit_code == 0
    assert (tmp_path / "card" / "README.md").read_text().count(few) == 2
    table = run_cli("compare", folder, "--format", "markdown").output
    assert few in table
    document = json.dumps(results["metrics"])
    assert document.count("minimum_images") == 2, "l1 and psnr have no such entry"


def test_kid_and_fid_declare_their_minimum():
    from p2pzoo_metrics.features import KID
    from p2pzoo_metrics.standard import FID

    assert (KID.minimum_images, FID.minimum_images) == (50, 2048)
