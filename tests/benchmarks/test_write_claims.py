"""The claims file that benchmarks/write_claims.py writes names rows and columns that its tables have."""

import importlib
from pathlib import Path

import pytest
from p2pzoo_bench.claims_file import read_claims


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """The claims with differences of 0.1, 0.2, …, beside copies of the tables."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    module = importlib.import_module("write_claims")
    for table in module.HERE.glob("*.toml"):
        (tmp_path / table.name).write_text(table.read_text("utf-8"))
    differences = {name: 0.1 * (number + 1) for number, name in enumerate(module.METRICS)}
    (tmp_path / "claims.toml").write_text(module.claims_text(differences))
    return read_claims(str(tmp_path / "claims.toml"))


def test_the_eight_claims_get_verdicts_and_three_are_described(claims):
    assert [id for id, claim in claims.claims.items() if not claim.described] == [
        f"P{number}" for number in range(1, 9)
    ]
    assert list(claims.claims)[8:] == ["S1", "S2", "S3"]


def test_a_margin_is_a_fifth_of_the_difference_of_its_metric(claims):
    margins = {(part.metric, part.margin) for claim in claims.claims.values() for part in claim.parts}
    assert ("fcn_score", 0.02) in margins
    assert ("fcn_robust.class_iou", 0.08) in margins
    assert ("lab_histogram.b", 0.12) in margins
    assert len({metric for metric, _ in margins}) == len(margins), "one margin for each metric"
