"""Learning curves of finished runs: `compare --curve`, and the page of a table."""

import json

import pytest
import torch
from p2pzoo_bench.comparison import TableRow, build_comparison
from p2pzoo_bench.intervals import over_seeds
from p2pzoo_bench.learning_curves import build_curve, draw_curves, list_curves, to_csv, to_markdown
from p2pzoo_bench.stored_results import EvaluatedImages, FinishedRun

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.models.safetensors_io import save_tensors
from p2pzoo.utils.errors import UserError

FACTS = {"title": "T", "source": "", "profile": "smoke"}


@pytest.fixture(scope="module")
def experiment():
    return config.load("zoo:ablation_patch70.toml", "smoke", ["dataset.size=64", "dataset.stride=256"])


@pytest.fixture
def table(tmp_path, experiment):
    """A row with two seeds, measured after 10, 20 and 40 images, and one with a seed, measured at its end only."""
    data = EvaluatedImages.of_store(Store(experiment.dataset.build(split="test")))

    def run(name, seed, numbers):
        folder = tmp_path / f"{name}{seed}"
        folder.mkdir()
        save_tensors(folder / "stats.safetensors", {"l1.l1": torch.ones(2)}, {"ids": ["a", "b"], "blocks": [None] * 2})
        protocol = {"split": "test"}
        results = {
            "id": f"{name}{seed}", "recipe": name, "profile": "smoke", "seed": seed, "images": 40,
            "metrics": {key: {"value": value, "protocol": "p"} for key, value in numbers.items()},
            "measured": {"l1": "p"}, "protocols": {"p": protocol},
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
        return FinishedRun(folder)

    a, b = TableRow("a", "A", experiment), TableRow("b", "B", experiment)
    for seed, last in enumerate((0.2, 0.24)):
        a.runs.append(
            run("a", seed, {"l1": last, "l1@10": 0.5, "l1@20": 0.3 + seed / 100, "l1.worst": 1, "l1@10.worst": 2})
        )
    b.runs.append(run("b", 0, {"l1": 0.4}))
    return build_comparison([a, b], "a", {"l1": "mean error"}, {}, data, facts=FACTS)


def test_points_are_the_means_over_runs_after_each_number_of_images(table):
    assert list_curves(table.rows) == ["l1", "l1.worst"]
    doc = build_curve(table, "l1")
    a, b = doc["rows"]
    assert [point["images"] for point in a["points"]] == [10, 20, 40]
    assert [point["mean"] for point in a["points"]] == pytest.approx([0.5, 0.305, 0.22])
    expected = over_seeds([0.2, 0.24])
    assert (a["points"][2]["low"], a["points"][2]["high"]) == pytest.approx((expected.low, expected.high))
    assert [(point["images"], point["low"]) for point in b["points"]] == [(40, None)]
    assert (doc["heading"], doc["better"]) == ("mean error", "lower")
    assert to_csv(doc).splitlines()[1] == "a,A,l1,10,0.5,0.5,0.5,0.5 0.5"


def test_further_translations_are_no_curve(table):
    for name in ("l1@fast", "psnr@fast", "l1@fast.worst", "l1@x3"):
        table.rows[0].runs[0].results["metrics"][name] = {"value": 0.9, "protocol": "p"}
    assert list_curves(table.rows) == ["l1", "l1.worst"]
    assert len(build_curve(table, "l1")["rows"][0]["points"]) == 3
    with pytest.raises(UserError, match="--curve l1@fast: no such curve"):
        build_curve(table, "l1@fast")


def test_a_number_of_a_metric_has_its_own_curve(table):
    doc = build_curve(table, "l1.worst")
    assert [(point["images"], point["mean"]) for point in doc["rows"][0]["points"]] == [(10, 2), (40, 1)]
    assert [row["name"] for row in doc["rows"]] == ["a"], "the other row was not measured with it"


def test_a_figure_has_a_line_for_each_row_and_a_panel_for_each_number(table):
    figure = draw_curves([build_curve(table, "l1"), build_curve(table, "l1.worst")])
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B (1 run)"]


def test_a_row_has_one_colour_in_all_panels_and_the_legend_has_all_rows(table):
    both, first = (build_curve(table, column) for column in ("l1", "l1.worst"))
    second = {**both, "rows": both["rows"][1:]}
    figure = draw_curves([second, both, first])
    colours = [{line.get_label()[0]: line.get_color() for line in axes.lines} for axes in figure.axes]
    assert colours[0]["B"] == colours[1]["B"] != colours[1]["A"] == colours[2]["A"]
    legend = figure.legends[0]
    shown = {text.get_text()[0]: line.get_color() for text, line in zip(legend.texts, legend.get_lines(), strict=True)}
    assert shown == colours[1]


def test_the_note_names_rows_with_fewer_runs(table):
    assert "measured there (up to 2; B: 1) ± half" in to_markdown(build_curve(table, "l1"))
    assert "measured there ± half" in to_markdown(build_curve(table, "l1.worst"))


def test_a_curve_joins_no_points_of_different_protocols(table):
    run = table.rows[0].runs[0]
    run.results["protocols"] |= {"later": {"split": "test", "at": 10}, "other": {"split": "val", "at": 20}}
    run.results["metrics"]["l1@10"]["protocol"] = "later"
    run.results["metrics"]["l1@20"]["protocol"] = "other"
    [row, _] = build_curve(table, "l1")["rows"]
    assert [len(point["values"]) for point in row["points"]] == [2, 1, 2], "at 20 images of the other run only"
    run.results["metrics"]["l1"]["protocol"] = "other"
    with pytest.raises(UserError, match=r"l1: 'A' has another protocol than 'A' \(split: "):
        build_curve(table, "l1")


@pytest.mark.parametrize(
    ("column", "message"),
    [("l1.wrst", "--curve l1.wrst: no such curve: did you mean 'l1.worst'"), ("psnr", "no such curve: known are l1")],
)
def test_a_number_without_a_curve_is_refused(column, message, table):
    with pytest.raises(UserError, match=message):
        build_curve(table, column)


def test_without_milestones_the_message_says_how_to_train_for_curves(table):
    for row in table.rows:
        for run in row.runs:
            run.results["metrics"] = {"l1": run.results["metrics"]["l1"]}
    with pytest.raises(UserError, match=r"no run has one; train with evaluate\.at = \[3500, 7000\]"):
        build_curve(table, "l1")


def test_compare_shows_the_curves_of_a_training(tmp_path, tiny, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli(
        "run", tiny, "--profile", "smoke", "--runs", "runs", "-s", "train.images=6", "-s", "evaluate.at=[2,4]"
    )
    assert done.exit_code == 0, done.output
    [folder] = tmp_path.glob("runs/*/smoke-*")
    text = run_cli("compare", folder, "--curve", "l1").output
    assert all(f"{images} images" in text for images in (2, 4, 6))
    results = json.loads((folder / "results.json").read_text())["metrics"]
    doc = json.loads(run_cli("compare", folder, "--curve", "l1", "--json").output)
    assert [point["mean"] for point in doc["rows"][0]["points"]] == [
        results[name]["value"] for name in ("l1@2", "l1@4", "l1")
    ]
    not_a_number = json.loads((folder / "results.json").read_text())
    del not_a_number["digest"]
    not_a_number["metrics"]["l1@2"]["value"] = not_a_number["metrics"]["l1"]["value"] = float("nan")
    (tmp_path / "diverged").mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / "diverged" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "diverged/results.json").write_text(json.dumps(not_a_number))
    for options in ((), ("--curve", "l1")):
        assert run_cli("compare", "diverged", *options, "-o", "nan.json").exit_code == 0
        written = json.loads((tmp_path / "nan.json").read_text(), parse_constant=pytest.fail)
        assert written == json.loads(run_cli("compare", "diverged", *options, "--json").output)
    assert [point["mean"] for point in written["rows"][0]["points"]] == [None, results["l1@4"]["value"], None]
    for output in ("curve.html", "table.html", "curve.svg", "curve.md"):
        options = () if output == "table.html" else ("--curve", "l1")
        assert run_cli("compare", folder, *options, "-o", output).exit_code == 0
        assert (tmp_path / output).stat().st_size > 100
    assert "Learning curves" in (tmp_path / "table.html").read_text()
    refused = run_cli("compare", folder, "--curve", "l1", "-o", "curve.tex")
    assert refused.exit_code == 2
    assert "--curve l1: no format latex" in refused.output
    refused = run_cli("compare", folder, "--curve", "l1", "--column", "l1")
    assert (refused.exit_code, "--column: --curve shows its own metric only" in refused.output) == (2, True)
