"""The dataset `volumes`: orientation, windows, masks, patients, DICOM, refusals in one line."""

import gzip
import re
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import p2pzoo_medical
import pytest
from p2pzoo_medical import copies
from p2pzoo_medical.units import NOTICE, Trained, Units, common_dtype
from p2pzoo_medical.volumes import Volumes
from phantoms import AFFINE, SHAPE, head, read, reoriented, write_nifti, write_pairs, write_series

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.folds import Fold

pytestmark = pytest.mark.usefixtures("own_cache")
SPLITS = ("train", "val", "test")


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path)
    return tmp_path


def volumes(folder, split="train", **parameters):
    """With a seed that gives each split a patient, unless one is given: the message names it."""
    values = {"fractions": (0.5, 0.25, 0.25), "skip_empty": False, "x_window": (0, 1000), "y_window": (-1000, 1500)}
    values |= {"inputs": folder / "inputs", "targets": folder / "targets", **parameters}
    try:
        return Volumes(split, **values)
    except UserError as error:
        _, found, seed = str(error).rpartition("set split_seed = ")
        if not found or "split_seed" in parameters:
            raise
        return Volumes(split, **values, split_seed=int(seed))


def all_pairs(folder, **parameters):
    return [pair for split in SPLITS for pair in volumes(folder, split, **parameters)]


def fault(folder, **parameters):
    with pytest.raises(UserError) as error:
        volumes(folder, **parameters)
    [line] = error.value.faults
    assert "\n" not in line.strip()
    return line


def index_of(pair):
    return int(pair.id.rpartition("-")[2])


# --- orientation and slices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_are_as_radiologists_look_at_them(tmp_path, axis):
    """A bright voxel at the patient's right, front and head is up, and left in the picture."""
    values = np.zeros(SHAPE, np.int16)
    across, front, up = 3, 4, 8  # from the patient's right; from the front; from the feet: the affine is LPS
    values[across, front, up] = 1000
    for name in ("a", "b", "c", "d"):
        for side in ("inputs", "targets"):
            write_nifti(tmp_path / side / f"{name}.nii", values, AFFINE)
    pairs = [pair for pair in all_pairs(tmp_path, axis=axis, x_window=(0, 1000)) if pair.x.any()]
    assert len(pairs) == 4
    [place] = np.argwhere(pairs[0].x[..., 0]).tolist()
    from_top = SHAPE[2] - 1 - up
    expected = {"axial": [front, across], "coronal": [from_top, across], "sagittal": [from_top, front]}[axis]
    number = {"axial": up, "coronal": SHAPE[1] - 1 - front, "sagittal": SHAPE[0] - 1 - across}[axis]
    assert (place, index_of(pairs[0])) == (expected, number)


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("S", "P", "R"), ("A", "I", "L")])
def test_how_a_file_stores_its_axes_changes_nothing(folder, codes):
    before = all_pairs(folder, axis="coronal")
    for path in (folder / "inputs").iterdir():
        write_nifti(path, *reoriented(*read(path), codes))
    after = all_pairs(folder, axis="coronal")
    assert [pair.id for pair in after] == [pair.id for pair in before]
    assert all(np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y) for a, b in zip(before, after, strict=True))


def test_neighbouring_slices_are_channels(folder):
    single, triple = volumes(folder), volumes(folder, slices=3)
    for number in (0, 4, SHAPE[2] - 1):
        expected = [single[min(max(n, 0), SHAPE[2] - 1)].x[..., 0] for n in (number - 1, number, number + 1)]
        assert np.array_equal(triple[number].x, np.stack(expected, axis=-1))
        assert np.array_equal(triple[number].y, single[number].y)
    with pytest.raises(ValueError, match="odd number"):
        volumes(folder, slices=2)


def test_slices_are_cropped_and_padded_around_their_centre(folder):
    small, plain = volumes(folder, size=(20, 40))[4], volumes(folder)[4]
    assert small.x.shape == (20, 40, 1)
    assert np.array_equal(small.x[:, 8:-8], plain.x[6:-6])
    assert (small.y[:, :8] == -1000).all()


