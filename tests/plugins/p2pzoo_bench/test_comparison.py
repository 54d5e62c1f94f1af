"""Finished runs beside one another, and the forms that a table takes. What the runs measured is made up here."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from p2pzoo_bench import formats
from p2pzoo_bench.comparison import Finished, Line, compare_runs, compared

from p2pzoo import config
from p2pzoo.cli import main
from p2pzoo.data import Store
from p2pzoo.images.grid import grid
from p2pzoo.models.safetensors_io import save_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

BLOCKS = ["a", "a", "b", "b", "c", "c", "d", "d"]
SMALL = ["dataset.size=64", "dataset.stride=256", "generator.width=8", "discriminator.width=8"]
FACTS = {"title": "T_1 & co", "source": "me", "profile": "smoke"}
PROTOCOL = {"metric": {"use": "metrics:l1"}, "split": "test", "test_mode": "paper"}


@pytest.fixture(scope="module")
def experiment():
    return config.load("zoo:ablation_patch70.toml", "smoke", SMALL)


@pytest.fixture(scope="module")
def store(experiment):
    return Store(experiment.dataset.build(split="test"))


@pytest.fixture
def finished(tmp_path):
    """finished("name", [an image's L1, …], seed=0): a folder of results in which these were measured."""

    def finished(name, values, seed=0, protocol="p", **described):
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        header = {"ids": [f"image-{i}" for i in range(len(BLOCKS))], "blocks": BLOCKS}
        save_tensors(folder / "stats.safetensors", {"l1.l1": torch.tensor(values)}, header)
        results = {
            "id": f"{name}{seed}", "recipe": name, "profile": "smoke", "seed": seed, "measured": {"l1": protocol},
            "metrics": {"l1": {"value": float(np.mean(values)), "protocol": protocol}},
            "protocols": {protocol: PROTOCOL | described},
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "env.json").write_text(json.dumps({"training": {"seconds": 10.0 + seed, "peak_megabytes": 900}}))
        return Finished(folder)

    return finished


@pytest.fixture
def doc(experiment, store, finished):
    """Two rows of two seeds; row `b` is 0.1 worse than row `a` on every image but one block's."""
    rng = np.random.default_rng(0)
    a, b = Line("a", "row A", experiment, published={"l1": 0.25}), Line("b", "row <b>", experiment)
    for seed in (0, 1):
        values = rng.uniform(0.2, 0.4, len(BLOCKS)).astype(np.float32)
        a.finished.append(finished("a", values, seed))
        b.finished.append(finished("b", values + np.array([0.1] * 6 + [0.0] * 2, np.float32), seed))
    return compared([a, b], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc


def test_a_cell_is_the_mean_over_seeds_and_a_difference_is_paired_by_image(doc):
    a, b = doc["rows"]
    assert a["cells"]["l1"]["mean"] == pytest.approx(np.mean(a["cells"]["l1"]["values"]))
    blocks = b["cells"]["l1"]["difference"]["blocks"]
    assert blocks["value"] == pytest.approx(0.075, abs=1e-6)
    assert blocks["low"] < 0.075 < blocks["high"]
    seeds = b["cells"]["l1"]["difference"]["seeds"]
    assert (seeds["low"], seeds["high"]) == (pytest.approx(0.075, abs=1e-6),) * 2, (
        "the same images, the same difference"
    )
    assert a["seconds"] == 10.5
    assert (a["receptive_field"], a["receptive_field_over_side"]) == (70, round(70 / 64, 3))


def test_unlike_protocols_are_refused_with_what_differs(experiment, store, finished):
    a, b = Line("a", "A", experiment), Line("b", "B", experiment)
    a.finished.append(finished("a", [0.1] * 8))
    b.finished.append(finished("b", [0.1] * 8, protocol="q", test_mode="eval"))
    with pytest.raises(UserError, match=r"l1: 'B' was measured otherwise than 'A' \(test_mode: eval against paper\)"):
        compared([a, b], "a", {"l1": "L1"}, {}, store, facts=FACTS)


def test_a_metric_that_cannot_be_had_is_said_and_is_no_zero(experiment, store, finished):
    line = Line("a", "A", experiment, [finished("a", [0.1] * 8)])
    told = {"kid": "install p2pzoo[features]"}
    doc = compared([line], "a", {"l1": "L1", "kid": "KID"}, told, store, facts=FACTS).doc
    assert "kid" not in doc["rows"][0]["cells"]
    assert "unavailable" in formats.values(doc)[1][0]
    assert "KID: no number, install p2pzoo[features]." in formats.notes(doc)


def test_what_cannot_be_measured_here_is_not_taken_from_older_results(experiment, store, finished):
    """They may have been measured by other weights, and nothing here could tell."""
    line = Line("a", "A", experiment, [finished("a", [0.1] * 8)])
    doc = compared([line], "a", {"l1": "L1"}, {"l1": "no such file"}, store, facts=FACTS).doc
    assert doc["rows"][0]["cells"] == {}
    assert (doc["columns"][0]["protocol"], doc["protocols"]) == (None, {})


def test_a_row_whose_network_cannot_be_built_leaves_the_table_standing(store, finished):
    made, deep = (
        config.load("zoo:ablation_patch70.toml", "smoke", [*SMALL, *more]) for more in ([], ["generator.depth=8"])
    )
    lines = [Line("a", "A", made, [finished("a", [0.1] * 8)]), Line("b", "B", deep, failed="64 px are too few")]
    _, row = compared(lines, "a", {"l1": "L1"}, {}, store, facts=FACTS).doc["rows"]
    assert (row["failed"], row["cells"], "parameters" in row) == ("64 px are too few", {}, False)


def test_nothing_is_drawn_where_no_row_is_finished(experiment, store, finished, monkeypatch):
    from p2pzoo_metrics.images import L1

    monkeypatch.setattr(L1, "draw", lambda self, rows: pytest.fail("of what?"), raising=False)
    target = Line("y", "Y", experiment, [finished("y", [0.0] * 8)], target=True)
    lines = [Line("a", "A", experiment, failed="broken"), target]
    assert compared(lines, "a", {"l1": "L1"}, {}, store, facts=FACTS).drawings() == {}


def test_what_the_baseline_measured_is_reduced_once_for_all_rows(experiment, store, finished, monkeypatch):
    from p2pzoo_metrics.images import L1

    asked = []
    plain = L1.reduce
    monkeypatch.setattr(L1, "reduce", lambda self, kept: asked.append(len(kept["l1"])) or plain(self, kept))
    lines = [Line(n, n, experiment, [finished(n, np.random.default_rng(i).random(8))]) for i, n in enumerate("abc")]
    compared(lines, "a", {"l1": "L1"}, {}, store, facts=FACTS)
    assert len(asked) == 3 * (1 + 4), "each row with all images, and without each of four blocks"


def test_notes_say_what_the_intervals_are_over(doc):
    assert any("interval over test regions" in note for note in formats.notes(doc))
    assert any("interval over test images" in note for note in formats.notes(doc | {"resampled": "images"}))
    doc["rows"][1]["cells"]["l1"]["difference"]["blocks"] |= {"low": None, "high": None}
    assert any("too few test regions" in note for note in formats.notes(doc))


def test_a_published_number_is_shown_as_it_was_written(experiment, store, finished):
    line = Line("a", "A", experiment, [finished("a", [0.1] * 8)], published={"l1": 0.0043})
    assert "0.0043" in formats.values(compared([line], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc)[1][0]


def test_a_run_that_was_kept_without_its_seconds_has_none(experiment, store, finished):
    one = finished("a", np.full(len(BLOCKS), 0.3, np.float32))
    (one.folder / "env.json").write_text(json.dumps({"training": {"peak_megabytes": 900}}))
    doc = compared([Line("a", "A", experiment, [one])], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc
    assert (doc["rows"][0]["seconds"], doc["rows"][0]["peak_megabytes"]) == (None, 900)
    assert "training, s" not in formats.markdown(doc)


def test_a_failed_row_is_marked_with_its_reason(experiment, store, finished):
    good, bad = Line("a", "A", experiment, [finished("a", [0.1] * 8)]), Line("b", "B", experiment, failed="no memory")
    doc = compared([good, bad], "a", {"l1": "L1"}, {}, store, facts=FACTS).doc
    assert formats.values(doc)[1][1][:2] == ["B", "failed"]
    assert "B: no memory." in formats.notes(doc)


def test_markdown_shows_the_published_number_beside_ours(doc):
    head, _, first, *_ = formats.markdown(doc).split("\n\n")[1].splitlines()
    assert head.split("|")[2:4] == [" L1 ↓ ", " paper "]
    assert re.match(r"\| row A \| 0\.\d+ ± 0\.\d+ \| 0.25 \|", first)


def test_csv_holds_every_value_in_full(doc):
    rows = list(csv.DictReader(io.StringIO(formats.comma_separated(doc))))
    assert [row["row"] for row in rows] == ["a", "b"]
    assert [float(v) for v in rows[0]["values"].split()] == doc["rows"][0]["cells"]["l1"]["values"]
    assert float(rows[1]["difference"]) == doc["rows"][1]["cells"]["l1"]["difference"]["blocks"]["value"]


def test_latex_escapes_what_it_must(doc):
    text = formats.latex(doc)
    assert r"\begin{tabular}{lr" in text
    body = text[text.index(r"\toprule") :]
    assert r"$\pm$" in body
    assert all(line.endswith(r"\\") or line.startswith(("\\", "%")) for line in body.splitlines())
    assert formats._escaped("50% of a_b & {c}") == r"50\% of a\_b \& \{c\}"
    assert formats._escaped("a ∩") == r"a $\cap$"


def test_the_page_escapes_names_and_shows_the_same_images_down_the_rows(doc, tmp_path):
    images = [[torch.full((3, 64, 64), shade) for shade in (-1.0, 0.0, 1.0)] for _ in range(2)]
    grid(images).save(tmp_path / "grid.png")
    page = formats.page(doc, {"a": tmp_path / "grid.png"}, (64, 64), {})
    assert "row <b>" not in page
    assert "row &lt;b&gt;" in page
    assert page.count("<img") == 3 * 2, "input, row A, ground truth"
    assert 'src="http' not in page


def test_a_grid_is_cut_into_the_images_it_was_made_of():
    images = [[torch.full((3, 32, 64), shade) for shade in (-1.0, row / 4, 1.0)] for row in range(3)]
    cut = formats.tiles(grid(images), (32, 64))
    assert len(cut) == 3
    for number, (x, y_hat, y) in enumerate(cut):
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
def test_numbers_are_shown_to_two_digits_of_their_interval(value, half, places):
    assert formats.decimals(value, half) == places


def test_a_document_survives_json(doc):
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
    assert sorted(len(line.finished) for line in table.lines) == [1, 2]
    assert len({line.name for line in table.lines}) == 2, "one recipe, told apart"
    assert {column["metric"] for column in doc["columns"]} == {"l1", "psnr", "psnr.pooled"}


def test_a_metric_may_draw_what_was_measured_of_all_rows(experiment, store, finished, monkeypatch):
    from matplotlib.figure import Figure
    from p2pzoo_metrics.images import L1

    given = {}
    monkeypatch.setattr(L1, "draw", lambda self, rows: given.update(rows) or Figure(), raising=False)
    lines = [Line(n, n.upper(), experiment, [finished(n, [0.1] * 8, s) for s in (0, 1)]) for n in ("a", "b")]
    table = compared(lines, "a", {"l1": "L1"}, {}, store, facts=FACTS)
    page = formats.page(table.doc, {}, table.size, table.drawings())
    assert "<svg" in page
    assert {label: rows["l1"].shape[0] for label, rows in given.items()} == {"A": 16, "B": 16}, "both seeds"


def test_a_drawing_can_be_had_alone(runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    from p2pzoo_metrics.images import L1

    given = ["compare", *map(str, runs), "--metric", "l1", "-o", str(tmp_path / "t.svg")]
    answer = CliRunner().invoke(main, given)
    assert (answer.exit_code, "of this table's none draws" in answer.output) == (2, True)
    monkeypatch.setattr(L1, "draw", lambda self, rows: Figure(), raising=False)
    assert CliRunner().invoke(main, given).exit_code == 0
    assert (tmp_path / "t.svg").read_text().startswith("<svg")


def test_compare_prints_a_table_and_writes_a_page(runs, tmp_path):
    told = CliRunner().invoke(main, ["compare", *map(str, runs), "--metric", "psnr"])
    assert told.exit_code == 0, told.output
    assert "psnr.pooled" in told.stdout
    assert "l1" not in told.stdout.split("\n\n")[0]
    assert CliRunner().invoke(main, ["compare", *map(str, runs), "-o", str(tmp_path / "t.html")]).exit_code == 0
    assert (tmp_path / "t.html").read_text().count("<img") > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["nowhere"], "nowhere: no finished run"),
        (["RUN", "--baseline", "tinny"], "--baseline tinny: no such row: did you mean 'tiny'?"),
        (["RUN", "--metric", "pnsr"], "--metric pnsr: not every run has it: did you mean 'psnr'?"),
        (["RUN", "-o", "table.docx"], "end it in .md"),
    ],
)
def test_compare_says_in_one_line_what_it_cannot_do(runs, given, told):
    answer = CliRunner().invoke(main, ["compare", *(str(runs[0]) if a == "RUN" else a for a in given)])
    assert answer.exit_code == 2
    assert told in answer.output
