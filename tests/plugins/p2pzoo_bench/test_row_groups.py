"""Tables with `groups = true` begin with the rows that are better or worse than the baseline, and all others."""

import io
import json

import pytest
from noise_pairs import draw_pairs
from p2pzoo_bench import formats
from p2pzoo_bench.answer import find_answer
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.comparison import Comparison
from p2pzoo_bench.folds import over_folds
from p2pzoo_bench.own_data import on_own_data
from p2pzoo_bench.row_groups import build_groups_table, describe_groups, find_groups
from p2pzoo_bench.table_columns import select_columns
from p2pzoo_bench.table_file import read_table
from rich.console import Console

from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import shipped_dir

FOLDS = 5
CLEAR = [0.1, 0.11, 0.1, 0.09, 0.1]  # p = 0.00001
CLOSE = [0.1, 0.22, 0.03, 0.18, 0.01]  # p = 0.06
SMALL = [0.1, 0.2, 0.05, 0.18, 0.04]  # p = 0.021: beyond chance for one row, not for three
UNJUDGED = "no verdict: missing runs / too few folds"


def minus(values):
    return [-value for value in values]


def row(name, folds, failed=None, **differences):
    """A row of the document; differences: {metric: that of each fold}, or None in the baseline."""
    cells = {}
    for metric, values in differences.items():
        cells[metric] = {"values": [0.5] * folds, "mean": 0.5, "low": None, "high": None}
        if values is not None:
            of = over_folds(values, [12] * len(values))
            interval = vars(of.interval())
            cells[metric]["difference"] = {"blocks": {"low": None, "high": None, "value": of.value}, "seeds": interval,
                                           "p": of.p}  # fmt: skip
    runs = [{"id": f"{name}{seed}", "seed": seed} for seed in range(folds)]
    return {"name": name, "label": name.upper(), "runs": runs, "failed": failed, "published": {}, "cells": cells}


def document(*rows, better="lower", **facts):
    columns = [{"metric": "l1", "heading": "L1", "better": better, "unavailable": None, "protocol": "p"}]
    return {"title": "T", "source": "", "profile": "smoke", "confidence": 0.95, "resampled": "images",
            "folds": FOLDS, "baseline": rows[0]["name"], "columns": columns, "rows": [*rows], "protocols": {"p": {}},
            **facts}  # fmt: skip


def base(**differences):
    return row("base", FOLDS, **(differences or {"l1": None}))


def group(*rows, primary=None, **facts):
    doc = document(base(), *rows, **facts)
    [column] = find_groups(doc, primary)
    return column


class TestGroups:
    def test_rows_are_better_worse_or_undecided(self):
        column = group(row("a", FOLDS, l1=minus(CLEAR)), row("b", FOLDS, l1=CLEAR), row("c", FOLDS, l1=CLOSE))
        assert (column["better"], column["worse"], column["undecided"]) == (["a"], ["b"], ["c"])
        assert column["no_verdict"] == {}

    def test_where_higher_is_better_the_groups_change_places(self):
        assert group(row("a", FOLDS, l1=CLEAR), better="higher")["better"] == ["a"]

    def test_the_number_of_rows_counts(self):
        alone = group(row("a", FOLDS, l1=SMALL))
        among_three = group(*(row(name, FOLDS, l1=SMALL) for name in "abc"))
        assert (alone["worse"], alone["expected_by_chance"]) == (["a"], 0.05)
        assert among_three["undecided"] == ["a", "b", "c"]
        assert among_three["expected_by_chance"] == pytest.approx(0.15)

    def test_rows_without_a_p_value_have_no_verdict_and_a_reason(self):
        column = group(
            row("two", 2, l1=[0.1, 0.1]),
            row("unfinished", 2, "not trained yet", l1=[0.1, 0.1]),
            row("untrained", 0, "not trained yet"),
            row("twin", FOLDS, l1=[0.0] * FOLDS),
            row("broken", FOLDS, l1=[float("nan"), *CLEAR[1:]]),
            row("a", FOLDS, l1=CLEAR),
        )
        assert column["no_verdict"] == {
            "two": "too few folds", "unfinished": "missing runs", "untrained": "missing runs",
            "twin": "equal in all folds", "broken": "not a finite number",
        }  # fmt: skip
        assert column["worse"] == ["a"]
        assert column["expected_by_chance"] == 0.05, "of the rows with an interval"

    def test_without_the_runs_of_the_baseline_no_row_has_a_verdict(self):
        doc = document(row("base", 0, "not trained yet"), row("a", FOLDS, l1=None))
        [column] = find_groups(doc, None)
        assert column["no_verdict"] == {"a": "BASE has no number"}

    def test_of_too_few_images_there_is_no_verdict(self):
        few = row("a", FOLDS, l1=CLEAR)
        few["cells"]["l1"]["too_few"] = "too few images: 20 of at least 50"
        assert group(few)["no_verdict"] == {"a": "too few images: 20 of at least 50"}

    def test_rows_of_the_ground_truth_are_in_no_group(self):
        column = group(row("photos", FOLDS, l1=CLEAR) | {"target": True}, row("a", FOLDS, l1=CLEAR))
        assert column["worse"] == ["a"]
        assert column["no_verdict"] == {}

    def test_they_are_those_of_the_answer_in_words(self):
        doc = document(base(), *(row(name, FOLDS, l1=values) for name, values in
                                 [("a", minus(CLEAR)), ("b", CLEAR), ("c", CLOSE)]))  # fmt: skip
        line = find_answer(doc, None)[1]
        assert "ahead of BASE beyond chance: A (" in line
        assert "behind BASE beyond chance: B (" in line
        assert "no difference beyond chance from BASE: C." in line

    def test_the_primary_metric_comes_first_and_metrics_without_a_direction_are_left_out(self):
        doc = document(base(l1=None, kid=None, width=None), row("a", FOLDS, l1=CLEAR, kid=CLEAR, width=CLEAR))
        doc["columns"] += [doc["columns"][0] | {"metric": "kid", "heading": "KID"}]
        doc["columns"] += [doc["columns"][0] | {"metric": "width", "heading": "width", "better": None}]
        doc["groups"] = find_groups(doc, "kid")
        assert [column["metric"] for column in doc["groups"]] == ["kid", "l1"]
        assert build_groups_table(doc)[0] == ["against BASE", "KID ↓", "L1 ↓"]
        assert "KID was chosen before the runs" in describe_groups(doc)


