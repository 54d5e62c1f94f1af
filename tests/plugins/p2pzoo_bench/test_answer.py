"""What a table says in words follows from its intervals."""

import json

import numpy as np
import pytest
import torch
from p2pzoo_bench.answer import find_answer
from p2pzoo_bench.comparison import TableRow, build_comparison
from p2pzoo_bench.folds import holm, over_folds
from p2pzoo_bench.stored_results import EvaluatedImages, FinishedRun

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.models.safetensors_io import save_tensors

NAN = float("nan")
SMALL = ["dataset.size=64", "dataset.stride=256", "generator.width=8", "discriminator.width=8"]


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
    line, meaning = find_answer(table(rows, folds=3), None)
    assert meaning.startswith("Beyond chance: over folds, adjusted for the number of rows (Holm). Intervals are 95%")
    assert line == (
        "KID: the best mean is that of pix2pix; ahead of regression beyond chance: pix2pix (−0.1 [−0.15, −0.05]); "
        "behind regression beyond chance: flow (+0.1 [+0.05, +0.15]); "
        "no difference beyond chance from regression: bridge."
    )


def test_where_higher_is_better_the_signs_turn():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.3, (0.1, 0.05, 0.15), p=0.01)}
    assert "ahead of regression beyond chance: pix2pix (+0.1" in find_answer(table(rows, "higher", folds=3), None)[0]


def test_the_number_of_rows_counts():
    rows = {"regression": cell(0.2)} | {name: cell(0.1, (-0.1, -0.19, -0.01), p=0.04) for name in "ab"}
    assert "no difference beyond chance from" in find_answer(table(rows, folds=3), None)[0]


def test_one_run_speaks_of_its_test_images_only():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.1, (-0.1, -0.15, -0.05))}
    lines = find_answer(table(rows), "kid")
    assert "ahead of regression beyond chance: pix2pix" in lines[0]
    assert lines[1] == "All this is over the test images of one run per row; another training may reverse it."


def test_without_an_interval_a_row_is_undecided():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.1)}
    line, _ = find_answer(table(rows, folds=2), None)
    assert line == "KID: the best mean is that of pix2pix; without an interval, so undecided: pix2pix."


def test_the_primary_metric_comes_first_and_metrics_without_a_better_direction_are_left_out():
    doc = table({"regression": cell(0.2), "pix2pix": cell(0.1)}, folds=2)
    doc["columns"] += [
        {"metric": "width", "heading": "width", "better": None, "unavailable": None},
        {"metric": "l1", "heading": "L1", "better": "lower", "unavailable": None},
    ]
    for row in doc["rows"]:
        row["cells"] |= {"l1": cell(1.0), "width": cell(1.0)}
    *lines, meaning = find_answer(doc, "l1")
    assert [line.partition(":")[0] for line in lines] == ["L1", "KID"]
    assert meaning.endswith("L1 was chosen before the runs; the other metrics are not adjusted for their number.")


def test_of_too_few_images_nothing_is_said():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.1, (-0.1, -0.15, -0.05), p=0.001)}
    rows["pix2pix"]["too_few"] = "too few images: 20 of at least 50"
    line, _ = find_answer(table(rows, folds=3), None)
    assert line == "KID: too few images: 20 of at least 50, so nothing is said about it."


def of_folds(mean, differences=None):
    """A row whose differences from the baseline are these, one for each of the folds."""
    if differences is None:
        return {"mean": mean}
    of = over_folds(differences, [12] * len(differences))
    interval = vars(of.interval())
    return {"mean": mean, "difference": {"blocks": interval, "seeds": interval, "p": of.p}}


def say(rows, primary=None, **facts):
    return find_answer(table(rows, **facts), primary)


def test_a_row_without_a_number_is_not_behind_beyond_chance():
    line, _ = say({"regression": of_folds(0.2), "flow": of_folds(NAN, [NAN, 0.1, 0.1])}, folds=3)
    assert "behind" not in line


def test_a_baseline_without_a_number_has_not_the_best_mean():
    line, _ = say({"regression": of_folds(NAN), "flow": of_folds(0.1, [NAN, -0.1, -0.1])}, folds=3)
    assert "best mean is that of regression" not in line


@pytest.mark.parametrize("place", [0, 1])
def test_a_p_value_that_is_not_known_does_not_change_the_order_of_the_others(place):
    p = [0.001, 0.02]
    p.insert(place, NAN)
    adjusted = holm(p)
    del adjusted[place]
    assert adjusted == pytest.approx([0.003, 0.04])


def test_the_p_value_is_adjusted_for_as_many_rows_as_the_sentence_says():
    rows = {"regression": of_folds(0.2), "a": of_folds(0.07, [-0.1, -0.16, -0.13])}
    rows |= {name: of_folds(0.09, [-0.1, -0.12]) for name in "bc"}
    p = over_folds([-0.1, -0.16, -0.13], [12] * 3).p
    assert 3 * p > 0.05 > p
    line, _ = say(rows, "kid", folds=3)
    assert "adjusted for 3 rows" not in line


