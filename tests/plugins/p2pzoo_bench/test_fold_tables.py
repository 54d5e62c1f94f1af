"""Tables with `folds`: seed r is fold r of the dataset, and differences have one interval over folds."""

import copy
import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from p2pzoo_bench import formats
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.comparison import TableRow, build_comparison
from p2pzoo_bench.folds import over_folds, pool_rows
from p2pzoo_bench.stored_results import EvaluatedImages, FinishedRun
from p2pzoo_bench.table_columns import find_best_cells
from p2pzoo_bench.table_file import read_table

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.models.safetensors_io import save_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

SMALL = ["dataset.size=64", "dataset.stride=256", "generator.width=8", "discriminator.width=8"]
FACTS = {"title": "T", "source": "", "profile": "smoke", "folds": 3}
TABLE = """
folds = 3
baseline = "both"
[columns]
l1 = "L1"
[rows.l1]
recipe = "l1.toml"
[rows.both]
recipe = "both.toml"
[rows.photos]
target = true
"""


@pytest.fixture
def files(tmp_path, tiny):
    (tmp_path / "both.toml").write_text(f'extends = "{tiny}"\n[train]\nimages = 4\n')
    (tmp_path / "l1.toml").write_text('extends = "both.toml"\ndrop = ["discriminator", "gan_loss"]\n')
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path


@pytest.fixture(scope="module")
def experiment():
    return config.load("zoo:ablation_patch70.toml", "smoke", SMALL)


@pytest.fixture(scope="module")
def data(experiment):
    return EvaluatedImages.of_store(Store(experiment.dataset.build(split="test")))


