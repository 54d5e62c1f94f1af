"""Comparisons of finished runs, and their output formats. The measured numbers are invented here."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from p2pzoo_bench import formats
from p2pzoo_bench.comparison import TableRow, build_comparison, compare_runs
from p2pzoo_bench.stored_results import EvaluatedImages, FinishedRun
from p2pzoo_bench.table_columns import select_columns
from PIL import Image
from rich.console import Console

from p2pzoo import config
from p2pzoo.cli import main
from p2pzoo.data import Store
from p2pzoo.images.grid import make_grid
from p2pzoo.models.safetensors_io import save_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

BLOCKS = ["a", "a", "b", "b", "c", "c", "d", "d"]
SMALL = ["dataset.size=64", "dataset.stride=256", "generator.width=8", "discriminator.width=8"]
FACTS = {"title": "T_1 & co", "source": "me", "profile": "smoke"}
PUBLISHED_NOTE = "Published numbers: Table 1, Cityscapes, 256 px. Compare them with each other, not with ours."
PROTOCOL = {"metric": {"use": "metrics:l1"}, "split": "test", "test_mode": "paper"}


@pytest.fixture(scope="module")
def experiment():
    return config.load("zoo:ablation_patch70.toml", "smoke", SMALL)


@pytest.fixture(scope="module")
def store(experiment):
    return EvaluatedImages.of_store(Store(experiment.dataset.build(split="test")))


@pytest.fixture
def finished(tmp_path):
    """finished("name", [L1 of each image, …], seed=0) -> a FinishedRun with these values."""

    def finished(name, values, seed=0, protocol="p", **differences):
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        header = {"ids": [f"image-{i}" for i in range(len(BLOCKS))], "blocks": BLOCKS}
        save_tensors(folder / "stats.safetensors", {"l1.l1": torch.tensor(values)}, header)
        results = {
            "id": f"{name}{seed}", "recipe": name, "profile": "smoke", "seed": seed, "measured": {"l1": protocol},
            "metrics": {"l1": {"value": float(np.mean(values)), "protocol": protocol}},
            "protocols": {protocol: PROTOCOL | differences},
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "env.json").write_text(json.dumps({"training": {"seconds": 10.0 + seed, "peak_megabytes": 900}}))
        return FinishedRun(folder)

    return finished


@pytest.fixture
def doc(experiment, store, finished):
    """Two rows of two seeds. Row `b` is 0.1 worse than row `a` on every image except those of one block."""
    rng = np.random.default_rng(0)
    a, b = TableRow("a", "row A", experiment, published={"l1": 0.25}), TableRow("b", "row <b>", experiment)
    for seed in (0, 1):
        values = rng.uniform(0.2, 0.4, len(BLOCKS)).astype(np.float32)
        a.runs.append(finished("a", values, seed))
        b.runs.append(finished("b", values + np.array([0.1] * 6 + [0.0] * 2, np.float32), seed))
    return build_comparison([a, b], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc


def test_seeds_on_the_same_images_do_not_count_together(experiment, store, finished, monkeypatch):
    monkeypatch.setattr(experiment.metrics["l1"].factory, "unbiased", True, raising=False)
    row = TableRow("a", "A", experiment)
    for seed in (0, 1):
        row.runs.append(finished("a", [0.2] * len(BLOCKS), seed, images=len(BLOCKS)))
        row.runs[-1].results["metrics"]["l1"]["minimum_images"] = 10
    cell = build_comparison([row], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc["rows"][0]["cells"]["l1"]
    assert cell["too_few"] == "too few images: 8 of at least 10"


def test_a_cell_is_the_mean_over_seeds_and_a_difference_is_paired_by_image(doc):
    a, b = doc["rows"]
    assert a["cells"]["l1"]["mean"] == pytest.approx(np.mean(a["cells"]["l1"]["values"]))
    blocks = b["cells"]["l1"]["difference"]["blocks"]
    assert blocks["value"] == pytest.approx(0.075, abs=1e-6)
    assert blocks["low"] < 0.075 < blocks["high"]
    seeds = b["cells"]["l1"]["difference"]["seeds"]
    assert (seeds["low"], seeds["high"]) == (pytest.approx(0.075, abs=1e-6),) * 2, "both seeds have the same difference"
    assert a["seconds"] == 10.5
    assert (a["receptive_field"], a["receptive_field_over_side"]) == (70, round(70 / 64, 3))


def test_the_time_of_a_translation_is_that_of_the_rows_translations_with_a_note(experiment, store, finished):
    wanted = {"test_mode": "paper", "test_batch": 1}
    rows = [TableRow(name, name.upper(), experiment) for name in "abc"]
    for number, row in enumerate(rows):
        for seed in (0, 1):
            run = finished(row.name, [0.1] * 8, seed)
            if row.name != "c":
                times = [({"test_mode": "eval"}, 1.0), (wanted, 12.0 + 10 * number + seed)]
                run.results["timings"] = [
                    {"translations": each, "milliseconds": time, "device": "cpu", "threads": 2} for each, time in times
                ]
            row.runs.append(run)
    table = build_comparison(rows, "a", {"l1": "L1"}, {}, store, facts=FACTS)
    head, cells = formats.build_main_table(table.doc)
    assert [line[head.index("ms per image")] for line in cells] == ["12.5", "22.5", "–"]
    assert "(cpu, 2 threads). Another machine" in "\n".join(formats.build_notes(table.doc))
    without = select_columns(table, ["l1", "seconds"]).doc
    assert "ms per image" not in formats.build_main_table(without)[0] + formats.build_notes(without)
    assert formats.build_main_table(select_columns(table, ["milliseconds"]).doc)[0] == ["", "ms per image"]


def test_runs_without_times_of_translations_have_no_such_column(doc):
    assert "ms per image" not in formats.build_main_table(doc)[0]
    assert not [note for note in formats.build_notes(doc) if "ms per image" in note]


def test_different_protocols_are_refused_with_the_difference(experiment, store, finished):
    a, b = TableRow("a", "A", experiment), TableRow("b", "B", experiment)
    a.runs.append(finished("a", [0.1] * 8))
    b.runs.append(finished("b", [0.1] * 8, protocol="q", test_mode="eval"))
    with pytest.raises(UserError, match=r"l1: 'B' has another protocol than 'A' \(test_mode: eval instead of paper\)"):
        build_comparison([a, b], "a", {"l1": "L1"}, {}, store, facts=FACTS)


def test_an_unavailable_metric_has_a_note_and_no_number(experiment, store, finished):
    row = TableRow("a", "A", experiment, [finished("a", [0.1] * 8)])
    unavailable = {"kid": "install p2pzoo[features]"}
    doc = build_comparison([row], "a", {"l1": "L1", "kid": "KID"}, unavailable, store, facts=FACTS).doc
    assert "kid" not in doc["rows"][0]["cells"]
    assert "unavailable" in formats.build_main_table(doc)[1][0]
    assert "KID: no number, install p2pzoo[features]." in formats.build_notes(doc)


def test_older_results_do_not_replace_an_unavailable_metric(experiment, store, finished):
    """They may have been measured with other weights, which cannot be checked here."""
    row = TableRow("a", "A", experiment, [finished("a", [0.1] * 8)])
    doc = build_comparison([row], "a", {"l1": "L1"}, {"l1": "no such file"}, store, facts=FACTS).doc
    assert doc["rows"][0]["cells"] == {}
    assert (doc["columns"][0]["protocol"], doc["protocols"]) == (None, {})


def test_a_row_whose_network_cannot_be_built_does_not_stop_the_table(store, finished):
    good, too_deep = (
        config.load("zoo:ablation_patch70.toml", "smoke", [*SMALL, *more]) for more in ([], ["generator.depth=8"])
    )
    rows = [
        TableRow("a", "A", good, [finished("a", [0.1] * 8)]),
        TableRow("b", "B", too_deep, failed="64 px are too few"),
    ]
    _, row = build_comparison(rows, "a", {"l1": "L1"}, {}, store, facts=FACTS).doc["rows"]
    assert (row["failed"], row["cells"], "parameters" in row) == ("64 px are too few", {}, False)


def test_a_cost_that_differs_between_the_folds_of_a_search_has_no_number(experiment, store, finished):
    wider = config.load("zoo:ablation_patch70.toml", "smoke", [*SMALL, "generator.width=16"])
    row = TableRow("a", "A", experiment, [finished("a", [0.1] * 8)], others=[experiment, wider])
    [described] = build_comparison([row], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc["rows"]
    assert described["parameters"] is None
    assert described["discriminator_parameters"] > 0


def test_nothing_is_drawn_without_a_finished_row(experiment, store, finished, monkeypatch):
    from p2pzoo_metrics.images import L1

    monkeypatch.setattr(L1, "draw", lambda self, rows: pytest.fail("no row is finished"), raising=False)
    target = TableRow("y", "Y", experiment, [finished("y", [0.0] * 8)], target=True)
    rows = [TableRow("a", "A", experiment, failed="broken"), target]
    assert build_comparison(rows, "a", {"l1": "L1"}, {}, store, facts=FACTS).draw_figures() == {}


def test_the_baseline_is_reduced_once_for_all_rows(experiment, store, finished, monkeypatch):
    from p2pzoo_metrics.images import L1

    sizes = []
    original = L1.reduce
    monkeypatch.setattr(L1, "reduce", lambda self, stats: sizes.append(len(stats["l1"])) or original(self, stats))
    rows = [TableRow(n, n, experiment, [finished(n, np.random.default_rng(i).random(8))]) for i, n in enumerate("abc")]
    build_comparison(rows, "a", {"l1": "L1"}, {}, store, facts=FACTS)
    assert len(sizes) == 3 * (1 + 4), "each row with all images, and without each of four blocks"


def test_notes_explain_the_intervals(doc):
    assert any("interval over test regions" in note for note in formats.build_notes(doc))
    assert any("interval over test images" in note for note in formats.build_notes(doc | {"resampled": "images"}))
    doc["rows"][1]["cells"]["l1"]["difference"]["blocks"] |= {"low": None, "high": None}
    assert any("too few test regions" in note for note in formats.build_notes(doc))


def test_a_published_number_keeps_its_decimals(experiment, store, finished):
    row = TableRow("a", "A", experiment, [finished("a", [0.1] * 8)], published={"l1": 0.0043})
    doc = build_comparison([row], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc
    assert formats.build_published_table(doc)[1] == [["A", "0.0043"]]


def test_a_committed_run_without_seconds_has_none(experiment, store, finished):
    run = finished("a", np.full(len(BLOCKS), 0.3, np.float32))
    (run.folder / "env.json").write_text(json.dumps({"training": {"peak_megabytes": 900}}))
    doc = build_comparison([TableRow("a", "A", experiment, [run])], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc
    assert (doc["rows"][0]["seconds"], doc["rows"][0]["peak_megabytes"]) == (None, 900)
    assert "training, s" not in formats.to_markdown(doc)


def test_a_failed_row_has_its_reason_in_the_notes(experiment, store, finished):
    good, bad = (
        TableRow("a", "A", experiment, [finished("a", [0.1] * 8)]),
        TableRow("b", "B", experiment, failed="no memory"),
    )
    doc = build_comparison([good, bad], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc
    assert formats.build_main_table(doc)[1][1][:2] == ["B", "failed"]
    assert "B: no memory." in formats.build_notes(doc)


def test_published_numbers_have_rows_of_their_own_and_a_note_has_their_protocol(doc):
    doc["source"] = "Table 1, Cityscapes, 256 px"
    main, published, *notes = formats.to_markdown(doc).split("\n\n")[1:]
    assert "0.25" not in main
    assert PUBLISHED_NOTE in notes
    assert published.splitlines()[0] == "| published | L1 ↓ |"
    assert published.splitlines()[2:] == ["| row A | 0.25 |"], "rows without a published number are left out"


def test_the_terminal_and_the_page_show_published_numbers_with_their_protocol(doc):
    doc["source"] = "Table 1, Cityscapes, 256 px"
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(formats.to_rich(doc))
    for text in (console.export_text(), formats.to_html(doc, {}, (64, 64), {})):
        ours, published = re.split(r"published\b", text, maxsplit=1)
        assert "row A" in ours
        assert "0.25" in published
        assert PUBLISHED_NOTE in text


def test_csv_has_the_protocol_of_published_numbers(doc):
    doc["source"] = "Table 1, Cityscapes, 256 px"
    rows = csv.DictReader(io.StringIO(formats.to_csv(doc)))
    both = [(row["published"], row["published_protocol"]) for row in rows]
    assert both == [("0.25", "Table 1, Cityscapes, 256 px"), ("", "")]


def test_without_published_numbers_there_is_no_word_about_them(doc):
    doc["rows"][0]["published"] = {}
    assert "published" not in formats.to_markdown(doc | {"source": "somewhere"})


def test_csv_has_every_value_in_full_precision(doc):
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(doc))))
    assert [row["row"] for row in rows] == ["a", "b"]
    assert [float(v) for v in rows[0]["values"].split()] == doc["rows"][0]["cells"]["l1"]["values"]
    assert float(rows[1]["difference"]) == doc["rows"][1]["cells"]["l1"]["difference"]["blocks"]["value"]


def test_the_best_mean_of_a_column_is_bold_on_the_page(doc):
    page = formats.to_html(doc, {}, (64, 64), {})
    [best] = re.findall(r'<td class="best">([^<]*)</td>', page)
    assert best == formats.build_main_table(doc)[1][0][1], "row A has the lower L1"


def test_the_page_escapes_labels_and_shows_the_same_images_down_the_rows(doc, tmp_path):
    images = [[torch.full((3, 64, 64), shade) for shade in (-1.0, 0.0, 1.0)] for _ in range(2)]
    make_grid(images).save(tmp_path / "grid.png")
    page = formats.to_html(doc, {"a": tmp_path / "grid.png"}, (64, 64), {})
    assert "row <b>" not in page
    assert "row &lt;b&gt;" in page
    assert page.count("<img") == 3 * 2, "input, row A, ground truth"
    assert 'src="http' not in page


def test_a_grid_is_split_into_its_images():
    images = [[torch.full((3, 32, 64), shade) for shade in (-1.0, row / 4, 1.0)] for row in range(3)]
    rows = formats.split_grid(make_grid(images), (32, 64))
    assert len(rows) == 3
    for number, (x, y_hat, y) in enumerate(rows):
        assert (x.width, x.height) == (512, 256)
        shades = [np.unique(np.asarray(tile)) for tile in (x, y_hat, y)]
        assert [s.tolist() for s in shades] == [[0], [round((number / 4 + 1) * 127.5)], [255]]


@pytest.mark.parametrize(
    ("value", "half", "places"),
    [
        (0.6612, 0.0213, 3), (0.6612, None, 3), (23.54, 0.4, 2), (23.54, None, 1), (0.00123, None, 5),
        (1234.0, 20.0, 0), (0.0, None, 3),
    ],
)  # fmt: skip
def test_numbers_have_two_digits_of_their_interval(value, half, places):
    assert formats.decimals(value, half) == places


def test_a_document_is_json(doc):
    assert json.loads(json.dumps(doc)) == doc


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run):
    """Three tiny runs: two seeds of one experiment, and one with another weight."""
    folder = tmp_path_factory.mktemp("runs")
    for overrides in (("seed=0",), ("seed=1",), ("losses.l1.weight=1",)):
        assert run(folder, "train.images=4", *overrides).exit_code == 0
    return sorted(folder.glob("tiny/*"))


def test_compare_puts_seeds_of_one_experiment_into_one_row(runs):
    table = compare_runs(runs, registry())
    doc = table.doc
    assert sorted(len(row.runs) for row in table.rows) == [1, 2]
    assert len({row.name for row in table.rows}) == 2, "one recipe, two names"
    assert {column["metric"] for column in doc["columns"]} == {"l1", "psnr", "psnr.pooled"}


def test_compare_names_the_numbers_that_some_runs_lack(runs, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(runs[0], half)
    results = json.loads((half / "results.json").read_text())
    del results["digest"], results["metrics"]["psnr"], results["metrics"]["psnr.pooled"], results["measured"]["psnr"]
    (half / "results.json").write_text(json.dumps(results))
    doc = compare_runs([half, *runs[1:]], registry()).doc
    assert [column["metric"] for column in doc["columns"]] == ["l1"]
    assert f"Not in all runs, so left out: psnr (missing in {half})." in formats.build_notes(doc)
    assert "left_out" not in compare_runs([half, *runs[1:]], registry(), wanted=["l1"]).doc


@pytest.fixture
def runs_without_data(tmp_path, run_cli, tiny):
    """Two runs on a `folders` dataset that was deleted afterwards."""
    for folder in ("inputs", "targets"):
        for split in ("train", "val", "test"):
            (tmp_path / folder / split).mkdir(parents=True)
            for number in range(3):
                noise = np.random.default_rng([folder == "targets", number]).integers(0, 256, (64, 64, 3), np.uint8)
                Image.fromarray(noise).save(tmp_path / folder / split / f"{number}.png")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'extends = "{tiny}"\n[dataset]\nuse = "folders"\n'
        f'inputs = "{tmp_path}/inputs"\ntargets = "{tmp_path}/targets"\nsize = [64, 64]\n'
    )
    arguments = ["run", recipe, "--profile", "smoke", "--runs", tmp_path / "runs", "-s", "train.images=4"]
    for seed in (0, 1):
        assert run_cli(*arguments, "--seed", seed).exit_code == 0
    folders = sorted(tmp_path.glob("runs/mine/*"))
    with_data = compare_runs(folders, registry()).doc
    shutil.rmtree(tmp_path / "inputs")
    return folders, with_data


def test_compare_needs_no_data(runs_without_data):
    folders, with_data = runs_without_data
    with pytest.warns(UserWarning, match="the data cannot be opened .*inputs.*: comparing the stored numbers"):
        doc = compare_runs(folders, registry()).doc
    assert doc == with_data


def test_without_data_a_metric_that_needs_classes_loses_only_its_differences(runs_without_data, monkeypatch):
    from p2pzoo_metrics.images import L1

    def refuse(self, dataset):
        raise UserError("needs classes")

    folders, with_data = runs_without_data
    monkeypatch.setattr(L1, "__init__", refuse)
    with pytest.warns(UserWarning, match="metric 'l1' needs the data: no differences in its columns"):
        doc = compare_runs(folders, registry()).doc
    assert doc["rows"][0]["cells"]["l1"]["values"] == with_data["rows"][0]["cells"]["l1"]["values"]
    assert doc["columns"][0]["better"] == "lower"


def test_a_metric_can_draw_a_figure_of_all_rows(experiment, store, finished, monkeypatch):
    from matplotlib.figure import Figure
    from p2pzoo_metrics.images import L1

    drawn_rows = {}
    monkeypatch.setattr(L1, "draw", lambda self, rows: drawn_rows.update(rows) or Figure(), raising=False)
    rows = [TableRow(n, n.upper(), experiment, [finished(n, [0.1] * 8, s) for s in (0, 1)]) for n in ("a", "b")]
    table = build_comparison(rows, "a", {"l1": "L1"}, {}, store, facts=FACTS)
    page = formats.to_html(table.doc, {}, table.size, table.draw_figures())
    assert "<svg" in page
    assert {label: stats["l1"].shape[0] for label, stats in drawn_rows.items()} == {"A": 16, "B": 16}, "both seeds"


def test_a_figure_can_be_written_alone(runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    from p2pzoo_metrics.images import L1

    arguments = ["compare", *map(str, runs), "--metric", "l1", "-o", str(tmp_path / "t.svg")]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "none of them draws" in result.output) == (2, True)
    monkeypatch.setattr(L1, "draw", lambda self, rows: Figure(), raising=False)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert (tmp_path / "t.svg").read_text().startswith("<svg")


def test_compare_prints_a_table_and_writes_a_page(runs, tmp_path):
    result = CliRunner().invoke(main, ["compare", *map(str, runs), "--metric", "psnr"])
    assert result.exit_code == 0, result.output
    assert "psnr.pooled" in result.stdout
    assert "l1" not in result.stdout.split("\n\n")[0]
    assert CliRunner().invoke(main, ["compare", *map(str, runs), "-o", str(tmp_path / "t.html")]).exit_code == 0
    assert (tmp_path / "t.html").read_text().count("<img") > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere: not a finished run"),
        (["RUN", "--baseline", "tinny"], "--baseline tinny: no such row: did you mean 'tiny'?"),
        (["RUN", "--metric", "pnsr"], "--metric pnsr: not every run has it: did you mean 'psnr'?"),
        (["RUN", "-o", "table.docx"], "use one of .md"),
    ],
)
def test_compare_refuses_bad_arguments_in_one_line(runs, options, message):
    result = CliRunner().invoke(main, ["compare", *(str(runs[0]) if a == "RUN" else a for a in options)])
    assert result.exit_code == 2
    assert message in result.output
