"""The claims about losses for misaligned pairs: each compares two rows of the same warp."""

import importlib
from pathlib import Path

import pytest
from p2pzoo_bench.claims_file import read_claims

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def claims():
    return read_claims(str(BENCHMARKS / "misaligned_claims.toml"))


def test_every_loss_is_compared_with_l1_at_every_warp_and_judged(claims):
    parts = [part for claim in claims.claims.values() for part in claim.parts]
    pairs = {(part.better, part.worse) for part in parts}
    assert pairs == {(f"{loss}_{warp}", f"l1_{warp}") for loss in ("registration", "tolerant") for warp in (0, 1, 2, 4)}
    assert [claim.described for claim in claims.claims.values()] == [False] * 8


def test_each_holds_in_l1_and_in_kid_with_the_margins_within_which_bf16_and_fp32_are_alike(claims, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    margins = importlib.import_module("write_readmes").BF16_MARGINS
    for claim in claims.claims.values():
        assert {part.metric for part in claim.parts} == {"l1", "kid_efficientnet_lite0"}
        assert all(part.margin == margins[part.metric] for part in claim.parts)