@pytest.fixture
def finished(tmp_path):
    """finished("name", fold, [L1 of each image, …]) -> a FinishedRun; each fold has other images."""

    def finished(name, fold, values, **protocol):
        folder = tmp_path / f"{name}-{fold}"
        folder.mkdir()
        ids, digest = [f"{fold}-{i}" for i in range(len(values))], f"p{fold}{protocol or ''}"
        header = {"ids": ids, "blocks": [f"block {i // 2}" for i in range(len(values))]}
        save_tensors(folder / "stats.safetensors", {"l1.l1": torch.tensor(values)}, header)
        results = {
            "id": f"{name}{fold}", "recipe": name, "profile": "smoke", "seed": fold, "measured": {"l1": digest},
            "metrics": {"l1": {"value": float(np.mean(values)), "protocol": digest}},
            "protocols": {digest: {"split": "test", "dataset": {"fold": fold}, **protocol}},
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
        return FinishedRun(folder)

    return finished


@pytest.fixture
def rows(experiment, finished):
    """Two rows with three folds of 4, 6 and 10 images."""
    rng = np.random.default_rng(0)
    a, b = TableRow("a", "A", experiment), TableRow("b", "B", experiment)
    for fold, images in enumerate((4, 6, 10)):
        values = rng.uniform(0.2, 0.4, images).astype(np.float32)
        a.runs.append(finished("a", fold, values))
        b.runs.append(finished("b", fold, values + rng.normal(0.1, 0.05, images).astype(np.float32)))
    return a, b


class TestComparison:
    def test_csv_has_the_interval_that_the_page_shows(self, rows, data):
        doc = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc
        line = [*csv.DictReader(io.StringIO(formats.to_csv(doc)))][1]
        difference = doc["rows"][1]["cells"]["l1"]["difference"]
        for columns, interval in (("difference", "seeds"), ("difference_blocks", "blocks")):
            ends = [float(line[f"{columns}_{end}"]) for end in ("low", "high")]
            assert ends == pytest.approx([difference[interval]["low"], difference[interval]["high"]])

    def test_a_difference_has_the_interval_over_folds_weighted_by_their_images(self, rows, data):
        a, b = rows
        cell = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc["rows"][1]["cells"]["l1"]
        means = [[run.results["metrics"]["l1"]["value"] for run in row.runs] for row in (a, b)]
        expected = over_folds([y - x for x, y in zip(*means, strict=True)], [4, 6, 10])
        assert cell["difference"]["seeds"] == pytest.approx(vars(expected.interval()), abs=1e-6)
        assert cell["difference"]["p"] == pytest.approx(expected.p, rel=1e-3)
        assert cell["difference"]["blocks"]["value"] == pytest.approx(expected.value, abs=1e-6)

    def test_with_a_pooled_spread_all_trained_rows_count_once(self, rows, experiment, finished, data):
        """Not the ground truth, a row with a fold less, or one that shows another row's training."""
        a, b = rows
        others = [TableRow(name, name.upper(), experiment) for name in ("c", "d", "short")]
        for number, row in enumerate(others):
            for fold, images in enumerate((4, 6, 10)[: 2 if row.name == "short" else 3]):
                values = 0.3 + 0.01 * fold * number + np.linspace(0, 0.1, images, dtype=np.float32)
                row.runs.append(finished(row.name, fold, values))
        again = TableRow("again", "B again", experiment, b.runs)
        photos = TableRow("photos", "photos", experiment, target=True)
        photos.runs += [
            finished("photos", fold, np.zeros(images, np.float32)) for fold, images in enumerate((4, 6, 10))
        ]
        table = [a, b, *others, again, photos]
        doc = build_comparison(table, "a", {"l1": "L1"}, {}, data, facts=FACTS | {"pooled_spread": True}).doc

        def means(row):
            return [run.results["metrics"]["l1"]["value"] for run in row.runs]

        spread = pool_rows([means(row) for row in (a, b, *others[:2])])
        assert doc["columns"][0]["spread"] == pytest.approx({**vars(spread), "folds": pytest.approx(spread.folds)})
        of_b = spread.of_difference(means(b), means(a))
        for number, row, variance in ((1, b, of_b), (5, again, of_b), (6, photos, None)):
            expected = over_folds(list(np.subtract(means(row), means(a))), [4, 6, 10], variance)
            found = doc["rows"][number]["cells"]["l1"]["difference"]
            assert found["seeds"] == pytest.approx(vars(expected.interval()), abs=1e-6)
            assert found["p"] == pytest.approx(expected.p, rel=1e-3)
        assert "Welch" in "".join(formats.build_notes(doc))

    def test_a_row_whose_numbers_are_not_finite_does_not_take_the_spread_from_the_others(
        self, rows, experiment, finished, data
    ):
        others = [TableRow(name, name.upper(), experiment) for name in ("c", "broken")]
        for number, row in enumerate(others):
            for fold, images in enumerate((4, 6, 10)):
                value = math.nan if row.name == "broken" and fold == 1 else 0.3 + 0.02 * (fold == number)
                row.runs.append(finished(row.name, fold, [value] * images))
        with_broken, without = (
            build_comparison(table, "a", {"l1": "L1"}, {}, data, facts=FACTS | {"pooled_spread": True}).doc
            for table in ([*rows, *others], [*rows, others[0]])
        )
        assert with_broken["columns"] == without["columns"]
        assert with_broken["rows"][1] == without["rows"][1]

    def test_with_fewer_than_three_rows_nothing_is_pooled(self, rows, data):
        own = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc
        doc = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS | {"pooled_spread": True}).doc
        assert doc["columns"][0]["spread"] is None
        assert doc["rows"] == own["rows"]
        assert "Welch" not in "".join(formats.build_notes(doc))

    @pytest.mark.parametrize(
        ("unbiased", "minimum", "few"),
        [
            (False, 20, "too few images: 4 of at least 20"),
            (True, 20, None),
            (True, 21, "too few images: 20 in all folds, of at least 21"),
        ],
    )
    def test_images_of_all_folds_count_for_an_unbiased_metric(
        self, unbiased, minimum, few, experiment, finished, data, monkeypatch
    ):
        monkeypatch.setattr(experiment.metrics["l1"].factory, "unbiased", unbiased, raising=False)
        row = TableRow("a", "A", experiment)
        for fold, images in enumerate((4, 6, 10)):
            row.runs.append(finished("a", fold, [0.2] * images, images=images))
            row.runs[-1].results["metrics"]["l1"]["minimum_images"] = minimum
        cell = build_comparison([row], "a", {"l1": "L1"}, {}, data, facts=FACTS).doc["rows"][0]["cells"]["l1"]
        assert cell.get("too_few") == few

    def test_the_diagnostic_resamples_the_blocks_of_all_folds(self, rows, data):
        """Blocks of the same name in two folds are two blocks."""
        cell = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc["rows"][1]["cells"]["l1"]
        blocks = cell["difference"]["blocks"]
        assert blocks["low"] < blocks["value"] < blocks["high"]
        a, b = rows
        by_image = torch.cat([y.stats[0]["l1.l1"] - x.stats[0]["l1.l1"] for x, y in zip(a.runs, b.runs, strict=True)])
        assert blocks["value"] == pytest.approx(by_image.mean().item(), abs=1e-6)

    def test_without_statistics_the_numbers_of_the_folds_give_the_same_interval(self, rows, data):
        doc = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc
        whole = doc["rows"][1]["cells"]["l1"]["difference"]
        for run in (run for row in rows for run in row.runs):
            save_tensors(run.folder / "stats.safetensors", {}, run.stats[1])
            vars(run).pop("stats")  # read again
        doc = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc
        part = doc["rows"][1]["cells"]["l1"]["difference"]
        assert part["seeds"] == pytest.approx(whole["seeds"], abs=1e-6)
        assert part["p"] == pytest.approx(whole["p"], rel=1e-3)
        assert part["blocks"]["low"] is None

    def test_one_fold_gives_no_interval(self, rows, data):
        for row in rows:
            del row.runs[1:]
        cell = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc["rows"][1]["cells"]["l1"]
        assert cell["difference"]["seeds"]["low"] is None
        assert cell["difference"]["p"] is None

    def test_rows_of_a_fold_that_were_measured_differently_are_refused(self, rows, data, finished):
        rows[1].runs[2] = finished("c", 2, np.full(10, 0.3, np.float32), test_mode="eval")
        with pytest.raises(UserError, match="l1: 'B' has another protocol than 'A'"):
            build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS)

    def test_last_weights_and_their_average_share_a_column_only_if_the_labels_name_them(self, rows, data, finished):
        a, b = rows
        for fold, run in enumerate(b.runs):
            values = run.stats[0]["l1.l1"].numpy()
            b.runs[fold] = finished("average", fold, values, weights="average")
        message = "weights: average instead of last; name them in the rows' labels"
        with pytest.raises(UserError, match=message):
            build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS)
        a.label, b.label = "A, last", "B, average"
        doc = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc
        assert "difference" in doc["rows"][1]["cells"]["l1"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_rows_of_y_stand_beside_any_weights(self, rows, data, finished, order):
        """They are measured once for all rows, under the weights that the recipe shows."""
        rows[0].target = True
        for fold, run in enumerate(rows[0].runs):
            values = run.stats[0]["l1.l1"].numpy()
            rows[0].runs[fold] = finished("target", fold, values, weights="average", process={"steps": 4})
        doc = build_comparison(rows[::order], "b", {"l1": "L1"}, {}, data, facts=FACTS).doc
        assert all("difference" in row["cells"]["l1"] for row in doc["rows"] if row["name"] == "a")
        rows[0].runs[1] = finished("eval", 1, values, test_mode="eval")
        with pytest.raises(UserError, match="another protocol"):
            build_comparison(rows[::order], "b", {"l1": "L1"}, {}, data, facts=FACTS)

    def test_a_row_of_y_that_comes_first_hides_no_other_protocol(self, rows, data, finished):
        photos = copy.copy(rows[0])
        photos.name, photos.label, photos.target = "photos", "photos", True
        values = rows[1].runs[0].stats[0]["l1.l1"].numpy()
        rows[1].runs[0] = finished("average", 0, values, weights="average")
        with pytest.raises(UserError, match="weights: average instead of last"):
            build_comparison([photos, *rows], "a", {"l1": "L1"}, {}, data, facts=FACTS)

    def test_the_ground_truth_is_not_the_best_of_a_column(self, rows, data):
        rows[0].target = True
        doc = build_comparison(rows, "b", {"l1": "L1"}, {}, data, facts=FACTS).doc
        assert find_best_cells(doc) == set()  # a single row is left

    def test_rows_of_a_fold_with_other_images_are_refused(self, rows, data, finished):
        rows[1].runs[2] = finished("c", 2, np.full(9, 0.3, np.float32))
        with pytest.raises(UserError, match="were measured on different images"):
            build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS)

    def test_the_notes_say_folds(self, rows, data):
        doc = build_comparison(rows, "a", {"l1": "L1"}, {}, data, facts=FACTS).doc
        text = formats.to_markdown(doc)
        assert "Mean of 3 folds ± half of the 95% Student-t interval over them." in text
        assert "95% interval over folds" in text
        assert "studentised bootstrap" not in text
        assert text.count("; ±") == 0, "one interval"
        del doc["rows"][1]["runs"][2:]
        assert "Mean of 3 folds (B: 2) ± half" in formats.to_markdown(doc)