def test_volumes_of_different_sizes_need_a_size(folder):
    write_nifti(folder / "inputs" / "x.nii.gz", head(9, (20, 32, 10))[0], AFFINE)
    write_nifti(folder / "targets" / "x.nii.gz", head(9, (20, 32, 10))[1], AFFINE)
    assert "axial slices have different sizes" in fault(folder)
    assert "size = [32, 24]" in fault(folder)
    assert volumes(folder, size=16)[0].x.shape == (16, 16, 1)


def test_windows_are_measured_on_training_slices_and_clip(folder):
    dataset = volumes(folder, x_window="percentiles", y_window=(-500, 100))
    raw = np.concatenate([pair.x.ravel() for pair in volumes(folder, x_window=(-(2**15), 2**15))])
    assert dataset.x_range == (np.floor(np.percentile(raw, 0.1)), np.ceil(np.percentile(raw, 99.9)))
    assert volumes(folder, "test", x_window="percentiles").x_range == dataset.x_range
    assert (dataset[4].y.min(), dataset[4].y.dtype) == (-500, np.float32)
    assert "the first number must be lower" in fault(folder, y_window=(5, 5))


def test_dtype_and_rescale_of_nifti(folder):
    for number, path in enumerate(sorted((folder / "inputs").iterdir())):
        values = (head(number)[0] // 8).clip(0, 255)
        image = nibabel.Nifti1Image(values.astype(np.uint8), AFFINE)
        image.set_sform(AFFINE, 1)
        nibabel.save(image, path)
    assert volumes(folder, x_window=(0, 255))[4].x.dtype == np.uint8
    for path in sorted((folder / "inputs").iterdir()):
        image = nibabel.load(path)
        image.header.set_slope_inter(2.5, -10)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj.get_unscaled()), AFFINE, image.header)
        image.header.set_slope_inter(2.5, -10)
        image.to_filename(path)
    expected = nibabel.load(sorted((folder / "inputs").iterdir())[0]).get_fdata()
    assert expected.max() > 255
    pair = next(pair for pair in all_pairs(folder, x_window=(-100, 1000)) if pair.id == "patient-01-axial-004")
    assert np.allclose(pair.x[..., 0], expected[..., 4].T, atol=1e-3)  # LPS is how slices are shown


def test_values_that_are_no_numbers_are_the_lower_end(folder):
    for path in (folder / "inputs").iterdir():
        values = read(path)[0].astype(np.float32)
        values[0, 0] = np.nan
        write_nifti(path, values, AFFINE)
    pairs = all_pairs(folder, skip_empty=True)
    assert len(pairs) > 3 * SHAPE[2]
    assert all(pair.x[0, 0, 0] == 0 for pair in pairs)


def test_slices_with_one_value_are_left_out(folder):
    values = head(0)[1]
    values[..., :3] = -1024
    for path in (folder / "targets").iterdir():
        write_nifti(path, values, AFFINE)
    assert {index_of(pair) for pair in all_pairs(folder, skip_empty=True)} == {*range(3, SHAPE[2])}
    assert {index_of(pair) for pair in all_pairs(folder)} == {*range(SHAPE[2])}


# --- masks -------------------------------------------------------------------------------------------------------


def test_the_body_is_the_largest_part_with_its_holes_filled(folder):
    inside = head(0)[1]
    inside[10:14, 14:18, 3:7] = -1000  # an air cavity
    inside[0, 0, :] = 500  # something beside the patient
    for path in (folder / "targets").iterdir():
        write_nifti(path, inside, AFFINE)
    dataset = volumes(folder, mask={"above": -300})
    labels = dataset[5].labels
    assert labels[14:18, 10:14].all()
    assert not labels[0, 0]
    assert dataset.classes == ("outside", "body")
    assert 0.2 < labels.mean() < 0.9
    assert volumes(folder).classes is None
    of_x = volumes(folder, mask={"above": 100, "of": "x"})[5].labels
    assert (of_x == labels).mean() > 0.9


