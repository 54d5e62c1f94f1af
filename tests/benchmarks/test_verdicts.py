"""The verdicts on the paper's claims, computed again from the committed statistics by code that shares nothing with
p2pzoo's: numpy and scipy on the files, with the formulas of protocol 2 (benchmarks/README.md) written out."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.claims import judge
from p2pzoo_bench.claims_file import read_claims
from p2pzoo_bench.table_file import read_table
from safetensors import safe_open
from scipy import stats as scipy_stats

from p2pzoo.plugin.loader import registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"
FILE = BENCHMARKS / "claims.toml"
CLAIMS = tomllib.loads(FILE.read_text("utf-8"))["claims"] if FILE.exists() else {}
pytestmark = pytest.mark.slow  # it builds four tables of the earth

SCORED = range(8)  # the means over classes omit the ninth, snow and ice


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """{file: table}, with the committed runs alone."""
    runs = tmp_path_factory.mktemp("runs")
    return {
        name: Bench(read_table(str(BENCHMARKS / name)), registry(), runs)
        for name in sorted({claim["table"] for claim in CLAIMS.values()})
    }


@pytest.fixture(scope="module")
def judged(tables):
    """{id: claim}, as `p2pzoo bench zoo:claims.toml --format json` prints them."""
    comparisons = {name: bench.compare({}, targets=False) for name, bench in tables.items()}
    return {claim.id: claim.describe() for claim in judge(read_claims(str(FILE)), tables, comparisons)}


@pytest.fixture(scope="module")
def by_hand(tables):
    """{id: {"parts": [(effect, low, high, low of 90%, high of 90%, p)], "p": p, "valid": bool}}; None: runs missing."""
    folders = {
        file: {(cell.row.name, cell.experiment.seed): cell.experiment.id for cell in bench.cells}
        for file, bench in tables.items()
    }
    return {id: measure_claim(claim, folders[claim["table"]]) for id, claim in CLAIMS.items()}


def read_statistics(folder):
    """({name: array}, ids) of a committed run. What equals a run of the ground truth is stored there alone."""
    with safe_open(folder / "stats.safetensors", "numpy") as file:
        arrays = {name: file.get_tensor(name).astype(float) for name in file.keys()}  # noqa: SIM118
        [header] = map(json.loads, (file.metadata() or {}).values())
    for name, other in header.get("same_as", {}).items():
        with safe_open(RESULTS / other / "stats.safetensors", "numpy") as file:
            there = name if name in file.keys() else re.sub(r"@\w+", "", name)  # noqa: SIM118
            arrays[name] = file.get_tensor(there).astype(float)
    return arrays, header["ids"]


def confusion_numbers(matrix):
    hits, true, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    union = true + predicted - hits
    return {
        "value": hits.sum() / matrix.sum(),
        "class_iou": np.mean([hits[c] / union[c] if true[c] else 0.0 for c in SCORED]),
        "largest_class": true.max() / true.sum(),
    }


def number(arrays, metric):
    name, _, key = metric.partition(".")
    if f"{name}.confusion" in arrays:
        return confusion_numbers(arrays[f"{name}.confusion"].sum(0))[key or "value"]
    fake, real = (arrays[f"{name}.{image}_{key}"].sum(0) for image in ("y_hat", "y"))
    return np.minimum(fake / fake.sum(), real / real.sum()).sum()


def measure_claim(claim, ids):
    rows = {part[side] for part in claim["parts"] for side in ("better", "worse")}
    runs = {}
    for (row, fold), id in ids.items():
        if row in rows:
            found = [*RESULTS.glob(f"*-{id}")]
            if not found:
                return None
            runs[row, fold] = read_statistics(found[0])
    parts = [measure_part(part, runs) for part in claim["parts"]]
    valid = all(is_met(condition, of_row(runs, condition["row"])) for condition in claim.get("valid", ()))
    one_sign = len({effect > 0 for effect, *_ in parts}) == 1
    return {"parts": parts, "valid": valid, "p": max(p for *_, p in parts) if one_sign else 1.0}


def is_met(condition, runs):
    return np.mean([number(a, condition["metric"]) - number(a, condition["above"]) for a, _ in runs]) > 0


def of_row(runs, row):
    return [run for (name, _), run in sorted(runs.items()) if name == row]


def measure_part(part, runs):
    pairs = [*zip(of_row(runs, part["better"]), of_row(runs, part["worse"]), strict=False)]  # folds 0, 1, … of both
    assert all(ids == other for (_, ids), (_, other) in pairs)
    d = [number(a, part["metric"]) - number(b, part["metric"]) for (a, _), (b, _) in pairs]
    return over_folds(d, [len(ids) for (_, ids), _ in pairs])


def over_folds(d, tiles):
    d, weights = np.array(d), np.array(tiles) / sum(tiles)
    effect = (weights * d).sum()
    error = np.sqrt(((d - d.mean()) ** 2).sum() / (len(d) - 1) * (weights**2).sum())
    t = scipy_stats.t(len(d) - 1)
    ends = [effect + sign * t.ppf(q) * error for q in (0.975, 0.95) for sign in (-1, 1)]
    return effect, *ends, 2 * t.sf(abs(effect) / error)


def holm(ps):
    """The adjusted p-values: the k-th smallest of m, times m - k + 1, and never less than a smaller one's."""
    adjusted, least = {}, 0.0
    for rank, (id, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(ps) - rank)))
        adjusted[id] = least
    return adjusted