class TestTableFile:
    def test_seed_r_is_fold_r(self, files):
        bench = Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke")
        found = [(cell.row.name, cell.experiment.seed, cell.experiment.dataset.values["fold"]) for cell in bench.cells]
        assert found == [(row, fold, fold) for fold in range(3) for row in ("l1", "both")]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("folds = 3\nseeds = 2", "folds: each fold has its own seed; remove seeds"),
            (
                'folds = 3\nset = [" dataset.fold = 1"]',
                r"this table must not set dataset\.fold: the table trains each row",
            ),
            ("folds = 0", "folds = 0: must be a number, 1 or more"),
            ("folds = true", "folds = True: must be a number, 1 or more"),
            ("folds = 11", r"\[dataset\] fold = 10: "),
        ],
    )
    def test_impossible_folds_are_refused_before_training(self, line, message, files):
        (files / "table.toml").write_text(TABLE.replace("folds = 3", line))
        with pytest.raises(UserError, match=message):
            Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke")

    def test_a_fold_is_refused_as_an_override(self, files):
        table = read_table(str(files / "table.toml"))
        with pytest.raises(UserError, match=r"-s dataset\.fold=2: this table trains one run for each fold"):
            Bench(table, registry(), files / "runs", profile="smoke", overrides=["dataset.fold=2"])

    def test_a_dataset_without_folds_is_refused(self, files):
        with (files / "both.toml").open("a") as recipe:
            recipe.write('[dataset]\nuse = "photos:edges"\n')
        with pytest.raises(
            UserError,
            match=r"^\S+  \[rows\.\w+\] its dataset has no folds of its own.*: split .* dataset.folds=\d+,",
        ):
            Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke")