@pytest.fixture
def doc():
    """A table with all groups and with 12 columns."""
    metrics = ["l1", *(f"m{number}" for number in range(11))]
    rows = [("a|b", minus(CLEAR)), ("b", CLEAR), ("c", CLOSE), ("d", [0.1, 0.1])]
    made = [row(name, len(values), **dict.fromkeys(metrics, values)) for name, values in rows]
    doc = document(base(**dict.fromkeys(metrics)), *made)
    doc["columns"] = [doc["columns"][0] | {"metric": metric, "heading": metric.upper()} for metric in metrics]
    return doc | {"groups": find_groups(doc, None)}


class TestFormats:
    def test_markdown_begins_with_the_groups_in_at_most_ten_lines(self, doc):
        text = formats.to_markdown(doc)
        before, _, _ = text.partition("|  | L1 ↓")
        lines = before.strip().splitlines()[1:]  # after the title
        assert len(lines) <= 10
        assert "| better, beyond chance | A\\|B |" in before
        assert "| worse, beyond chance | B |" in before
        assert "| undecided | C |" in before
        assert f"| {UNJUDGED} | D |" in before

    def test_a_sentence_says_how_many_rows_would_be_expected_by_chance(self, doc):
        assert (
            "If no row differed from BASE, 0.15 of the 3 rows with an interval would be expected beyond chance in each "
            "column before a correction; Holm's correction keeps the probability of any such row at 5% or less for "
            "the rows of a column."
        ) in formats.to_markdown(doc)

    def test_columns_with_different_numbers_of_rows_have_a_range(self, doc):
        fewer = doc["groups"][1] | {"better": [], "expected_by_chance": 0.1}
        doc["groups"] = [doc["groups"][0], fewer]
        assert "0.1 to 0.15 of the 2 to 3 rows with an interval would" in describe_groups(doc)

    def test_every_row_with_a_verdict_has_its_interval_in_the_table_below(self, doc):
        below = formats.to_markdown(doc).partition("| difference to BASE")[2]
        for name in ("A\\|B", "B", "C"):
            [line] = [line for line in below.splitlines() if line.startswith(f"| {name} |")]
            assert line.count("[") == 12

    @pytest.mark.parametrize(("number", "cell"), [(5, "R0; R1; R2; R3; R4"), (6, "the other 6")])
    def test_of_many_undecided_rows_their_number_stands_there(self, number, cell):
        doc = document(base(), row("a", FOLDS, l1=CLEAR), *(row(f"r{i}", FOLDS, l1=CLOSE) for i in range(number)))
        doc["groups"] = find_groups(doc, None)
        assert [line for line in build_groups_table(doc)[1] if line[0] == "undecided"] == [["undecided", cell]]

    def test_other_reasons_than_missing_runs_and_folds_are_named(self):
        doc = document(base(), row("a", FOLDS, l1=CLEAR), row("b", 2, l1=[0.1, 0.1]), row("c", FOLDS, l1=[0.0] * FOLDS))
        doc["groups"] = find_groups(doc, None)
        assert build_groups_table(doc)[1][-1] == [UNJUDGED, "B; C: equal in all folds"]

    def test_a_reason_of_all_rows_is_named_once(self):
        few = [row(name, FOLDS, l1=CLEAR) for name in "abc"]
        few[0]["cells"]["l1"]["too_few"] = "too few images"
        doc = document(base(), *few)
        doc["groups"] = find_groups(doc, None)
        assert build_groups_table(doc)[1][-1] == [UNJUDGED, "all rows: too few images"]
        assert "expected beyond chance" not in describe_groups(doc), "no row has an interval"

    def test_the_terminal_and_the_page_begin_with_the_groups(self, doc):
        console = Console(width=400, record=True, file=io.StringIO())
        console.print(formats.to_rich(doc))
        text = console.export_text()
        assert text.index("worse, beyond chance") < text.index("difference to BASE")
        page = formats.to_html(doc, {}, (8, 8), {})
        assert page.index("worse, beyond chance") < page.index("Differences")
        assert page.index("If no row differed from BASE") < page.index("Differences")

    def test_selected_columns_have_their_groups_only(self, doc):
        chosen = select_columns(Comparison(doc, (), {}, (8, 8)), ["m3"]).doc
        assert [column["metric"] for column in chosen["groups"]] == ["m3"]
        assert build_groups_table(chosen)[0] == ["against BASE", "M3 ↓"]

    def test_a_table_without_groups_has_none(self, doc):
        del doc["groups"]
        assert "beyond chance" not in formats.to_markdown(doc) + formats.to_html(doc, {}, (8, 8), {})

    def test_a_group_without_rows_is_empty_and_the_fourth_is_left_out(self):
        doc = document(base(), row("a", FOLDS, l1=CLEAR))
        doc["groups"] = find_groups(doc, None)
        assert build_groups_table(doc)[1] == [
            ["better, beyond chance", "–"], ["worse, beyond chance", "A"], ["undecided", "–"]
        ]  # fmt: skip