def test_masks_can_be_files(folder):
    for path in (folder / "inputs").iterdir():
        mask = np.zeros(SHAPE, np.uint8)
        mask[5:10, 5:10, 2:4] = 1
        write_nifti(folder / "masks" / path.name, *reoriented(mask, AFFINE, ("I", "A", "R")))
    pairs = all_pairs(folder, masks=folder / "masks", skip_empty=True)
    assert {index_of(pair) for pair in pairs} == {2, 3}
    assert pairs[0].labels[5:10, 5:10].all()
    assert pairs[0].labels.sum() == 25
    write_nifti(folder / "masks" / path.name, np.zeros(SHAPE, np.uint8), AFFINE)
    assert f"{path.name}: the body mask is empty" in fault(folder, masks=folder / "masks", skip_empty=True)
    (folder / "masks" / path.name).unlink()
    with pytest.raises(UserError, match="1 of 4 volumes without a partner of the same name"):
        volumes(folder, masks=folder / "masks")


def test_a_threshold_above_everything_is_refused(folder):
    with pytest.raises(UserError, match="no voxel is above 9000, so the body mask is empty") as error:
        volumes(folder, mask={"above": 9000}, skip_empty=True)
    assert len(error.value.faults) == 4
    for path in (folder / "inputs").iterdir():
        values = np.full(SHAPE, not path.name.startswith("sub-02"), np.uint8)
        write_nifti(folder / "masks" / path.name, values, AFFINE)
    assert "sub-02_ses-1.nii.gz: the body mask is empty" in fault(folder, masks=folder / "masks", skip_empty=False)
    with pytest.raises(ValueError, match="two ways"):
        volumes(folder, mask={"above": 0}, masks=folder / "inputs")


def test_mae_is_in_hounsfield_units_under_the_mask(folder):
    import torch
    from p2pzoo_metrics.measured_values import MAE

    from p2pzoo.plugin import Batch

    dataset = volumes(folder, mask={"above": -300})
    pair = dataset[5]
    y = torch.from_numpy(pair.y).permute(2, 0, 1)[None] / 1250 - 0.2
    labels = torch.from_numpy(pair.labels.astype(np.int64))[None]
    y_hat = torch.where((labels == 1)[:, None], y + 30 / 1250, 0.9)
    metric = MAE(dataset, classes=["body"])
    numbers = metric.reduce(metric.measure(Batch(y, y, ("a",), labels), y_hat))
    assert numbers["value"] == pytest.approx(30, rel=1e-3)


# --- patients ----------------------------------------------------------------------------------------------------


def test_a_patient_is_in_one_split_and_is_a_number(tmp_path):
    write_pairs(tmp_path, 6, visits=2)
    parts = {split: volumes(tmp_path, split, patient=r"^(sub-\d+)") for split in SPLITS}
    blocks = {split: {*part.blocks} for split, part in parts.items()}
    assert sum(map(len, blocks.values())) == len(set.union(*blocks.values())) == 6
    assert set.union(*blocks.values()) == {f"patient-{n:02d}" for n in range(1, 7)}
    assert all(part.blocks == [pair.block for pair in part] for part in parts.values())
    ids = [pair.id for part in parts.values() for pair in part]
    assert len(set(ids)) == len(ids) == 12 * SHAPE[2]
    assert not any("sub" in text or "ses" in text for text in ids)
    sources = parts["train"].sources["patient-02"]
    assert [x.name for x, _ in sources] == ["sub-02_ses-1.nii.gz", "sub-02_ses-2.nii.gz"]


def test_more_patients_move_no_other_to_another_split(tmp_path):
    write_pairs(tmp_path, 6)

    def split_of_each():
        return {
            dataset.sources[block][0][0].name: split
            for split in SPLITS
            for dataset in [volumes(tmp_path, split)]
            for block in dataset.blocks
        }

    before = split_of_each()
    write_pairs(tmp_path, names=["aaa"])
    assert before.items() <= split_of_each().items()


def test_folders_can_define_the_splits(tmp_path):
    for split, number in (("train", 1), ("test", 2)):
        for side, values in zip(("inputs", "targets"), head(number), strict=True):
            write_nifti(tmp_path / side / split / f"p{number}-a.nii", values, AFFINE)
    assert {pair.block for pair in volumes(tmp_path)} == {"patient-01"}
    assert {pair.block for pair in volumes(tmp_path, "test")} == {"patient-02"}
    line = fault(tmp_path, patient="^p")
    assert "one patient is in train/ and in test/" in line
    assert "p1-a.nii" in line
    assert "p2-a.nii" in line


