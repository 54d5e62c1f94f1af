"""Small medical volumes, as scanners give them: the heads of recipes/tasks/volumes, as NIfTI and as DICOM series."""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

_SCRIPT = Path(__file__).parents[1] / "recipes" / "tasks" / "volumes" / "make_volumes.py"
_SPEC = importlib.util.spec_from_file_location("make_volumes", _SCRIPT)
make_volumes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_volumes)
write_nifti = make_volumes.write_nifti

SHAPE, SPACING = (24, 32, 10), (7.5, 7.0, 16.0)
AFFINE = make_volumes.affine_of(SHAPE, SPACING)
NAME, PATIENT_ID = "Mustermann^Erika", "ID-4711-secret"  # must be in nothing that p2pzoo writes


def head(seed=0, shape=SHAPE):
    """(MR-like, CT-like) int16, a whole head in few voxels."""
    spacing = tuple(side * whole / length for side, whole, length in zip(SPACING, SHAPE, shape, strict=True))
    return make_volumes.make_head(seed, shape, spacing)


def write_pairs(folder, count=4, *, names=None, visits=1, suffix=".nii.gz", shape=SHAPE):
    """inputs/ and targets/ with sub-01_ses-1.nii.gz, …. Returns the names without suffix."""
    names = names or [f"sub-{n + 1:02d}_ses-{v + 1}" for n in range(count) for v in range(visits)]
    for number, name in enumerate(names):
        for side, values in zip(("inputs", "targets"), head(number, shape), strict=True):
            write_nifti(Path(folder) / side / f"{name}{suffix}", values, AFFINE)
    return names


def reoriented(values, affine, codes):
    """The same volume, stored with axes in these directions, such as ("S", "P", "R")."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(values, turn), affine @ inv_ornt_aff(turn, values.shape)


def write_series(folder, values, affine=AFFINE, *, modality="MR", study="1.2.3.1", patient=PATIENT_ID, edit=None):
    """A DICOM series of (i, j, k) values, whose files are in no order. edit(dataset, number) may change each slice."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    across, down, step = (lps[:3, :3] / lengths).T
    series, frame, is_ct = generate_uid(), generate_uid(entropy_srcs=[study]), modality == "CT"
    for number in np.random.default_rng(0).permutation(values.shape[2]):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{2 if is_ct else 4}"
        header.SOPInstanceUID = generate_uid()
        header.PatientName, header.PatientID, header.PatientBirthDate = NAME, patient, "19640812"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.Modality, header.SeriesNumber, header.InstanceNumber = modality, 3, int(number) + 1
        header.ImagePositionPatient = [f"{v:.6f}" for v in lps[:3, 3] + step * lengths[2] * number]
        header.ImageOrientationPatient = [f"{v:.6f}" for v in (*across, *down)]
        header.PixelSpacing = [f"{lengths[1]:.6f}", f"{lengths[0]:.6f}"]
        header.Rows, header.Columns = values.shape[1], values.shape[0]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
        intercept = -1024 if is_ct else 0
        if is_ct:
            header.RescaleSlope, header.RescaleIntercept = 1, intercept
        header.add_new(0x00091010, "LO", f"private note on {NAME}")
        pixels = np.clip(values[..., number] - intercept, 0, 4095).T
        header.PixelData = np.ascontiguousarray(pixels.astype("<u2")).tobytes()
        if edit:
            edit(header, int(number))
        path = folder / f"image{7 * int(number) % 101:03d}.dcm"
        pydicom.dcmwrite(path, header, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return folder


def read(path):
    """(values, affine) as nibabel reads them."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine
