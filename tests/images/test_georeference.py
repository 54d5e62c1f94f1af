"""Where a picture lies on the map: copied from a GeoTIFF where size and place are kept, else reported as lost."""

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from p2pzoo.cli import main
from p2pzoo.images.georeference import GEO_TAGS, read_georeference
from p2pzoo.models import translate_files as translate_files_module

VALUES = {  # UTM zone 32N, pixels of 10 m; as GDAL writes them
    33550: (12, 3, (10.0, 10.0, 0.0)),
    33922: (12, 6, (0.0, 0.0, 0.0, 500_000.0, 5_400_000.0, 0.0)),
    34735: (3, 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632)),
    34736: (12, 2, (6378137.0, 298.257223563)),
    34737: (2, 22, "WGS 84 / UTM zone 32N|"),
    42112: (2, 0, '<GDALMetadata>\n<Item name="a">b</Item>\n</GDALMetadata>'),
    42113: (2, 0, "255"),
}
TAGS = [(code, kind, count, value, True) for code, (kind, count, value) in VALUES.items()]


@pytest.fixture
def geotiff(tmp_path):
    """geotiff("map.tif", tile=(64, 64)): a GeoTIFF, as the model zoo:earth-small takes it."""

    def geotiff(name, shape=(64, 96, 3), tags=TAGS, **options):
        pixels = np.random.default_rng(0).integers(0, 4, shape, dtype=np.uint8)
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", extratags=tags, **options)
        return tmp_path / name

    return geotiff


def translate(*arguments):
    result = CliRunner().invoke(main, ["translate", "zoo:earth-small", *map(str, arguments), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return result


def tags_of(file):
    with tifffile.TiffFile(file) as tiff:
        return {tag.code: tag.value for tag in tiff.pages[0].tags if tag.code in GEO_TAGS}


def expected():
    return {code: value for code, (_, _, value) in VALUES.items()}


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (32, 32)}])
def test_a_translated_geotiff_lies_at_the_same_place(geotiff, options, tmp_path):
    source = geotiff("map.tif", **options)
    result = translate(source, "-o", tmp_path / "out", "--format", "tif")
    assert "georeference" not in result.output
    assert tags_of(tmp_path / "out" / "map.tif") == tags_of(source) == expected()
    with Image.open(tmp_path / "out" / "map.tif") as picture:
        assert picture.tag_v2[33922] == VALUES[33922][2]
        assert picture.tag_v2[34737] == VALUES[34737][2]


def test_a_matrix_in_place_of_tie_points_is_kept(geotiff, tmp_path):
    matrix = (10.0, 1.0, 0.0, 5e5, 1.0, -10.0, 0.0, 54e5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    source = geotiff("map.tif", tags=[(34264, 12, 16, matrix, True)])
    translate(source, "-o", tmp_path / "out.tif")
    assert tags_of(tmp_path / "out.tif") == {34264: matrix}


def test_an_image_in_tiles_lies_there_too(geotiff, tmp_path, monkeypatch):
    monkeypatch.setattr(translate_files_module, "MAX_PIXELS_AHEAD", 0)
    source = geotiff("map.tif", (256, 320, 3))
    translate(source, "-o", tmp_path / "tiled.tif", "--test-mode", "eval", "--tile", 128)
    assert tags_of(tmp_path / "tiled.tif") == expected()


def warnings_of(result):
    return [line for line in result.stderr.splitlines() if "georeference" in line]


def test_a_loss_is_reported_in_one_line(geotiff, tmp_path):
    first, second = geotiff("a.tif"), geotiff("b.tif")
    lost = "the georeference is lost"
    result = translate(first, second, "-o", tmp_path / "out")
    assert warnings_of(result) == [f"warning: {first} and 1 more: {lost}: .png cannot hold it, .tif can"]
    half = translate(first, "-o", tmp_path / "half.tif", "--side", "left")
    assert warnings_of(half) == [f"warning: {first}: {lost}: the image is cut"]
    assert not tags_of(tmp_path / "half.tif")
    turned = geotiff("c.tif", tags=[*TAGS, (274, 3, 1, 6, True)])
    result = translate(turned, "-o", tmp_path / "turned.tif")
    assert warnings_of(result) == [f"warning: {turned}: {lost}: the image is turned (EXIF orientation)"]
    assert not tags_of(tmp_path / "turned.tif")


def test_data_combine_and_data_split_report_the_loss(geotiff, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        geotiff(f"{folder}/1.tif")
        geotiff(f"{folder}/2.tif")
    for command in (["combine", tmp_path / "a", tmp_path / "b"], ["split", tmp_path / "a"]):
        result = CliRunner().invoke(main, ["data", *map(str, command), "-o", str(tmp_path / command[0])])
        assert result.exit_code == 0, result.output
        [line] = warnings_of(result)
        assert "more: the georeference is lost: .png cannot hold it, .tif can" in line


def test_other_files_have_no_georeference(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif")
    (tmp_path / "broken.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:6])
    np.save(tmp_path / "a.npy", np.zeros((8, 8)))
    for file in tmp_path.iterdir():
        assert read_georeference(file) == ()
    assert read_georeference(tmp_path / "absent.tif") == ()