TABLE = """\
groups = true
folds = 3
[columns]
l1 = "L1"
[rows.a]
recipe = "a.toml"
[rows.b]
recipe = "b.toml"
"""


class TestTableFile:
    @pytest.fixture
    def files(self, tmp_path, tiny):
        (tmp_path / "a.toml").write_text(f'extends = "{tiny}"\ndrop = ["discriminator", "gan_loss"]\n')
        (tmp_path / "b.toml").write_text('extends = "a.toml"\n[train]\nimages = 4\n')
        (tmp_path / "table.toml").write_text(TABLE)
        return tmp_path

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ("groups = true", "groups = 1", r"table.toml:1  groups = 1: write groups = true, or remove it"),
            (
                "folds = 3",
                "seeds = 3",
                r"table.toml:1  groups: the table has no folds: set folds = 3",
            ),
            (
                "groups = true\nfolds = 3",
                "pooled_spread = true",
                r"table.toml:1  pooled_spread: the table has no folds",
            ),
            ("groups = true", "pooled_spread = 3", r"table.toml:1  pooled_spread = 3: write pooled_spread = true"),
            (
                "groups = true",
                "groups = true\nanswer = true",
                r"table.toml:1  groups: answer = true has the same",
            ),
        ],
    )
    def test_faults_are_reported_with_their_line(self, before, after, message, files):
        (files / "table.toml").write_text(TABLE.replace(before, after))
        with pytest.raises(UserError, match=message):
            read_table(str(files / "table.toml"))

    def test_a_table_without_any_run_has_no_verdict(self, files):
        doc = Bench(read_table(str(files / "table.toml")), registry(), files / "runs").compare({}).doc
        assert doc["groups"][0]["no_verdict"] == {"b": "a has no number"}
        assert json.loads(json.dumps(doc))["groups"] == doc["groups"]
        assert "all rows: a has no number" in formats.to_markdown(doc)

    @pytest.mark.parametrize(("pairs", "begins_with"), [(36, "groups"), (12, "answer")])
    def test_on_own_data_without_folds_the_answer_replaces_them(self, pairs, begins_with, files):
        draw_pairs(files, pairs, 32)
        (files / "mine.toml").write_text(
            'extends = "zoo:base.toml"\n[dataset]\nuse = "folders"\ninputs = "a"\ntargets = "b"\nsize = [32, 32]\n'
        )
        table = read_table(str(files / "table.toml"))
        own = on_own_data(table, str(files / "mine.toml"), "smoke", (), registry()).table
        assert {"groups": own.groups, "answer": own.answer} == {
            "groups": begins_with == "groups", "answer": begins_with == "answer"
        }  # fmt: skip

    def test_the_zoo_at_equal_time_has_groups(self):
        table = read_table(str(shipped_dir("benchmarks") / "zoo_equal_time.toml"))
        assert table.groups
