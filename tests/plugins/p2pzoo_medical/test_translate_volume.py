"""`p2pzoo translate-volume`: nibabel and pydicom read back what was written; faults are one line and leave nothing."""

import json
import re
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from p2pzoo_medical.body import find_body
from p2pzoo_medical.files import open_volume
from p2pzoo_medical.translate import Options, translate_volume
from p2pzoo_medical.units import NOTICE, Units
from phantoms import AFFINE, NAME, PATIENT_ID, SHAPE, head, read, reoriented, write_nifti, write_series
from torch import nn

from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")
CT, MR = Units((-1000.0, 1500.0), "int16", "CT"), Units((0.0, 1250.0), "int16")


class Middle(nn.Module):
    """ŷ is the middle channel of x."""

    def forward(self, x):
        return x[:, x.shape[1] // 2 :][:, :1]


class Place(nn.Module):
    """ŷ grows from left to right and from top to bottom, so that turned slices would show."""

    def forward(self, x):
        down, across = (torch.linspace(0, 1, side) for side in x.shape[2:])
        return (0.5 * down[:, None] - 0.25 * across).expand(len(x), 1, -1, -1)


def model_of(G=None, *, y=CT, axis="axial", slices=1, spacing=(7.0, 7.5, 16.0), mask=None, divisor=4):
    """A model with a known function, as if trained on the dataset volumes."""
    layout = {"axis": axis, "slices": slices, "x": MR.as_json(), "y": y.as_json(), "spacing": spacing, "mask": mask}
    header = ModelHeader(
        "generator", "mine", {}, slices, 1, (32, 32), run="r1", size_divisor=divisor, test_mode="eval",
        as_json={"file_layout": {"volume": layout}},
    )  # fmt: skip
    return Model(G or Middle(), header, torch.device("cpu"))


def mr_file(folder, number=0, affine=AFFINE, values=None, name="mr.nii.gz"):
    return write_nifti(folder / name, head(number)[0] if values is None else values, affine)


def as_ct(mr):
    """What `Middle` makes of MR values."""
    return mr.clip(0, 1250) * 2 - 1000


def test_nibabel_reads_back_the_header_and_the_values(tmp_path):
    rotated = AFFINE.copy()
    rotated[:3, :3] = [[0, -0.6, 0.8], [1, 0, 0], [0, 0.8, 0.6]] @ AFFINE[:3, :3]
    image = nibabel.Nifti1Image(head(0)[0], rotated)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(rotated, 1)
    image.set_sform(rotated, 4)
    image.header["descrip"] = b"Mustermann"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Mustermann"))
    nibabel.save(image, tmp_path / "mr.nii.gz")
    for name in ("ct.nii.gz", "ct.nii"):
        assert translate_volume(model_of(), tmp_path / "mr.nii.gz", tmp_path / name, Options()) == SHAPE
        ct = nibabel.load(tmp_path / name)
        x = nibabel.load(tmp_path / "mr.nii.gz").header
        assert np.array_equal(ct.affine, image.affine.astype(np.float32))
        for field in ("dim", "pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_x"):
            assert np.array_equal(ct.header[field], x[field]), field
        assert ct.get_data_dtype() == np.int16
        assert np.array_equal(np.asarray(ct.dataobj), as_ct(head(0)[0]))
        assert not ct.header.extensions
        assert b"Muster" not in (tmp_path / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"mr.nii.gz", "ct.nii.gz", "ct.nii", "cache"}


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPR"])
def test_how_a_file_stores_its_axes_changes_no_voxel(tmp_path, axis, codes):
    values, affine = reoriented(head(0)[0], AFFINE, codes)
    model = model_of(Place(), axis=axis)
    translate_volume(model, mr_file(tmp_path), tmp_path / "plain.nii", Options())
    translate_volume(model, mr_file(tmp_path, affine=affine, values=values), tmp_path / "turned.nii", Options())
    plain, turned = (read(tmp_path / name) for name in ("plain.nii", "turned.nii"))
    assert np.allclose(turned[1], affine)
    assert np.array_equal(reoriented(*turned, "LPS")[0], plain[0])
    assert len(np.unique(plain[0])) > 100


def test_neighbouring_slices_are_given_to_the_network(tmp_path):
    class Next(nn.Module):
        def forward(self, x):
            return x[:, 2:]

    translate_volume(model_of(Next(), slices=3), mr_file(tmp_path), tmp_path / "ct.nii", Options())
    mr = head(0)[0]
    assert np.array_equal(read(tmp_path / "ct.nii")[0][..., :-1], as_ct(mr[..., 1:]))


def test_tiles_give_the_values_of_whole_slices(tmp_path):
    blur = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect", bias=False)
    nn.init.constant_(blur.weight, 1 / 9)
    for name, tile in (("whole.nii", None), ("tiles.nii", 16)):
        translate_volume(model_of(blur), mr_file(tmp_path), tmp_path / name, Options(tile=tile, overlap=tile and 8))
    difference = read(tmp_path / "whole.nii")[0] - read(tmp_path / "tiles.nii")[0].astype(float)
    assert np.abs(difference).max() <= 1
    with pytest.raises(UserError, match="does not fit this generator"):
        translate_volume(model_of(), mr_file(tmp_path), tmp_path / "x.nii", Options(tile=13))


def test_three_axes_are_averaged(tmp_path):
    affine = np.diag([-7.0, -7, 8, 1])
    file, model = mr_file(tmp_path, affine=affine), model_of(Place(), spacing=(7, 7, 8))
    translate_volume(model, file, tmp_path / "mean.nii", Options(axes=3))
    single = []
    for axis in ("axial", "coronal", "sagittal"):
        translate_volume(model_of(Place(), axis=axis), file, tmp_path / f"{axis}.nii", Options())
        single.append(read(tmp_path / f"{axis}.nii")[0].astype(float))
    assert np.abs(read(tmp_path / "mean.nii")[0] - np.mean(single, axis=0)).max() <= 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".gz", *[".nii"] * 4]


