"""[search] of a table: each row gets as many trials on validation images, and the best settings are tested."""

import itertools
import json

import pytest
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.claims_file import read_claims
from p2pzoo_bench.search import Trials, build_trials, choose_settings
from p2pzoo_bench.table_file import read_table
from PIL import Image

from p2pzoo.plugin.loader import registry
from p2pzoo.runs.run_folder import locate_run
from p2pzoo.utils.errors import UserError

TABLE = """
title = "Searched"
baseline = "a"
folds = 2
profile = "smoke"
[search]
metric = "l1"
share = 0.5
[columns]
l1 = "L1"
[rows.a]
recipe = "a.toml"
label = "A, last"
trials = [["optimizer.lr=1e-9"], ["optimizer.lr=0.01"]]
[rows.b]
recipe = "a.toml"
label = "B, last"
set = ["generator.width=3"]
trials = [["optimizer.lr=0.01"], ["optimizer.lr=1e-9"]]
[rows.b_twice]
recipe = "a.toml"
label = "B, average"
set = ["generator.width=3"]
evaluate = { weights = "average" }
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny, run_cli):
    folder = tmp_path_factory.mktemp("searched")
    (folder / "a.toml").write_text(f'extends = "{tiny}"\ndrop = ["discriminator", "gan_loss"]\n[train]\nimages = 4\n')
    (folder / "table.toml").write_text(TABLE)
    arguments = (folder / "table.toml", "--runs", folder / "runs", "--json", "--quiet")
    planned = run_cli("bench", *arguments, "--dry-run")
    refused = run_cli("bench", *arguments, "--no-train")
    finished = run_cli("bench", *arguments)
    assert finished.exit_code == 0, finished.output
    return folder, json.loads(planned.output), refused, json.loads(finished.output)


def number(folder, row, trial, seed):
    bench = Bench(build_trials(read_table(str(folder / "table.toml")), lambda _: 4), registry(), folder / "runs")
    [cell] = [c for c in bench.cells if (c.row.name, c.experiment.seed) == (f"{row}-{trial}", seed)]
    assert cell.experiment.evaluate.split == "val"
    assert cell.experiment.train.images_seen == 2
    return bench.find_finished(cell).results["metrics"]["l1"]["value"]


def test_trials_are_measured_as_their_recipe_translates(tiny, tmp_path):
    (tmp_path / "a.toml").write_text(f'extends = "{tiny}"\ndrop = ["discriminator", "gan_loss"]\n')
    (tmp_path / "table.toml").write_text(TABLE.replace("trials =", 'evaluate = { weights = "average" }\ntrials =', 1))
    trials = build_trials(read_table(str(tmp_path / "table.toml")), lambda _: 4)
    bench = Trials(trials, registry(), tmp_path / "runs")
    assert {cell.row.name for cell in bench.cells} == {"a-0", "a-1", "b-0", "b-1"}
    for cell in bench.cells:
        assert [*cell.experiment.measurements] == [*cell.experiment.metrics]
    first = bench.cells[0]  # diverges
    run = locate_run(first.experiment, bench.runs)
    run.folder.mkdir(parents=True)
    run.set_status(state="failed")
    (run.folder / "findings.jsonl").write_text('{"images": 1, "kind": "diverged", "message": "G.l1 is nan"}\n')
    assert first not in bench.missing(), "it would diverge again"
    assert len(bench.missing()) == len(bench.cells) - 1
    bench.options = ("--fresh",)
    assert first in bench.missing()


@pytest.mark.slow
def test_the_best_trial_of_each_fold_gives_the_settings(searched):
    folder, *_, document = searched
    for name in ("a", "b"):
        row = read_table(str(folder / "table.toml")).rows[0 if name == "a" else 1]
        for fold, chosen in enumerate(document["search"]["chosen"][name]):
            values = [number(folder, name, trial, fold) for trial in (0, 1)]
            assert tuple(chosen) == row.trials[values.index(min(values))]


@pytest.mark.slow
def test_rows_of_one_training_share_its_trials(searched):
    _, planned, _, document = searched
    assert planned["missing"] == 8, "2 trials of 2 trainings in 2 folds"
    assert document["search"]["chosen"]["b"] == document["search"]["chosen"]["b_twice"]
    runs = {row["name"]: [run["id"] for run in row["runs"]] for row in document["rows"]}
    assert runs["b"] == runs["b_twice"]


@pytest.mark.slow
def test_the_table_names_the_trials(searched, run_cli):
    folder, *_, document = searched
    assert {key: document["search"][key] for key in ("metric", "share", "trials")} == {
        "metric": "l1", "share": 0.5, "trials": 2,
    }  # fmt: skip
    text = run_cli("bench", folder / "table.toml", "--runs", folder / "runs", "--format", "markdown").output
    assert "the best of 2 trials by l1 on the validation images, each with 50% of the row's images." in text
    chosen = document["search"]["chosen"]
    for label, name in (("A, last", "a"), ("B (last; average)", "b")):
        [line] = [line for line in text.splitlines() if line.startswith(f"Settings of {label}: ")]
        assert all(setting in line for settings in chosen[name] for setting in settings)


@pytest.mark.slow
def test_without_its_trials_a_table_is_refused(searched):
    refused = searched[2]
    assert refused.exit_code == 2
    assert "8 of 8 trials are missing, such as 'A, last, trial 1', seed 0" in refused.output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('metric = "l1"', 'metric = "l2"', r":7  metric = 'l2': the table has no such metric: known are l1"),
        ("share = 0.5", "share = 2", r":8  share = 2: must be a number above 0, at most 1"),
        ("share = 0.5", "", r":6  \[search\] needs metric = the name of a metric, and share = that"),
        (', ["optimizer.lr=0.01"]]', "]", r"\[rows.a\] has 1 trials: with \[search\] each row"),
        (
            '["optimizer.lr=1e-9"], ["optimizer.lr=0.01"]',
            '"optimizer.lr=1e-9"',
            r"\[rows.a\] trials must be arrays of strings",
        ),
        ("optimizer.lr=0.01", "train.images=3", r"a trial must not set train.images: \[search\] sets it"),
        ("optimizer.lr=0.01", "train={images=3}", r"a trial must not set train: \[search\] sets it"),
        ("optimizer.lr=0.01", "seed=3", r"\[rows.a\] must not set the seed"),
        ('[search]\nmetric = "l1"\nshare = 0.5', "", r"\[rows.a\] has trials: add \[search\]"),
        ("evaluate =", 'trials = [["optimizer.lr=1"]]\nevaluate =', r"shares the training of \[rows.b\]: remove its"),
        ('trials = [["optimizer.lr=0.01"]', 'none = [["optimizer.lr=0.01"]', r"\[rows.b\] has 0 trials"),
    ],
)
def test_faults_name_the_line(tmp_path, old, new, message):
    assert old in TABLE
    (tmp_path / "table.toml").write_text(TABLE.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_table(str(tmp_path / "table.toml"))


def test_rows_that_differ_in_what_is_for_the_tables_images_do_not_share_trials(tmp_path):
    alone = 'set_without_data = ["train.batch_size=2"]\n'
    trials = 'trials = [["optimizer.lr=0.01"], ["optimizer.lr=0.02"]]\n'
    (tmp_path / "table.toml").write_text(TABLE.replace("evaluate =", f"{alone}{trials}evaluate =", 1))
    read_table(str(tmp_path / "table.toml"))
    (tmp_path / "table.toml").write_text(TABLE.replace("evaluate =", f"{alone}evaluate =", 1))
    with pytest.raises(UserError, match="has 0 trials"):
        read_table(str(tmp_path / "table.toml"))


class TestBeforeTraining:
    @pytest.fixture
    def bench(self, tmp_path, tiny, run_cli):
        (tmp_path / "a.toml").write_text(f'extends = "{tiny}"\ndrop = ["discriminator", "gan_loss"]\n')

        def bench(table, *options):
            (tmp_path / "table.toml").write_text(table)
            return run_cli("bench", tmp_path / "table.toml", "--runs", tmp_path / "runs", "--dry-run", *options)

        return bench

    def test_the_command_line_cannot_change_what_the_search_sets(self, bench, tmp_path):
        options = ("-s", "evaluate.split=test", "-s", "train.images=8", "--json")
        assert {run["images"] for run in json.loads(bench(TABLE, *options).output)["runs"]} == {4}
        table = read_table(str(tmp_path / "table.toml"))
        trials = Bench(
            build_trials(table, lambda _: 8), registry(), tmp_path / "runs", overrides=["evaluate.split=test"]
        )
        assert {cell.experiment.evaluate.split for cell in trials.cells} == {"val"}

    def test_what_the_trials_set_is_refused_on_the_command_line(self, bench):
        result = bench(TABLE, "-s", "optimizer.lr=1")
        assert result.exit_code == 2
        assert "-s optimizer.lr=1: the trials of [rows.a] set optimizer.lr; remove it there or here" in result.output

    @pytest.mark.parametrize("override", ["optimizer={lr=1}", "optimizer . lr = 1"])
    def test_so_is_a_table_that_holds_it(self, bench, override):
        result = bench(TABLE, "-s", override)
        assert result.exit_code == 2
        assert f"-s {override}: the trials of [rows.a] set optimizer.lr; remove it there or here" in result.output

    def test_other_keys_of_the_same_table_are_taken(self, bench):
        assert bench(TABLE, "-s", "optimizer.eps=0.1").exit_code == 0

    @pytest.mark.parametrize(("options", "message"), [
        (("--curve", "l1"), "--curve l1: no such curve: no row has one; train with evaluate.at"),
        (("--format", "svg"), "svg needs exactly one metric that draws a figure, but none of them draws"),
    ])  # fmt: skip
    def test_an_impossible_output_is_refused_before_the_trials_train(self, bench, run_cli, tmp_path, options, message):
        bench(TABLE)  # writes the file
        result = run_cli("bench", tmp_path / "table.toml", "--runs", tmp_path / "runs", *options)
        assert (result.exit_code, message in result.output) == (2, True), result.output
        assert not (tmp_path / "runs").exists()

    def test_a_metric_without_a_better_direction_is_refused(self, bench):
        table = TABLE.replace('metric = "l1"', 'metric = "sharpness"').replace(
            "[columns]", '[metrics.sharpness]\nuse = "metrics:sharpness"\n[columns]\nsharpness = "sharpness"'
        )
        result = bench(table)
        assert result.exit_code == 2
        assert "metric = 'sharpness': neither more nor less of it is better" in result.output

    def test_data_without_validation_images_of_its_own_is_refused(self, bench, tmp_path):
        for side, split, number in itertools.product(("inputs", "targets"), ("train", "test"), range(3)):
            (tmp_path / side / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / side / split / f"{number}.png")
        own = f'dataset={{use="folders", inputs="{tmp_path}/inputs", targets="{tmp_path}/targets", size=[64, 64]}}'
        result = bench(TABLE.replace("folds = 2", f"set = ['{own}']"))
        assert result.exit_code == 2
        assert "dataset 'datasets:folders' has no val split of its own: give it a val split" in result.output
        assert bench(TABLE.replace("folds = 2", f"folds = 3\nset = ['{own}', 'dataset.folds=3']")).exit_code == 0

    def test_fewer_seeds_than_folds_and_rows_with_other_folds(self, bench, tmp_path):
        bench(TABLE.replace("[rows.b_twice]", "folds = 1\n[rows.b_twice]"))
        table = read_table(str(tmp_path / "table.toml"))
        trials = Bench(build_trials(table, lambda _: 4), registry(), tmp_path / "runs")
        assert [cell.experiment.seed for cell in trials.cells if cell.row.name == "b-0"] == [0, 1]
        assert len(Bench(build_trials(table, lambda _: 4), registry(), tmp_path / "runs", seeds=1).cells) == 4

    def test_claims_are_not_judged_on_it(self, bench, tmp_path):
        bench(TABLE)
        (tmp_path / "claims.toml").write_text(
            'title = "T"\nsource = "S"\n[claims.P1]\ntext = "a"\nsource = "S"\ntable = "table.toml"\n'
            'parts = [{ better = "a", worse = "b", metric = "l1" }]\n'
        )
        with pytest.raises(UserError, match=r"table.toml has \[search\]: write the settings into its rows"):
            read_claims(str(tmp_path / "claims.toml"))


@pytest.mark.slow
def test_a_trial_that_diverged_is_the_worst(searched, monkeypatch):
    folder = searched[0]
    table = read_table(str(folder / "table.toml"))
    trials = Bench(build_trials(table, lambda _: 4), registry(), folder / "runs")
    find = trials.find_finished
    monkeypatch.setattr(trials, "find_finished", lambda cell: None if cell.row.name.endswith("-1") else find(cell))
    with pytest.raises(UserError, match=r"4 of 8 trials are missing, such as 'A, last, trial 2', seed 0 \(no memory\)"):
        choose_settings(table, trials, {cell.experiment.id: "no memory" for cell in trials.cells})
    monkeypatch.setattr("p2pzoo_bench.search._has_diverged", lambda bench, cell: True)
    assert choose_settings(table, trials, {}).rows[0].chosen == (("optimizer.lr=1e-9",),) * 2


@pytest.mark.slow
def test_a_trial_without_a_number_is_not_chosen(searched, monkeypatch):
    folder = searched[0]
    table = read_table(str(folder / "table.toml"))
    monkeypatch.setattr(
        "p2pzoo_bench.search._number",
        lambda _bench, cell, _metric: float("nan") if cell.row.name.endswith("-0") else 1.0,
    )
    trials = Bench(build_trials(table, lambda _: 4), registry(), folder / "runs")
    chosen = choose_settings(table, trials, {}).rows[0].chosen
    assert chosen == (("optimizer.lr=0.01",),) * 2
