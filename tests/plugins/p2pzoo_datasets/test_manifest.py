"""`manifest`: pairs listed in a file. Every fault is reported with its line, and no file causes a traceback."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_datasets.manifest import Manifest

from p2pzoo.images.io import write_png
from p2pzoo.utils.errors import UserError


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """photos/ and maps/ with 0.png to 9.png in data/, which is not the current folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        for folder, seed in (("photos", number), ("maps", 100 + number)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / "data" / folder / f"{number}.png", noise(seed))
    return tmp_path


def line(number, **more):
    return {"x": f"photos/{number}.png", "y": f"maps/{number}.png", **more}


def write_manifest(home, *lines, name="pairs.jsonl"):
    (home / "data" / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in lines))
    return f"data/{name}"


def errors_of(file, **parameters):
    with pytest.raises(UserError) as caught:
        Manifest("train", file=file, **parameters)
    return str(caught.value).splitlines()


class TestPairs:
    def test_are_the_lines_of_a_split_in_their_order(self, home):
        file = write_manifest(
            home, line(3, split="train"), "", line(1, split="train", id="one", block="a"), line(2, split="test")
        )
        train = Manifest("train", file=file)
        assert [(pair.id, pair.block) for pair in train] == [("photos-3", None), ("one", "a")]
        np.testing.assert_array_equal(train[0].x, noise(3))
        np.testing.assert_array_equal(train[0].y, noise(103))
        assert [pair.id for pair in Manifest("test", file=file)] == ["photos-2"]

    def test_csv_gives_the_same_pairs(self, home):
        rows = [line(n, split="train" if n else "val", block="b") for n in range(3)]
        with (home / "data/pairs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        from_csv, from_json = (Manifest("train", file=f) for f in ("data/pairs.csv", write_manifest(home, *rows)))
        assert [pair.id for pair in from_csv] == [pair.id for pair in from_json] == ["photos-1", "photos-2"]
        assert from_csv[0].block == "b"

    def test_without_splits_are_assigned_by_their_ids(self, home):
        file = write_manifest(home, *(line(n) for n in range(10)))
        ids = {split: {pair.id for pair in Manifest(split, file=file, fractions=(0.5, 0.25, 0.25))} for split in SPLITS}
        assert sorted(set.union(*ids.values())) == [f"photos-{n}" for n in range(10)]
        assert sum(map(len, ids.values())) == 10

    def test_of_a_block_are_in_one_split(self, home):
        file = write_manifest(home, *(line(n, block=f"patient {n // 2}") for n in range(10)))
        blocks = {s: set(Manifest(s, file=file, fractions=(0.4, 0.3, 0.3), split_seed=1).blocks) for s in SPLITS}
        assert all(blocks.values())
        assert sum(map(len, blocks.values())) == len(set.union(*blocks.values())) == 5

    def test_of_a_block_stay_in_its_split_when_lines_are_added(self, home):
        few = write_manifest(home, *(line(n, block=f"patient {n}") for n in range(5)), name="few.jsonl")
        more = write_manifest(home, *(line(n, block=f"patient {n % 5}") for n in range(10)), name="more.jsonl")
        options = {"fractions": (0.4, 0.3, 0.3), "split_seed": 1}
        for split in SPLITS:
            assert {*Manifest(split, file=few, **options).blocks} == {*Manifest(split, file=more, **options).blocks}

    def test_without_a_block_are_in_the_split_of_earlier_versions(self, home):
        """The numbers were computed by the version before pairs were split by block."""
        file = write_manifest(home, *(line(n, **({"block": "b"} if n > 6 else {})) for n in range(10)))
        splits = [Manifest(split, file=file, fractions=(0.5, 0.25, 0.25)) for split in SPLITS]
        of_lines = [[pair.id[-1] for pair in each if pair.block is None] for each in splits]
        assert of_lines == [["0", "6"], ["1", "3", "5"], ["2", "4"]]

    def test_of_few_blocks_may_leave_test_to_val_as_other_pairs_do(self, home):
        file = write_manifest(home, *(line(n, block=f"patient {n % 5}") for n in range(10)))
        with pytest.warns(UserWarning, match="no pairs in test; val is used instead"):
            data = Manifest("test", file=file, fractions=(0.4, 0.3, 0.3), split_seed=0)
        assert len(data) == 6

    def test_of_a_block_in_two_splits_are_a_warning(self, home):
        lines = [line(n, split=s, block=b) for n, (s, b) in enumerate(zip(SPLITS * 2, "aabbba", strict=True))]
        with pytest.warns(UserWarning, match=r"pairs\.jsonl: block 'a' is in train, val and test.*1 more.*`split`"):
            Manifest("train", file=write_manifest(home, *lines))

    def test_of_a_block_in_one_given_split_are_no_warning(self, home, recwarn):
        lines = [line(n, split=SPLITS[n % 3], block=f"b{n % 3}") for n in range(9)]
        Manifest("train", file=write_manifest(home, *lines))
        assert not recwarn.list

    def test_may_have_labels(self, home):
        (home / "classes.json").write_text('{"classes": [{"name": "a", "colour": [0, 0, 0]}]}')
        np.save(home / "data/m.npy", np.zeros((8, 8), int))
        file = write_manifest(home, *(line(n, split=s, labels="m.npy") for n, s in ((0, "train"), (1, "val"))))
        data = Manifest("train", file=file, classes="classes.json")
        assert data.classes == ("a",)
        assert data[0].labels.shape == (8, 8)


SPLITS = ("train", "val", "test")


class TestFaults:
    def test_one_file_for_x_and_y(self, home):
        (home / "data/link.png").symlink_to(home / "data/photos/3.png")
        lines = [line(0), {"x": "photos/3.png", "y": "photos/../photos/3.png"}, {"x": "link.png", "y": "photos/3.png"}]
        assert errors_of(write_manifest(home, *lines)) == [
            "data/pairs.jsonl:2  x and y are one file, photos/3.png: name the other image",
            "data/pairs.jsonl:3  x and y are one file, link.png: name the other image",
        ]

    def test_are_reported_all_at_once_with_their_lines(self, home):
        file = write_manifest(
            home,
            line(0, split="train"),
            {"x": "photos/99.png", "y": "maps/1.png", "split": "train"},
            '{"x": ',
            "[1]",
            line(2, split="tain"),
            line(3, split="train", blok="a"),
            {"x": "photos/4.png", "split": "train"},
            line(5, split="train", id="photos-0"),
            line(6, split="train", id=7),
            line(7),
        )
        assert errors_of(file) == [
            "data/pairs.jsonl:2  x: no such file photos/99.png",
            "data/pairs.jsonl:3  cannot be read as JSON (Expecting value: line 1 column 7 (char 6))",
            'data/pairs.jsonl:4  expected an object, as in {"x": "a.png", "y": "b.png"}',
            "data/pairs.jsonl:5  split: tain is no split: did you mean 'train'?",
            "data/pairs.jsonl:6  blok: no such key: did you mean 'block'?",
            "data/pairs.jsonl:7  y is missing",
            "data/pairs.jsonl:8  line 1 has the id 'photos-0', too: set another `id`",
            "data/pairs.jsonl:9  id: expected text, not 7",
            "data/pairs.jsonl:10  1 of 2 lines have no `split`: set it on all lines or on none",
        ]

    def test_usable_returns_the_other_lines(self, home):
        file = write_manifest(
            home, *(line(n, split="val" if n > 7 else "train") for n in range(10)), line(99, split="train")
        )
        data, faults = Manifest.usable("train", file=file)
        assert len(data) == 8
        assert faults == [
            "data/pairs.jsonl:11  x: no such file photos/99.png",
            "data/pairs.jsonl:11  y: no such file maps/99.png",
        ]

    def test_in_a_heading(self, home):
        assert errors_of(write_manifest(home, "x,z", "a,b", name="p.csv")) == [
            "data/p.csv:1  the heading has no column y; z: no such key: known are block, id, labels, split, x, y"
        ]
        assert errors_of(write_manifest(home, "x,y", "a,b,c", name="p.csv")) == [
            "data/p.csv:2  has 3 cells, the heading has 2"
        ]
        assert errors_of(write_manifest(home, "x,y", "a", name="p.csv")) == [
            "data/p.csv:2  has 1 cell, the heading has 2"
        ]

    def test_in_the_file_itself(self, home):
        assert errors_of("data/none.jsonl") == ["data/none.jsonl: no such file"]
        assert errors_of("data/photos/0.png") == ["data/photos/0.png: a manifest is a .jsonl or a .csv file"]
        assert errors_of(write_manifest(home)) == ["data/pairs.jsonl: lists no pairs"]
        assert errors_of(write_manifest(home, line(0, split="train"))) == [
            "data/pairs.jsonl: has pairs of train only; expected train, and val or test"
        ]

    def test_in_the_number_of_blocks(self, home):
        file = write_manifest(home, *(line(n, block="patient") for n in range(10)))
        assert errors_of(file) == [
            "data/pairs.jsonl: 1 block for 3 splits: add blocks, set `split` on all lines, or change `fractions`"
        ]
        file = write_manifest(home, *(line(n, block=f"patient {n // 3}") for n in range(9)))
        [error] = errors_of(file)
        assert error.startswith("data/pairs.jsonl: too few blocks: 3 in train, 0 in val, 0 in test: ")
        assert error.rpartition("set ")[2].startswith("split_seed = ")

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_bytes_are_read_or_refused(self, tmp_path_factory, data):
        folder = tmp_path_factory.mktemp("any")
        write_png(folder / "a.png", noise(0))
        words = st.sampled_from(["a.png", "train", "val", "", "..", "/", "\0", "\ud800", "x" * 5000]) | st.text(
            max_size=4
        )
        values = words | st.none() | st.integers() | st.lists(words, max_size=2)
        keys = st.sampled_from(["x", "y", "id", "split", "labels", "block"])
        rows = st.dictionaries(keys, values, max_size=4) | st.builds(
            lambda more: {"x": "a.png", "y": "a.png", **more}, st.dictionaries(keys, values, max_size=2)
        )
        jsonl = st.lists(rows.map(json.dumps) | st.text(max_size=9), max_size=6).map("\n".join)
        table = st.lists(st.lists(words, max_size=4).map(",".join), max_size=5).map("\n".join)
        text = jsonl | table.map("x,y,id,split\n".__add__) | table | st.just("[" * 100_000)
        suffix, content = (
            data.draw(st.sampled_from([".jsonl", ".csv"])),
            data.draw(st.binary(max_size=50) | text.map(lambda t: t.encode(errors="surrogatepass"))),
        )
        file = folder / f"pairs{suffix}"
        file.write_bytes(content)
        try:
            message = f"{file}" if len(Manifest("train", file=file)) else ""
        except UserError as error:
            message = str(error)
        assert str(file) in message
        assert message.encode(), "only characters that a terminal can show"
