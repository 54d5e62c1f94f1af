"""A folder of runs stands for the only run in it."""

import json
import warnings

import pytest

from p2pzoo.models.load import find_model_file
from p2pzoo.runs.run_folder import find_run
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.find_runs import find_only_run


@pytest.fixture
def make_run(tmp_path):
    """make_run("mine/a", finished=True): a run folder below runs/."""

    def make_run(name, *, finished):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"state": "complete" if finished else "training"}))
        (folder / "recipe.toml").write_text("")
        if finished:
            (folder / "model.safetensors").write_bytes(b"")
        return folder

    return make_run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("finished", [True, False])
def test_the_only_run_is_found_from_the_folders_above(make_run, tmp_path, finished):
    run = make_run("mine/a", finished=finished)
    for folder in (run, run.parent, run.parent.parent):
        assert find_only_run(folder) == run
        assert find_run(folder).folder == run
    if finished:
        assert find_model_file(tmp_path / "runs" / "mine") == run / "model.safetensors"


def test_the_only_finished_run_is_taken_with_a_warning(make_run, tmp_path):
    make_run("mine/a", finished=False)
    run = make_run("mine/b", finished=True)
    with pytest.warns(UserWarning, match=r"mine: b is taken, and not 1 that is not finished"):
        assert find_only_run(tmp_path / "runs" / "mine") == run


def test_several_runs_are_listed(make_run, tmp_path):
    runs = [make_run(f"mine/{name}", finished=False) for name in "abcdef"]
    with pytest.raises(UserError, match=rf"mine: holds 6 unfinished runs; give one: {runs[0]}, .* and 2 more"):
        find_only_run(tmp_path / "runs" / "mine")
    finished = [make_run(f"other/{name}", finished=True) for name in "gh"]
    with pytest.raises(UserError, match=rf"runs: holds 2 finished runs; give one: {finished[0]}, {finished[1]}$"):
        find_model_file(tmp_path / "runs")


def test_other_folders_and_files_stand_for_themselves(tmp_path):
    (tmp_path / "empty").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (tmp_path / "empty", tmp_path / "absent.safetensors"):
            assert find_only_run(path) == path
