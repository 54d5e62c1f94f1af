"""`p2pzoo data check` finds each planted fault by name, and nothing in clean data; `run` refuses what cannot train."""

import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from p2pzoo_data_tools.alignment import Registration
from p2pzoo_data_tools.check import Opened, check
from p2pzoo_data_tools.near_duplicates import BITS, Looks, agree, hash_image, near
from PIL import Image, ImageDraw

from p2pzoo import config
from p2pzoo.data.validation import NAMED, validate_or_raise
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
    """x: shapes in the colours of their kinds; y: the same in colours of their own, with noise; (SIDE, SIDE, 3)."""
    draw = np.random.default_rng(seed)
    x, y = (Image.new("RGB", (SIDE, SIDE), color) for color in ("navy", tuple(draw.integers(40, 220, 3).tolist())))
    for _ in range(9):
        left, top = draw.integers(-8, SIDE - 8, 2).tolist()
        box = (left, top, left + int(draw.integers(10, 34)), top + int(draw.integers(10, 34)))
        kind = int(draw.integers(2))
        for image, color in ((x, ("red", "green")[kind]), (y, tuple(draw.integers(0, 256, 3).tolist()))):
            getattr(ImageDraw.Draw(image), ("ellipse", "rectangle")[kind])(box, fill=color)
    noisy = np.asarray(y) + draw.normal(0, 4, (SIDE, SIDE, 3))
    return np.array(x), noisy.clip(0, 255).astype(np.uint8)


def put(root, split, name, x=None, y=None):
    for folder, image in (("inputs", x), ("targets", y)):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
        if image is not None:
            Image.fromarray(image).save(root / folder / split / f"{name}.png")


