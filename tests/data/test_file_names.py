"""Names of files that are not UTF-8, such as Latin-1 ones from an old disk, work like others."""

import os
import sys

import numpy as np
import pytest
from p2pzoo_datasets.folders import Folders

from p2pzoo.images.io import write_png
from p2pzoo.utils.files import read_json, write_json


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")
def test_pairs_with_latin_1_names_are_split_and_their_ids_can_be_stored(tmp_path):
    for folder in ("photos", "maps"):
        (tmp_path / folder).mkdir()
        for number in range(14):
            image = tmp_path / "image.png"
            write_png(image, np.full((8, 8, 3), number, np.uint8))
            image.rename(tmp_path / folder / os.fsdecode(b"caf\xe9%02d.png" % number))
    splits = [
        Folders(split, inputs=tmp_path / "photos", targets=tmp_path / "maps") for split in ("train", "val", "test")
    ]
    ids = [pair.id for split in splits for pair in split]
    assert sorted(set(ids)) == [os.fsdecode(b"caf\xe9%02d" % number) for number in range(14)]
    write_json(tmp_path / "ids.json", ids)
    assert "caf\\udce9" in (tmp_path / "ids.json").read_text("utf-8")
    assert read_json(tmp_path / "ids.json") == ids
