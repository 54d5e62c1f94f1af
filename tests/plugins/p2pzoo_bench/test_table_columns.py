"""Which columns a printed table has, and where its best numbers are."""

import dataclasses

import pytest
from click.testing import CliRunner
from p2pzoo_bench.comparison import Comparison
from p2pzoo_bench.formats import build_difference_table, build_main_table
from p2pzoo_bench.table_columns import COSTS, find_best_cells, find_columns, list_columns, select_columns

from p2pzoo.cli import main
from p2pzoo.utils.errors import UserError

BETTER = {"l1": "lower", "psnr": "higher", "psnr.pooled": "higher", "entropy": None}


def make_row(name, *means, **facts):
    cells = {
        metric: {"values": [mean], "mean": mean, "low": None, "high": None}
        for metric, mean in zip(BETTER, means, strict=True)
    }
    return {"name": name, "label": name, "runs": [{"id": name, "seed": 0}], "failed": None, "published": {},
            "cells": cells, **facts}  # fmt: skip


@pytest.fixture
def table():
    columns = [
        {"metric": metric, "heading": metric.upper(), "better": better, "unavailable": None, "protocol": "p"}
        for metric, better in BETTER.items()
    ]
    rows = [
        make_row("a", 0.1, 20.0, 19.0, 1.0, parameters=10, seconds=5.0),
        make_row("b", 0.2, 21.0, 19.0, 2.0, parameters=20, seconds=None),
        make_row("photos", 0.0, 99.0, 99.0, 3.0, target=True),
    ]
    doc = {"title": "t", "profile": "p", "baseline": "a", "columns": columns, "rows": rows, "protocols": {}}
    return Comparison(doc, (), {"l1": "L1", "psnr": "PSNR", "entropy": "Entropy"}, (8, 8))


def test_without_names_a_table_keeps_all_columns(table):
    assert select_columns(table, ()) is table
    assert build_main_table(table.doc)[0] == ["", "L1 ↓", "PSNR ↑", "PSNR.POOLED ↑", "ENTROPY", COSTS["parameters"],
                                              COSTS["seconds"]]  # fmt: skip


def test_selected_columns_come_in_the_order_of_their_names(table):
    doc = select_columns(table, ["psnr", "seconds", "l1", "peak_megabytes"]).doc
    head, rows = build_main_table(doc)
    assert head == ["", "PSNR ↑", "L1 ↓", COSTS["seconds"], COSTS["peak_megabytes"]]
    assert rows[0][1:] == ["20.0", "0.100", "5", "–"], "a cost that no run recorded"
    assert len(build_difference_table(doc)[0]) == 3
    assert "parameters" not in doc["rows"][0]


def test_figures_of_other_metrics_are_not_drawn(table):
    assert select_columns(table, ["psnr.pooled", "seconds"]).metrics == {"psnr": "PSNR"}
    assert dataclasses.asdict(table)["metrics"].keys() == {"l1", "psnr", "entropy"}, "the table itself is unchanged"


def test_an_unknown_column_is_refused_with_a_suggestion(table):
    with pytest.raises(UserError, match=r"--column second: no such column: did you mean 'seconds'\?"):
        select_columns(table, ["second"])
    with pytest.raises(UserError, match="no such column"):
        find_columns(["l2"], ["l1"])


def test_bench_refuses_an_unknown_column_before_it_trains(tmp_path):
    arguments = ["bench", "zoo:table1_losses.toml", "--column", "second", "--runs", str(tmp_path / "runs")]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "--column second: no such column" in result.output) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_the_best_mean_of_each_metric_is_found(table):
    headings = [column.heading for column in list_columns(table.doc)]
    best = {(table.doc["rows"][row]["name"], headings[column]) for row, column in find_best_cells(table.doc)}
    assert best == {("a", "L1 ↓"), ("b", "PSNR ↑"), ("a", "PSNR.POOLED ↑"), ("b", "PSNR.POOLED ↑")}, (
        "ties are all best; the ground truth, costs, and metrics without a direction have no best"
    )


def test_a_mean_that_is_not_a_number_hides_no_best(table):
    table.doc["rows"][0]["cells"]["l1"]["mean"] = float("nan")
    headings = [column.heading for column in list_columns(table.doc)]
    assert [row for row, column in find_best_cells(table.doc) if headings[column] == "L1 ↓"] == [1]


def test_rows_with_fewer_runs_and_numbers_of_too_few_images_are_not_the_best(table):
    a, b, _ = table.doc["rows"]
    a["cells"]["l1"]["values"] = [0.1]
    for row in (b, make_row("c", 0.3, 22.0, 1.0, 1.0)):
        row["cells"]["l1"]["values"] = [0.1, 0.3]
        if row is not b:
            table.doc["rows"].append(row)
    b["cells"]["psnr"]["too_few"] = "too few images"
    places = {column.key: place for place, column in enumerate(list_columns(table.doc))}
    best = find_best_cells(table.doc)
    assert [row for row, column in best if column == places["l1"]] == [1], "not a, which has one run of two"
    assert [row for row, column in best if column == places["psnr"]] == [3]


def test_the_answer_is_about_the_selected_columns(table):
    for column in table.doc["columns"]:
        column["use"] = f"metrics:{column['metric']}"
    table.doc.update(answer=["L1 and PSNR"], explanations=["L1", "PSNR"])
    doc = select_columns(table, ["psnr"], primary="l1").doc
    assert [line.partition(":")[0] for line in doc["explanations"]] == ["PSNR"]
    assert any(line.startswith("PSNR: ") for line in doc["answer"])
    assert not any("L1" in line for line in doc["answer"])


def test_a_single_row_is_not_the_best(table):
    table.doc["rows"] = [table.doc["rows"][0], table.doc["rows"][2]]
    assert find_best_cells(table.doc) == set()