def get(root, folder, split, name):
    return np.array(Image.open(root / folder / split / f"{name}.png"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root, seed = tmp_path_factory.mktemp("drawn"), 0
    for split, count in COUNTS.items():
        for number in range(count):
            put(root, split, f"{number:02}", *scene(seed))
            seed += 1
    (root / "mine.toml").write_text(RECIPE)
    return root


@pytest.fixture
def home(drawn, tmp_path, monkeypatch):
    """inputs/ and targets/ with nothing wrong, in three splits, and a recipe for them."""
    root = tmp_path / "home"
    shutil.copytree(drawn, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture
def checked(home, zoo):
    """What `data check --json` says: {kind: finding}, the whole of it, and its exit code."""

    def checked(*flags):
        told = zoo("data", "check", "mine.toml", "--profile", "smoke", "--json", *flags)
        found = json.loads(told.output[told.output.index("{\n") :])
        return {finding["kind"]: finding for finding in found["findings"]}, found, told.exit_code

    return checked


def ids(finding):
    return [[pair["id"] for pair in case["pairs"]] for case in finding["cases"]]


def plain(items, total, doing):
    return items


class Drawn:
    """Pairs in memory."""

    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(self, pairs, **attributes):
        self.pairs = pairs
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def kinds(train, val=(), test=(), **attributes):
    """The findings on three splits of pairs in memory, by kind; but those of how few they are."""
    splits = {"train": train, "val": val, "test": test}
    data = {split: Drawn(pairs, **attributes) for split, pairs in splits.items() if pairs}
    found = check(Opened("drawn", data), plain)
    return {finding.kind: finding.cases for finding in found.findings if finding.kind != "few-pairs"}


class TestFolders:
    def test_nothing_is_found_where_nothing_is_wrong(self, home, zoo, checked):
        _, found, code = checked()
        assert (found["findings"], found["not_looked_at"], found["runs"], code) == ([], [], True, 0)
        assert {split: one["looked_at"] for split, one in found["splits"].items()} == COUNTS
        assert "nothing found" in zoo("data", "check", "mine.toml").output

    def test_each_planted_fault_is_found_in_one_go_and_nothing_is_changed(self, home, checked):
        draw = iter(range(100, 200))
        put(home, "train", "alone", x=scene(next(draw))[0])
        put(home, "val", "lonely", y=scene(next(draw))[1])
        put(home, "train", "junk", *scene(next(draw)))
        (home / "inputs/train/junk.png").write_bytes(b"no image")
        x, y = scene(next(draw))
        put(home, "train", "small", x[:48], y[:48])
        x, y = scene(next(draw))
        put(home, "train", "unlike", x[:48], y)
        x, y = scene(next(draw))
        put(home, "train", "blank", x, np.full_like(y, 77))
        put(home, "train", "again", *(get(home, folder, "train", "00") for folder in ("inputs", "targets")))
        put(home, "test", "leaked", *(get(home, folder, "train", "01") for folder in ("inputs", "targets")))
        put(home, "test", "borrowed", get(home, "inputs", "train", "02"), scene(next(draw))[1])
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in home.rglob("*.png")}

        found, _, code = checked()
        assert code == 2
        unused = " ".join(case["told"] for case in found["unopened"]["cases"])
        assert all(name in unused for name in ("alone.png", "lonely.png", "junk.png"))
        assert {id for [id] in ids(found["mismatch"])} == {"train-small", "train-unlike"}
        assert ids(found["constant"]) == [["train-blank"]]
        assert ids(found["duplicate"]) == [["train-00", "train-again"]]
        assert ids(found["leak"]) == [["train-01", "test-leaked"]]
        assert ids(found["shared"]) == [["train-02", "test-borrowed"]]
        assert found["leak"]["cases"][0]["pairs"][1]["files"] == ["inputs/test/leaked.png", "targets/test/leaked.png"]
        assert found.keys() == {"unopened", "mismatch", "constant", "duplicate", "leak", "shared"}
        assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in home.rglob("*.png")} == before

    def test_all_unreadable_files_are_named_not_the_first_few(self, home, checked):
        for number in range(6):
            file = home / f"targets/train/{number:02}.png"
            file.write_bytes(file.read_bytes()[:400])
        found, _, code = checked()
        told = " ".join(case["told"] for case in found["unreadable"]["cases"])
        assert code == 2
        assert all(f"targets/train/{number:02}.png" in told for number in range(6))

    def test_so_are_all_files_without_a_partner(self, home, checked):
        for number in range(6):
            (home / f"targets/train/{number:02}.png").unlink()
        found, _, _ = checked()
        told = " ".join(case["told"] for case in found["unopened"]["cases"])
        assert all(f"{number:02}.png" in told for number in range(6))

    def test_a_dataset_that_cannot_be_opened_at_all_is_told_once(self, home, checked):
        shutil.rmtree(home / "inputs")
        found, whole, code = checked()
        assert (code, found.keys(), found["unopened"]["count"]) == (2, {"unopened"}, 1)
        assert "inputs: no such folder" in found["unopened"]["cases"][0]["told"]
        assert whole["splits"] == {}

    @pytest.mark.filterwarnings("ignore:.*stands in for it:UserWarning")
    def test_one_split_that_stands_in_for_another_is_no_leak(self, home, checked):
        for folder in ("inputs", "targets"):
            shutil.rmtree(home / folder / "test")
        found, _, code = checked()
        assert (code, found.keys()) == (0, {"stand-in", "told"})

    def test_quick_says_what_it_did_not_look_at(self, home, checked, monkeypatch):
        monkeypatch.setattr("p2pzoo_data_tools.check.QUICK", 5)
        _, found, _ = checked("--quick")
        assert found["splits"]["train"] == {"pairs": 12, "looked_at": 5, "classes": None}
        assert "train: 7 of 12 pairs" in found["not_looked_at"][0]


class TestPage:
    def test_needs_nothing_else_and_escapes_names(self, home, zoo):
        name = "<img src=x onerror=alert(1)>"
        put(home, "test", name, *(get(home, folder, "train", "01") for folder in ("inputs", "targets")))
        told = zoo("data", "check", "mine.toml", "-o", "page.html")
        page = (home / "page.html").read_text()
        assert told.exit_code == 2
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
        assert name not in page
        assert "Mine &lt;b&gt;" in page
        sources = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert sum(source.startswith("data:image/webp;base64,") for source in sources) == 4  # x and y of both
        assert all(source.startswith(("data:", "#")) for source in sources)

    def test_is_not_written_over_another_file(self, home, zoo):
        (home / "page.html").write_text("mine")
        told = zoo("data", "check", "mine.toml", "-o", "page.html")
        assert told.exit_code == 2
        assert "--force" in told.output
        assert (home / "page.html").read_text() == "mine"


class TestValues:
    def test_pairs_with_values_that_cannot_be_trained_on(self):
        good = np.random.default_rng(0).random((SIDE, SIDE, 1), np.float32)
        broken, wide = good.copy(), good * 2
        broken[3, 4] = np.nan
        pairs = [Pair("good", good, good), Pair("broken", broken, good), Pair("wide", good, wide)]
        found = kinds(pairs, x_range=(0.0, 1.0), y_range=(0.0, 1.0))
        assert [case.places[0].id for case in found["not-finite"]] == ["broken"]
        assert "1 of 4096 values of x" in found["not-finite"][0].told
        assert [case.places[0].id for case in found["out-of-range"]] == ["wide"]
        assert "declared are 0 to 1" in found["out-of-range"][0].told

    def test_another_depth_or_number_of_channels(self):
        x, y = scene(1)
        pairs = [
            Pair("a", x, y),
            Pair("b", *scene(2)),
            Pair("deep", x.astype(np.uint16), y),
            Pair("grey", x, y[..., :1]),
        ]
        found = kinds(pairs)
        assert [case.places[0].id for case in found["mismatch"]] == ["deep", "grey"]

    @pytest.mark.parametrize(("value", "fault"), [(2, True), (-2, True), (255, False), (-1, False), (1, False)])
    def test_labels_that_are_no_class(self, value, fault):
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[:8], labels[-1] = 1, value
        found = kinds([Pair("a", *scene(3), labels)], classes=("sea", "land"))
        assert ("labels" in found) == fault

    def test_a_class_that_only_the_test_has(self):
        def labelled(id, *values):
            labels = np.zeros((SIDE, SIDE), np.uint8)
            labels[: len(values)] = np.array(values)[:, None]
            return Pair(id, *scene(int(id)), labels)

        names = ("sea", "land", "ice")
        splits = [labelled("1", 0, 1)], [labelled("2", 0, 1)], [labelled("3", 0, 1, 2)]
        told = [case.told for case in kinds(*splits, classes=names)["classes"]]
        assert told == [f"{split} has no pixel of 'ice', test have" for split in ("train", "val")]
        assert "classes" not in kinds(*splits, classes=names, unscored=("ice",))

    def test_a_drawing_of_one_class_is_no_constant_image(self):
        flat, y = np.full((SIDE, SIDE, 3), 9, np.uint8), scene(5)[1]
        labels = np.zeros((SIDE, SIDE), np.uint8)
        assert "constant" in kinds([Pair("a", flat, y)])
        assert "constant" not in kinds([Pair("a", flat, y, labels)], classes=("sea", "land"))

    def test_a_block_in_two_splits(self):
        found = kinds([Pair("a", *scene(1), block="north")], [Pair("b", *scene(2), block="north")])
        assert [case.told for case in found["blocks"]] == ["block north"]

    def test_a_fault_of_the_datasets_own_code_is_a_finding(self):
        class Broken(Drawn):
            def __getitem__(self, index):
                raise RuntimeError("no such tile")

        found = check(Opened("broken", {"train": Broken([None] * 12)}), plain)
        assert {finding.kind: len(finding.cases) for finding in found.findings} == {"unreadable": 12}


class TestLikeness:
    @staticmethod
    def grey(image):
        return image.mean(axis=2, dtype=np.float32)

    @staticmethod
    def resaved(image):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=60)
        return np.array(Image.open(out))

    def test_a_resaved_copy_in_another_split_is_found_and_no_other_scene(self):
        train = [Pair(str(seed), *scene(seed)) for seed in range(20)]
        copy = Pair("copy", *(self.resaved(image) for image in scene(7)))
        found = kinds(train, [copy, *(Pair(str(seed), *scene(seed)) for seed in range(50, 60))])
        assert [[place.id for place in case.places] for case in found["near"]] == [["7", "copy"]]
        assert found.keys() == {"near"}

    def test_flat_images_look_like_nothing(self):
        flat = np.full((SIDE, SIDE), 100.0, np.float32)
        look = hash_image(flat, (0.0, 255.0))
        assert look.hash is None
        assert list(near([look], [look])) == []

    def test_near_finds_what_comparing_each_with_each_finds(self):
        draw = np.random.default_rng(0)
        hashes = [int(draw.integers(2**63)) for _ in range(40)]
        near_ones = [
            hashes[at] ^ sum(1 << int(bit) for bit in draw.choice(63, at % 12, replace=False)) for at in range(40)
        ]
        small = [draw.integers(0, 256, (16, 16), dtype=np.uint8) for _ in hashes]
        ours, theirs = ([Looks(h, s) for h, s in zip(each, small, strict=True)] for each in (hashes, near_ones))
        found = {(i, j) for i, j, _ in near(ours, theirs)}
        expected = {(i, j) for i, a in enumerate(ours) for j, b in enumerate(theirs) if agree(a, b)}
        six = {(i, i) for i in range(40) if i % 12 <= 6}  # bits that differ: one band of seven is always left
        assert six <= found <= expected
        assert max(i % 12 for i, _ in expected) == BITS

    @pytest.mark.parametrize("kept", range(7))
    def test_six_bits_that_differ_all_over_a_hash_are_found(self, kept):
        small = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
        differing = sum(1 << (9 * part) for part in range(7) if part != kept)
        [found] = near([Looks(0, small)], [Looks(differing, small)])
        assert found[:2] == (0, 0)

    def test_hashes_survive_scaling_and_brightening(self):
        for seed in range(10):
            y = scene(seed)[1]
            half = np.array(Image.fromarray(y).resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC))
            brighter = (y * 0.8 + 40).astype(np.uint8)
            look = hash_image(self.grey(y), (0.0, 255.0))
            assert all(agree(look, hash_image(self.grey(other), (0.0, 255.0))) for other in (half, brighter))
            assert not agree(look, hash_image(self.grey(scene(seed + 50)[1]), (0.0, 255.0)))


