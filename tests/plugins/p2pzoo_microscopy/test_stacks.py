"""The dataset `stacks`: windows of planes, frames and channels, scales, blocks, and refusals in one line."""

import re
import warnings

import numpy as np
import pytest
import tifffile
from p2pzoo_microscopy import stack_files
from p2pzoo_microscopy.stack_files import open_stack
from p2pzoo_microscopy.stacks import Stacks
from stack_pairs import cells, damage_page, ome, write_pairs, write_stack

from p2pzoo.utils.errors import SharedFault, UserError
from p2pzoo.utils.folds import Fold

pytestmark = pytest.mark.usefixtures("own_cache")
SPLITS = ("train", "val", "test")
SCALES = {"x_scale": (0, 5000), "y_scale": (0, 5000)}
ONE_FILE = {"x_channels": ("BF",), "y_channels": ("DAPI",)}


def stacks(folder, split="train", **parameters):
    """The dataset of two folders; with targets=None of one."""
    values = {"size": 32, "fractions": (0.5, 0.25, 0.25), "split_seed": 3, **SCALES, **parameters}
    return Stacks(split, **{"inputs": folder / "inputs", "targets": folder / "targets", **values})


def every_pair(folder, **parameters):
    return {pair.id: pair for split in SPLITS for pair in stacks(folder, split, **parameters)}


def faults(folder, **parameters):
    with pytest.raises(UserError) as error:
        stacks(folder, **parameters)
    assert all("\n" not in fault for fault in error.value.faults if not isinstance(fault, SharedFault))
    return error.value.faults


def test_windows_have_the_values_of_their_place(tmp_path):
    write_pairs(tmp_path, t=2, z=3)
    pairs = every_pair(tmp_path)
    assert len(pairs) == 4 * 2 * 3 * 2 * 2
    values = cells(t=2, z=3, seed=1)
    pair = pairs["01-t2-z3-r32-c32"]
    assert (pair.x.dtype, pair.x.shape, pair.labels) == (np.uint16, (32, 32, 1), None)
    assert np.array_equal(pair.x[..., 0], values[1, 2, 0, 32:, 32:64])
    assert np.array_equal(pair.y[..., 0], values[1, 2, 1, 32:, 32:64])


FORMATS = {  # options of tifffile.imwrite
    "OME, tiles": {"ome": True, "metadata": ome(), "tile": (16, 48), "compression": "zlib", "predictor": True},
    "OME, strips": {"ome": True, "metadata": ome(), "rowsperstrip": 7, "compression": "zlib"},
    "OME, contiguous": {"ome": True, "metadata": ome()},
    "OME, big endian": {"ome": True, "metadata": ome(), "byteorder": ">", "bigtiff": True},
    "ImageJ": {"imagej": True, "metadata": {"axes": "TZCYX"}},
    "plain": {"metadata": {"axes": "TZCYX"}},
    "plain, tiles": {"metadata": {"axes": "TZCYX"}, "tile": (32, 32)},
}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_values(tmp_path, options):
    values = cells(t=2, z=3)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", **options)
    stack = open_stack(tmp_path / "a.tif")
    assert [stack.sizes[axis] for axis in "TZCYX"] == [2, 3, 2, 64, 80]
    for box in (stack_files.Box(0, 64, 0, 80), stack_files.Box(5, 37, 41, 80), stack_files.Box(63, 64, 79, 80)):
        read = stack.read(1, 1, 2, box)
        assert read.dtype == np.uint16
        assert np.array_equal(read, values[1, 2, 1, box.top : box.bottom, box.left : box.right])


def test_x_and_y_can_be_channels_of_one_file(tmp_path):
    for number in range(4):
        write_stack(tmp_path / "inputs" / f"{number}.ome.tif", cells(seed=number))
    dataset = stacks(tmp_path, targets=None, **ONE_FILE)
    by_number = stacks(tmp_path, targets=None, x_channels=(1,), y_channels=(2,))
    assert np.array_equal(dataset[0].x, by_number[0].x)
    assert dataset.file_layout.stack["y"]["names"] == ["DAPI"]
    assert not np.array_equal(dataset[0].x, dataset[0].y)
    with pytest.raises(ValueError, match="name their channels"):
        stacks(tmp_path, targets=None)
    [fault, *_] = faults(tmp_path, targets=None, x_channels=("BF",), y_channels=(1,))
    assert "0.ome.tif: channel 1 is both in x_channels and in y_channels" in fault


