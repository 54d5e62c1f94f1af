"""Rows of a table with other translations of one training: fewer steps of a process, the average of the weights."""

import json

import pytest
from p2pzoo_bench.stored_results import FinishedRun

RECIPE = """
extends = "{tiny}"
drop = ["discriminator", "gan_loss"]
[generator]
norm = "group"
noise = "none"
[process]
use = "flow"
steps = 2
[train]
images = 4
"""
TABLE = """
title = "Steps"
baseline = "flow"
[columns]
l1 = "L1"
"psnr.pooled" = "PSNR"
[rows.flow]
recipe = "flow.toml"
label = "flow"
[rows.one]
recipe = "flow.toml"
label = "flow, 1 step"
evaluate = { process = { steps = 1 } }
[rows.average]
recipe = "flow.toml"
label = "flow, average"
evaluate = { weights = "average" }
[rows.photos]
target = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("steps")
    (folder / "flow.toml").write_text(RECIPE.format(tiny=tiny))
    (folder / "table.toml").write_text(TABLE.replace('label = "flow"', 'label = "flow, last"'))
    return folder


@pytest.fixture(scope="module")
def table(folder, run_cli):
    arguments = ("--profile", "smoke", "--runs", folder / "runs", "-o", folder / "out.json")
    result = run_cli("bench", folder / "table.toml", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def run_folder(folder, table):
    [run] = (folder / "runs" / "flow").iterdir()
    return run


def test_the_rows_share_one_training_and_have_their_own_numbers(table, run_folder):
    stored = json.loads((run_folder / "results.json").read_text())["metrics"]
    cells = {row["name"]: row["cells"] for row in table["rows"]}
    for column in ("l1", "psnr.pooled"):
        metric, dot, key = column.partition(".")
        assert cells["flow"][column]["values"] == [stored[column]["value"]]
        for row in ("one", "average"):
            assert cells[row][column]["values"] == [stored[f"{metric}@{row}{dot}{key}"]["value"]]
    values = [cells[row]["l1"]["values"][0] for row in ("flow", "one", "average")]
    assert len(set(values)) == 3
    assert cells["photos"]["l1"]["values"] == [0]


def test_their_differences_come_from_their_own_images(table):
    cells = {row["name"]: row["cells"]["l1"] for row in table["rows"]}
    difference = cells["one"]["difference"]["blocks"]["value"]
    assert difference == pytest.approx(cells["one"]["values"][0] - cells["flow"]["values"][0])
    assert difference != 0


def test_each_row_has_its_pictures(run_folder):
    pictures = [FinishedRun(run_folder, suffix).picture for suffix in ("", "@one", "@average")]
    assert [picture.name for picture in pictures] == ["test.png", "test@one.png", "test@average.png"]
    assert len({picture.read_bytes() for picture in pictures}) == 3


def test_another_call_trains_and_measures_nothing(folder, table, run_folder, run_cli):
    before = (run_folder / "results.json").stat().st_mtime_ns
    result = run_cli("bench", folder / "table.toml", "--profile", "smoke", "--runs", folder / "runs", "--dry-run")
    assert result.exit_code == 0
    assert "complete" in result.output
    assert (run_folder / "results.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{ process = { steps = 1 } }", "{ process = { sigma = 1 } }", "'sigma' cannot differ from the training"),
        ("{ process = { steps = 1 } }", "{}", "evaluate must be a table, as in evaluate = { weights"),
        ("{ process = { steps = 1 } }", "3", "evaluate must be a table, as in evaluate = { weights"),
        ('"flow, 1 step"', '"flow, fewer"', "process: {'steps': 1} instead of {}; name the values in 'flow, fewer'"),
        ("[rows.one]", "[rows.1]", "the row needs a name of letters, digits, - and _, a letter first"),
        ("target = true", "target = true\nevaluate = { weights = 'last' }", "the ground truth has no translations"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(folder, run_cli, tmp_path, old, new, message):
    (tmp_path / "flow.toml").write_text((folder / "flow.toml").read_text())
    (tmp_path / "table.toml").write_text((folder / "table.toml").read_text().replace(old, new))
    result = run_cli("bench", tmp_path / "table.toml", "--profile", "smoke", "--runs", tmp_path / "runs")
    assert result.exit_code == 2
    assert message in result.output.strip().splitlines()[-1]
    assert not (tmp_path / "runs").exists()
