"""The paper's datasets: halves, counts and splits; and the way from an archive to a trained model."""

import http.server
import io
import json
import shutil
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from p2pzoo_datasets import published
from p2pzoo_datasets.cityscapes import Cityscapes
from p2pzoo_datasets.published import EdgesToHandbags, EdgesToShoes, Facades, Maps, NightToDay
from PIL import Image

from p2pzoo.data import Store
from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.protocols import Dataset
from p2pzoo.testing import list_component_checks
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.file_digests import compute_digests, write_digests

LEFT, RIGHT = (200, 30, 30), (30, 30, 200)
pytestmark = pytest.mark.filterwarnings("ignore:.*has . pairs:UserWarning")
ignore_fallback = pytest.mark.filterwarnings("ignore:.*is used instead:UserWarning")

# dataset, side of a half, {folder: pairs}, length of the archive, {task: whether x is A, the left half}; the first
# task is the paper's
FACTS = [
    ("facades", Facades, 256, {"train": 400, "val": 100, "test": 106}, 30168306,
     {"labels-to-photo": False, "photo-to-labels": True}),
    ("maps", Maps, 600, {"train": 1096, "val": 1098}, 250242400, {"map-to-aerial": False, "aerial-to-map": True}),
    ("cityscapes", Cityscapes, 256, {"train": 2975, "val": 500}, 103441232,
     {"labels-to-photo": False, "photo-to-labels": True}),
    ("edges2shoes", EdgesToShoes, 256, {"train": 49825, "val": 200}, None,
     {"edges-to-photo": True, "photo-to-edges": False}),
    ("edges2handbags", EdgesToHandbags, 256, {"train": 138567, "val": 200}, None,
     {"edges-to-photo": True, "photo-to-edges": False}),
    ("night2day", NightToDay, 256, {"train": 17823, "val": 10, "test": 2287}, None,
     {"day-to-night": False, "night-to-day": True}),
]  # fmt: skip
TASKS = [(cls, half, task, a_is_x) for _, cls, half, _, _, tasks in FACTS for task, a_is_x in tasks.items()]
CLASSES = {name: cls for name, cls, *_ in FACTS}


