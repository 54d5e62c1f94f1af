"""`p2pzoo bench CLAIMS.toml`: verdicts from results with known differences; no run is trained here."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.claims import judge
from p2pzoo_bench.claims_file import read_claims
from p2pzoo_bench.claims_formats import format_reasons, summarize, to_markdown, to_svg
from p2pzoo_bench.folds import over_folds, pool_rows
from p2pzoo_bench.table_file import read_table
from scipy import stats

from p2pzoo.models.safetensors_io import save_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.runs.evaluate import hash_protocol
from p2pzoo.utils.errors import UserError

FOLDS = 5
TABLE = f"""
folds = {FOLDS}
profile = "smoke"
baseline = "a"
[columns]
l1 = "mean error"
[rows.a]
recipe = "a.toml"
label = "A"
[rows.b]
recipe = "b.toml"
label = "B"
[rows.c]
recipe = "c.toml"
label = "C"
folds = 3
"""
CLAIMS = """
title = "Trial"
source = "A paper"
[claims.P1]
text = "A is better than B"
source = "Table 1"
table = "table.toml"
parts = [{ better = "a", worse = "b", metric = "l1", margin = 0.02, paper = 0.3 }]
"""
ARGUMENTS = ("--runs", "runs", "--quiet")


@pytest.fixture
def files(tmp_path, tiny, monkeypatch):
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.toml").write_text(
            f'extends = "{tiny}"\ndrop = ["discriminator", "gan_loss"]\n[train]\nimages = {2 + number}\n'
        )
    (tmp_path / "table.toml").write_text(TABLE)
    (tmp_path / "claims.toml").write_text(CLAIMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bench(files):
    """bench(): the table."""
    return lambda: Bench(read_table("table.toml"), registry(), files / "runs")


@pytest.fixture
def write_runs(files, bench):
    """write_runs({row: mean L1 of each fold}): results of all runs of the table, beside it. Returns the table."""

    def write_runs(numbers, folds=FOLDS):
        table = bench()
        for cell in table.cells:
            if cell.experiment.seed < folds:
                write_run(table, cell, numbers[cell.row.name][cell.experiment.seed], files / "results")
        return table

    return write_runs


def write_run(table, cell, mean, folder):
    experiment, fold = cell.experiment, cell.experiment.seed
    store = table.store(experiment)
    noise = np.random.default_rng(fold).normal(0, 0.01, len(store))
    values = torch.tensor(mean + noise - noise.mean())
    folder = folder / f"{cell.row.name}-{experiment.id}"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [store[i] for i in range(len(store))]
    header = {"ids": [pair.id for pair in pairs], "blocks": [pair.block for pair in pairs]}
    save_tensors(folder / "stats.safetensors", {"l1.l1": values}, header)
    protocols = {name: table._protocol(experiment, name, store) for name in experiment.measurements}
    digests = {name: hash_protocol(protocol) for name, protocol in protocols.items()}
    results = {
        "id": experiment.id, "recipe": cell.row.name, "profile": "smoke", "seed": fold, "images": 1,
        "measured": digests, "protocols": {digests[name]: protocols[name] for name in protocols},
        "metrics": {name: {"value": mean, "protocol": digest} for name, digest in digests.items()},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def verdicts():
    """verdicts(table): {id: claim}, as the command prints them."""

    def verdicts(table):
        judged = judge(read_claims("claims.toml"), {"table.toml": table}, {"table.toml": table.compare({})})
        return {claim.id: claim.describe() for claim in judged}

    return verdicts


def spread(center, by=0.004):
    return [center + by * step for step in (-2, -1, 0, 1, 2)]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("b", "verdict"),
        [
            (spread(0.30), "same direction"),
            (spread(0.10), "opposite"),
            (spread(0.201), "no effect above δ"),
            (spread(0.21, by=0.02), "undecided"),
        ],
    )
    def test_each_verdict(self, b, verdict, write_runs, verdicts):
        table = write_runs({"a": [0.2] * FOLDS, "b": b, "c": [0.2] * FOLDS})
        assert verdicts(table)["P1"]["verdict"] == verdict

    def test_an_effect_is_positive_in_the_papers_direction_also_where_less_is_better(self, write_runs, verdicts):
        b = [0.25, 0.31, 0.28, 0.35, 0.30]
        table = write_runs({"a": [0.2] * FOLDS, "b": b, "c": [0.2] * FOLDS})
        [part] = verdicts(table)["P1"]["parts"]
        tiles = np.array([len(table.store(cell.experiment)) for cell in table.cells if cell.row.name == "a"])
        d, w = np.array(b) - 0.2, tiles / tiles.sum()
        error = np.sqrt(d.var(ddof=1) * (w**2).sum())
        assert part["effect"] == pytest.approx(w @ d, abs=1e-6)
        half = stats.t.ppf(0.975, FOLDS - 1) * error
        assert part["interval"] == pytest.approx([w @ d - half, w @ d + half], abs=1e-6)
        assert part["p"] == pytest.approx(2 * stats.t.sf(w @ d / error, FOLDS - 1), rel=1e-3)
        assert part["folds"] == pytest.approx(list(d), abs=1e-6)
        narrow, wide = part["interval_90"], part["interval_nadeau_bengio"]
        assert wide[0] < part["interval"][0] < narrow[0] < narrow[1] < part["interval"][1] < wide[1]

    def test_p_values_are_adjusted_for_all_claims_and_the_largest_part_counts(self, files, write_runs, verdicts):
        more = """