def test_names_may_end_differently_in_the_two_folders(tmp_path):
    for number in range(3):
        write_stack(tmp_path / "inputs" / f"{number}_BF.ome.tif", cells(c=1, seed=number), ("BF",))
        write_stack(tmp_path / "targets" / f"{number}.tif", cells(c=1, seed=number), ("DAPI",))
    pairs = every_pair(tmp_path, input_suffix="_BF.ome", fractions=(0.4, 0.3, 0.3), split_seed=2)
    assert {name.partition("-")[0] for name in pairs} == {"0", "1", "2"}


@pytest.mark.parametrize(("z", "project"), [("max", np.max), ("mean", lambda v, axis: np.rint(v.mean(axis=axis)))])
def test_a_projection_is_one_image_of_the_stacks_dtype(tmp_path, z, project):
    write_pairs(tmp_path, z=4)
    pairs = every_pair(tmp_path, z=z)
    values = cells(z=4, seed=2)
    assert len(pairs) == 4 * 4
    pair = pairs["02-r0-c32"]
    assert pair.x.dtype == np.uint16
    for side, channel in ((pair.x, 0), (pair.y, 1)):
        assert np.array_equal(side[..., 0], project(values[0, :, channel, :32, 32:64], axis=0))


def test_neighbouring_planes_are_channels_of_x_and_repeat_at_the_ends(tmp_path):
    write_pairs(tmp_path, z=5, c=3, names=(("BF", "PH"), ("DAPI",)))
    pairs = every_pair(tmp_path, z="channels", z_window=3)
    values = cells(z=5, c=3, seed=0)
    first, middle = pairs["00-z1-r0-c0"], pairs["00-z3-r0-c0"]
    assert middle.x.shape == (32, 32, 6)
    assert middle.y.shape == (32, 32, 1)
    assert np.array_equal(middle.x.transpose(2, 0, 1)[:3], values[0, 1:4, 0, :32, :32])
    assert np.array_equal(middle.x.transpose(2, 0, 1)[3:], values[0, 1:4, 1, :32, :32])
    assert np.array_equal(first.x.transpose(2, 0, 1)[:3], values[0, [0, 0, 1], 0, :32, :32])
    assert np.array_equal(middle.y[..., 0], values[0, 2, 2, :32, :32])


def test_one_plane_can_be_chosen_and_a_target_without_planes_goes_with_it(tmp_path):
    for number in range(4):
        write_stack(tmp_path / "inputs" / f"{number}.tif", cells(z=4, c=1, seed=number), ("BF",))
        write_stack(tmp_path / "targets" / f"{number}.tif", cells(c=1, seed=number), ("DAPI",))
    pair = every_pair(tmp_path, z=3)["2-r0-c0"]
    assert np.array_equal(pair.x[..., 0], cells(z=4, c=1, seed=2)[0, 2, 0, :32, :32])
    assert np.array_equal(pair.y[..., 0], cells(c=1, seed=2)[0, 0, 0, :32, :32])


def test_frames_can_be_chosen(tmp_path):
    write_pairs(tmp_path, t=3)
    assert {name.split("-")[1] for name in every_pair(tmp_path, t=(1, 3))} == {"t1", "t3"}
    [fault, *_] = faults(tmp_path, t=(4,))
    assert "00.tif: t = 4: it has 3 frames" in fault


def test_a_block_is_a_file_or_what_its_name_says(tmp_path):
    values = {name: cells(t=2, seed=seed) for seed, name in enumerate(("p1_A1_f1", "p1_A1_f2", "p1_B1_f1", "p2_A1_f1"))}
    for name, each in values.items():
        write_stack(tmp_path / "inputs" / f"{name}.tif", each)
    one = {"targets": None, **ONE_FILE}
    files = {pair.block for pair in every_pair(tmp_path, split_seed=1, **one).values()}
    assert files == {*values}
    wells = [
        {*stacks(tmp_path, split, block="_([A-H][0-9]+)_", split_seed=10, **one).blocks} for split in ("train", "val")
    ]
    assert wells in ([{"A1"}, {"B1"}], [{"B1"}, {"A1"}])
    plates = every_pair(tmp_path, block="p[0-9]", split_seed=3, **one)
    assert {pair.block for pair in plates.values()} == {"p1", "p2"}
    [fault, *_] = faults(tmp_path, block="_([K-Z])_", **one)
    assert "finds nothing in its name" in fault
    with pytest.raises(ValueError, match="is no regular expression"):
        stacks(tmp_path, block="(", **one)