def test_folds_are_made_of_patients(tmp_path):
    write_pairs(tmp_path, 6)
    tested = []
    for fold in range(3):
        parts = {s: Fold(fold, 3).open(lambda split: volumes(tmp_path, split), s) for s in SPLITS}
        blocks = {split: {pair.block for pair in part} for split, part in parts.items()}
        assert not blocks["test"] & (blocks["train"] | blocks["val"])
        tested += [pair.id for pair in parts["test"]]
    assert sorted(tested) == sorted(pair.id for pair in all_pairs(tmp_path))


def test_a_split_without_patients_is_refused_with_a_seed_that_helps(folder):
    line = next(fault(folder, split_seed=seed) for seed in range(50) if _lacks_a_split(folder, seed))
    seed = int(line.rpartition("split_seed = ")[2])
    assert all(len(volumes(folder, split, split_seed=seed)) for split in SPLITS)
    assert "4 patients" not in line
    shutil.rmtree(folder / "inputs")
    shutil.rmtree(folder / "targets")
    write_pairs(folder, 2)
    assert "2 patients for 3 splits" in fault(folder)


def _lacks_a_split(folder, seed):
    try:
        volumes(folder, split_seed=seed)
    except UserError:
        return True
    return False


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "is no regular expression"), ("^subject", "does not match patient")]
)
def test_a_pattern_that_finds_nothing_is_named(folder, pattern, message):
    with pytest.raises((UserError, ValueError), match=message):
        volumes(folder, patient=pattern)


# --- DICOM -------------------------------------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path):
    for number in range(4):
        mr, ct = head(number)
        patient = f"secret-{number}-x"
        write_series(tmp_path / "inputs" / f"case{number}", mr, patient=patient)
        write_series(tmp_path / "targets" / f"case{number}", ct, modality="CT", patient=patient)
    return tmp_path


def test_a_series_is_the_volume_that_it_was(series):
    dataset = volumes(series, x_window=(0, 4000), y_window=(-1000, 3000))
    block = dataset.blocks[0]
    number = int(dataset.sources[block][0][0].name[-1])
    mr, ct = head(number)
    for pair in dataset:
        if pair.block == block:
            assert np.array_equal(pair.x[..., 0], mr[..., index_of(pair)].T)
            assert np.array_equal(pair.y[..., 0], ct[..., index_of(pair)].T.clip(-1000, 3000))
    assert (dataset.x_units.dtype, dataset.y_units.modality) == ("int16", "CT")


def test_series_of_scanners_that_store_other_bits_are_one_cohort(series):
    def signed_16_bits(header, number):
        header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 15, 1

    before = {pair.id: pair.y for pair in all_pairs(series)}
    write_series(series / "targets" / "case1", head(1)[1], modality="CT", patient="secret-1-x", edit=signed_16_bits)
    after = {pair.id: pair.y for pair in all_pairs(series)}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], y) for name, y in after.items())
    assert volumes(series).y_units.dtype == "float32"


def test_dicom_can_be_paired_with_nifti(series):
    for number in range(4):
        shutil.rmtree(series / "targets" / f"case{number}")
        write_nifti(series / "targets" / f"case{number}.nii.gz", *reoriented(head(number)[1], AFFINE, "RAS"))
    assert len(all_pairs(series)) == 4 * SHAPE[2]


def test_two_patients_are_no_pair_and_no_message_names_them(series):
    write_series(series / "targets" / "case1", head(1)[1], modality="CT", patient="secret-99-x")
    line = fault(series)
    assert "are of two patients" in line
    assert "secret" not in line


def test_the_pattern_is_for_the_patient_id(series):
    assert len({pair.block for pair in all_pairs(series, patient=r"-(\d)-")}) == 4
    with pytest.raises(UserError, match="its PatientID does not match") as error:
        volumes(series, patient="nothing")
    assert "secret" not in str(error.value)


def shift(header, number):
    if number >= 5:
        header.ImagePositionPatient = [*header.ImagePositionPatient[:2], float(header.ImagePositionPatient[2]) + 16]


def tilt(header, number):
    x, y, z = map(float, header.ImagePositionPatient)
    header.ImagePositionPatient = [x, y + 3 * number, z]


