"""The dataset hub-pairs on local folders of Parquet files; its commit on a hub on the loopback interface."""

import io
import os
import subprocess
import sys

import pytest
from p2pzoo_hub.names import RepoName
from p2pzoo_hub.pairs import HubPairs
from p2pzoo_hub.tables import Table, _ask_commit, find_commit
from PIL import Image

from p2pzoo.plugin import Dataset
from p2pzoo.utils.errors import UserError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasets")

NAMES = {"x": "input_image", "y": "edited_image"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(value, size=(8, 8), form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, form)
    return file.getvalue()


def write_table(file, values, *, struct=True, **columns):
    """A Parquet file with a row for each value: x is its picture, y that of 255 - value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, sign in (("input_image", 0), ("edited_image", 255)):
        images = [picture(abs(sign - value)) for value in values]
        columns.setdefault(name, [{"bytes": image, "path": None} for image in images] if struct else images)
    parquet.write_table(pa.table({"edit_prompt": ["make it"] * len(values), **columns}), file)


@pytest.fixture
def folder(tmp_path):
    """Tables of all three splits, with 4, 2 and 2 rows."""
    for split, values in (("train", range(4)), ("validation", (10, 11)), ("test", (20, 21))):
        write_table(tmp_path / "data" / f"{split}.parquet", values)
    return tmp_path / "data"


def test_pairs_are_those_of_the_columns(folder):
    data = HubPairs("train", folder=folder, **NAMES)
    assert isinstance(data, Dataset)
    assert len(data) == 4
    pair = data[3]
    assert pair.id == "train-000003"
    assert pair.x.shape == pair.y.shape == (8, 8, 3)
    assert (pair.x[0, 0, 0], pair.y[0, 0, 0]) == (3, 252)
    assert [HubPairs(split, folder=folder, **NAMES)[0].x[0, 0, 0] for split in ("val", "test")] == [10, 20]


def test_bytes_without_a_struct_are_read_as_they_are(tmp_path):
    photo = picture(9, form="JPEG")
    write_table(tmp_path / "data" / "train.parquet", range(6), struct=False, input_image=[photo] * 6)
    write_table(tmp_path / "data" / "test.parquet", (7,), struct=False)
    data = HubPairs("train", folder=tmp_path / "data", **NAMES)
    assert data.files[0][0].suffix == ".jpg"
    assert data.files[0][0].read_bytes() == photo


def test_the_tables_are_read_once(folder, monkeypatch):
    first = HubPairs("train", folder=folder, **NAMES)
    monkeypatch.setattr("datasets.load_dataset", None)
    again = HubPairs("train", folder=folder, **NAMES)
    assert (again.fingerprint, again.files) == (first.fingerprint, first.files)


def test_other_tables_are_other_images(folder, tmp_path):
    first = HubPairs("train", folder=folder, **NAMES)
    write_table(folder / "train.parquet", range(5))
    again = HubPairs("train", folder=folder, **NAMES)
    assert (len(first), len(again)) == (4, 5)
    assert again.fingerprint != first.fingerprint


def test_missing_splits_are_taken_from_train(tmp_path):
    write_table(tmp_path / "data" / "train.parquet", range(40))
    parts = {split: HubPairs(split, folder=tmp_path / "data", **NAMES) for split in ("train", "val", "test")}
    ids = [{pair.id for pair in part} for part in parts.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 40
    assert all(ids)
    other = HubPairs("val", folder=tmp_path / "data", split_seed=1, **NAMES)
    assert {pair.id for pair in other} != ids[1]


def test_only_the_split_that_is_missing_is_taken_from_train(tmp_path):
    write_table(tmp_path / "data" / "train.parquet", range(40))
    write_table(tmp_path / "data" / "test.parquet", (100, 101))
    parts = {split: HubPairs(split, folder=tmp_path / "data", **NAMES) for split in ("train", "val", "test")}
    assert [pair.id for pair in parts["test"]] == ["test-000000", "test-000001"]
    assert len(parts["train"]) + len(parts["val"]) == 40
    assert 0 < len(parts["val"]) < 12


def test_blocks_stay_in_one_split_and_are_given_to_folds(tmp_path):
    blocks = [f"scene{number // 4}" for number in range(40)]
    write_table(tmp_path / "data" / "train.parquet", range(40), scene=blocks)
    found = {}
    for split in ("train", "val", "test"):
        data = HubPairs(split, folder=tmp_path / "data", block="scene", fractions=(0.6, 0.2, 0.2), **NAMES)
        assert data.blocks == [pair.block for pair in data]
        found[split] = {*data.blocks}
    assert not found["train"] & found["val"] | found["train"] & found["test"] | found["val"] & found["test"]
    assert len(set.union(*found.values())) == 10


def test_rows_limits_what_is_read_and_max_pairs_what_is_used(folder, cache):
    assert len(HubPairs("train", folder=folder, rows=2, **NAMES)) == 2
    assert len([*cache.rglob("*-x.png")]) == 6
    assert len(HubPairs("train", folder=folder, rows=2, max_pairs=1, **NAMES)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": "imput_image"}, "x = \"imput_image\": .* has no such column: did you mean 'input_image'"),
        ({"y": "edit_prompt"}, "edit_prompt holds no image but str"),
        ({"block": "scene"}, 'block = "scene": .* has no such column'),
        ({"val_split": "valdation"}, "val_split = \"valdation\": has no such split: did you mean 'validation'"),
        ({"val_split": "test"}, "one split would be used for two purposes"),
        ({"folder": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_what_the_tables_do_not_have_is_named(folder, changes, message):
    with pytest.raises(UserError, match=message):
        HubPairs("train", **{"folder": folder, **NAMES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": None}, "set either repo"),
        ({"repo": "me/pairs"}, "set either repo"),
        ({"revision": "v1"}, "revision: is for repo"),
        ({"y": "input_image"}, "are one column"),
        ({"fractions": (0.5, 0.1, 0.1)}, "must add up to 1"),
    ],
)
def test_parameters_that_do_not_fit_together_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        HubPairs("train", **{"folder": folder, **NAMES, **changes})


def test_rows_without_images_are_faults_that_a_check_leaves_out(tmp_path):
    images = [{"bytes": picture(value), "path": None} for value in range(8)]
    images[2] = None
    images[3] = {"bytes": b"GIF89a nonsense", "path": None}
    write_table(tmp_path / "data" / "train.parquet", range(8), input_image=images)
    with pytest.raises(UserError, match="row 2 of train: input_image is empty"):
        HubPairs("train", folder=tmp_path / "data", **NAMES)
    data, faults = HubPairs.usable("train", folder=tmp_path / "data", **NAMES)
    assert "row 2 of train: input_image is empty" in "\n".join(faults)
    assert "train-000002" not in {pair.id for pair in data}


def test_files_outside_of_the_folder_are_not_read(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(1))
    inside = tmp_path / "data" / "inside.png"
    inside.parent.mkdir()
    inside.write_bytes(picture(2))
    table = Table("t", None, None, tmp_path / "data", None, "x", "y", None, None)
    assert table._image_bytes({"bytes": None, "path": str(inside)}) == (picture(2), None)
    assert table._image_bytes({"bytes": None, "path": "inside.png"}) == (picture(2), None)
    for path in (str(secret), "../secret.png", "https://example.com/a.png"):
        assert table._image_bytes({"bytes": None, "path": path})[1] == (
            "names a file that is not in the folder, and holds no image"
        )


def test_a_damaged_table_is_one_line_and_leaves_nothing(folder, cache):
    (folder / "train.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="cannot be read as tables of images") as caught:
        HubPairs("train", folder=folder, **NAMES)
    assert len(str(caught.value).splitlines()) == 1
    assert not [*cache.rglob("*.png")]


def test_the_commit_of_a_repository_is_asked_once_and_kept(hub, monkeypatch):
    _ask_commit.cache_clear()
    commit = hub.add("me/pairs", {"README.md": b""}, kind="dataset")
    assert find_commit(RepoName("me/pairs"), "dataset me/pairs") == commit
    assert find_commit(RepoName("me/pairs"), "dataset me/pairs") == commit
    assert len(hub.requests) == 1
    assert find_commit(RepoName("me/pairs", commit), "dataset me/pairs") == commit
    _ask_commit.cache_clear()
    hub.faults.add("down")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.warns(UserWarning, match=f"the hub is not reachable; commit {commit[:12]} is used"):
        assert find_commit(RepoName("me/pairs"), "dataset me/pairs") == commit
    hub.faults.clear()
    with pytest.raises(UserError, match="dataset me/pair: no such dataset on the hub"):
        HubPairs("train", repo="me/pair", **NAMES)


def test_pairs_of_a_repository_are_those_of_its_commit(hub, folder, cache, tmp_path):
    """In its own process: `datasets` reads the endpoint when it is imported."""
    tables = {f"data/{file.stem}-00000-of-00001.parquet": file.read_bytes() for file in folder.iterdir()}
    commit = hub.add("me/pairs", {"README.md": b"", **tables}, kind="dataset")
    code = (
        "from p2pzoo_hub.pairs import HubPairs\n"
        "names = dict(repo='me/pairs', x='input_image', y='edited_image')\n"
        "data = HubPairs('train', **names)\n"
        "print(data.commit, len(data), data[3].id, data[3].x[0, 0, 0], len(HubPairs('val', **names)))"
    )
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **settings}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{commit} 4 train-000003 3 2\n", done.stderr
    assert len([*cache.rglob("*-x.png")]) == 8


def test_a_recipe_names_it(folder, run_cli, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'extends = "zoo:base.toml"\n[dataset]\nuse = "hub-pairs"\nfolder = "data"\nx = "input_image"\n'
        'y = "edited_image"\nsize = [64, 64]\nresize = "stretch"\n'
    )
    result = run_cli("data", "stats", recipe, "--json")
    assert result.exit_code == 0, result.output
    assert '"train"' in result.output
