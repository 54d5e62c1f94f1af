"""A pipe among data, or in place of a recipe, is refused: reading it would never end."""

import os

import pytest
from p2pzoo_datasets.manifest import Manifest

from p2pzoo import config
from p2pzoo.images.label_maps import Classes, read_map
from p2pzoo.utils.errors import UserError


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("mine.toml", lambda file: config.load(str(file))),
        ("classes.toml", Classes.read),
        ("pairs.jsonl", lambda file: Manifest("train", file=file)),
        ("map.png", read_map),
        ("map.npy", read_map),
    ],
)
def test_a_pipe_is_refused(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="pipe"):
        read(tmp_path / name)