class TestRegistration:
    @pytest.mark.parametrize("shift", [(0, 2), (3, -5), (-7, 0)])
    def test_a_shift_that_pairs_share_is_told_to_the_pixel(self, shift):
        pairs = [Pair(str(seed), x, np.roll(y, shift, (0, 1))) for seed in range(12) for x, y in [scene(seed)]]
        [case] = kinds(pairs)["shift"]
        down, right = shift
        for by, words in ((down, ("below", "above")), (right, ("right of", "left of"))):
            assert (f"{abs(by)} px {words[by < 0]}" in case.told) == bool(by)

    def test_aligned_pairs_have_none(self):
        assert "shift" not in kinds([Pair(str(seed), *scene(seed)) for seed in range(12)])

    def test_pairs_that_have_nothing_in_common_have_none(self):
        for start in range(0, 60, 12):
            pairs = [Pair(str(seed), scene(seed)[0], scene(seed + 100)[1]) for seed in range(start, start + 12)]
            assert "shift" not in kinds(pairs)

    def test_shifts_that_differ_from_pair_to_pair_are_not_taken_for_one(self):
        registration = Registration((SIDE, SIDE))
        for seed in range(12):
            x, y = (image.mean(axis=2) for image in scene(seed))
            registration.add(seed, x, np.roll(y, (seed - 6, 2 * seed - 11), (0, 1)))
        assert registration.shift() is None