@pytest.mark.slow
def test_a_table_is_trained_and_measured_fold_by_fold(files, run_cli):
    arguments = ("--profile", "smoke", "--runs", files / "runs", "-o", files / "table.json")
    bench = Bench(read_table(str(files / "table.toml")), registry(), files / "runs", profile="smoke")
    for cell in bench.cells[:-1]:  # in this process: it imports nothing
        fold = cell.experiment.seed
        options = ("--seed", fold, "-s", f"dataset.fold={fold}", "--runs", files / "runs", "--profile", "smoke")
        assert run_cli("run", files / cell.row.recipe, *options).exit_code == 0
    result = run_cli("bench", files / "table.toml", *arguments)
    assert result.exit_code == 0, result.output
    assert "1 of 6 runs to train" in result.output
    doc = json.loads((files / "table.json").read_text())
    assert doc["folds"] == 3
    by_name = {row["name"]: row for row in doc["rows"]}
    assert {name: [run["seed"] for run in row["runs"]] for name, row in by_name.items()} == {
        "l1": [0, 1, 2], "both": [0, 1, 2], "photos": [0, 1, 2]
    }  # fmt: skip
    assert by_name["photos"]["cells"]["l1"]["values"] == [0.0] * 3
    assert by_name["l1"]["cells"]["l1"]["difference"]["seeds"]["low"] is not None
    again = run_cli("bench", files / "table.toml", *arguments)
    assert "runs to train" not in again.output
    assert json.loads((files / "table.json").read_text()) == doc