def jpeg(half=256, seed=None):
    """A pair: red on the left, blue on the right; `seed` adds noise, so that pairs differ."""
    image = Image.new("RGB", (2 * half, half), RIGHT)
    image.paste(LEFT, (0, 0, half, half))
    if seed is not None:
        noise = np.random.default_rng(seed).integers(0, 60, (8, 16, 3), dtype=np.uint8)
        image = Image.fromarray(np.asarray(image) + np.asarray(Image.fromarray(noise).resize(image.size, 0)) // 2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def put(root, cls, count=3, folders=None):
    """Write a small folder in the archive's layout."""
    for folder in folders or cls.archive.images:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.jpg").write_bytes(jpeg(cls.half))
    return root


def colour(image):
    return np.median(image, axis=(0, 1))


@pytest.mark.parametrize(("name", "cls", "half", "images", "length", "tasks"), FACTS, ids=[f[0] for f in FACTS])
def test_each_archive_has_the_published_facts(name, cls, half, images, length, tasks):
    archive = cls.archive
    assert registry().get("dataset", name).load() is cls
    assert (archive.name, dict(archive.images), archive.size, cls.half) == (name, images, length, half)
    assert archive.url == f"http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/{name}.tar.gz"
    assert archive.licence
    assert bool(archive.registration) == (name == "cityscapes")
    defaults = cls.__init__.__kwdefaults__
    assert (defaults["task"], defaults["size"]) == (next(iter(tasks)), 256)


@pytest.mark.parametrize(("cls", "half", "task", "a_is_x"), TASKS, ids=[task for _, _, task, _ in TASKS])
def test_the_task_determines_which_half_is_x(tmp_path, cls, half, task, a_is_x):
    pair = cls("train", root=put(tmp_path, cls, 1), task=task)[0]
    assert pair.x.shape == pair.y.shape == (256, 256, 3)
    assert pair.x.dtype == pair.y.dtype == np.uint8
    x, y = (LEFT, RIGHT) if a_is_x else (RIGHT, LEFT)
    np.testing.assert_allclose(colour(pair.x), x, atol=4)
    np.testing.assert_allclose(colour(pair.y), y, atol=4)


def interpolate(sums, positions, axis):
    """Cumulative sums at positions between pixels."""
    low = np.minimum(positions.astype(int), sums.shape[axis] - 2)
    weight = (positions - low).reshape([-1 if i == axis else 1 for i in range(3)])
    return sums.take(low, axis) * (1 - weight) + sums.take(low + 1, axis) * weight


@ignore_fallback
class TestSplits:
    @pytest.mark.parametrize("cls", [Facades, NightToDay])
    def test_three_folders_are_three_splits(self, tmp_path, cls):
        put(tmp_path, cls, 2)
        for split in ("train", "val", "test"):
            assert [pair.id for pair in cls(split, root=tmp_path)] == [f"{split}-0", f"{split}-1"]

    @pytest.mark.parametrize("cls", [Maps, EdgesToShoes, EdgesToHandbags])
    def test_without_test_val_is_used_with_a_warning(self, tmp_path, cls):
        put(tmp_path, cls, 2)
        with pytest.warns(UserWarning, match="no pairs in test; val is used instead"):
            test = cls("test", root=tmp_path)
        assert [pair.id for pair in test] == ["val-0", "val-1"]

    def test_without_val_test_is_used_with_a_warning(self, tmp_path):
        put(tmp_path, Facades, 2, ["train", "test"])
        with pytest.warns(UserWarning, match="no pairs in val; test is used instead"):
            assert Facades("val", root=tmp_path)[0].id == "test-0"

    def test_another_number_of_pairs_causes_a_warning(self, tmp_path):
        with pytest.warns(
            UserWarning, match="val has 3 pairs, the paper has 100: is the archive extracted completely?"
        ):
            Facades("val", root=put(tmp_path, Facades))
        with pytest.warns(UserWarning, match="val has 1 pair, the paper has 100"):
            Facades("val", root=put(tmp_path / "less", Facades, 1))

    def test_the_cameras_of_night2day_are_its_blocks(self, tmp_path):
        (tmp_path / "test").mkdir()
        for name in ("14_1148_to_1163", "14_1148_to_1170", "9_1_to_2"):
            (tmp_path / "test" / f"{name}.jpg").write_bytes(jpeg())
        assert [pair.block for pair in NightToDay("test", root=tmp_path)] == ["14", "14", "9"]


class TestImages:
    def test_size_sets_another_size(self, tmp_path):
        pair = Maps("train", root=put(tmp_path, Maps, 1), size=96)[0]
        assert pair.x.shape == pair.y.shape == (96, 96, 3)

    def test_halves_are_scaled_separately(self, tmp_path):
        """At the border, no colour of one half mixes into the other."""
        pair = Maps("train", root=put(tmp_path, Maps, 1), task="aerial-to-map")[0]
        np.testing.assert_allclose(pair.x[:, -2:].mean(axis=(0, 1)), LEFT, atol=25)  # the error of JPEG
        a = np.asarray(Image.open(tmp_path / "train" / "0.jpg"))[:, :600]
        expected = np.asarray(Image.fromarray(a).resize((256, 256), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pair.x, expected)

    @pytest.mark.parametrize(("kernel", "filter"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear-corners", None)])
    def test_for_training_maps_are_scaled_from_600_to_286_px_in_one_step(self, tmp_path, kernel, filter):
        """When it reduces, Lua's image.scale averages the area of each new pixel: here by integration."""
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "0.jpg").write_bytes(jpeg(600, seed=0))
        a = np.asarray(Image.open(tmp_path / "train" / "0.jpg"))[:, :600]
        store = Store(Maps("train", root=tmp_path, task="aerial-to-map"), enlarge=286 / 256, kernel=kernel)
        assert (store.size, store.load_size) == ((256, 256), (286, 286))
        if filter is None:
            sums = np.pad(a.astype(float), [(1, 0), (1, 0), (0, 0)]).cumsum(0).cumsum(1)
            edges = np.arange(287) * 600 / 286
            integral = interpolate(interpolate(sums, edges, axis=0), edges, axis=1)
            expected = np.diff(np.diff(integral, axis=0), axis=1) / (600 / 286) ** 2
            np.testing.assert_allclose(store[0].x, expected, atol=0.51)
        else:
            once = np.asarray(Image.fromarray(a).resize((286, 286), filter), int)
            twice = np.asarray(Image.fromarray(a).resize((256, 256), filter).resize((286, 286), filter), int)
            np.testing.assert_allclose(store[0].x, once, atol=1)  # rounding
            assert np.abs(twice - once).max() > 3

    def test_images_without_the_published_size_are_named(self, tmp_path):
        put(tmp_path, Maps, 1)
        (tmp_path / "train" / "0.jpg").write_bytes(jpeg(256))
        with pytest.raises(UserError, match=r"0\.jpg: is 512×256 px; dataset 'maps' expects 1200×600"):
            Maps("train", root=tmp_path)

    def test_a_broken_image_is_named_when_it_is_read(self, tmp_path):
        put(tmp_path, Facades, 5)
        file = tmp_path / "train" / "4.jpg"
        file.write_bytes(file.read_bytes()[:-500])
        train = Facades("train", root=tmp_path)
        with pytest.raises(UserError, match=r"4\.jpg: cannot be read as an image"):
            train[4]

    def test_files_lists_its_files(self, tmp_path):
        put(tmp_path, Facades, 2)
        assert Facades("val", root=tmp_path).files == [(tmp_path / "val" / "0.jpg",), (tmp_path / "val" / "1.jpg",)]

    def test_the_fingerprint_changes_with_the_files(self, tmp_path):
        put(tmp_path, Facades, 2)
        before = Facades("train", root=tmp_path).fingerprint
        assert Facades("train", root=tmp_path).fingerprint == before
        (tmp_path / "train" / "1.jpg").write_bytes(jpeg(seed=1))
        assert Facades("train", root=tmp_path).fingerprint != before


class TestFetchedFiles:
    """Those that changed since `p2pzoo data fetch`, which records their sizes and SHA-256."""

    @pytest.fixture
    def root(self, tmp_path, monkeypatch):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        root = Facades.archive.folder
        for number, folder in enumerate(Facades.archive.images):
            (root / folder).mkdir(parents=True)
            for name in "012":
                (root / folder / f"{name}.jpg").write_bytes(jpeg(seed=10 * number + int(name)) + b"0")
        write_digests(Facades.archive.digests_file, compute_digests(root))
        return root

    @pytest.mark.parametrize("damage", ["missing", "truncated", "folder"])
    def test_a_dataset_with_damaged_files_does_not_open(self, root, damage):
        file = root / "val" / "1.jpg"
        if damage == "folder":  # test/ would be used instead
            shutil.rmtree(root / "val")
        else:
            file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(UserError) as caught:
            Facades("val")
        count, names = ("3 of 3", "val/0.jpg, ...") if damage == "folder" else ("1 of 3", "val/1.jpg")
        message = f"{root}: {count} files in val/ are damaged or missing since the fetch ({names}): `p2pzoo data fetch"
        assert str(caught.value).startswith(message)
        assert len(Facades("train")) == 3, "its own files are intact"

    def test_files_without_a_record_are_not_compared(self, root, tmp_path):
        (root / "val" / "1.jpg").unlink()
        assert len(Facades("val", root=shutil.copytree(root, tmp_path / "copy"))) == 2
        Facades.archive.digests_file.unlink()
        assert len(Facades("val")) == 2

    def test_the_data_check_compares_contents(self, root, run_cli):
        file = root / "train" / "2.jpg"
        file.write_bytes(file.read_bytes()[:-1] + b"1")
        assert len(Facades("train")) == 3
        check = ["data", "check", "zoo:tasks/facades.toml", "--json"]
        result = run_cli(*check)
        assert result.exit_code == 2
        report = json.loads(result.output[result.output.index("{") :])
        [altered] = [finding for finding in report["findings"] if finding["kind"] == "altered"]
        [case] = altered["cases"]
        assert case["message"] == f"{file}: its SHA-256 is not that of the file that was fetched"
        assert case["pairs"][0]["files"] == [str(file)]
        assert report["runs"], "the pair can be read"
        assert "fetched files" in run_cli(*check, "--quick").output


class TestMissingData:
    @pytest.mark.parametrize("name", [name for name in CLASSES if name != "cityscapes"])
    def test_the_error_says_what_to_run_and_where_the_data_are_expected(self, tmp_path, monkeypatch, name):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        with pytest.raises(UserError) as caught:
            CLASSES[name]("train")
        first, fetch, root = str(caught.value).splitlines()
        assert first.startswith(f"{tmp_path / 'datasets' / name / 'train'}: does not exist")
        assert f"p2pzoo data fetch {name} (" in fetch
        assert "-s dataset.root=DIR" in root

    def test_cityscapes_is_read_from_the_prepared_folder_and_else_from_the_fetched_one(self, tmp_path, monkeypatch):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match="datasets/cityscapes/train: does not exist"):
            Cityscapes("train")
        put(tmp_path / "cache/datasets/cityscapes", Cityscapes, 2)
        assert len(Cityscapes("train")) == 2
        put(tmp_path / "datasets/cityscapes", Cityscapes, 3)
        assert len(Cityscapes("train")) == 3

    def test_cityscapes_is_fetched_only_after_accepting_its_terms(self, tmp_path, monkeypatch, run_cli):
        monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
        result = run_cli("data", "fetch", "cityscapes", "--mirror", "http://127.0.0.1:9")
        assert result.exit_code == 2
        assert "https://www.cityscapes-dataset.com" in result.output
        assert "--accept-licence" in result.output
        assert "p2pzoo data prepare cityscapes" in result.output
        assert list(tmp_path.iterdir()) == []


@ignore_fallback
def test_each_satisfies_the_dataset_interface(tmp_path):
    parameters = {}
    for name, cls in CLASSES.items():
        for index, folder in enumerate(cls.archive.images):
            (tmp_path / name / folder).mkdir(parents=True)
            for number in range(2):
                content = jpeg(cls.half, seed=10 * index + number)
                (tmp_path / name / folder / f"{folder}{number}.jpg").write_bytes(content)
        parameters[name] = {"root": str(tmp_path / name), "size": 64}
    trials = [
        trial for trial in list_component_checks("datasets", parameters=parameters) if trial.entry.name in CLASSES
    ]
    found = {str(trial): trial.run() for trial in trials}
    assert {trial.entry.name for trial in trials} == set(CLASSES)
    assert {name: each.message for name, each in found.items() if each.status != "pass"} == {}
    assert isinstance(published.Facades("train", root=tmp_path / "facades"), Dataset)


def pack_like_published(archive):
    """A tar.gz with the archive's layout, counts and exact length; a member named "filling" makes up the length."""
    names = [f"{folder}/{n}.jpg" for folder, count in archive.images.items() for n in range(1, count + 1)]

    def pack(filling):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", compresslevel=0) as tar:
            for name, content in [*((n, pair) for n in names), ("filling", bytes(filling))]:
                member = tarfile.TarInfo(f"{archive.name}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return out.getvalue()

    pair = jpeg()
    spare = archive.size - len(pack(0))
    body = pack(spare - spare // 1000 - 20_000)
    return body + bytes(archive.size - len(body))  # gzip ignores zeros at the end


def test_the_facades_recipe_runs_on_an_archive_in_the_published_layout(tmp_path, monkeypatch, run_cli):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "facades.tar.gz").write_bytes(pack_like_published(Facades.archive))
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    few = ("train.images=2", "dataset.size=64", "generator.width=2", 'drop=["metrics.ssim"]')
    run = ["run", "zoo:tasks/facades.toml", "--profile", "smoke", "--runs", tmp_path / "runs"]
    run += [part for override in few for part in ("-s", override)]
    result = run_cli(*run)
    assert (result.exit_code, result.first_step) == (2, None)
    assert "p2pzoo data fetch facades (30,168,306 bytes)" in result.output
    assert result.output.count("-s dataset.size=64") == 1, "one fault, with the ways to get the pairs below it"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "served")) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        result = run_cli("data", "fetch", "facades", "--mirror", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert result.exit_code == 0, result.output
    assert "train 400, val 100, test 106 images" in result.output

    result = run_cli(*run)
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output, "the published number of pairs, in three splits"
    [status] = (tmp_path / "runs").rglob("status.json")
    assert json.loads(status.read_text())["state"] == "complete"
