"""What a table says in words follows from its intervals."""

import json
from types import MappingProxyType

import numpy as np
import pytest
import torch
from p2pzoo_bench.answer import find_answer
from p2pzoo_bench.comparison import TableRow, build_comparison
from p2pzoo_bench.draws_noise import draws_noise
from p2pzoo_bench.folds import holm, over_folds
from p2pzoo_bench.metric_texts import explain_metrics
from p2pzoo_bench.stored_results import EvaluatedImages, FinishedRun

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.models.build import build_network, on_meta
from p2pzoo.models.process import generator_channels
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
    summary, line, meaning = find_answer(table(rows, folds=3), None)
    assert (
        summary
        == "Over 3 folds, 2 of 3 methods differ from regression beyond chance in KID: better: pix2pix; worse: flow."
    )
    assert meaning.startswith("Beyond chance: over folds, adjusted for the number of rows (Holm). Intervals are 95%")
    assert line == (
        "KID: the best mean is that of pix2pix; ahead of regression beyond chance: pix2pix (−0.1 [−0.15, −0.05]); "
        "behind regression beyond chance: flow (+0.1 [+0.05, +0.15]); "
        "no difference beyond chance from regression: bridge."
    )


def test_where_higher_is_better_the_signs_turn():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.3, (0.1, 0.05, 0.15), p=0.01)}
    assert "ahead of regression beyond chance: pix2pix (+0.1" in find_answer(table(rows, "higher", folds=3), None)[1]


def test_the_number_of_rows_counts():
    rows = {"regression": cell(0.2)} | {name: cell(0.1, (-0.1, -0.19, -0.01), p=0.04) for name in "ab"}
    summary, line, _ = find_answer(table(rows, folds=3), None)
    assert summary == "Over 3 folds, none of 2 methods differs from regression beyond chance in KID."
    assert "no difference beyond chance from" in line


class TestOneRunOfEachRow:
    """One interval over test images is wrong in up to half of the cases, so it is described and decides nothing."""

    ROWS = MappingProxyType(
        {
            "regression": cell(0.2),
            "pix2pix": cell(0.1, (-0.1, -0.15, -0.05)),
            "flow": cell(0.3, (0.1, 0.05, 0.15)),
            "bridge": cell(0.19, (-0.01, -0.05, 0.03)),
            "other": cell(0.19),
        }
    )

    def test_the_caveat_comes_first_and_nothing_is_beyond_chance(self):
        doc = table(self.ROWS)
        doc["columns"][0]["protocol"], doc["protocols"] = "p", {"p": {"images": 12}}
        assert find_answer(doc, "kid") == [
            "All that follows is over the test images of one run per row; another training may reverse it.",
            "On these 12 test images, one training each, 2 of 3 methods with an interval differ from regression in "
            "KID: better: pix2pix; worse: flow.",
            "KID: the best mean is that of pix2pix; better than regression on these 12 test images, one training each: "
            "pix2pix (−0.1 [−0.15, −0.05]); worse than regression on these 12 test images, one training each: "
            "flow (+0.1 [+0.05, +0.15]); with an interval over these images that holds 0: bridge; without an interval: "
            "other.",
        ]

    def test_without_the_number_of_images_it_says_the_same(self):
        lines = find_answer(table(self.ROWS), None)
        assert "better than regression on these test images, one training each: pix2pix" in lines[2]
        assert not any("beyond chance" in line for line in lines)

    def test_a_row_with_one_run_in_a_table_of_seeds_is_undecided(self):
        doc = table(self.ROWS)
        for row in doc["rows"]:
            row["runs"] = [{"id": f"{row['name']}{seed}", "seed": seed} for seed in range(2)]
        assert find_answer(doc, None)[0] == (
            "Over 2 seeds, no method has an interval in KID, so nothing is said about regression."
        )
        assert "undecided: pix2pix, flow, bridge, other" in find_answer(doc, None)[1]


