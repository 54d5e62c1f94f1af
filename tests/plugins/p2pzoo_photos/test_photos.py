"""Datasets of photos: x and y are aligned, random parts are reproducible, error messages name the file."""

import numpy as np
import pytest
from p2pzoo_data_tools.preview import compute_stats
from p2pzoo_photos.colorize import Colorize
from p2pzoo_photos.edges import Edges
from p2pzoo_photos.inpaint import Inpaint
from p2pzoo_photos.restore import Denoise, SuperResolve
from PIL import Image

from p2pzoo.images.color_spaces import dequantize, join_lab
from p2pzoo.images.resize import resize_to
from p2pzoo.utils.errors import UserError

TASKS = {
    "colorize": (Colorize, {}),
    "colorize-rgb": (Colorize, {"output": "rgb"}),
    "inpaint": (Inpaint, {}),
    "inpaint-random": (Inpaint, {"mask": "random", "opacity": True}),
    "edges": (Edges, {}),
    "super-resolve": (SuperResolve, {"factor": 2}),
    "denoise": (Denoise, {"sigma": 5.0}),
}
SIZE = (32, 48)


def coordinates(height, width):
    """(H, W, 3) uint8: red grows with the column, green with the row."""
    red = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, np.full_like(red, 90)], axis=-1).round().astype(np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Photos of coordinates in several shapes, split by sub-folders."""
    for split in ("train", "val", "test"):
        for number, size in enumerate([(64, 96), (50, 40), (30, 90)]):
            save(tmp_path / "photos" / split / f"{number}.png", coordinates(*size))
    return tmp_path / "photos"


# --- alignment -----------------------------------------------------------------------------------------------------


def to_visible(data, pair):
    """x and y in grey or RGB."""
    if getattr(data, "y_encoding", None):
        L, ab = dequantize(pair.x, data.x_range), dequantize(pair.y, data.y_range)
        return join_lab(L, np.zeros_like(ab)), join_lab(L, ab)
    return pair.x, pair.y


@pytest.mark.parametrize("resize", ["crop", "fit", "stretch"])
@pytest.mark.parametrize("name", TASKS)
def test_y_is_the_resized_photo(name, resize, root):
    kind, options = TASKS[name]
    data = kind("train", root=root, size=SIZE, resize=resize, **options)
    for index, number in enumerate("012"):
        photo = np.asarray(Image.open(root / "train" / f"{number}.png"))
        _, y = to_visible(data, data[index])
        assert np.array_equal(y, resize_to(photo, SIZE, resize))


@pytest.mark.parametrize("resize", ["crop", "fit", "stretch"])
@pytest.mark.parametrize("name", ["inpaint", "inpaint-random", "super-resolve", "denoise"])
def test_x_is_aligned_with_y(name, resize, root):
    kind, options = TASKS[name]
    data = kind("train", root=root, size=SIZE, resize=resize, **options)
    for pair in data:
        x, y = pair.x.astype(float), pair.y.astype(float)
        visible = (x[..., :3] != 255).any(axis=2)
        assert visible.mean() > 0.7
        difference = (x[..., :2] - y[..., :2])[visible]
        assert np.abs(difference.mean(axis=0)).max() < 1, "a shift by one pixel changes 3 to 8 levels"
        assert np.abs(difference).max() < (30 if name == "denoise" else 13)


@pytest.mark.parametrize("output", ["ab", "rgb"])
def test_x_has_the_lightness_of_each_pixel_of_the_photo(output, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", photo)
    data = Colorize("train", root=tmp_path, output=output, size=SIZE, resize="none")
    x, y = to_visible(data, data[0])
    assert np.array_equal(y, photo)
    expected = np.asarray(Image.fromarray(photo).convert("L")).astype(float)
    assert np.corrcoef(x[..., 0].ravel().astype(float), expected.ravel())[0, 1] > (0.999 if output == "rgb" else 0.95)


def test_edges_are_where_the_photo_has_a_step(tmp_path):
    photo = np.full((64, 64, 3), 40, np.uint8)
    photo[:, 23:] = 200
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", photo)
    pair = Edges("train", root=tmp_path, size=(64, 64))[0]
    assert pair.x.shape == (64, 64, 1)
    assert set(np.unique(pair.x)) == {0, 255}
    columns = np.nonzero((pair.x[8:-8, 4:-4, 0] == 0).any(axis=0))[0] + 4
    assert set(columns) <= {22, 23}
    assert (pair.x[8:-8, 22:24, 0] == 0).any(axis=1).all(), "an unbroken line"


def test_lower_thresholds_find_weaker_edges(tmp_path):
    photo = np.full((64, 64, 3), 100, np.uint8)
    photo[:, 32:] = 112
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", photo)
    high, low = (Edges("train", root=tmp_path, size=(64, 64), **o)[0].x for o in ({}, {"low": 0.01, "high": 0.05}))
    inner = slice(8, -8), slice(8, -8)
    assert (high[inner] == 255).all()
    assert (low[inner] == 0).any()


@pytest.mark.parametrize("resize", ["crop", "fit", "stretch"])
def test_edge_files_are_matched_by_name_and_resized_like_their_photo(resize, root, tmp_path):
    for photo in root.rglob("*.png"):
        edges = np.asarray(Image.open(photo))[..., :1]
        save(tmp_path / "drawn" / photo.relative_to(root).with_suffix(".bmp"), edges)
    data = Edges("test", root=root, edges=tmp_path / "drawn", size=SIZE, resize=resize)
    for pair in data:
        assert np.array_equal(pair.x[..., 0], pair.y[..., 0])
    assert [[file.name for file in files] for files in data.files] == [[f"{n}.png", f"{n}.bmp"] for n in "012"]


# --- the size of the files -----------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path):
    """Photos of four times the size that the datasets bring them to."""
    for split in ("train", "val"):
        save(tmp_path / "large" / split / "a.png", coordinates(4 * SIZE[0], 4 * SIZE[1]))
    return tmp_path / "large"


@pytest.mark.parametrize("name", ["inpaint", "inpaint-random", "edges", "super-resolve", "denoise"])
def test_a_model_gets_inputs_at_their_own_size_where_x_is_made_after_the_photo_was_resized(name, large):
    kind, options = TASKS[name]
    layout = kind("train", root=large, size=SIZE, **options).file_layout
    assert layout.scale == (1, 1)
    assert layout.size is None, "it would be the size of photos, which a model never gets"


@pytest.mark.parametrize("output", ["ab", "rgb"])
def test_a_model_that_colours_photos_reduces_them_as_in_its_training(output, large):
    layout = Colorize("train", root=large, output=output, size=SIZE).file_layout
    assert (layout.scale, layout.size) == ((0.25, 0.25), (128, 192))


def test_a_model_reduces_edge_files_as_in_its_training_not_as_their_photos(large, tmp_path):
    for photo in large.rglob("*.png"):
        edges = np.zeros((2 * SIZE[0], 2 * SIZE[1], 1), np.uint8)
        save(tmp_path / "drawn" / photo.relative_to(large), edges)
    data = Edges("train", root=large, edges=tmp_path / "drawn", size=SIZE)
    assert (data.file_layout.scale, data.file_layout.size) == ((0.5, 0.5), (64, 96))
    assert data.file_shapes == [((64, 96, 1), (128, 192, 3))]


@pytest.mark.parametrize("name", TASKS)
def test_statistics_count_enlarged_photos(name, tmp_path):
    for split in ("train", "val"):
        for number, side in enumerate((8, 16, 64)):
            save(tmp_path / split / f"{number}.png", coordinates(side, side))
    kind, options = TASKS[name]
    stats = compute_stats(kind("train", root=tmp_path, size=(32, 32), **options))
    for image in ("x", "y"):
        assert stats[image]["enlarged"] == {"pairs": 2, "factor": 4.0}
        assert stats[image]["file_shapes"] == {"8×8×3": 1, "16×16×3": 1, "64×64×3": 1}


def test_a_photo_that_is_cut_out_but_not_resized_is_not_enlarged(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", coordinates(32, 90))
    assert compute_stats(Inpaint("train", root=tmp_path, size=(32, 32)))["y"]["enlarged"]["pairs"] == 0


def test_a_photo_without_a_readable_header_is_named_before_training_on_folds(root):
    broken(root / "train" / "1.png")
    with pytest.raises(UserError, match=r"train/1\.png"):
        assert Inpaint("train", root=root).file_shapes


# --- masks, noise, resolution ----------------------------------------------------------------------------------------


def test_the_centre_half_is_white_and_nothing_else(root):
    pair = Inpaint("train", root=root, size=(32, 48))[0]
    hidden = np.zeros((32, 48), bool)
    hidden[8:24, 12:36] = True
    assert (pair.x[hidden] == 255).all()
    assert np.array_equal(pair.x[~hidden], pair.y[~hidden])
    assert not (pair.y[hidden] == 255).all(axis=1).any()


def test_random_blocks_depend_on_the_photos_name_and_the_seed(root):
    def holes(**options):
        data = Inpaint("train", root=root, mask="random", opacity=True, size=(64, 64), **options)
        return [pair.x[..., 3] for pair in data]

    first, again, other = holes(), holes(), holes(mask_seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0], first[1])
    for opacity in [*first, *other]:
        assert set(np.unique(opacity)) == {0, 255}
        assert 0.1 < (opacity == 0).mean() <= 0.25


def test_the_fourth_channel_is_transparent_where_the_photo_is_hidden(root):
    data = Inpaint("train", root=root, opacity=True, size=(32, 48))
    pair = data[0]
    assert pair.x.shape == (32, 48, 4)
    assert data.file_layout.alpha
    assert not Inpaint("train", root=root, size=(32, 48)).file_layout.alpha
    assert np.array_equal(pair.x[..., 3] == 0, (pair.x[..., :3] == 255).all(axis=2))


def grey_photos(folder, levels, size=(128, 128)):
    for split in ("train", "val"):
        for level in levels:
            save(folder / split / f"{level}.png", np.full((*size, 3), level, np.uint8))
    return folder


def test_gaussian_noise_has_the_deviation_sigma(tmp_path):
    [pair] = Denoise("train", root=grey_photos(tmp_path, [128]), sigma=10, size=(128, 128))
    noise = pair.x.astype(float) - pair.y
    assert noise.std() == pytest.approx(10, rel=0.03)
    assert abs(noise.mean()) < 0.3
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.05, "channels are independent"


def test_the_variance_of_shot_noise_is_proportional_to_the_level(tmp_path):
    data = Denoise("train", root=grey_photos(tmp_path, [60, 120]), sigma=0, photons=100, size=(128, 128))
    for pair in data:
        level = int(pair.y[0, 0, 0])
        assert pair.x.mean() == pytest.approx(level, abs=1)
        assert pair.x.std() == pytest.approx((level * 255 / 100) ** 0.5, rel=0.05)


def test_noise_is_reproducible_and_differs_between_photos(tmp_path):
    root = grey_photos(tmp_path, [100, 101])
    one, again, other = (Denoise("train", root=root, noise_seed=seed, size=(128, 128)) for seed in (0, 0, 1))
    assert np.array_equal(one[0].x, again[0].x)
    assert not np.array_equal(one[0].x, other[0].x)
    a, b = (pair.x.astype(float) - pair.y for pair in one)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_low_resolution_loses_finer_detail(factor, tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # two pixels per period: too fine for any smaller image
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", stripes)
    [pair] = SuperResolve("train", root=tmp_path, factor=factor, size=(64, 64))
    inner = pair.x[16:-16, 16:-16].astype(float)
    assert np.abs(inner - 127.5).max() < 26
    assert pair.x.shape == pair.y.shape


# --- folders ---------------------------------------------------------------------------------------------------------


def test_photos_in_nested_folders_belong_to_their_split(tmp_path):
    for place in ("train/n01/a", "train/n02/a", "train/n02/deep/b", "val/n01/c"):
        save(tmp_path / f"{place}.png", coordinates(32, 32))
    save(tmp_path / "train" / ".hidden" / "x.png", coordinates(32, 32))
    train = Inpaint("train", root=tmp_path, size=(32, 32))
    assert [pair.id for pair in train] == ["train-n01-a", "train-n02-a", "train-n02-deep-b"]
    assert [pair.id for pair in Inpaint("val", root=tmp_path, size=(32, 32))] == ["val-n01-c"]


def test_a_circular_link_is_followed_once(tmp_path):
    for number in range(20):
        save(tmp_path / "here" / f"{number}.png", coordinates(32, 32))
    (tmp_path / "here" / "again").symlink_to(tmp_path / "here")
    assert sum(len(Inpaint(split, root=tmp_path / "here")) for split in ("train", "val", "test")) == 20


def test_without_sub_folders_photos_are_assigned_by_name_and_keep_their_split(tmp_path):
    def ids():
        return {s: {pair.id for pair in Inpaint(s, root=tmp_path, size=(16, 16))} for s in ("train", "val", "test")}

    for number in range(40):
        save(tmp_path / f"{number}.png", coordinates(16, 16))
    before = ids()
    save(tmp_path / "more.png", coordinates(16, 16))
    after = ids()
    assert all(before[split] <= after[split] for split in before)
    assert sum(map(len, before.values())) == 40
    assert all(before.values())


def test_the_fingerprint_changes_with_the_files(root):
    before = Inpaint("train", root=root).fingerprint
    assert Inpaint("train", root=root).fingerprint == before
    save(root / "train" / "new.png", coordinates(20, 20))
    assert Inpaint("train", root=root).fingerprint != before


def test_max_pairs_keeps_the_first_by_name(root):
    assert [pair.id for pair in Inpaint("train", root=root, max_pairs=2)] == ["train-0", "train-1"]


# --- faults ----------------------------------------------------------------------------------------------------------


def broken(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def transparent(path):
    save(path, np.dstack([coordinates(32, 32), np.zeros((32, 32, 1), np.uint8)]))


def sixteen_bits(path):
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"), [(broken, "cannot be read"), (transparent, "transparent"), (sixteen_bits, "8 bits")]
)
@pytest.mark.parametrize("name", TASKS)
def test_an_unusable_photo_is_named(name, damage, message, root):
    kind, options = TASKS[name]
    damage(root / "train" / "1.png")
    data = kind("train", root=root, size=(32, 32), **options)
    with pytest.raises(UserError, match=rf"train/1\.png.*{message}"):
        data[1]
    assert data[0].id == "train-0"


def test_another_size_is_named_if_resize_is_none(root):
    data = Inpaint("train", root=root, size=(64, 96), resize="none")
    assert data[0].y.shape == (64, 96, 3)
    with pytest.raises(UserError, match=r"1\.png: is 40×50 px, and size is 96×64 px.*crop"):
        data[1]


def test_grey_photos_become_rgb(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", coordinates(32, 32)[..., :1])
    assert Inpaint("train", root=tmp_path, size=(32, 32))[0].y.shape == (32, 32, 3)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Colorize("train", root=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected images"):
        Colorize("train", root=tmp_path / "empty")


def test_two_photos_with_one_name_are_refused(tmp_path):
    for name in ("train/a/b.png", "train/a/b.jpg", "val/c.png"):
        save(tmp_path / name, coordinates(32, 32))
    with pytest.raises(UserError, match=r"a/b\.jpg and a/b\.png"):
        Colorize("train", root=tmp_path)


def test_a_photo_without_edges_is_refused(root, tmp_path):
    for photo in root.rglob("*.png"):
        save(tmp_path / "drawn" / photo.relative_to(root), np.asarray(Image.open(photo))[..., :1])
    (tmp_path / "drawn" / "val" / "1.png").unlink()
    with pytest.raises(UserError, match=r"without a partner[\s\S]*1\.png"):
        Edges("train", root=root, edges=tmp_path / "drawn")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: save(path, coordinates(64, 64)[..., :1]), "one size"),
        (lambda path: save(path, coordinates(64, 96)), "grey"),
    ],
)
def test_edges_that_do_not_fit_their_photo_are_named(damage, message, root, tmp_path):
    for photo in root.rglob("*.png"):
        save(tmp_path / "drawn" / photo.relative_to(root), np.asarray(Image.open(photo))[..., :1])
    damage(tmp_path / "drawn" / "train" / "0.png")
    with pytest.raises(UserError, match=rf"drawn/train/0\.png.*{message}"):
        Edges("train", root=root, edges=tmp_path / "drawn", size=SIZE)[0]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SuperResolve, {"factor": 8, "size": (36, 64)}, r"\[32, 64\]"),
        (Denoise, {"sigma": 0.0}, "no noise"),
        (Inpaint, {"mask_seed": 1}, "random"),
        (Edges, {"low": 0.5, "high": 0.3}, "must not be above"),
        (Edges, {"edges": "drawn", "sigma": 2.0}, "sigma is a parameter of Canny"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(kind, options, message, root):
    with pytest.raises(ValueError, match=message):
        kind("train", root=root, **options)