[claims.P2]
text = "A is better than B and than C"
table = "table.toml"
parts = [
    { better = "a", worse = "b", metric = "l1", margin = 0.02 },
    { better = "a", worse = "c", metric = "l1", margin = 0.02 },
]
[claims.S1]
text = "A and C are alike"
table = "table.toml"
described = true
parts = [{ better = "a", worse = "c", metric = "l1" }]
"""
        (files / "claims.toml").write_text(CLAIMS + more)
        found = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": spread(0.21)}))
        parts = [part["p"] for part in found["P2"]["parts"]]
        assert found["P2"]["p"] == max(parts) > min(parts)
        assert found["P1"]["adjusted_p"] == pytest.approx(2 * found["P1"]["p"])  # S1 is no part of the family
        assert found["P2"]["adjusted_p"] == pytest.approx(found["P2"]["p"])
        assert found["S1"]["verdict"] == "described"
        assert found["S1"]["adjusted_p"] is None
        assert len(found["S1"]["parts"][0]["folds"]) == 3

    def test_parts_of_different_signs_decide_nothing(self, files, write_runs, verdicts):
        part = '{ better = "a", worse = "c", metric = "l1", margin = 0.02 }'
        (files / "claims.toml").write_text(CLAIMS.replace("parts = [", f"parts = [{part}, "))
        claim = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": spread(0.1)}))["P1"]
        assert (claim["verdict"], claim["p"]) == ("undecided", 1.0)
        assert claim["reason"] == "its parts have different signs"

    def test_too_few_folds_give_no_interval_and_no_verdict(self, files, write_runs, verdicts):
        (files / "table.toml").write_text(TABLE.replace(f"folds = {FOLDS}", "folds = 2").replace("folds = 3", ""))
        claim = verdicts(write_runs({"a": [0.2] * 2, "b": [0.3, 0.31], "c": [0.2] * 2}))["P1"]
        assert claim["verdict"] == "undecided"
        assert claim["reason"] == "fewer than 3 folds give no interval"
        assert claim["parts"][0]["interval"] is None

    def test_a_condition_that_is_not_met_leaves_no_verdict(self, files, write_runs, verdicts):
        (files / "claims.toml").write_text(
            CLAIMS + 'valid = [{ row = "b", metric = "l1", above = "psnr" }]\n'  # equal here: not above
        )
        claim = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS}))["P1"]
        assert claim["verdict"] == "undecided"
        assert claim["reason"] == "'B' has l1 0.300, not above psnr 0.300"
        assert claim["p"] is None

    def test_equal_rows_have_no_interval(self, write_runs, verdicts):
        claim = verdicts(write_runs({name: [0.2] * FOLDS for name in "abc"}))["P1"]
        assert (claim["verdict"], claim["parts"][0]["interval"]) == ("undecided", None)

    @pytest.mark.parametrize("order", [("b", "c"), ("c", "b")])
    def test_a_number_that_is_not_finite_decides_nothing(self, order, files, write_runs, verdicts):
        parts = ", ".join(f'{{ better = "a", worse = "{row}", metric = "l1", margin = 0.02 }}' for row in order)
        (files / "claims.toml").write_text(f"{CLAIMS.partition('parts')[0]}parts = [{parts}]\n")
        claim = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.1), "c": [math.nan, *[0.1] * 4]}))["P1"]
        assert (claim["verdict"], claim["p"]) == ("undecided", None)
        assert claim["reason"] == "mean error is not a finite number in every fold"

    def test_no_effect_waits_for_claims_that_could_make_it_significant(self, files, write_runs, verdicts):
        part = '[{ better = "a", worse = "c", metric = "l1", margin = 0.02 }]'
        (files / "table.toml").write_text(TABLE.replace("folds = 3\n", ""))
        (files / "claims.toml").write_text(
            f'{CLAIMS}[claims.P2]\ntext = "A is better than C"\ntable = "table.toml"\nparts = {part}\n'
        )
        numbers = {"a": [0.2] * FOLDS, "b": spread(0.209), "c": spread(0.3)}
        table = write_runs(numbers)
        assert [claim["verdict"] for claim in verdicts(table).values()] == ["same direction"] * 2
        for folder in (files / "results").glob("c-*"):
            shutil.rmtree(folder)
        waiting = verdicts(table)["P1"]
        assert waiting["p"] < 0.05 < waiting["adjusted_p"]
        assert max(map(abs, waiting["parts"][0]["interval_90"])) < 0.02
        assert waiting["verdict"] is None
        assert waiting["reason"] == "its adjusted p depends on claims whose runs are missing"

    def test_a_metric_that_cannot_be_measured_here_leaves_the_claim_and_those_that_depend_on_it_open(
        self, files, write_runs, verdicts
    ):
        metrics = '[metrics.broken]\nuse = "l1"\n[columns]\nbroken = "KID"\n'
        (files / "table.toml").write_text(TABLE.replace("[columns]\n", metrics))
        part = '[{ better = "a", worse = "c", metric = "broken", margin = 0.02 }]'
        (files / "claims.toml").write_text(
            f'{CLAIMS}[claims.P2]\ntext = "A is better than C"\ntable = "table.toml"\nparts = {part}\n'
        )
        table = write_runs({"a": [0.2] * FOLDS, "b": spread(0.209), "c": spread(0.3)})
        table.unavailable["broken"] = "its weights are missing"
        found = verdicts(table)
        assert [claim["verdict"] for claim in found.values()] == [None, None]
        assert found["P1"]["reason"] == "its adjusted p depends on claims that cannot be measured here"

    def test_a_run_without_the_number_leaves_no_verdict(self, files, write_runs, verdicts):
        table = write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS})
        file = next((files / "results").glob("b-*")) / "results.json"
        results = json.loads(file.read_text())
        del results["metrics"]["l1"]
        file.write_text(json.dumps(results))
        claim = verdicts(table)["P1"]
        assert (claim["verdict"], claim["reason"], claim["parts"]) == (None, "'B' has no l1", [])

    def test_a_significant_effect_below_the_margin_says_so(self, write_runs, verdicts):
        claim = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.21, by=0.001), "c": [0.2] * FOLDS}))["P1"]
        assert claim["verdict"] == "same direction"
        assert format_reasons(claim) == "the effect is smaller than δ (0.02)"
        assert "same direction (the effect is smaller than δ (0.02))" in to_markdown("T", [claim])
        assert summarize([claim])[0].endswith("; the effect is smaller than δ (0.02)).")

    def test_of_several_effects_those_below_the_margin_are_named(self, write_runs, verdicts):
        claim = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.21, by=0.001), "c": [0.2] * FOLDS}))["P1"]
        [small] = claim["parts"]
        claim["parts"].append({**small, "labels": ["B", "C"], "effect": 0.1, "interval_90": [0.09, 0.11]})
        assert (
            format_reasons(claim) == f"smaller than δ (0.02): {' against '.join(small['labels'])}, {small['heading']}"
        )


class TestSentences:
    """What is as claimed, the opposite, without effect, or undecided, each with the number that supports it least."""

    @pytest.mark.parametrize(
        ("b", "sentence"),
        [
            (
                spread(0.30),
                r"As claimed: P1, A is better than B \(mean error \+0\.10\d+ \[\+0\.09\d+, \+0\.10\d+\]\)\.",
            ),
            (spread(0.10), r"The opposite: P1, A is better than B \(mean error −0\.09\d+ \[−0\.10\d+, −0\.09\d+\]\)\."),
            (
                spread(0.201),
                r"No effect above δ: P1, .* \(mean error .0\.00\d+ \[−.*\], 90% interval, δ = 0\.02\)\.",
            ),
            (spread(0.21, by=0.02), r"Undecided: P1, A is better than B \(mean error \+0\.01\d* \[−.*\]\)\."),
        ],
    )
    def test_each_verdict(self, b, sentence, write_runs, verdicts):
        sentences = summarize([*verdicts(write_runs({"a": [0.2] * FOLDS, "b": b, "c": [0.2] * FOLDS})).values()])
        assert [bool(re.fullmatch(sentence, each)) for each in sentences].count(True) == 1
        assert [each.endswith(": no claim.") for each in sentences].count(True) == 3

    def test_the_part_that_supports_it_least_is_named_with_its_rows(self, files, write_runs, verdicts):
        part = '{ better = "a", worse = "c", metric = "l1", margin = 0.02 }'
        (files / "claims.toml").write_text(CLAIMS.replace("parts = [", f"parts = [{part}, "))
        claims = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": spread(0.23)}))
        assert summarize([*claims.values()])[0].startswith(
            "As claimed: P1, A is better than B (A against C, mean error"
        )

    def test_undecided_by_the_adjustment_alone_or_by_a_part_against_it_says_so(self, write_runs, verdicts):
        [claim] = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS})).values()
        [part] = claim["parts"]
        claim |= {"verdict": "undecided", "adjusted_p": 0.052}
        assert "; adjusted p = 0.052)." in " ".join(summarize([claim]))
        against = {"labels": ["B", "C"], "effect": -0.11, "interval": [-0.19, -0.04], "p": 0.01}
        claim["parts"] = [{**part, "p": 0.6}, {**part, **against}, {**part, **against, "p": 0.04}]
        assert "; against the claim: B against C, mean error −0.110 [−0.190, −0.040])." in " ".join(summarize([claim]))

    def test_a_claim_that_cannot_be_measured_has_its_reason(self, files, write_runs, verdicts):
        (files / "claims.toml").write_text(CLAIMS.replace('"l1"', '"broken"'))
        metrics = '[metrics.broken]\nuse = "l1"\n[columns]\nbroken = "KID"\n'
        (files / "table.toml").write_text(TABLE.replace("[columns]\n", metrics))
        table = write_runs({name: [0.2] * FOLDS for name in "abc"})
        table.unavailable["broken"] = "its weights are missing"
        assert summarize([*verdicts(table).values()]) == ["No verdict yet: P1, broken: its weights are missing."]

    def test_claims_whose_runs_are_missing_are_named_and_those_that_are_described_are_not(
        self, files, write_runs, verdicts
    ):
        more = '[claims.S1]\ntext = "A and C are alike"\ntable = "table.toml"\ndescribed = true\n'
        (files / "claims.toml").write_text(f"{CLAIMS}{more}{CLAIMS.splitlines()[-1]}\n")
        found = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS}, folds=2))
        assert summarize([*found.values()]) == [f"No verdict yet: P1, {found['P1']['reason']}."]
        found = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS}))
        assert "S1" not in " ".join(summarize([*found.values()]))


def test_without_all_runs_there_is_no_verdict_and_the_dry_run_lists_them(files, write_runs, bench, verdicts, run_cli):
    write_runs({name: spread(0.3) for name in "abc"}, folds=FOLDS - 1)
    result = run_cli("bench", "claims.toml", *ARGUMENTS, "--dry-run")
    assert "A, seed 4: " in result.output
    assert "2 of 13 runs are missing" in result.output
    claim = verdicts(bench())["P1"]
    assert (claim["verdict"], claim["reason"]) == (None, "2 of its 10 runs are missing")
    assert claim["parts"] == []
    for folder in files.glob("results/*"):
        shutil.rmtree(folder)
    claim = verdicts(bench())["P1"]
    assert (claim["reason"], claim["missing_runs"]) == ("no run is finished", 10)


def test_of_a_table_with_a_pooled_spread_every_row_counts(files, write_runs, bench, verdicts):
    table = TABLE.replace("folds = 3\n", "").replace(f"folds = {FOLDS}", f"folds = {FOLDS}\npooled_spread = true")
    (files / "table.toml").write_text(table)
    numbers = {"a": [0.2] * FOLDS, "b": spread(0.24), "c": [0.1, 0.3, 0.2, 0.4, 0.1]}
    filled = write_runs(numbers)
    tiles = [len(filled.store(cell.experiment)) for cell in filled.cells if cell.row.name == "a"]
    [part] = verdicts(bench())["P1"]["parts"]
    variance = pool_rows([*numbers.values()]).of_difference(numbers["b"], numbers["a"])
    expected = over_folds([b - a for a, b in zip(numbers["a"], numbers["b"], strict=True)], tiles, variance)
    interval = expected.interval()
    assert part["p"] == pytest.approx(expected.p)
    assert part["interval"] == pytest.approx([interval.low, interval.high])
    [last] = (files / "results").glob(f"c-{bench().cells[-1].experiment.id}")
    shutil.rmtree(last)
    claim = verdicts(bench())["P1"]
    assert (claim["parts"], claim["reason"]) == ([], "1 of its 15 runs is missing")


def test_no_train_judges_what_is_there(write_runs, files, run_cli):
    write_runs({name: spread(0.3) for name in "abc"}, folds=FOLDS - 1)
    result = run_cli("bench", "claims.toml", *ARGUMENTS, "--no-train", "--json")
    assert result.exit_code == 0
    [claim] = json.loads(result.output)
    assert (claim["verdict"], claim["missing_runs"]) == (None, 2)
    assert not (files / "runs").exists()


class TestOutput:
    @pytest.fixture(autouse=True)
    def _runs(self, write_runs):
        write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS})

    def test_a_terminal_gets_a_table_and_a_file_the_format_of_its_ending(self, files, run_cli):
        text = run_cli("bench", "claims.toml", *ARGUMENTS).output
        line = next(line for line in text.splitlines() if line.startswith("P1"))
        assert re.sub(r"\s{2,}", " | ", line).startswith(
            "P1 | A is better than B | A against B | mean error | +0.30 | +0.1004 [+0.09"
        )
        assert line.rstrip().endswith("same direction")
        assert "adjusted (Holm)" in text
        given = ("-s", "compute.threads=1")
        printed = run_cli("bench", "claims.toml", *ARGUMENTS, *given, "--json", "-o", "out.html").output
        [claim] = json.loads(printed[printed.index("[") :])
        assert claim["trained"]["rows"]["b"] == {"label": "B", "folds": 5, "images": 3}
        lengths = "A: 5 folds, each trained on 2 images; B: 5 folds, each trained on 3 images."
        assert f"table.toml, profile smoke. {lengths}" in text
        assert f"table.toml, profile smoke, -s compute.threads=1. {lengths}" in (files / "out.html").read_text()
        assert {"id", "verdict", "parts"} <= claim.keys()
        page = (files / "out.html").read_text()
        assert page.count("<section>") == 1
        assert "<li>As claimed: P1, A is better than B (mean error +0.1004 [+0.09" in page
        assert "- As claimed: P1" in to_markdown("T", [claim])
        assert "Undecided: no claim." in text
        assert "same direction" in page
        assert "http" not in page.replace("http-equiv", "")
        assert "| P1 | A is better than B | A against B | mean error |" in to_markdown("T", [claim])
        assert to_svg([claim]).startswith("<svg")

    def test_without_effects_of_a_paper_nothing_mentions_one(self, files, write_runs, run_cli):
        (files / "claims.toml").write_text(CLAIMS.replace(", paper = 0.3", "").replace('source = "A paper"', ""))
        write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS})
        for name in ("out.html", "out.md"):
            assert run_cli("bench", "claims.toml", *ARGUMENTS, "-o", name).exit_code == 0
            text = (files / name).read_text().partition("</style>")[2] or (files / name).read_text()
            assert "same direction" in text
            assert "paper" not in text
        text = run_cli("bench", "claims.toml", *ARGUMENTS).output
        assert "same direction" in text
        assert "paper" not in text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("-o", "out.csv"), "claims.toml: verdicts have no format csv: use one of rich, markdown, json, html, svg"),
            (("--seeds", "2"), "--seeds: a claims file fixes the folds and the columns: change the file instead"),
            (("--column", "l1"), "--column: a claims file fixes the folds"),
        ],
    )
    def test_what_does_not_fit_claims_is_refused(self, arguments, message, run_cli):
        result = run_cli("bench", "claims.toml", *ARGUMENTS, *arguments)
        assert result.exit_code == 2
        assert message in result.output


class TestCurves:
    """a and b of the table, trained for 9 images; the same rows differ by their number of images alone."""

    LONGER = TABLE.replace("folds = 5", 'folds = 3\nset = ["train.images=9", "evaluate.at=[2]"]').split("[rows.c]")[0]

    @pytest.fixture
    def files(self, files):
        (files / "b.toml").write_text((files / "a.toml").read_text() + "log_every = 7\n")  # another id, the same images
        (files / "curves.toml").write_text(self.LONGER)
        (files / "claims.toml").write_text(CLAIMS.replace("[claims.P1]", 'curves = "curves.toml"\n[claims.P1]'))
        return files

    @pytest.fixture
    def write_curves(self, files):
        """write_curves(early, late, folds): differences b - a of the mean error at 2 and at 9 images."""

        def write_curves(early, late, folds=3):
            curves = Bench(read_table("curves.toml"), registry(), files / "runs")
            for cell in curves.cells:
                if cell.experiment.seed < folds:
                    write_run(curves, cell, 0.2 + late * (cell.row.name == "b"), files / "results")
                    file = files / "results" / f"{cell.row.name}-{cell.experiment.id}" / "results.json"
                    results = json.loads(file.read_text())
                    results["metrics"]["l1@2"]["value"] = 0.2 + early * (cell.row.name == "b")
                    file.write_text(json.dumps(results))

        return write_curves

    @pytest.fixture
    def claim(self, write_runs, run_cli):
        """claim(): the claim as JSON, with the text and the page of the command."""

        def claim():
            write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS})
            result = run_cli("bench", "claims.toml", *ARGUMENTS, "--no-train", "--json", "-o", "out.html")
            assert result.exit_code == 0, result.output
            [claim] = json.loads(result.output[result.output.index("[") :])
            return claim, to_markdown("T", [claim]), open("out.html").read()

        return claim

    def test_a_verdict_whose_sign_changes_later_names_its_images(self, write_curves, claim):
        write_curves(early=0.1, late=-0.05)
        document, *texts = claim()
        assert document["verdict"] == "same direction"
        assert document["curves"]["images"] == [2, 9]
        assert document["curves"]["cross"] is True
        assert document["curves"]["differences"][0] == pytest.approx([0.1, -0.05]), "positive: the lower error of a"
        for text in texts:
            assert "same direction at 2 images" in text
            assert "the sign of the difference changes between 2 and 9 images" in text

    def test_a_sign_that_stays_is_said_too(self, write_curves, claim):
        write_curves(early=0.1, late=0.05)
        document, *texts = claim()
        assert document["curves"]["cross"] is False
        for text in texts:
            assert "at 2 images" not in text
            assert "on 3 folds the sign of the difference does not change between 2 and 9 images" in text
            assert "not that of all folds" not in text

    def test_an_early_sign_that_is_not_that_of_the_claim_is_said(self, write_curves, claim):
        write_curves(early=-0.01, late=-0.03)
        document, *texts = claim()
        assert (document["verdict"], document["curves"]["cross"]) == ("same direction", False)
        for text in texts:
            assert "does not change between 2 and 9 images, but at 2 it is not that of all folds" in text

    def test_a_claim_that_is_only_described_has_no_verdict_that_holds_anywhere(self, files, write_curves, claim):
        (files / "claims.toml").write_text((files / "claims.toml").read_text() + "described = true\n")
        write_curves(early=0.1, late=-0.05)
        document, *texts = claim()
        assert document["curves"]["cross"] is True
        assert not any("described at" in text for text in texts)
        assert all("changes between 2 and 9 images" in text for text in texts)

    def test_of_rows_with_different_folds_those_of_both_count(self, files, write_curves, claim):
        (files / "curves.toml").write_text(self.LONGER + "folds = 2\n")
        write_curves(early=0.1, late=-0.05)
        document, *_ = claim()
        assert document["curves"]["differences"][0] == pytest.approx([0.1, -0.05])

    def test_before_all_runs_of_the_curves_are_there_nothing_is_said(self, write_curves, claim):
        write_curves(early=0.1, late=-0.05, folds=2)
        document, *texts = claim()
        assert document["curves"] is None
        assert not any("sign of the difference" in text for text in texts)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            (
                "evaluate.at=[2]",
                "evaluate.at=[3]",
                r"claims.toml:5  \[claims.P1\] curves.toml does not measure its runs at 2",
            ),
            (
                '"train.images=9"',
                '"train.images=9", "optimizer.lr=1e-5"',
                r"claims.toml:4  curves: curves.toml has the rows and columns of no claim",
            ),
            (
                "[rows.b]",
                '[rows.b]\nset = ["train.images=12"]',
                r"claims.toml:4  curves: curves.toml has the rows and columns of no claim, .* one number for all rows",
            ),
            ("folds = 3", "seeds = 3", r"claims.toml:4  curves: curves.toml has no folds"),
            ("[rows.a]", "[row.a]", r"claims.toml:4  curves: .*curves.toml:\d+ "),
        ],
    )
    def test_curves_that_cannot_be_read_for_a_claim_are_refused(self, before, after, message, files, run_cli):
        (files / "curves.toml").write_text(self.LONGER.replace(before, after))
        result = run_cli("bench", "claims.toml", *ARGUMENTS, "--dry-run")
        assert result.exit_code == 2
        assert re.search(message, result.output), result.output

    def test_rows_whose_learning_rate_depends_on_the_length_have_no_curve(self, files, run_cli):
        for name in "ab":
            with (files / f"{name}.toml").open("a") as file:
                file.write('[optimizer]\nschedule = "linear"\n')
        result = run_cli("bench", "claims.toml", *ARGUMENTS, "--dry-run")
        assert result.exit_code == 2
        assert "curves.toml has the rows and columns of no claim, trained alike but for train.images" in result.output

    def test_settings_that_trials_choose_are_refused(self, files):
        longer = re.sub(r"(label = .*)", r'\1\ntrials = [["optimizer.lr=1e-4"], ["optimizer.lr=2e-4"]]', self.LONGER)
        (files / "curves.toml").write_text(longer + '[search]\nmetric = "l1"\nshare = 0.5\n')
        with pytest.raises(UserError, match=r"claims.toml:4  curves: curves.toml has \[search\]: write the settings"):
            read_claims("claims.toml")


class TestFile:
    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ('better = "a"', 'better = "aa"', r"claims.toml:4  \[claims.P1\] table.toml has no row 'aa' with a recipe"),
            ('metric = "l1"', 'metric = "ssim"', r"claims.toml:4  \[claims.P1\] table.toml has no column 'ssim'"),
            (", margin = 0.02", "", r"claims.toml:4  \[claims.P1\] a against b in l1 has no margin"),
            (
                "margin = 0.02",
                "margin = 0",
                r"claims.toml:\d+  claims.P1.parts.0.margin: input should be greater than 0",
            ),
            ("margin = 0.02", "margn = 0.02", r"claims.toml:\d+  claims.P1.parts.0.margn: there is no such key"),
            (
                "paper = 0.3",
                "paper = nan",
                r"claims.toml:\d+  claims.P1.parts.0.paper: input should be a finite number",
            ),
            ('text = "A is better than B"', "", r"claims.toml:\d+  claims.P1.text: is missing"),
            ('worse = "b"', 'worse = "a"', r"a part compares 'a' with itself"),
            ('"table.toml"', '"tabel.toml"', r"claims.toml:4  \[claims.P1\] .*tabel.toml: no such table: did you mean"),
            ("parts = [{", "parts = []\nx = [{", r"claims.P1.parts: tuple should have at least 1 item"),
        ],
    )
    def test_faults_are_reported_with_their_line(self, before, after, message, files):
        assert before in CLAIMS
        (files / "claims.toml").write_text(CLAIMS.replace(before, after))
        with pytest.raises(UserError, match=message):
            read_claims("claims.toml")

    def test_a_condition_on_a_metric_that_is_not_measured_is_refused_before_training(self, files, run_cli):
        (files / "claims.toml").write_text(CLAIMS + 'valid = [{ row = "b", metric = "l1", above = "psnrr" }]\n')
        result = run_cli("bench", "claims.toml", *ARGUMENTS)
        assert result.exit_code == 2
        assert "claims.toml:4  [claims.P1] valid: 'b' is not measured with psnrr: did you mean 'psnr'?" in result.output

    def test_a_metric_that_the_baseline_lacks_is_refused_before_training(self, files, run_cli):
        table = TABLE.replace('baseline = "a"', 'baseline = "c"').replace("[columns]", '[columns]\npsnr = "PSNR"')
        (files / "table.toml").write_text(table)
        recipe = (files / "c.toml").read_text()
        (files / "c.toml").write_text(recipe.replace("drop = [", 'drop = ["metrics.psnr", '))
        (files / "claims.toml").write_text(CLAIMS.replace('metric = "l1"', 'metric = "psnr"'))
        result = run_cli("bench", "claims.toml", *ARGUMENTS)
        assert result.exit_code == 2
        assert "claims.toml:4  [claims.P1] psnr: 'c' is not measured with it: add it to" in result.output

    def test_a_condition_on_a_number_that_its_metric_does_not_have_is_the_claims_reason(
        self, files, write_runs, verdicts
    ):
        (files / "claims.toml").write_text(CLAIMS + 'valid = [{ row = "b", metric = "l1", above = "psnr.mean" }]\n')
        claim = verdicts(write_runs({"a": [0.2] * FOLDS, "b": spread(0.3), "c": [0.2] * FOLDS}))["P1"]
        assert (claim["verdict"], claim["reason"]) == ("undecided", "'B' has no psnr.mean")

    def test_a_table_without_folds_is_refused(self, files):
        (files / "table.toml").write_text(TABLE.replace(f"folds = {FOLDS}", "seeds = 3").replace("folds = 3", ""))
        with pytest.raises(UserError, match=r"table.toml has no folds: a verdict needs the interval over folds"):
            read_claims("claims.toml")

    def test_a_column_of_which_neither_direction_is_better_is_refused_before_training(self, files, run_cli):
        table = TABLE.replace("[columns]", '[metrics.sharpness]\nuse = "sharpness"\n[columns]\nsharpness = "sharp"')
        (files / "table.toml").write_text(table)
        (files / "claims.toml").write_text(CLAIMS.replace('metric = "l1"', 'metric = "sharpness"'))
        result = run_cli("bench", "claims.toml", *ARGUMENTS)
        assert result.exit_code == 2
        assert "claims.toml:4  [claims.P1] sharpness: neither more nor less of it is better" in result.output
        assert not (files / "runs").exists()

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("folds = 3", r"\[rows.c\] has folds, and the table has none: set folds = 10 at its top"),
            ("folds = 0", r"folds = 0: must be a number, 1 or more"),
        ],
    )
    def test_folds_of_a_row_need_those_of_the_table(self, lines, message, files):
        (files / "table.toml").write_text(TABLE.replace(f"folds = {FOLDS}", "seeds = 2").replace("folds = 3", lines))
        with pytest.raises(UserError, match=message):
            read_table("table.toml")

    def test_a_row_has_no_more_folds_than_the_table(self, files):
        (files / "table.toml").write_text(TABLE.replace("folds = 3", "folds = 6"))
        with pytest.raises(UserError, match="folds = 6: the table has only 5"):
            read_table("table.toml")

    def test_overrides_and_profile_of_the_table_are_those_of_every_row(self, files):
        (files / "table.toml").write_text(TABLE.replace("folds = 5", 'folds = 5\nset = ["train.images=9"]'))
        bench = Bench(read_table("table.toml"), registry(), files / "runs")
        assert {cell.experiment.train.images_seen for cell in bench.cells} == {9}
        assert {cell.experiment.recipe.profile for cell in bench.cells} == {"smoke"}
        assert len(bench.cells) == 2 * FOLDS + 3