def duplicate(header, number):
    if number == 5:
        header.ImagePositionPatient = [*header.ImagePositionPatient[:2], float(header.ImagePositionPatient[2]) - 16]


def setting(**values):
    def edit(header, number):
        for name, value in values.items():
            if number == 2:
                setattr(header, name, value)

    return edit


def unknown_syntax(header, _):
    header.file_meta.TransferSyntaxUID = "1.2.3.4.5"


def frames(header, _):
    header.NumberOfFrames = 2
    header.PixelData = header.PixelData * 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (shift, "slices are missing, or their distances differ: 32 mm"),
        (duplicate, "two slices at one place"),
        (tilt, "the gantry was tilted by 10.6°"),
        (unknown_syntax, r"unknown way (transfer syntax 1.2.3.4.5)"),
        (frames, "has several frames in one file"),
        (setting(PixelSpacing=[1, 1]), "have different PixelSpacing"),
        (setting(SeriesInstanceUID="1.2.9"), "has files of 2 series"),
        (setting(ImagePositionPatient=None), "has no ImagePositionPatient"),
    ],
)
def test_series_that_are_no_volume_are_refused_in_one_line(series, edit, message):
    folder = series / "inputs" / "case1"
    shutil.rmtree(folder)
    write_series(folder, head(1)[0], patient="secret-1-x", edit=edit)
    line = fault(series)
    assert message in line
    assert str(folder) in line
    assert "secret" not in line


def test_damaged_dicom_files_are_named(series):
    folder = series / "inputs" / "case1"
    (folder / "image000.dcm").write_bytes(b"no DICOM")
    assert "image000.dcm: is no DICOM file" in fault(series)
    (folder / "image000.dcm").unlink()
    write_series(folder, head(1)[0], patient="secret-1-x")
    cut = sorted(folder.iterdir())[3]
    cut.write_bytes(cut.read_bytes()[:-400])
    with pytest.raises(UserError, match=f"{cut.name}: its pixels cannot be decoded"):
        all_pairs(series)


# --- bad input ---------------------------------------------------------------------------------------------------


def shifted(affine, by):
    affine = affine.copy()
    affine[0, 3] += by
    return affine


SHEARED = AFFINE + np.array([[0, 2, 0, 0]] + [[0, 0, 0, 0]] * 3)


@pytest.mark.parametrize(
    ("values", "affine", "message"),
    [
        (np.zeros((*SHAPE, 3)), AFFINE, "is 4D, 24×32×10×3"),
        (np.zeros((24, 32, 11)), AFFINE, "shapes differ, 24×32×10 and 24×32×11 voxels"),
        (np.zeros(SHAPE), AFFINE * [1.1, 1, 1, 1], "voxels differ, 7.5 × 7 × 16 and 8.25 × 7 × 16 mm"),
        (np.zeros(SHAPE), shifted(AFFINE, 3), "affines differ, by up to 0.4 voxels"),
        (np.zeros(SHAPE), SHEARED, "its affine is sheared"),
        (np.zeros(SHAPE, np.complex64), AFFINE, "values of complex64 cannot be used"),
    ],
)
def test_pairs_that_do_not_fit_are_refused_in_one_line(folder, values, affine, message):
    path = folder / "targets" / "sub-02_ses-1.nii.gz"
    image = nibabel.Nifti1Image(values.astype(np.int16) if values.dtype == float else values, affine)
    image.set_sform(affine, 1)
    nibabel.save(image, path)
    line = fault(folder)
    assert message in line
    assert str(path) in line


def test_a_volume_without_orientation_is_refused(folder):
    image = nibabel.Nifti1Image(head(0)[0], None)
    path = folder / "inputs" / "sub-01_ses-1.nii.gz"
    nibabel.save(image, path)
    assert f"{path}: has neither a qform nor an sform" in fault(folder)


def test_a_last_dimension_of_one_is_none(folder):
    for path in (folder / "inputs").iterdir():
        write_nifti(path, read(path)[0][..., None], AFFINE)
    assert len(all_pairs(folder)) == 4 * SHAPE[2]