def test_splits_are_folders_where_there_are_some(tmp_path):
    for seed, split in enumerate(SPLITS):
        for name in ("A1_f1", "A1_f2"):
            write_stack(tmp_path / "inputs" / split / f"{name}.tif", cells(seed=seed))
    one = {"targets": None, **ONE_FILE}
    blocks = [{*stacks(tmp_path, split, **one).blocks} for split in SPLITS]
    assert blocks == [{f"{split}-A1_f1", f"{split}-A1_f2"} for split in SPLITS]
    fault = faults(tmp_path, block="[A-H][0-9]", **one)[0]
    assert "its block A1 is in train/ too" in fault


def test_folds_are_made_of_blocks(tmp_path):
    write_pairs(tmp_path, count=5)
    tested = []
    for fold in range(3):
        parts = {s: Fold(fold, 3).open(lambda split: stacks(tmp_path, split), s) for s in SPLITS}
        blocks = {s: {pair.block for pair in (part[i] for i in range(len(part)))} for s, part in parts.items()}
        assert not blocks["train"] & blocks["test"]
        tested += blocks["test"]
    assert sorted(tested) == [f"{number:02d}" for number in range(5)]


def test_few_windows_are_spread_evenly_and_keep_their_blocks(tmp_path):
    write_pairs(tmp_path, t=3)
    whole, few = stacks(tmp_path), stacks(tmp_path, max_pairs=5)
    assert len(few) == 5
    assert {pair.id for pair in few} < {pair.id for pair in whole}
    assert [*few.blocks] == [pair.block for pair in few]
    assert few.files[4][0].stem == few[4].block


def test_percentiles_are_those_of_training_windows_in_every_split(tmp_path):
    write_pairs(tmp_path)
    train, test = stacks(tmp_path, x_scale="percentiles"), stacks(tmp_path, "test", x_scale="percentiles")
    assert train.x_bands == test.x_bands
    raw = np.concatenate([pair.x.ravel() for pair in stacks(tmp_path, x_scale=(0, 60000))])
    low, high = np.percentile(raw.astype(float), (0.1, 99.9))
    assert train.x_range == (np.floor(low), np.ceil(high))
    assert all(train.x_range[0] <= pair.x.min() <= pair.x.max() <= train.x_range[1] for pair in test)
    assert train.file_layout.stack["x"]["scales"] == [[np.floor(low), np.ceil(high)]]


def test_each_channel_can_have_its_own_scale(tmp_path):
    write_pairs(tmp_path, c=3, names=(("BF", "PH"), ("DAPI",)))
    dataset = stacks(tmp_path, x_scale=((0, 4000), (0, 8000)))
    plain = stacks(tmp_path, x_scale=(0, 60000))[0].x.astype(float)
    assert (dataset.x_range, dataset[0].x.dtype) == ((0.0, 1.0), np.float32)
    assert np.allclose(dataset[0].x, (plain / (4000, 8000)).clip(0, 1), atol=1e-6)
    assert faults(tmp_path, x_scale=((0, 1),) * 3)[0].startswith("x_scale has 3 scales for 2 channels")


def test_values_that_are_no_numbers_have_the_lower_end(tmp_path):
    values = cells().astype("float32")
    values[..., 3, 5] = np.nan
    for number in range(4):
        write_stack(tmp_path / "inputs" / f"{number}.tif", values)
    pair = every_pair(tmp_path, targets=None, x_scale="percentiles", y_scale=(100, 5000), **ONE_FILE)["0-r0-c0"]
    assert np.isfinite(pair.x).all()
    assert pair.y[3, 5, 0] == 100