class TestBeforeARun:
    @pytest.fixture
    def experiment(self, home):
        return config.load("mine.toml", "smoke", [])

    @staticmethod
    def stores(experiment):
        return {s: SimpleNamespace(dataset=experiment.dataset.build(split=s)) for s in ("train", "val", "test")}

    def test_run_refuses_and_names_every_fault(self, home, zoo):
        for number in (3, 8):
            file = home / f"targets/train/{number:02}.png"
            file.write_bytes(file.read_bytes()[:400])
        told = zoo("run", "mine.toml", "--profile", "smoke", "--runs", "runs")
        assert told.exit_code == 2
        assert told.began is None
        assert all(f"targets/train/{name}.png" in told.output for name in ("03", "08"))
        assert "p2pzoo data check" in told.output
        assert not (home / "runs").exists()

    def test_names_so_many_and_counts_the_rest(self, home, experiment):
        for number in range(NAMED + 2):
            file = home / f"targets/train/{number:02}.png"
            file.write_bytes(file.read_bytes()[:400])
        with pytest.raises(UserError) as refused:
            validate_or_raise(experiment, self.stores(experiment), print)
        assert sum("targets/train/" in fault for fault in refused.value.faults) == NAMED
        assert "  ... and 2 more" in refused.value.faults

    def test_warnings_and_leaks_do_not_stop_it(self, home, experiment):
        for split in ("train", "test"):
            put(home, split, "both", *scene(400))
        put(home, "train", "blank", scene(401)[0], np.zeros((SIDE, SIDE, 3), np.uint8))
        validate_or_raise(experiment, self.stores(experiment), print)

    def test_known_good_data_is_not_read_again_until_it_changes(self, home, experiment, monkeypatch):
        validate_or_raise(experiment, self.stores(experiment), print)
        with monkeypatch.context() as patch:
            patch.setattr("p2pzoo_datasets.folders.Folders.read", None)
            validate_or_raise(experiment, self.stores(experiment), print)
        file = home / "targets/train/05.png"
        file.write_bytes(file.read_bytes()[:400])
        with pytest.raises(UserError, match=r"05\.png"):
            validate_or_raise(experiment, self.stores(experiment), print)

    def test_what_the_doctor_has_seen_whole_is_not_read_again_either(self, home, zoo, experiment, monkeypatch):
        assert zoo("data", "check", "mine.toml", "--profile", "smoke").exit_code == 0
        monkeypatch.setattr("p2pzoo_datasets.folders.Folders.read", None)
        validate_or_raise(experiment, self.stores(experiment), print)

    def test_large_sets_are_sampled_and_that_is_told(self, home, experiment, monkeypatch):
        monkeypatch.setattr("p2pzoo.data.validation.MOST_BEFORE_A_RUN", 4)
        notes = []
        validate_or_raise(experiment, self.stores(experiment), notes.append)
        assert [note.partition(" are")[0] for note in notes] == ["train: 4 of 12 pairs"]


@pytest.mark.parametrize("task", ["labels-to-photo", "edges-to-photo", "inpainting"])
def test_the_embedded_data_is_clean(zoo, task):
    told = zoo(
        "data", "check", "zoo:base.toml", "--profile", "smoke", "-s", f"dataset.task={task}", "-s", "dataset.size=256"
    )
    assert told.exit_code == 0, told.output
    assert "nothing found" in told.output