def test_damaged_files_are_named(folder):
    path = folder / "inputs" / "sub-01_ses-1.nii.gz"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"sub-01_ses-1\.nii\.gz: the file is truncated or damaged"):
        all_pairs(folder)
    path.write_bytes(b"text")
    assert "cannot be read as NIfTI" in fault(folder)
    path.with_suffix("").write_bytes(gzip.compress(b"x"))
    assert "have one name" in fault(folder)
    assert not list((folder / "cache" / "volumes").glob("*.tmp"))


def flip_a_bit(path):
    """Change a bit of a .nii.gz so that it decompresses to as many bytes, of which some differ."""
    whole, original = path.read_bytes(), gzip.decompress(path.read_bytes())
    for place in range(len(whole) // 2, len(whole) - 8):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            values = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(damaged[:-8])  # without the checksum
        except zlib.error:
            continue
        if len(values) == len(original) and values != original:
            return
    raise AssertionError("no bit does it")


@pytest.mark.parametrize("side", ["inputs", "targets", "masks"])
def test_a_checksum_that_does_not_fit_is_damage(folder, side):
    for path in (folder / "targets").iterdir():
        write_nifti(folder / "masks" / path.name, (read(path)[0] > -300).astype(np.uint8), AFFINE)
    parameters = {"masks": folder / "masks"} if side == "masks" else {}
    flip_a_bit(folder / side / "sub-02_ses-1.nii.gz")
    for _ in range(2):  # nothing was stored
        with pytest.raises(UserError, match=r"sub-02_ses-1\.nii\.gz: the file is truncated or damaged"):
            all_pairs(folder, **parameters)


def test_pairs_of_several_dtypes_are_read_in_their_units(folder):
    before = {pair.id: pair for pair in all_pairs(folder)}
    for side, name in (("inputs", "sub-01"), ("targets", "sub-02"), ("targets", "sub-03")):
        path = folder / side / f"{name}_ses-1.nii.gz"
        values = read(path)[0]
        write_nifti(path, values.astype(np.float32 if name != "sub-03" else np.int32), AFFINE)
    after = {pair.id: pair for pair in all_pairs(folder)}
    assert before.keys() == after.keys()
    for name, pair in after.items():
        assert pair.x.dtype == pair.y.dtype == np.float32
        assert np.array_equal(pair.x, before[name].x)
        assert np.array_equal(pair.y, before[name].y)
    units = volumes(folder).x_units, volumes(folder, "test").y_units
    assert [each.dtype for each in units] == ["float32", "float64"]


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (("int16", "int16"), "int16"),
        (("int16", "float32"), "float32"),
        (("uint8", "uint16"), "uint16"),
        (("int16", "uint16"), "int32"),
        (("uint32", "int8"), "float64"),  # not int64, which no volume has
    ],
)
def test_the_common_dtype_holds_the_values_of_all(dtypes, common):
    assert common_dtype(dtypes) == common
    assert Units((0, 1), common_dtype(dtypes)).dtype == common


def test_faults_of_all_kinds_are_named_together(folder):
    (folder / "targets" / "sub-04_ses-1.nii.gz").unlink()
    for side in ("inputs", "targets"):
        (folder / side / "sub-01_ses-1.nii.gz").write_text("no volume")
    write_nifti(folder / "targets" / "sub-02_ses-1.nii.gz", np.zeros((24, 32, 11)), AFFINE)
    for side in ("inputs", "targets"):
        write_nifti(folder / side / "sub-05_ses-1.nii.gz", np.zeros((24, 30, 10), np.int16), AFFINE)
    with pytest.raises(UserError) as error:
        volumes(folder)
    found = error.value.faults
    for message in (
        "inputs: 1 of 5 volumes without a partner of the same name in",
        f"{folder / 'inputs' / 'sub-01_ses-1.nii.gz'}: cannot be read as NIfTI",
        f"{folder / 'targets' / 'sub-01_ses-1.nii.gz'}: cannot be read as NIfTI",
        "sub-02_ses-1.nii.gz: shapes differ, 24×32×10 and 24×32×11 voxels",
        "sub-05_ses-1.nii.gz: axial slices have different sizes, 24×32 and 24×30 px: set size",
    ):
        assert sum(message in str(fault) for fault in found) == 1, message
    assert len(found) == 5