def test_one_series_of_several_is_chosen(tmp_path):
    for folder, c, names in (("inputs", 0, ("BF",)), ("targets", 1, ("DAPI",))):
        for number in range(4):
            (tmp_path / folder).mkdir(exist_ok=True)
            with tifffile.TiffWriter(tmp_path / folder / f"{number}.tif", ome=True) as writer:
                for seed in (7, number):
                    writer.write(cells(seed=seed)[:, :, c : c + 1], metadata=ome(names), photometric="minisblack")
    [fault, *_] = faults(tmp_path)
    assert "0.tif: has 2 series, 1 (YX 64 × 80), 2 (YX 64 × 80): choose one with `series`" in fault
    assert np.array_equal(every_pair(tmp_path, series=2)["1-r0-c0"].x[..., 0], cells(seed=1)[0, 0, 0, :32, :32])
    assert "series = 3: it has series 1 to 2" in faults(tmp_path, series=3)[0]


def test_of_a_pyramid_the_full_resolution_is_read(tmp_path):
    values = cells(height=128, width=128)[0, 0]
    for number in range(4):
        (tmp_path / "inputs").mkdir(exist_ok=True)
        with tifffile.TiffWriter(tmp_path / "inputs" / f"{number}.ome.tif", ome=True) as writer:
            options = {"tile": (64, 64), "photometric": "minisblack"}
            writer.write(values, subifds=1, metadata={**ome(), "axes": "CYX"}, **options)
            writer.write(values[:, ::2, ::2], subfiletype=1, **options)
    pair = every_pair(tmp_path, targets=None, **ONE_FILE)["0.ome-r96-c64"]
    assert np.array_equal(pair.x[..., 0], values[0, 96:, 64:96])


def test_axes_that_a_file_does_not_say_are_given(tmp_path):
    for folder, seed in (("inputs", 0), ("targets", 1)):
        for number in range(4):
            (tmp_path / folder).mkdir(exist_ok=True)
            with tifffile.TiffWriter(tmp_path / folder / f"{number}.tif") as writer:
                for plane in cells(z=5, c=1, seed=seed)[0, :, 0]:
                    writer.write(plane, metadata=None)
    [fault, *_] = faults(tmp_path)
    assert '0.tif: IYX 5 × 64 × 80: it does not say what I is: set `axes`, such as "ZYX"' in fault
    assert {name.split("-")[1] for name in every_pair(tmp_path, axes="TYX")} == {f"t{number}" for number in range(1, 6)}
    assert 'axes = "TZYX" does not fit: give 3 of T Z C Y X' in faults(tmp_path, axes="TZYX")[0]
    assert 'axes = "YXZ": must end with YX' in faults(tmp_path, axes="YXZ")[0]