@pytest.mark.parametrize(
    ("affine", "divisor", "message"),
    [(AFFINE, 4, "whose sides are alike"), (np.diag([-7.0, -7, 8, 1]), 32, "the network takes multiples of 32")],
)
def test_three_axes_need_slices_like_those_of_the_training(tmp_path, affine, divisor, message):
    model = model_of(divisor=divisor)
    with pytest.raises(UserError, match=message):
        translate_volume(model, mr_file(tmp_path, affine=affine), tmp_path / "x.nii", Options(axes=3))
    assert not (tmp_path / "x.nii").exists()


def test_outside_of_the_body_a_value_can_be_given(tmp_path):
    file = mr_file(tmp_path)
    mask = write_nifti(tmp_path / "mask.nii", (head(0)[0] > 300).astype(np.uint8), AFFINE)
    translate_volume(model_of(), file, tmp_path / "a.nii", Options(outside=-1024, mask=mask))
    values = read(tmp_path / "a.nii")[0]
    assert np.array_equal(values == -1024, head(0)[0] <= 300)
    trained = model_of(mask={"above": 300, "of": "x"})
    translate_volume(trained, file, tmp_path / "b.nii", Options(outside=-1024))
    translate_volume(model_of(), file, tmp_path / "c.nii", Options(outside=-1024, body_above=300))
    assert np.array_equal(read(tmp_path / "b.nii")[0], read(tmp_path / "c.nii")[0])
    body = find_body(open_volume(file), 300)
    assert np.array_equal(reoriented(*read(tmp_path / "b.nii"), "RAS")[0] != -1024, body)
    with pytest.raises(UserError, match="give --mask FILE, or --body-above VALUE"):
        translate_volume(model_of(), file, tmp_path / "d.nii", Options(outside=-1024))
    other = write_nifti(tmp_path / "other.nii", np.ones((4, 4, 4), np.uint8), AFFINE)
    with pytest.raises(UserError, match="shapes differ"):
        translate_volume(model_of(), file, tmp_path / "d.nii", Options(outside=-1024, mask=other))


# --- DICOM -------------------------------------------------------------------------------------------------------