def test_empty_masks_are_named_together(folder):
    for path in (folder / "inputs").iterdir():
        write_nifti(folder / "masks" / path.name, np.zeros(SHAPE, np.uint8), AFFINE)
    with pytest.raises(UserError) as error:
        volumes(folder, masks=folder / "masks")
    assert len([fault for fault in error.value.faults if "the body mask is empty" in fault]) == 4


def test_a_truncated_plain_file_is_named(tmp_path):
    write_pairs(tmp_path, suffix=".nii")
    path = tmp_path / "inputs" / "sub-03_ses-1.nii"
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path}: the file is truncated" in fault(tmp_path)


def test_folders_without_volumes_are_named(folder):
    assert "no such folder" in fault(folder, inputs=folder / "none")
    (folder / "empty").mkdir()
    assert "has no .nii or .nii.gz files" in fault(folder, inputs=folder / "empty")
    (folder / "inputs" / "sub-04_ses-1.nii.gz").rename(folder / "inputs" / "other.nii.gz")
    with pytest.raises(UserError, match="1 of 4 volumes without a partner of the same name"):
        volumes(folder)


def test_a_copy_that_the_disk_cannot_hold_is_refused(folder, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"an uncompressed copy of .*\.nii\.gz needs .* P2PZOO_CACHE"):
        all_pairs(folder)


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_compressed_volume_is_uncompressed_once_and_again_when_it_changes(folder):
    before = all_pairs(folder)
    copies_made = {path: path.stat().st_mtime_ns for path in (folder / "cache" / "volumes").glob("*.raw")}
    assert len(copies_made) == 8
    again = all_pairs(folder)
    assert all(path.stat().st_mtime_ns == time for path, time in copies_made.items())
    assert all(np.array_equal(a.x, b.x) for a, b in zip(before, again, strict=True))
    fingerprint = volumes(folder).fingerprint
    (folder / "moved").mkdir()
    for side in ("inputs", "targets"):
        (folder / side).rename(folder / "moved" / side)
    assert volumes(folder / "moved").fingerprint == fingerprint
    for side in ("inputs", "targets"):
        (folder / "moved" / side).rename(folder / side)
    path = folder / "inputs" / "sub-01_ses-1.nii.gz"
    write_nifti(path, head(0)[0] // 2, AFFINE)
    assert volumes(folder).fingerprint != fingerprint
    changed = next(pair for pair in all_pairs(folder) if pair.id == before_id(before))
    assert changed.x.max() <= 1 + next(pair for pair in before if pair.id == changed.id).x.max() // 2


def before_id(pairs):
    return next(pair.id for pair in pairs if pair.block == "patient-01" and index_of(pair) == 5)


def test_threads_can_read_at_once(folder):
    dataset = volumes(folder, mask={"above": -300})
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(dataset.__getitem__, [*range(len(dataset))] * 2)]
    for number, pair in enumerate(found):
        assert np.array_equal(pair.x, dataset[number % len(dataset)].x)


def test_units_come_back_from_the_network_as_they_were():
    units = Units((-1000.0, 1500.0), "int16", "CT")
    values = np.arange(-1000, 1500, 7).astype(np.int16)
    assert np.array_equal(units.from_network(units.to_network(values)), values)
    json = {
        "axis": "axial",
        "slices": 1,
        "x": units.as_json(),
        "y": units.as_json(),
        "spacing": [1, 1, 2],
        "mask": None,
    }
    assert Trained.from_json(json).y == units
    for damaged in ({}, [], {**json, "spacing": [0, 1, 1]}, {**json, "x": {**units.as_json(), "dtype": "text"}}):
        with pytest.raises(ValueError, match=r"\w"):
            Trained.from_json(damaged)


def test_the_readmes_recipe_can_be_used(tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(p2pzoo_medical.__file__).with_name("README.md").read_text("utf-8")
    [recipe] = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.toml").write_text(recipe)
    write_pairs(tmp_path, 10)
    (tmp_path / "inputs").rename("mr")
    (tmp_path / "targets").rename("ct")
    seed = "dataset.split_seed=9"  # gives each split a patient
    result = run_cli("data", "stats", "mine.toml", "-s", "dataset.size=[32, 48]", "-s", seed)
    assert result.exit_code == 0, result.output
    assert "32×48×1 float32" in result.output
    assert NOTICE in page