def test_imagej_gives_pixel_sizes(tmp_path):
    values = cells(z=3, c=1)[:, :, 0]
    metadata = {"axes": "TZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata=metadata, resolution=(4, 4))
    metadata = open_stack(tmp_path / "a.tif").metadata
    assert [metadata.micrometres(axis) for axis in "XYZ"] == [0.25, 0.25, 2.0]


BAD_PAIRS = {  # what is wrong: (options of write_stack for y, shape of y, parameters, message)
    "no channel": ({}, {}, {"y_channels": ("dapy",)}, "no channel is named 'dapy'; it has the channel DAPI"),
    "no number": ({}, {}, {"x_channels": (2,)}, "there is no channel 2; it has the channel BF"),
    "pixels": ({"pixel": {"X": 0.65, "Y": 0.65}}, {}, {}, "pixel sizes differ along X, 0.325 and 0.65 µm"),
    "depth of pixels": ({"pixel": {"Z": 2.0}}, {}, {}, "pixel sizes differ along Z, 1 and 2 µm"),
    "sizes": ({}, {"width": 64}, {}, "sizes differ, 80×64 and 64×64 px"),
    "frames": ({}, {"t": 3}, {}, "lengths differ, 2 frames and 3 frames"),
    "planes": ({}, {"z": 1}, {}, "depths differ, 2 planes and 1 plane: project both"),
    "window": ({}, {}, {"z": "channels", "z_window": 5}, "has 2 planes, and z_window = 5 needs 5"),
    "plane": ({}, {}, {"z": 4}, "has 2 planes, and z = 4"),
    "small": ({}, {}, {"size": 128}, "is 80×64 px, smaller than a window of 128 px"),
    "unnamed": ({"names": None}, {}, {"y_channels": ("DAPI",)}, "because its OME metadata name no channels: give"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "shape", "parameters", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_pairs_that_do_not_fit_are_refused_in_one_line(tmp_path, options, shape, parameters, message):
    for number in range(4):
        write_stack(tmp_path / "inputs" / f"{number}.tif", cells(t=2, z=2, c=1), ("BF",))
        values = cells(**{"t": 2, "z": 2, "c": 1, **shape})
        write_stack(tmp_path / "targets" / f"{number}.tif", values, **{"names": ("DAPI",), **options})
    found = faults(tmp_path, **parameters)
    assert len(found) == 4
    assert message in found[0]
    assert ".tif" in found[0]


def test_faults_of_all_kinds_are_named_together(tmp_path):
    write_pairs(tmp_path, count=5)
    (tmp_path / "targets" / "04.tif").unlink()
    for side in ("inputs", "targets"):
        (tmp_path / side / "01.tif").write_text("no TIFF")
    write_stack(tmp_path / "targets" / "02.tif", cells(c=1, t=2, width=96), ("DAPI",), {"X": 0.65, "Y": 0.65})
    found = faults(tmp_path)
    for message in (
        "inputs: 1 of 5 images without a partner of the same name in",
        f"{tmp_path / 'inputs' / '01.tif'}: cannot be read",
        f"{tmp_path / 'targets' / '01.tif'}: cannot be read",
        "02.tif: sizes differ, 80×64 and 96×64 px",
        "02.tif: lengths differ, 1 frame and 2 frames",
        "02.tif: pixel sizes differ along X, 0.325 and 0.65 µm",
    ):
        assert sum(message in str(fault) for fault in found) == 1, message
    assert len(found) == 6


def test_names_need_metadata_of_ome(tmp_path):
    for number in range(4):
        (tmp_path / "inputs").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "inputs" / f"{number}.tif", cells(), imagej=True, metadata={"axes": "TZCYX"})
    [fault, *_] = faults(tmp_path, targets=None, **ONE_FILE)
    assert "no channel is named 'BF', because it has no OME metadata: give numbers, 1 to 2" in fault


def test_files_that_are_no_stacks_are_refused_in_one_line(tmp_path, capfd):
    write_pairs(tmp_path, count=5)
    good = (tmp_path / "inputs" / "00.tif").read_bytes()
    (tmp_path / "inputs" / "01.tif").write_text("no TIFF")
    (tmp_path / "inputs" / "02.tif").write_bytes(good[:60])
    tifffile.imwrite(tmp_path / "inputs" / "03.tif", np.zeros((64, 80, 3), "uint8"), photometric="rgb")
    tifffile.imwrite(tmp_path / "inputs" / "04.tif", np.zeros((64, 80), "complex64"))
    found = faults(tmp_path)
    assert len(found) == 4
    assert "01.tif: cannot be read as a TIFF" in found[0]
    assert "02.tif: cannot be read as a TIFF" in found[1]
    assert "03.tif: is a colour picture (YXS 64 × 80 × 3)" in found[2]
    assert "04.tif: values of complex64 cannot be used" in found[3]
    assert capfd.readouterr().err == ""


def read_all(path):
    stack = open_stack(path)
    for t in range(3):
        for channel in range(2):
            stack.read(channel, t, 0, stack_files.Box(0, 64, 0, 80))


@pytest.mark.parametrize("options", [{}, {"tile": None, "compression": None}])
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_file_that_ends_early_is_named(tmp_path, capfd, options, kept):
    path = write_stack(tmp_path / "a.tif", cells(t=3), **options)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"a\.tif: cannot be read .*the file is damaged") as error:
        read_all(path)
    assert len(error.value.faults) == 1
    assert capfd.readouterr().err == ""


def test_damaged_values_are_named_with_their_place(tmp_path):
    path = write_stack(tmp_path / "a.tif", cells(t=3))
    damage_page(path, 3)
    with pytest.raises(UserError, match="cannot be read at channel 2, frame 2, plane 1"):
        read_all(path)


def test_files_with_other_channels_are_refused_together(tmp_path):
    write_pairs(tmp_path)
    write_stack(tmp_path / "inputs" / "02.tif", cells(c=2, seed=2), ("BF", "PH"))
    [fault] = faults(tmp_path)
    assert "channels differ, 1 of uint16 with 1 of uint16 and 2 of uint16 with 1 of uint16" in fault


@pytest.mark.parametrize("numbers", [None, (1, 2)])
def test_channels_in_another_order_are_refused_unless_they_are_chosen_by_name(tmp_path, numbers):
    write_pairs(tmp_path, c=3, names=(("BF", "PH"), ("DAPI",)))
    values = cells(c=3, seed=2)
    write_stack(tmp_path / "inputs" / "02.tif", values[:, :, [1, 0]], ("PH", "BF"))
    [fault] = faults(tmp_path, x_channels=numbers)
    assert re.search(r"00\.tif and .*02\.tif: channel 1 of x is 'BF' and 'PH': .* name them in x_channels", fault)
    pair = every_pair(tmp_path, x_channels=("BF", "PH"))["02-r0-c0"]
    assert np.array_equal(pair.x.transpose(2, 0, 1), values[0, 0, :2, :32, :32])


def test_a_channel_without_a_name_fits_all(tmp_path):
    write_pairs(tmp_path)
    write_stack(tmp_path / "inputs" / "02.tif", cells(c=1, seed=2), None)
    assert len(every_pair(tmp_path)) == 4 * 4


@pytest.mark.parametrize(("size", "share"), [(32, "20%"), (16, None)])
def test_the_share_of_pixels_that_no_window_reaches_is_said(tmp_path, size, share):
    write_pairs(tmp_path)  # 64 × 80 px
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stacks(tmp_path, size=size)
    lines = [str(each.message) for each in caught if not issubclass(each.category, ResourceWarning)]  # of other tests
    assert len(lines) == bool(share)
    pattern = (
        f"inputs: {share} of the pixels, at the right and lower edges of planes, are in no window: choose a `size`"
    )
    assert all(pattern in line for line in lines)


@pytest.mark.parametrize("pixel", [0.33, 0.65])
def test_pairs_with_pixels_of_another_size_are_warned_of(tmp_path, pixel):
    write_pairs(tmp_path)
    for side, name in (("inputs", "BF"), ("targets", "DAPI")):
        write_stack(tmp_path / side / "02.tif", cells(c=1, seed=2), (name,), {"X": pixel, "Y": pixel})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stacks(tmp_path)
    lines = [str(each.message) for each in caught if "differ in size" in str(each.message)]
    assert len(lines) == (pixel == 0.65)
    assert all(
        re.search(r"00\.tif and .*02\.tif: pixels differ in size along X, 0\.325 and 0\.65 µm", e) for e in lines
    )


def test_stacks_of_another_dtype_are_to_be_converted(tmp_path):
    write_pairs(tmp_path)
    write_stack(tmp_path / "inputs" / "02.tif", cells(c=1, seed=2).astype("float32"), ("BF",))
    assert "convert them to one dtype" in faults(tmp_path)[0]


def test_a_file_that_changes_is_read_again(tmp_path):
    write_pairs(tmp_path)
    before = stacks(tmp_path, x_scale="percentiles")
    name = before[0].block
    write_stack(tmp_path / "inputs" / f"{name}.tif", cells(seed=9, c=1) * 2, ("BF",))
    after = stacks(tmp_path, x_scale="percentiles")
    assert after.fingerprint != before.fingerprint
    assert after.x_range[1] > 1.5 * before.x_range[1]


def test_without_tifffile_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ome_types", None)
    [fault] = faults(tmp_path)
    assert "pip install 'p2pzoo[microscopy]'" in fault


def test_parameters_that_do_not_fit_each_other_are_refused(tmp_path):
    for parameters, message in (
        ({"z_window": 3}, 'z_window = 3 needs z = "channels"'),
        ({"z": "channels", "z_window": 4}, "must be odd"),
        ({"targets": None, "input_suffix": "_x"}, "need `targets`"),
    ):
        with pytest.raises(ValueError, match=message):
            stacks(tmp_path, **parameters)