def test_pydicom_reads_back_a_derived_series(tmp_path):
    folder = write_series(tmp_path / "mr", head(0)[0])
    translate_volume(model_of(), folder, tmp_path / "ct", Options())
    sources = {tuple(each.ImagePositionPatient): each for each in map(pydicom.dcmread, folder.iterdir())}
    files = sorted((tmp_path / "ct").iterdir())
    assert len(files) == SHAPE[2]
    series, instances = set(), set()
    for number, file in enumerate(files):
        made = pydicom.dcmread(file)
        source = sources[tuple(made.ImagePositionPatient)]
        for name in (
            "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "ImageOrientationPatient",
            "PixelSpacing", "Rows", "Columns",
        ):  # fmt: skip
            assert made[name].value == source[name].value, name
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert list(made.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert NOTICE in made.DerivationDescription
        assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert (made.Modality, made.SOPClassUID.name) == ("CT", "CT Image Storage")
        assert (made.WindowCenter, made.WindowWidth) == (250, 2500)
        assert (made.BitsAllocated, made.PixelRepresentation, made.RescaleSlope) == (16, 1, 1)
        assert (0x0009, 0x1010) not in made
        values = made.pixel_array * made.RescaleSlope + made.RescaleIntercept
        assert np.array_equal(values, as_ct(head(0)[0][..., number]).T)
        series.add(made.SeriesInstanceUID)
        instances.add(made.SOPInstanceUID)
    assert (len(series), len(instances)) == (1, SHAPE[2])
    written = open_volume(tmp_path / "ct")
    assert np.allclose(written.affine, open_volume(folder).affine, atol=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"mr", "ct", "cache"}


def test_values_that_int16_does_not_hold_are_rescaled(tmp_path):
    folder = write_series(tmp_path / "mr", head(0)[0])
    translate_volume(model_of(y=Units((0.0, 3.0), "float32")), folder, tmp_path / "y", Options(modality="MR"))
    made = pydicom.dcmread(min((tmp_path / "y").iterdir()))
    values = made.pixel_array * float(made.RescaleSlope) + float(made.RescaleIntercept)
    assert np.abs(values - head(0)[0][..., 0].clip(0, 1250).T * 0.0024).max() < 1e-4
    assert made.Modality == "MR"


def test_a_series_can_become_nifti(tmp_path):
    folder = write_series(tmp_path / "mr", head(0)[0])
    translate_volume(model_of(), folder, tmp_path / "ct.nii.gz", Options())
    image = nibabel.load(tmp_path / "ct.nii.gz")
    assert np.allclose(image.affine, AFFINE, atol=1e-4)
    assert (int(image.header["qform_code"]), image.header.get_xyzt_units()) == (1, ("mm", "unknown"))
    assert np.array_equal(np.asarray(image.dataobj), as_ct(head(0)[0]))
    data = (tmp_path / "ct.nii.gz").read_bytes()
    assert NAME.encode() not in data
    assert PATIENT_ID.encode() not in data


# --- faults ------------------------------------------------------------------------------------------------------


def test_an_error_leaves_nothing(tmp_path):
    class Stops(nn.Module):
        def forward(self, x):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(len(x))
            return x

    folder = write_series(tmp_path / "mr", head(0)[0])
    for target, options in (("a.nii.gz", Options()), ("b.nii", Options()), ("c", Options(test_mode="paper"))):
        calls = []
        with pytest.raises(KeyboardInterrupt):
            translate_volume(model_of(Stops()), folder, tmp_path / target, options)
        assert {path.name for path in tmp_path.iterdir()} == {"mr", "cache"}


def test_other_units_and_voxels_are_warned_of(tmp_path):
    scaled = mr_file(tmp_path, values=head(0)[0] * 4)
    with pytest.warns(UserWarning, match="are unlike those of the training, 0 to 1250"):
        translate_volume(model_of(), scaled, tmp_path / "x.nii", Options())
    with pytest.warns(UserWarning, match="its voxels are 7 × 7.5 mm in axial slices, those of the training 1 × 1"):
        translate_volume(model_of(spacing=(1, 1, 1)), mr_file(tmp_path), tmp_path / "x.nii", Options())


def warned(model, volume, target):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        translate_volume(model, volume, target, Options())
    return [str(each.message) for each in caught]


def test_a_volume_of_another_modality_is_warned_of(tmp_path):
    mr, ct = head(0)
    model = model_of()
    assert warned(model, mr_file(tmp_path), tmp_path / "x.nii") == []
    [line] = warned(model, mr_file(tmp_path, values=ct, name="ct.nii"), tmp_path / "x.nii")
    assert re.search(r"ct\.nii: \d\d% of the voxels lie outside of the range that the .*, \[0, 1250\]: bring it", line)
    model.header.as_json["file_layout"]["volume"]["x"]["modality"] = "MR"
    series = write_series(tmp_path / "ct", ct, modality="CT")
    [line] = warned(model, series, tmp_path / "x.nii")
    assert line.endswith("ct: is a series of CT, and the model was trained on MR: give a series of MR")
    assert warned(model, write_series(tmp_path / "mr", mr), tmp_path / "x.nii") == []


def test_a_window_of_soft_tissue_is_no_reason_for_a_warning_about_a_ct(tmp_path):
    _, ct = head(0)
    model = model_of()
    model.header.as_json["file_layout"]["volume"]["x"] = Units((-100.0, 2000.0), "int16", "CT").as_json()
    assert warned(model, write_series(tmp_path / "ct", ct, modality="CT"), tmp_path / "x.nii") == []
    [line] = warned(model, mr_file(tmp_path, values=ct - 3000), tmp_path / "x.nii")
    assert "100% of the voxels lie outside of the range that the model was trained on, [-100, 2000] HU" in line


@pytest.mark.parametrize("value", [{"x": 3}, [], "text", {"axis": "oblique"}])
def test_a_damaged_description_is_refused(tmp_path, value):
    model = model_of()
    model.header.as_json["file_layout"]["volume"] = value
    with pytest.raises(UserError, match="description of its volumes is damaged"):
        translate_volume(model, mr_file(tmp_path), tmp_path / "x.nii", Options())


def test_faults_are_one_line_and_write_nothing(assert_refused, tmp_path):
    file, out = mr_file(tmp_path), tmp_path / "out"
    out.mkdir()
    (tmp_path / "text.nii").write_text("no volume")
    taken = write_nifti(tmp_path / "taken.nii", head(0)[0], AFFINE)
    for arguments, message in (
        ((file, "-o", out / "y"), "give a name that ends with .nii.gz"),
        ((tmp_path / "none.nii", "-o", out / "y.nii"), "no such file or folder"),
        ((file, "-o", out / "missing" / "y.nii"), "no such folder"),
        ((file, "-o", file), "is the volume itself"),
        ((file, "-o", taken), "--force overwrites it"),
        ((file, "-o", out / "y.nii", "--mask", file), "add it, or remove them"),
        ((file, "-o", out / "y.nii"), "was not trained on the dataset 'volumes'"),
    ):
        assert_refused(message, "translate-volume", "zoo:earth-small", *arguments)
    assert not list(out.iterdir())


# --- a whole run -------------------------------------------------------------------------------------------------

TABLES = """
[dataset]
use = "volumes"
inputs = "inputs"
targets = "targets"
size = 32
x_window = "percentiles"
y_window = [-1000, 1500]
patient = "[a-z]+-[0-9]$"
mask = {above = -300}
fractions = [0.5, 0.25, 0.25]
split_seed = 1
[metrics.mae]
use = "mae"
classes = ["body"]
"""


def test_no_name_of_a_patient_is_in_a_run_its_pages_and_its_card(train_on, run_cli, tmp_path):
    for number in range(4):
        mr, ct = head(number)
        patient = f"Muster-secret-{number}"
        write_series(tmp_path / "inputs" / f"case{number}", mr, patient=patient)
        write_series(tmp_path / "targets" / f"case{number}", ct, modality="CT", patient=patient)
    result, run = train_on(tmp_path, TABLES)
    assert result.exit_code == 0, result.output
    assert "next             p2pzoo translate-volume " in result.output
    model, outputs = run / "model.safetensors", [result.output]
    for command in (
        ("card", run, "-o", tmp_path / "card"),
        ("evaluate", run, "--json"),
        ("data", "check", tmp_path / "recipe.toml", "--json"),
        ("translate-volume", model, tmp_path / "inputs" / "case1", "-o", tmp_path / "card" / "y.nii.gz", "--json"),
    ):
        done = run_cli(*command)
        assert done.exit_code == 0, done.output
        outputs.append(done.output)
    assert json.loads(outputs[-1][outputs[-1].index("{") :])["shape"] == [*SHAPE]
    files = [path for folder in ("runs", "card", "cache") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {"report.html", "results.json", "README.md", "model.safetensors", "y.nii.gz"} <= {p.name for p in files}
    for name in ("Muster", "secret-", "case1"):
        assert not [path for path in files if name.encode() in path.read_bytes() and path.suffix != ".toml"], name
        assert name == "case1" or not any(name in output for output in outputs)
    assert NOTICE.replace("-", "") in (tmp_path / "card" / "README.md").read_text().replace("\\", "").replace("-", "")
    assert "patient-0" in (run / "report.html").read_text() + outputs[2]
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    assert 20 < metrics["mae"]["value"] < 2500