@pytest.mark.parametrize("differences", [[-0.1, -0.12], [-0.1, -0.1, -0.1]], ids=["two folds", "all equal"])
def test_without_an_interval_nothing_is_said_about_chance(differences):
    line, _ = say({"regression": of_folds(0.2), "flow": of_folds(0.1, differences)}, folds=len(differences))
    assert "no difference beyond chance" not in line


def test_rows_have_the_names_of_the_table_in_the_answer():
    line, _ = say({"regression": of_folds(0.2), "pix2pix-hd": of_folds(0.1, [-0.1, -0.11, -0.09])}, folds=3)
    assert "pix2pix-hd (−0.1" in line


def test_rounding_errors_are_no_difference_beyond_chance():
    of_float32 = [-4.1e-9, -3.1e-9, -5.2e-9]  # of numbers near 0.5, whose neighbours are 6e-8 apart
    line, _ = say({"regression": of_folds(0.5), "flow": of_folds(0.5 - 4e-9, of_float32)}, folds=3)
    assert "ahead" not in line


def test_rows_that_do_not_differ_are_seldom_said_to_differ():
    rng, false = np.random.default_rng(0), 0
    for _ in range(200):
        folds = rng.normal(size=(14, 3))
        rows = {"regression": of_folds(folds[0].mean())}
        rows |= {f"row{k}": of_folds(folds[k].mean(), [*(folds[k] - folds[0])]) for k in range(1, 14)}
        line, _ = say(rows, folds=3)
        false += "ahead" in line or "behind" in line
    assert false / 200 <= 0.1


@pytest.fixture(scope="module")
def experiment():
    return config.load("zoo:ablation_patch70.toml", "smoke", SMALL)


@pytest.fixture(scope="module")
def data(experiment):
    return EvaluatedImages.of_store(Store(experiment.dataset.build(split="test")))


@pytest.fixture
def row(tmp_path, experiment):
    """row("name", {seed: [L1 of each image, …]}) -> a TableRow; `images`: whether each seed has its own."""

    def row(name, values_by_seed, *, own_images=True):
        made = TableRow(name, name, experiment)
        for seed, values in values_by_seed.items():
            folder = tmp_path / f"{name}-{seed}"
            folder.mkdir()
            values, digest = np.asarray(values, np.float32), f"p{seed if own_images else ''}"
            ids = [f"{seed if own_images else ''}-{i}" for i in range(len(values))]
            save_tensors(folder / "stats.safetensors", {"l1.l1": torch.from_numpy(values)}, {"ids": ids, "blocks": ids})
            results = {
                "id": f"{name}{seed}", "recipe": name, "profile": "smoke", "seed": seed, "measured": {"l1": digest},
                "metrics": {"l1": {"value": float(values.mean()), "protocol": digest}},
                "protocols": {digest: {"split": "test"}},
            }  # fmt: skip
            (folder / "results.json").write_text(json.dumps(results))
            made.runs.append(FinishedRun(folder))
        return made

    return row


def build(rows, data, **facts):
    facts = {"title": "T", "source": "", "profile": "smoke", **facts}
    return build_comparison(rows, rows[0].name, {"l1": "L1"}, {}, data, facts=facts).doc


def test_the_best_mean_is_of_the_same_folds(row, data):
    """Fold 0 is easy. Row b is worse on it than row a, and was trained on no other."""
    a = row("a", {0: [0.1, 0.1], 1: [0.4, 0.4], 2: [0.4, 0.4]})
    b = row("b", {0: [0.2, 0.2]})
    line, _ = find_answer(build([a, b], data, folds=3), None)
    assert "best mean is that of b" not in line


def test_the_best_mean_and_the_differences_agree(row, data):
    """Row b is better by 0.1 on two images, and worse by 0.05 on twenty: on all images a is better."""
    base = np.linspace(0.3, 0.4, 20)
    a = row("a", {0: [0.3], 1: [0.3], 2: base})
    b = row("b", {0: [0.2], 1: [0.2], 2: base + 0.05})
    doc = build([a, b], data, folds=3)
    assert doc["rows"][1]["cells"]["l1"]["difference"]["seeds"]["value"] > 0
    line, _ = find_answer(doc, None)
    assert "best mean is that of a" in line


@pytest.fixture
def several_seeds(row, data):
    """Two seeds on the same images: the difference has another sign in each, beyond what the images explain."""
    images = np.linspace(0.3, 0.4, 12)
    noise = np.tile([0.001, -0.001], 6)
    a = row("a", {0: images, 1: images}, own_images=False)
    b = row("b", {0: images - 0.10 + noise, 1: images + 0.06 - 2 * noise}, own_images=False)
    return build([a, b], data)


def test_a_difference_that_the_seeds_do_not_agree_on_is_not_beyond_chance(several_seeds):
    seeds = several_seeds["rows"][1]["cells"]["l1"]["difference"]["seeds"]
    assert seeds["low"] < 0 < seeds["high"]
    assert "beyond chance: b" not in find_answer(several_seeds, None)[0]


def test_the_answer_speaks_of_one_run_only_where_there_is_one(several_seeds):
    assert not any("one run per row" in line for line in find_answer(several_seeds, None))
