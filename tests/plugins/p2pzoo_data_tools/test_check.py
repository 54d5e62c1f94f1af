"""`p2pzoo data check` finds each planted fault, and nothing in clean data; `run` refuses data that cannot train."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from p2pzoo_data_tools.alignment import ShiftEstimator
from p2pzoo_data_tools.check import OpenedDataset, check_dataset
from p2pzoo_data_tools.near_duplicates import MAX_DIFFERENT_BITS, ImageHash, are_similar, find_similar, hash_image
from p2pzoo_earth.dataset import Earth
from PIL import Image, ImageDraw

from p2pzoo import config
from p2pzoo.data import Store
from p2pzoo.data.validation import MAX_NAMED_CASES, validate_or_raise
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

RECIPE = """
extends = "zoo:base.toml"
title = "Mine <b>"
[dataset]
use = "folders"
inputs = "inputs"
targets = "targets"
[generator]
width = 4
[discriminator]
width = 4
[compute]
device = "cpu"
threads = 1
[profiles.smoke.train]
images = 2
"""
COUNTS = {"train": 12, "val": 3, "test": 3}
SIDE = 64


def scene(seed):
    """Return x, shapes in one colour per kind, and y, the same shapes in random colours with noise; (SIDE, SIDE, 3)."""
    random = np.random.default_rng(seed)
    x, y = (Image.new("RGB", (SIDE, SIDE), color) for color in ("navy", tuple(random.integers(40, 220, 3).tolist())))
    for _ in range(9):
        left, top = random.integers(-8, SIDE - 8, 2).tolist()
        box = (left, top, left + int(random.integers(10, 34)), top + int(random.integers(10, 34)))
        kind = int(random.integers(2))
        for image, color in ((x, ("red", "green")[kind]), (y, tuple(random.integers(0, 256, 3).tolist()))):
            getattr(ImageDraw.Draw(image), ("ellipse", "rectangle")[kind])(box, fill=color)
    noisy = np.asarray(y) + random.normal(0, 4, (SIDE, SIDE, 3))
    return np.array(x), noisy.clip(0, 255).astype(np.uint8)


def classes_of(x):
    """(SIDE, SIDE): 0 for the background of the x of a scene, 1 and 2 for its two kinds of shapes."""
    return (x[..., 0] == 255) + 2 * (x[..., 1] == 128)


def save_pair(root, split, name, x=None, y=None):
    for folder, image in (("inputs", x), ("targets", y)):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
        if image is not None:
            Image.fromarray(image).save(root / folder / split / f"{name}.png")


def load_pair(root, split, name):
    return [np.array(Image.open(root / folder / split / f"{name}.png")) for folder in ("inputs", "targets")]


@pytest.fixture(scope="module")
def clean_data(tmp_path_factory):
    root, seed = tmp_path_factory.mktemp("clean"), 0
    for split, count in COUNTS.items():
        for number in range(count):
            save_pair(root, split, f"{number:02}", *scene(seed))
            seed += 1
    (root / "mine.toml").write_text(RECIPE)
    return root


@pytest.fixture
def home(clean_data, tmp_path, monkeypatch):
    """A folder with inputs/ and targets/ without faults, in three splits, and a recipe for them."""
    root = tmp_path / "home"
    shutil.copytree(clean_data, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture
def check_json(home, run_cli):
    """check_json(flags…): ({kind: finding}, all of the output of `data check --json`, exit code)."""

    def check_json(*flags):
        result = run_cli("data", "check", "mine.toml", "--profile", "smoke", "--json", *flags)
        report = json.loads(result.output[result.output.index("{\n") :])
        return {finding["kind"]: finding for finding in report["findings"]}, report, result.exit_code

    return check_json


def pair_ids(finding):
    return [[pair["id"] for pair in case["pairs"]] for case in finding["cases"]]


def no_progress(items, total, doing):
    return items


class PairsInMemory:
    """A dataset of given pairs."""

    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(self, pairs, **attributes):
        self.pairs = pairs
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def find_cases(train, val=(), test=(), **attributes):
    """Return {kind: cases} for three splits of pairs in memory, without "few-pairs"."""
    splits = {"train": train, "val": val, "test": test}
    data = {split: PairsInMemory(pairs, **attributes) for split, pairs in splits.items() if pairs}
    result = check_dataset(OpenedDataset("memory", data), no_progress)
    return {finding.kind: finding.cases for finding in result.findings if finding.kind != "few-pairs"}


class TestFolders:
    def test_clean_data_has_no_findings(self, home, run_cli, check_json):
        _, report, code = check_json()
        assert (report["findings"], report["not_looked_at"], report["runs"], code) == ([], [], True, 0)
        assert {name: split["looked_at"] for name, split in report["splits"].items()} == COUNTS
        assert "nothing found" in run_cli("data", "check", "mine.toml").output

    def test_one_check_finds_each_planted_fault_and_changes_no_file(self, home, check_json):
        seeds = iter(range(100, 200))
        save_pair(home, "train", "alone", x=scene(next(seeds))[0])
        save_pair(home, "val", "lonely", y=scene(next(seeds))[1])
        save_pair(home, "train", "junk", *scene(next(seeds)))
        (home / "inputs/train/junk.png").write_bytes(b"no image")
        x, y = scene(next(seeds))
        save_pair(home, "train", "small", x[:48], y[:48])
        x, y = scene(next(seeds))
        save_pair(home, "train", "unlike", x[:48], y)
        x, y = scene(next(seeds))
        save_pair(home, "train", "blank", x, np.full_like(y, 77))
        save_pair(home, "train", "again", *load_pair(home, "train", "00"))
        save_pair(home, "test", "leaked", *load_pair(home, "train", "01"))
        save_pair(home, "test", "borrowed", load_pair(home, "train", "02")[0], scene(next(seeds))[1])
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in home.rglob("*.png")}

        found, _, code = check_json()
        assert code == 2
        messages = " ".join(case["message"] for case in found["unopened"]["cases"])
        assert all(name in messages for name in ("alone.png", "lonely.png", "junk.png"))
        assert {id for [id] in pair_ids(found["mismatch"])} == {"train-small", "train-unlike"}
        assert pair_ids(found["constant"]) == [["train-blank"]]
        assert pair_ids(found["duplicate"]) == [["train-00", "train-again"]]
        assert pair_ids(found["leak"]) == [["train-01", "test-leaked"]]
        assert pair_ids(found["shared"]) == [["train-02", "test-borrowed"]]
        assert found["leak"]["cases"][0]["pairs"][1]["files"] == ["inputs/test/leaked.png", "targets/test/leaked.png"]
        assert found.keys() == {"unopened", "mismatch", "constant", "duplicate", "leak", "shared"}
        assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in home.rglob("*.png")} == before

    def test_all_unreadable_files_are_named(self, home, check_json):
        for number in range(6):
            file = home / f"targets/train/{number:02}.png"
            file.write_bytes(file.read_bytes()[:400])
        found, _, code = check_json()
        messages = " ".join(case["message"] for case in found["unreadable"]["cases"])
        assert code == 2
        assert all(f"targets/train/{number:02}.png" in messages for number in range(6))

    def test_files_of_other_kinds_are_counted_by_check_and_run(self, home, check_json, run_cli):
        for name in ("inputs/train/a.gif", "inputs/val/b.gif", "targets/test/c.dcm", "targets/.hidden"):
            (home / name).touch()
        found, _, code = check_json()
        line = "3 files are not read, because of their kind (2 .gif, 1 .dcm)"
        assert (code, found["dataset-warning"]["count"]) == (0, 1)
        assert line in found["dataset-warning"]["cases"][0]["message"]
        (home / "inputs/train/00.png").write_bytes(b"no image")  # so that nothing is trained
        assert run_cli("run", "mine.toml", "--profile", "smoke").output.count(line) == 1

    def test_files_that_cannot_be_opened_are_counted_once(self, home, check_json):
        for file in home.rglob("*.png"):
            file.write_bytes(b"no image")
        found, report, _ = check_json()
        assert (found["unopened"]["count"], report["errors"]) == (36, 36)

    def test_all_files_without_a_partner_are_named(self, home, check_json):
        for number in range(6):
            (home / f"targets/train/{number:02}.png").unlink()
        found, _, _ = check_json()
        messages = " ".join(case["message"] for case in found["unopened"]["cases"])
        assert all(f"{number:02}.png" in messages for number in range(6))

    def test_a_dataset_that_cannot_be_opened_is_reported_once(self, home, check_json):
        shutil.rmtree(home / "inputs")
        found, report, code = check_json()
        assert (code, found.keys(), found["unopened"]["count"]) == (2, {"unopened"}, 1)
        assert "inputs: no such folder" in found["unopened"]["cases"][0]["message"]
        assert report["splits"] == {}

    @pytest.mark.filterwarnings("ignore:.*is used instead:UserWarning")
    def test_a_parameter_that_the_dataset_refuses_is_a_finding_with_its_line(self, home, run_cli):
        result = run_cli("data", "check", "mine.toml", "-s", "dataset.fractions=[0.5, 0.1, 0.1]")
        assert result.exit_code == 2
        assert "fractions = [0.5, 0.1, 0.1]: the shares of train, val and test must add up to 1" in result.output

    def test_a_split_that_replaces_a_missing_one_is_not_a_leak(self, home, check_json):
        for folder in ("inputs", "targets"):
            shutil.rmtree(home / folder / "test")
        found, _, code = check_json()
        assert (code, found.keys()) == (0, {"stand-in", "dataset-warning"})

    def test_quick_reports_what_it_did_not_check(self, home, check_json, monkeypatch):
        monkeypatch.setattr("p2pzoo_data_tools.check.QUICK_PAIRS", 5)
        _, report, _ = check_json("--quick")
        assert report["splits"]["train"] == {"pairs": 12, "looked_at": 5, "classes": None}
        assert "train: 7 of 12 pairs" in report["not_looked_at"][0]


class TestPage:
    def test_it_is_self_contained_and_escapes_names(self, home, run_cli):
        name = "<img src=x onerror=alert(1)>"
        save_pair(home, "test", name, *load_pair(home, "train", "01"))
        result = run_cli("data", "check", "mine.toml", "-o", "page.html")
        page = (home / "page.html").read_text()
        assert result.exit_code == 2
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
        assert name not in page
        assert "Mine &lt;b&gt;" in page
        sources = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert sum(source.startswith("data:image/webp;base64,") for source in sources) == 4  # x and y of both
        assert all(source.startswith(("data:", "#")) for source in sources)

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [390, 1200])
    def test_long_names_stay_inside_the_window(self, home, run_cli, browser, width):
        save_pair(home, "test", "an_image_with_a_long_name_" * 4, *load_pair(home, "train", "01"))
        assert run_cli("data", "check", "mine.toml", "-o", "page.html").exit_code == 2
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((home / "page.html").as_uri())
        assert page.locator("figure").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        too_wide = "[...document.querySelectorAll('figure')].filter(f => f.scrollWidth > f.clientWidth).length"
        assert page.evaluate(too_wide) == 0

    def test_it_does_not_overwrite_a_file(self, home, run_cli):
        (home / "page.html").write_text("mine")
        result = run_cli("data", "check", "mine.toml", "-o", "page.html")
        assert result.exit_code == 2
        assert "--force" in result.output
        assert (home / "page.html").read_text() == "mine"


class TestValues:
    def test_nan_and_values_out_of_range_are_found(self):
        good = np.random.default_rng(0).random((SIDE, SIDE, 1), np.float32)
        broken, wide = good.copy(), good * 2
        broken[3, 4] = np.nan
        pairs = [Pair("good", good, good), Pair("broken", broken, good), Pair("wide", good, wide)]
        found = find_cases(pairs, x_range=(0.0, 1.0), y_range=(0.0, 1.0))
        assert [case.locations[0].id for case in found["not-finite"]] == ["broken"]
        assert "1 of 4096 values of x" in found["not-finite"][0].message
        assert [case.locations[0].id for case in found["out-of-range"]] == ["wide"]
        assert "declared are 0 to 1" in found["out-of-range"][0].message

    def test_another_dtype_or_number_of_channels_is_found(self):
        x, y = scene(1)
        pairs = [
            Pair("a", x, y),
            Pair("b", *scene(2)),
            Pair("deep", x.astype(np.uint16), y),
            Pair("grey", x, y[..., :1]),
        ]
        found = find_cases(pairs)
        assert [case.locations[0].id for case in found["mismatch"]] == ["deep", "grey"]

    @pytest.mark.parametrize(("value", "fault"), [(2, True), (-2, True), (255, False), (-1, False), (1, False)])
    def test_label_values_that_are_no_class_are_found(self, value, fault):
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[:8], labels[-1] = 1, value
        found = find_cases([Pair("a", *scene(3), labels)], classes=("sea", "land"))
        assert ("labels" in found) == fault

    def test_a_class_that_only_one_split_has_is_found(self):
        def labelled(id, *values):
            labels = np.zeros((SIDE, SIDE), np.uint8)
            labels[: len(values)] = np.array(values)[:, None]
            return Pair(id, *scene(int(id)), labels)

        names = ("sea", "land", "ice")
        splits = [labelled("1", 0, 1)], [labelled("2", 0, 1)], [labelled("3", 0, 1, 2)]
        messages = [case.message for case in find_cases(*splits, classes=names)["classes"]]
        assert messages == [f"{split} has no pixel of 'ice', test has" for split in ("train", "val")]
        assert "classes" not in find_cases(*splits, classes=names, unscored=("ice",))

    def test_an_image_of_a_single_class_is_not_reported_as_constant(self):
        flat, y = np.full((SIDE, SIDE, 3), 9, np.uint8), scene(5)[1]
        labels = np.zeros((SIDE, SIDE), np.uint8)
        assert "constant" in find_cases([Pair("a", flat, y)])
        assert "constant" not in find_cases([Pair("a", flat, y, labels)], classes=("sea", "land"))

    def test_a_block_in_two_splits_is_found(self):
        found = find_cases([Pair("a", *scene(1), block="north")], [Pair("b", *scene(2), block="north")])
        assert [case.message for case in found["blocks"]] == ["block north"]

    def test_an_error_in_the_code_of_the_dataset_is_a_finding(self):
        class Broken(PairsInMemory):
            def __getitem__(self, index):
                raise RuntimeError("no such tile")

        result = check_dataset(OpenedDataset("broken", {"train": Broken([None] * 12)}), no_progress)
        assert {finding.kind: len(finding.cases) for finding in result.findings} == {"unreadable": 12}


FAINT = {  # textures that vanish when an image is reduced to 32 × 32, and a dim image
    "speckle": lambda random: random.normal(128, 12, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8),
    "dim": lambda random: (scene(int(random.integers(1000)))[1] // 32).astype(np.uint8),
}


class TestExactCopies:
    @pytest.fixture(params=FAINT)
    def draw(self, request):
        random = np.random.default_rng(0)
        return lambda: FAINT[request.param](random)

    @pytest.fixture
    def train(self, draw):
        return [Pair(f"t{number}", draw(), draw()) for number in range(4)]

    def test_without_much_contrast_are_leaks_all_the_same(self, train, draw):
        val = [Pair("v0", *(draw() for _ in "xy")), *(Pair(f"v{pair.id}", pair.x, pair.y) for pair in train[:3])]
        found = find_cases(train, val)
        assert [[place.id for place in case.locations] for case in found["leak"]] == [
            ["t0", "vt0"], ["t1", "vt1"], ["t2", "vt2"]
        ]  # fmt: skip
        assert not found.keys() & {"near", "shared", "duplicate"}

    def test_of_one_side_are_found_without_much_contrast(self, train, draw):
        found = find_cases(train, [Pair("v0", train[1].x, draw()), Pair("v1", draw(), train[2].y)])
        assert [case.message for case in found["shared"]] == ["same x", "same y"]

    def test_in_one_split_are_found_without_much_contrast(self, train):
        found = find_cases([*train, Pair("again", train[0].x, train[0].y)])
        assert [[place.id for place in case.locations] for case in found["duplicate"]] == [["t0", "again"]]

    def test_of_images_of_a_single_value_are_no_finding(self):
        """Two blank pages, or two maps of the sea, are equal by chance."""
        page, sea = (np.full((SIDE, SIDE, 3), value, np.uint8) for value in (255, 9))
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for more in ((), (labels,)):
            pairs = [Pair(name, sea, page, *more) for name in "abc"]
            assert not find_cases(pairs[:2], pairs[2:]).keys() & {"leak", "shared", "duplicate", "near"}

    def test_of_label_maps_of_a_single_class_are_not_shared_images(self):
        sea, labels = np.full((SIDE, SIDE, 3), 9, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        pairs = [Pair(str(seed), sea, scene(seed)[1], labels) for seed in range(4)]
        assert not find_cases(pairs[:2], pairs[2:]).keys() & {"leak", "shared", "duplicate", "near"}


class TestNearDuplicates:
    @staticmethod
    def grey(image):
        return image.mean(axis=2, dtype=np.float32)

    @staticmethod
    def save_as_jpeg(image):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=60)
        return np.array(Image.open(out))

    def test_only_the_resaved_copy_in_another_split_is_found(self):
        train = [Pair(str(seed), *scene(seed)) for seed in range(20)]
        copy = Pair("copy", *(self.save_as_jpeg(image) for image in scene(7)))
        found = find_cases(train, [copy, *(Pair(str(seed), *scene(seed)) for seed in range(50, 60))])
        assert [[place.id for place in case.locations] for case in found["near"]] == [["7", "copy"]]
        assert found.keys() == {"near"}

    def test_one_hot_maps_are_compared(self):
        train = [
            Pair(str(seed), np.eye(3, dtype=np.uint8)[classes_of(x)], y) for seed in range(20) for x, y in [scene(seed)]
        ]
        same, other = (train[7].x.copy(), train[8].x)
        same[30:32] = same[30:32, ::-1]  # no exact copy
        val = [Pair(name, x, self.save_as_jpeg(scene(7)[1])) for name, x in (("copy", same), ("other map", other))]
        found = find_cases(train, val, x_encoding="one-hot", x_range=(0.0, 1.0))
        assert [[place.id for place in case.locations] for case in found["near"]] == [["7", "copy"]]

    def test_flat_images_have_no_hash_and_match_nothing(self):
        flat = np.full((SIDE, SIDE), 100.0, np.float32)
        flat_hash = hash_image(flat, (0.0, 255.0))
        assert flat_hash.hash is None
        assert list(find_similar([flat_hash], [flat_hash])) == []

    def test_the_bands_find_almost_all_that_comparing_all_pairs_finds(self):
        random = np.random.default_rng(0)
        hashes = [int(random.integers(2**63)) for _ in range(40)]
        near_hashes = [
            hashes[at] ^ sum(1 << int(bit) for bit in random.choice(63, at % 12, replace=False)) for at in range(40)
        ]
        thumbnails = [random.integers(0, 256, (16, 16), dtype=np.uint8) for _ in hashes]
        ours = [ImageHash(*each) for each in zip(hashes, thumbnails, strict=True)]
        theirs = [ImageHash(*each) for each in zip(near_hashes, thumbnails, strict=True)]
        found = {(i, j) for i, j, _ in find_similar(ours, theirs)}
        expected = {(i, j) for i, a in enumerate(ours) for j, b in enumerate(theirs) if are_similar(a, b)}
        six_bits = {(i, i) for i in range(40) if i % 12 <= 6}  # up to 6 different bits leave one of 7 bands equal
        assert six_bits <= found <= expected
        assert max(i % 12 for i, _ in expected) == MAX_DIFFERENT_BITS

    @pytest.mark.parametrize("equal_band", range(7))
    def test_six_different_bits_in_six_bands_are_found(self, equal_band):
        thumbnail = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
        different = sum(1 << (9 * band) for band in range(7) if band != equal_band)
        [match] = find_similar([ImageHash(0, thumbnail)], [ImageHash(different, thumbnail)])
        assert match[:2] == (0, 0)

    def test_hashes_survive_scaling_and_brightening(self):
        for seed in range(10):
            y = scene(seed)[1]
            half = np.array(Image.fromarray(y).resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC))
            brighter = (y * 0.8 + 40).astype(np.uint8)
            original = hash_image(self.grey(y), (0.0, 255.0))
            assert all(are_similar(original, hash_image(self.grey(other), (0.0, 255.0))) for other in (half, brighter))
            assert not are_similar(original, hash_image(self.grey(scene(seed + 50)[1]), (0.0, 255.0)))


class TestAlignment:
    @pytest.mark.parametrize("shift", [(0, 2), (3, -5), (-7, 0)])
    def test_a_shared_shift_is_measured_to_the_pixel(self, shift):
        pairs = [Pair(str(seed), x, np.roll(y, shift, (0, 1))) for seed in range(12) for x, y in [scene(seed)]]
        [case] = find_cases(pairs)["shift"]
        down, right = shift
        for distance, words in ((down, ("below", "above")), (right, ("right of", "left of"))):
            assert (f"{abs(distance)} px {words[distance < 0]}" in case.message) == bool(distance)

    @pytest.mark.parametrize("swapped", [False, True])
    @pytest.mark.parametrize("moved", [0, 6])
    @pytest.mark.parametrize("encoding", ["one-hot", "primary colours"])
    def test_a_shift_of_label_maps_is_found_in_each_encoding(self, encoding, moved, swapped):
        pairs = []
        for seed in range(12):
            x, y = scene(seed)
            codes = np.eye(3, dtype=np.uint8) * (1 if encoding == "one-hot" else 255)
            sides = (codes[classes_of(x)], np.roll(y, moved, 0))
            pairs.append(Pair(str(seed), *(sides[::-1] if swapped else sides)))
        attributes = {}
        if encoding == "one-hot":
            side = "y" if swapped else "x"
            attributes = {f"{side}_encoding": "one-hot", f"{side}_range": (0.0, 1.0)}
        found = find_cases(pairs, **attributes)
        message = f"train: y is {moved} px {'above' if swapped else 'below'} x in 100% of 12 pairs"
        assert [case.message.partition(" (")[0] for case in found.get("shift", ())] == [message] * bool(moved)
        assert "misaligned" not in found

    def test_aligned_pairs_have_no_shift(self):
        assert "shift" not in find_cases([Pair(str(seed), *scene(seed)) for seed in range(12)])

    def test_unrelated_images_have_no_shift(self):
        for start in range(0, 60, 12):
            pairs = [Pair(str(seed), scene(seed)[0], scene(seed + 100)[1]) for seed in range(start, start + 12)]
            assert "shift" not in find_cases(pairs)

    def test_different_shifts_are_not_reported_as_one(self):
        estimator = ShiftEstimator((SIDE, SIDE))
        for seed in range(12):
            x, y = (image.mean(axis=2) for image in scene(seed))
            estimator.add(seed, x, np.roll(y, (seed - 6, 2 * seed - 11), (0, 1)))
        assert estimator.estimate() is None
        drift = estimator.estimate_drift()
        assert drift.moved > 0.7  # two are moved by less than 2 px
        assert drift.median == pytest.approx(np.median([np.hypot(s - 6, 2 * s - 11) for s in range(12)]), abs=1.5)

    @pytest.mark.parametrize(("warp", "expected"), [(0, None), (2, 2), (4, 4)])
    def test_smooth_warps_of_the_earth_are_found(self, warp, expected):
        found = find_cases([*Earth("train", stride=128, warp=warp)]).get("misaligned", [])
        if expected is None:
            assert not found
        else:
            [case] = found
            assert "zoo:modern/registration.toml" in case.message
            assert float(re.search(r"distance is ([\d.]+) px", case.message)[1]) == pytest.approx(expected, abs=1)


class TestBeforeARun:
    @pytest.fixture
    def experiment(self, home):
        return config.load("mine.toml", "smoke", [])

    @staticmethod
    def stores(experiment):
        return {split: Store(experiment.dataset.build(split=split)) for split in ("train", "val", "test")}

    def test_run_refuses_and_names_every_file(self, home, run_cli):
        for number in (3, 8):
            file = home / f"targets/train/{number:02}.png"
            file.write_bytes(file.read_bytes()[:400])
        result = run_cli("run", "mine.toml", "--profile", "smoke", "--runs", "runs")
        assert result.exit_code == 2
        assert result.first_step is None
        assert all(f"targets/train/{name}.png" in result.output for name in ("03", "08"))
        assert "p2pzoo data check" in result.output
        assert not (home / "runs").exists()

    def test_the_message_names_some_cases_and_counts_the_rest(self, home, experiment):
        stores = self.stores(experiment)  # before the damage, because a store decodes its first pair
        for number in range(1, MAX_NAMED_CASES + 2):
            file = home / f"targets/train/{number:02}.png"
            file.write_bytes(file.read_bytes()[:400])
        with pytest.raises(UserError) as caught:
            validate_or_raise(experiment, stores, print)
        assert sum("targets/train/" in fault for fault in caught.value.faults) == MAX_NAMED_CASES
        assert "  ... and 1 more" in caught.value.faults

    @pytest.mark.parametrize("is_set", [True, False])
    def test_a_size_that_the_networks_do_not_take_stops_it(self, home, check_json, run_cli, is_set):
        recipe = RECIPE
        if is_set:
            recipe = RECIPE.replace("[generator]", 'size = [50, 64]\nresize = "crop"\n[generator]')
            line = "mine.toml:8  [dataset] size = [50, 64]: generator 'unet': size 50×64 does not fit: sides must be "
        else:
            line = (
                "mine.toml:4  [dataset] has images of [50, 64] px (height, width): generator 'unet': size 50×64 does "
            )
            for file in [*home.rglob("inputs/*/*.png"), *home.rglob("targets/*/*.png")]:
                Image.open(file).crop((0, 0, 64, 50)).save(file)
        (home / "mine.toml").write_text(recipe)
        found, _, code = check_json()
        assert (code, found["networks"]["count"]) == (2, 1)
        assert found["networks"]["cases"][0]["message"].startswith(line)
        assert "48×64 or 52×64" in found["networks"]["cases"][0]["message"]
        result = run_cli("run", "mine.toml", "--profile", "smoke", "--runs", "runs")
        assert (result.exit_code, result.first_step) == (2, None)
        assert line in result.output
        assert "zoo:base.toml" not in result.output

    def test_targets_that_are_copies_of_the_inputs_stop_it(self, home, check_json, run_cli):
        shutil.rmtree(home / "targets")
        shutil.copytree(home / "inputs", home / "targets")
        found, _, code = check_json()
        assert (code, found["equal"]["count"]) == (2, 1)
        result = run_cli("run", "mine.toml", "--profile", "smoke", "--runs", "runs")
        assert (result.exit_code, result.first_step) == (2, None)
        assert "train-00: x and y are equal in every pair" in result.output

    def test_some_targets_that_equal_their_inputs_are_no_fault(self, home, check_json):
        shutil.copy(home / "inputs/train/00.png", home / "targets/train/00.png")
        assert check_json()[0].keys() == set()

    def test_halves_that_are_equal_stop_it(self, home, check_json):
        for file in (home / "inputs").rglob("*.png"):
            image = np.array(Image.open(file))
            Image.fromarray(np.concatenate([image, image], axis=1)).save(file)
        (home / "mine.toml").write_text(
            RECIPE.replace("folders", "side-by-side")
            .replace('inputs = "inputs"', "")
            .replace("targets =", "root =")
            .replace('"targets"', '"inputs"')
        )
        found, _, code = check_json()
        assert (code, found["equal"]["count"]) == (2, 1)

    def test_a_small_part_of_the_range_is_a_warning(self, home, run_cli, check_json, experiment):
        for file in (home / "targets").rglob("*.png"):
            Image.fromarray((np.array(Image.open(file)) > 128).astype(np.uint8)).save(file)
        line = "y uses 2 of 256 stored values, 0.4% of its range: set target_range = [0, 1]"
        found, _, code = check_json()
        assert (code, [case["message"] for case in found["range"]["cases"]]) == (0, [line])
        notes = []
        validate_or_raise(experiment, self.stores(experiment), notes.append)
        assert notes == []  # the check has read these pairs
        (home / "targets/train/extra.png").write_bytes((home / "targets/train/00.png").read_bytes())
        (home / "inputs/train/extra.png").write_bytes((home / "inputs/train/00.png").read_bytes())
        validate_or_raise(experiment, self.stores(experiment), notes.append)
        assert notes == [f"warning: {line}"]
        assert "range" not in check_json("-s", "dataset.target_range=[0, 1]")[0]

    def test_warnings_and_leaks_do_not_stop_it(self, home, experiment):
        for split in ("train", "test"):
            save_pair(home, split, "both", *scene(400))
        save_pair(home, "train", "blank", scene(401)[0], np.zeros((SIDE, SIDE, 3), np.uint8))
        validate_or_raise(experiment, self.stores(experiment), print)

    def test_valid_data_is_not_read_again_until_it_changes(self, home, experiment, monkeypatch):
        validate_or_raise(experiment, self.stores(experiment), print)
        stores = self.stores(experiment)
        with monkeypatch.context() as patch:
            patch.setattr("p2pzoo_datasets.folders.Folders.read", None)
            validate_or_raise(experiment, stores, print)
        file = home / "targets/train/05.png"
        file.write_bytes(file.read_bytes()[:400])
        with pytest.raises(UserError, match=r"05\.png"):
            validate_or_raise(experiment, self.stores(experiment), print)

    def test_data_that_passed_the_dataset_check_is_not_read_again(self, home, run_cli, experiment, monkeypatch):
        assert run_cli("data", "check", "mine.toml", "--profile", "smoke").exit_code == 0
        stores = self.stores(experiment)
        monkeypatch.setattr("p2pzoo_datasets.folders.Folders.read", None)
        validate_or_raise(experiment, stores, print)

    def test_large_datasets_are_sampled_with_a_note(self, home, experiment, monkeypatch):
        monkeypatch.setattr("p2pzoo.data.validation.MAX_PAIRS_BEFORE_RUN", 4)
        notes = []
        validate_or_raise(experiment, self.stores(experiment), notes.append)
        assert [note.partition(" are")[0] for note in notes] == ["train: 4 of 12 pairs"]


@pytest.mark.parametrize(("task", "stride"), [("labels-to-photo", 64), ("edges-to-photo", 256), ("inpainting", 256)])
def test_the_embedded_data_is_clean(run_cli, task, stride):
    dataset = (f"dataset.task={task}", "dataset.size=256", f"dataset.stride={stride}")
    options = [part for override in dataset for part in ("-s", override)]
    result = run_cli("data", "check", "zoo:base.toml", "--profile", "smoke", *options)
    assert result.exit_code == 0, result.output
    assert "nothing found" in result.output