class TestTheFirstSentence:
    FOLDS = MappingProxyType(
        {
            "regression": cell(0.2),
            "bridge (4 steps)": cell(0.1, (-0.1, -0.15, -0.05), p=0.001),
            "bridge (1 step)": cell(0.1, (-0.11, -0.15, -0.05), p=0.001),
            "flow": cell(0.19, (-0.01, -0.05, 0.03), p=0.5),
        }
    )

    def say(self, rows, pairs=60, tested=60, folds=3):
        doc = table(rows, data={"pairs": pairs, "tested": tested}, **({"folds": folds} if folds else {}))
        for row in doc["rows"]:
            row["runs"] = [
                {"id": row["name"].partition(" ")[0] + str(fold), "seed": fold} for fold in range(folds or 1)
            ]
        return find_answer(doc, None)

    def test_it_counts_methods_on_the_pairs_of_the_user(self):
        lines = self.say(self.FOLDS)
        assert lines[0] == (
            "On your 60 pairs, 1 of 2 methods (rows of one training are one) differs from regression beyond chance in "
            "KID: better: bridge (4 steps; 1 step)."
        )
        assert "chance: bridge (4 steps −0.1 [−0.15, −0.05]; 1 step −0.11 [−0.15, −0.05]);" in lines[1]

    def test_of_few_pairs_it_says_how_many_were_tested(self):
        rows = {"regression": cell(0.2), "flow": cell(0.1, (-0.1, -0.15, -0.05))}
        assert self.say(rows, 20, 4, folds=0)[1] == (
            "On 4 of your 20 pairs, one training each, flow is better than regression in KID."
        )

    @pytest.mark.parametrize(
        ("rows", "sentence"),
        [
            (["flow"], "flow does not differ from regression beyond chance in KID."),
            (
                ["bridge (4 steps)"],
                "bridge (4 steps) is better than regression beyond chance in KID.",
            ),
        ],
    )
    def test_of_one_method(self, rows, sentence):
        chosen = {name: self.FOLDS[name] for name in ("regression", *rows)}
        assert self.say(chosen)[0] == f"On your 60 pairs, {sentence}"

    def test_it_is_about_the_first_column_that_says_something(self):
        doc = table(self.FOLDS, folds=3)
        doc["columns"].insert(0, {"metric": "fid", "heading": "FID", "better": "lower", "unavailable": None})
        for row in doc["rows"]:
            row["cells"]["fid"] = {"mean": 0.1, "too_few": "too few images: 20 of at least 50"}
        first, second, *_ = find_answer(doc, "fid")
        assert first.startswith("Over 3 folds, 2 of 3 methods differ from regression beyond chance in KID")
        assert second == "FID: too few images: 20 of at least 50, so nothing is said about it."


class TestWhatTheMetricsMeasure:
    ROWS = (
        {"name": "a", "label": "regression", "runs": [{"id": "a"}], "noise": False},
        {"name": "b", "label": "flow (2 steps)", "runs": [{"id": "b"}], "noise": True},
        {"name": "c", "label": "flow (9 steps)", "runs": [{"id": "b"}], "noise": True},
    )

    def test_a_line_for_each_column(self):
        columns = [
            {"heading": "CRPS", "use": "metrics:crps", "better": "lower", "summary": ""},
            {"heading": "L1", "use": "metrics:l1", "better": "lower", "summary": ""},
            {"heading": "Mine", "use": "my-zoo:mine", "better": "higher", "summary": "Beauty; higher is better"},
        ]
        crps, l1, mine, sample = explain_metrics(columns, self.ROWS)
        assert crps.startswith("CRPS: distance of the real image from the translations")
        assert crps.endswith("Lower is better.")
        assert l1.startswith("L1: mean difference")
        assert mine == "Mine: Beauty. Higher is better."
        assert sample.startswith(
            "L1 of methods with noise (flow (2 steps; 9 steps)) is that of one sample. Even a perfect sampler is worse "
            "in it than the median of its samples"
        )
        assert len(explain_metrics(columns, self.ROWS[:1])) == 3

    def test_a_column_that_judges_one_sample_says_so(self):
        doc = table({"regression": cell(0.2), "flow": cell(0.1, (-0.1, -0.15, -0.05), p=0.001)}, folds=3)
        doc["columns"][0]["use"], doc["rows"][1]["noise"] = "metrics:ssim", True
        assert find_answer(doc, None)[1].endswith("]). Methods with noise are judged by one sample here.")
        doc["columns"][0]["use"] = "metrics:kid"
        assert "sample" not in find_answer(doc, None)[1]


