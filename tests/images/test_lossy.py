"""JPEG and WebP: what they can hold, and what is refused because it would be lost."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from p2pzoo.images.io import read_image
from p2pzoo.images.lossy import write_lossy
from p2pzoo.utils.errors import UserError


@pytest.fixture
def smooth():
    rows, columns = np.mgrid[:64, :96]
    return np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("name", "form"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")])
def test_pixels_are_nearly_kept_and_quality_counts(smooth, name, form, tmp_path):
    write_lossy(tmp_path / name, smooth, {"p2pzoo": '{"seed": 0}', "note": "ŷ"})
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.mode, picture.size) == (form, "RGB", (96, 64))
        assert picture.getexif()[ExifTags.Base.ImageDescription] == 'p2pzoo: {"seed": 0}\nnote: \\u0177'
    size = (tmp_path / name).stat().st_size
    error = np.abs(read_image(tmp_path / name).astype(int) - smooth)
    assert 0 < error.mean() < 4
    write_lossy(tmp_path / name, smooth, quality=10)
    assert (tmp_path / name).stat().st_size < size
    assert not [*tmp_path.glob(".*")]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_grey_is_kept(smooth, suffix, tmp_path):
    write_lossy(tmp_path / f"a{suffix}", smooth[..., :1])
    assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - smooth[..., :1]).mean() < 4


@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 1), ("float32", 3), ("uint8", 4), ("uint8", 2)])
def test_what_would_be_lost_is_refused(dtype, channels, tmp_path):
    with pytest.raises(UserError, match=rf"a\.jpg: a JPEG cannot hold {channels} channels of {dtype}; .png, .tif"):
        write_lossy(tmp_path / "a.jpg", np.zeros((8, 8, channels), dtype))
    assert not [*tmp_path.iterdir()]


def test_sides_beyond_the_format_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.webp: a WEBP cannot hold 1 × 16,384 px; its sides end at 16,383"):
        write_lossy(tmp_path / "a.webp", np.zeros((1, 16_384, 1), np.uint8))
