"""What a table says in words follows from its intervals."""

import pytest
from p2pzoo_bench.answer import find_answer


def cell(mean, interval=None, p=None):
    value, low, high = interval or (None, None, None)
    if interval is None:
        return {"mean": mean}
    of = {"value": value, "low": low, "high": high}
    difference = {"blocks": {**of, "low": None, "high": None}, "seeds": of, "p": p} if p is not None else {
        "blocks": of, "seeds": {"value": value, "low": None, "high": None}
    }  # fmt: skip
    return {"mean": mean, "difference": difference}


def table(rows, better="lower", **facts):
    return {
        "baseline": "regression",
        "columns": [{"metric": "kid", "heading": "KID", "better": better, "unavailable": None}],
        "rows": [{"name": name, "label": name, "cells": {"kid": each}} for name, each in rows.items()],
        **facts,
    }


def test_rows_are_ahead_or_behind_or_do_not_differ_beyond_chance():
    rows = {
        "regression": cell(0.2),
        "pix2pix": cell(0.1, (-0.1, -0.15, -0.05), p=0.001),
        "flow": cell(0.3, (0.1, 0.05, 0.15), p=0.001),
        "bridge": cell(0.19, (-0.01, -0.05, 0.03), p=0.5),
    }
    [line] = find_answer(table(rows, folds=3), None)
    assert line == (
        "KID: the best mean is that of pix2pix; ahead of regression beyond chance: pix2pix (−0.1 [−0.15, −0.05]); "
        "behind regression beyond chance: flow (+0.1 [+0.05, +0.15]); "
        "no difference beyond chance from regression: bridge."
    )


def test_where_higher_is_better_the_signs_turn():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.3, (0.1, 0.05, 0.15), p=0.01)}
    assert "ahead of regression beyond chance: pix2pix (+0.1" in find_answer(table(rows, "higher", folds=3), None)[0]


@pytest.mark.parametrize(("primary", "words"), [("kid", "no difference beyond chance from"), (None, "ahead of")])
def test_in_the_primary_metric_the_number_of_rows_counts(primary, words):
    rows = {"regression": cell(0.2)} | {name: cell(0.1, (-0.1, -0.19, -0.01), p=0.04) for name in "ab"}
    assert words in find_answer(table(rows, folds=3), primary)[0]


def test_one_run_speaks_of_its_test_images_only():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.1, (-0.1, -0.15, -0.05))}
    lines = find_answer(table(rows), "kid")
    assert "ahead of regression beyond chance: pix2pix" in lines[0]
    assert lines[1] == "All this is over the test images of one run per row; another training may reverse it."


def test_without_an_interval_nothing_is_beyond_chance():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.1)}
    assert find_answer(table(rows, folds=2), None) == [
        "KID: the best mean is that of pix2pix; no difference beyond chance from regression: pix2pix."
    ]


def test_the_primary_metric_comes_first_and_metrics_without_a_better_direction_are_left_out():
    doc = table({"regression": cell(0.2), "pix2pix": cell(0.1)}, folds=2)
    doc["columns"] += [
        {"metric": "width", "heading": "width", "better": None, "unavailable": None},
        {"metric": "l1", "heading": "L1", "better": "lower", "unavailable": None},
    ]
    for row in doc["rows"]:
        row["cells"] |= {"l1": cell(1.0), "width": cell(1.0)}
    assert [line.partition(":")[0] for line in find_answer(doc, "l1")] == ["L1", "KID"]


def test_of_too_few_images_nothing_is_said():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.1, (-0.1, -0.15, -0.05), p=0.001)}
    rows["pix2pix"]["too_few"] = "too few images: 20 of at least 50"
    [line] = find_answer(table(rows, folds=3), None)
    assert line == "KID: too few images: 20 of at least 50, so nothing is said about it."
