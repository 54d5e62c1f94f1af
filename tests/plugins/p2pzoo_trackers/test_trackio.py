"""Trackio, read back from its database."""

import contextlib
import json
import sqlite3
import sys

import pytest
from click.testing import CliRunner
from PIL import Image
from tracked_runs import grid_of, losses_of, numbers_of, only

from p2pzoo.cli import main

pytest.importorskip("trackio")
pytestmark = pytest.mark.usefixtures("no_network")

IN_RUN = 'callbacks.tracker={use="trackio"}'


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_user_who_is_logged_in")  # whose name Trackio would ask the Hub for


def lines_of(folder, project="p2pzoo"):
    """{run: [(images, {name: value})]} of a database of Trackio."""
    lines = {}
    with contextlib.closing(sqlite3.connect(folder / f"{project}.db")) as database:
        for run, step, values in database.execute("select run_id, step, metrics from metrics order by id"):
            lines.setdefault(run, []).append((step, json.loads(values)))
    return lines


def values_of(lines):
    """({images: losses}, {result: value}, [images of grids]), each logged once."""
    losses, results, grids = {}, {}, []
    for images, values in lines:
        if "samples" in values:
            grids.append(images)
        elif any(name.startswith("final/") for name in values):
            assert images == 8
            assert not results.keys() & values.keys()
            results |= values
        else:
            assert images not in losses, "a value is there twice"
            losses[images] = values
    return losses, results, sorted(grids)


def test_a_run_is_in_its_folder_and_nothing_else_changes(run, plain, tmp_path):
    answer = run(tmp_path / "runs", IN_RUN)
    assert answer.exit_code == 0, answer.output
    folder = only(tmp_path / "runs")
    [lines] = lines_of(folder / "trackio").values()
    assert values_of(lines) == (losses_of(folder), numbers_of(folder), [5, 8])
    pictures = sorted((folder / "trackio/media").rglob("*.png"))
    assert sorted(Image.open(file).size for file in pictures) == sorted(grid_of(folder, images) for images in (5, 8))
    with contextlib.closing(sqlite3.connect(folder / "trackio/p2pzoo.db")) as database:
        [[name, config]] = database.execute("select run_name, config from configs")
    assert name == folder.name == plain.name
    assert json.loads(config)["generator.use"] == "pix2pix:unet"
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_a_resumed_run_is_the_same_run_with_each_value_once(run, stop_at, tmp_path):
    stop_at(7, lambda: run(tmp_path, IN_RUN))
    sys.modules["trackio"].finish()  # as at the end of the process that was interrupted
    folder = only(tmp_path)
    [before] = lines_of(folder / "trackio").values()
    assert max(values_of(before)[0]) == 6
    assert run(tmp_path, IN_RUN).first_step == 4
    [lines] = lines_of(folder / "trackio").values()
    assert values_of(lines) == (losses_of(folder), numbers_of(folder), [5, 8])


def test_a_metric_that_is_added_later_joins_the_run_and_fresh_is_a_new_one(run, tmp_path):
    run(tmp_path, IN_RUN)
    assert run(tmp_path, IN_RUN, "metrics.again.use=l1").first_step is None
    folder = only(tmp_path) / "trackio"
    [lines] = lines_of(folder).values()
    results = values_of(lines)[1]
    assert results["final/again"] == results["final/l1"]
    assert run(tmp_path, IN_RUN, flags=["--fresh"]).exit_code == 0
    assert len(lines_of(folder)) == 2


def test_two_runs_of_one_process_have_their_own_folders_or_share_the_one_that_is_named(run, tmp_path):
    for runs in ("first", "second"):
        assert run(tmp_path / runs, IN_RUN).exit_code == 0
        assert len(lines_of(only(tmp_path / runs) / "trackio")) == 1
    shared = f'callbacks.tracker={{use="trackio", project="mine", folder="{tmp_path / "all"}"}}'
    for seed in ("seed=1", "seed=2"):
        assert run(tmp_path / "third", shared, seed).exit_code == 0
    assert len(lines_of(tmp_path / "all", "mine")) == 2


def test_standard_output_has_the_results_alone(arguments, tmp_path):
    result = CliRunner().invoke(main, [*map(str, arguments(tmp_path, "train.images=4", IN_RUN)), "--json"])
    assert json.loads(result.stdout)["metrics"]


def test_an_error_of_trackio_is_one_line_before_training(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the place of a folder")
    answer = run(tmp_path / "runs", f'callbacks.tracker={{use="trackio", folder="{tmp_path / "file"}"}}')
    assert (answer.exit_code, answer.first_step) == (2, None), answer.output
    line = answer.output.splitlines()[-1]
    assert line.startswith("trackio does not start: FileExistsError: ")
    assert line.endswith(f"(check its folder, {tmp_path / 'file'})")