@pytest.mark.parametrize(
    ("settings", "evaluate", "expected"),
    [
        ([], {}, True),
        ([], {"test_mode": "eval"}, False),
        (["generator.noise='none'"], {}, False),
        (["generator.noise='none'", "process.use='flow'"], {}, True),
        (["generator.noise='none'", "process.use='bridge'"], {}, True),
        (["generator.noise='none'", "process.use='bridge'"], {"process": {"steps": 1}}, False),
    ],
)
def test_noise_is_that_of_the_rows_translations(settings, evaluate, expected):
    experiment = config.load("zoo:base.toml", "smoke", [*SMALL, "generator.norm='group'", *settings])
    with on_meta():
        G = build_network(experiment.generator, generator_channels(experiment, (3, 3), (64, 64)), (64, 64))
        assert draws_noise(G, experiment, evaluate, (3, 3), (64, 64)) is expected


def test_without_an_interval_a_row_is_undecided():
    rows = {"regression": cell(0.2), "pix2pix": cell(0.1)}
    summary, line, _ = find_answer(table(rows, folds=2), None)
    assert summary == "Over 2 folds, no method has an interval in KID, so nothing is said about regression."
    assert line == "KID: the best mean is that of pix2pix; without an interval, so undecided: pix2pix."


def test_the_primary_metric_comes_first_and_metrics_without_a_better_direction_are_left_out():
    doc = table({"regression": cell(0.2), "pix2pix": cell(0.1)}, folds=2)
    doc["columns"] += [
        {"metric": "width", "heading": "width", "better": None, "unavailable": None},
        {"metric": "l1", "heading": "L1", "better": "lower", "unavailable": None},
    ]
    for row in doc["rows"]:
        row["cells"] |= {"l1": cell(1.0), "width": cell(1.0)}
    _, *lines, meaning = find_answer(doc, "l1")
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
    _, line, _ = say({"regression": of_folds(0.2), "flow": of_folds(NAN, [NAN, 0.1, 0.1])}, folds=3)
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
    _, line, _ = say(rows, "kid", folds=3)
    assert "adjusted for 3 rows" not in line


@pytest.mark.parametrize("differences", [[-0.1, -0.12], [-0.1, -0.1, -0.1]], ids=["two folds", "all equal"])
def test_without_an_interval_nothing_is_said_about_chance(differences):
    _, line, _ = say({"regression": of_folds(0.2), "flow": of_folds(0.1, differences)}, folds=len(differences))
    assert "no difference beyond chance" not in line


def test_rows_have_the_names_of_the_table_in_the_answer():
    _, line, _ = say({"regression": of_folds(0.2), "pix2pix-hd": of_folds(0.1, [-0.1, -0.11, -0.09])}, folds=3)
    assert "pix2pix-hd (−0.1" in line


def test_rounding_errors_are_no_difference_beyond_chance():
    of_float32 = [-4.1e-9, -3.1e-9, -5.2e-9]  # of numbers near 0.5, whose neighbours are 6e-8 apart
    _, line, _ = say({"regression": of_folds(0.5), "flow": of_folds(0.5 - 4e-9, of_float32)}, folds=3)
    assert "ahead" not in line


def test_rows_that_do_not_differ_are_seldom_said_to_differ():
    rng, false = np.random.default_rng(0), 0
    for _ in range(200):
        folds = rng.normal(size=(14, 3))
        rows = {"regression": of_folds(folds[0].mean())}
        rows |= {f"row{k}": of_folds(folds[k].mean(), [*(folds[k] - folds[0])]) for k in range(1, 14)}
        _, line, _ = say(rows, folds=3)
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
    _, line, _ = find_answer(build([a, b], data, folds=3), None)
    assert "best mean is that of b" not in line


def test_the_best_mean_and_the_differences_agree(row, data):
    """Row b is better by 0.1 on two images, and worse by 0.05 on twenty: on all images a is better."""
    base = np.linspace(0.3, 0.4, 20)
    a = row("a", {0: [0.3], 1: [0.3], 2: base})
    b = row("b", {0: [0.2], 1: [0.2], 2: base + 0.05})
    doc = build([a, b], data, folds=3)
    assert doc["rows"][1]["cells"]["l1"]["difference"]["seeds"]["value"] > 0
    _, line, _ = find_answer(doc, None)
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
    assert "beyond chance: b" not in find_answer(several_seeds, None)[1]


def test_the_answer_speaks_of_one_run_only_where_there_is_one(several_seeds):
    assert not any("one run per row" in line for line in find_answer(several_seeds, None))