def verdict_by_hand(id, by_hand):
    claim, measured = CLAIMS[id], by_hand[id]
    if measured is None:
        return None
    if claim.get("described"):
        return "described"
    judged = [name for name in CLAIMS if not CLAIMS[name].get("described")]
    usable = {name: by_hand[name] and by_hand[name]["valid"] for name in judged}
    ps = {name: by_hand[name]["p"] if usable[name] else 1.0 for name in judged}
    adjusted = holm(ps)
    if not usable[id]:
        return "undecided"
    if adjusted[id] < 0.05:
        return "same direction" if measured["parts"][0][0] > 0 else "opposite"
    if holm({name: p if by_hand[name] else 0.0 for name, p in ps.items()})[id] < 0.05:
        return None  # claims whose runs are missing decide whether it is significant
    inside = [max(abs(low), abs(high)) < part["margin"]
              for part, (_, _, _, low, high, _) in zip(claim["parts"], measured["parts"], strict=True)]  # fmt: skip
    return "no effect above δ" if all(inside) else "undecided"


@pytest.mark.parametrize("id", CLAIMS)
def test_the_verdict_follows_from_the_committed_statistics(id, judged, by_hand):
    assert judged[id]["verdict"] == verdict_by_hand(id, by_hand)


@pytest.mark.parametrize("id", CLAIMS)
def test_effects_intervals_and_p_follow_from_the_committed_statistics(id, judged, by_hand):
    if by_hand[id] is None:
        assert judged[id]["parts"] == [], "nobody sees an effect before all runs are in"
        return
    for part, (effect, low, high, low_90, high_90, p) in zip(judged[id]["parts"], by_hand[id]["parts"], strict=True):
        assert part["effect"] == pytest.approx(effect, abs=1e-9)
        assert part["interval"] == pytest.approx([low, high], abs=1e-9)
        assert part["interval_90"] == pytest.approx([low_90, high_90], abs=1e-9)
        assert part["p"] == pytest.approx(p, rel=1e-6)


def test_the_committed_verdicts_are_those_of_the_committed_runs(judged):
    committed = json.loads((RESULTS / "claims.json").read_text("utf-8"))
    assert [claim["id"] for claim in committed] == [*judged]
    for claim in committed:
        now = judged[claim["id"]]
        assert {key: claim[key] for key in ("verdict", "reason", "missing_runs", "text", "source")} == {
            key: now[key] for key in ("verdict", "reason", "missing_runs", "text", "source")
        }
        for part, other in zip(claim["parts"], now["parts"], strict=True):
            assert [part["effect"], *part["interval"]] == pytest.approx([other["effect"], *other["interval"]], rel=1e-9)
