"""Writes a translation of a DICOM series as a derived series of the same study, at the same place in the patient."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.version import __version__
from p2pzoo_medical.dicom import Series, quiet_pydicom
from p2pzoo_medical.units import NOTICE, Units
from p2pzoo_medical.volume import Volume

# copied from the source, where it has them: the patient and the study it belongs to, and the place of the slice
_COPIED = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientSize", "PatientWeight", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SliceLocation",
)  # fmt: skip
_EMPTY = (  # a DICOM file must have these, if only empty
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "SliceThickness",
)  # fmt: skip
_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_KINDS = {"CT": "AXIAL", "MR": "OTHER"}  # the third value of ImageType, which these classes must have
_INT16 = np.iinfo(np.int16)


def write_series(folder: Path, source: Volume, values: np.ndarray, units: Units, run: str, modality: str | None) -> int:
    """Write one file for each slice of `source`; returns how many.

    values    (i, j, k) as the source is stored, in these units
    run       id of the run that trained the model
    modality  "CT" or "MR": what the values are. None: that of the units, else of the source

    Each file has new Series and SOP UIDs, the study, patient, frame of reference and place of its source, and int16
    pixels with rescale and window of the units. Private elements and settings of the scanner are not taken.
    """
    import pydicom
    from pydicom.uid import generate_uid

    assert isinstance(source.raw, Series)
    series = generate_uid(prefix=None)
    now = datetime.datetime.now()
    rescale = _find_rescale(units)
    for number, file in enumerate(source.raw.files):
        with quiet_pydicom():
            try:
                old = pydicom.dcmread(file, stop_before_pixels=True)
                new = _copy_header(old)
            except Exception:  # pydicom's errors can print values, which can be names
                raise UserError(f"{file}: its header cannot be copied: the file is damaged") from None
            _describe(new, old, modality or units.modality, run)
            new.SeriesInstanceUID, new.SOPInstanceUID = series, generate_uid(prefix=None)
            new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
            new.InstanceNumber = number + 1
            for name in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
                setattr(new, name, now.strftime("%Y%m%d"))
            for name in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
                setattr(new, name, now.strftime("%H%M%S"))
            _set_pixels(new, np.asarray(values[..., number]).T, units, rescale)
            new.save_as(folder / f"slice-{number + 1:04d}.dcm", enforce_file_format=True)
    return len(source.raw.files)


def _copy_header(old: Any) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, ExplicitVRLittleEndian

    new = Dataset()
    for name in _EMPTY:
        setattr(new, name, None)
    for name in _COPIED:
        if name in old:
            new[name] = old[name]
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    new.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    return new


def _describe(new: Any, old: Any, modality: str | None, run: str) -> None:
    """Say what the slice is and of what it is made."""
    from pydicom.dataset import Dataset

    new.Modality = modality if modality in _CLASSES else old.get("Modality", "OT")
    new.SOPClassUID = _CLASSES.get(new.Modality, old.SOPClassUID)
    new.file_meta.MediaStorageSOPClassUID = new.SOPClassUID
    new.ImageType = ["DERIVED", "SECONDARY", *filter(None, [_KINDS.get(new.Modality)])]
    new.SeriesNumber = int(old.get("SeriesNumber") or 0) + 1000
    new.SeriesDescription = f"p2pzoo {new.Modality}, for research"
    new.DerivationDescription = f"Translated from {old.get('Modality', 'an image')} by p2pzoo, run {run}. {NOTICE}"
    new.Manufacturer, new.ManufacturerModelName, new.SoftwareVersions = "p2pzoo", "p2pzoo", __version__
    new.AcquisitionNumber = None
    if new.Modality == "CT":
        new.KVP = None
    if new.Modality == "MR":
        new.ScanningSequence, new.SequenceVariant, new.ScanOptions = "RM", "NONE", None
        new.MRAcquisitionType, new.EchoTime, new.EchoTrainLength = None, None, None
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = old.SOPClassUID, old.SOPInstanceUID
    new.SourceImageSequence = [reference]


def _find_rescale(units: Units) -> tuple[str, str]:
    """Slope and intercept, as DICOM writes them, that bring int16 to the values: 1 and 0 for whole numbers that fit."""
    from pydicom.valuerep import format_number_as_ds

    low, high = units.window
    if np.dtype(units.dtype).kind in "iu" and low >= _INT16.min and high <= _INT16.max:
        return "1", "0"
    return format_number_as_ds((high - low) / (2 * _INT16.max)), format_number_as_ds((high + low) / 2)


def _set_pixels(new: Any, values: np.ndarray, units: Units, rescale: tuple[str, str]) -> None:
    """values: (rows, columns) in these units."""
    from pydicom.valuerep import format_number_as_ds

    slope, intercept = (float(text) for text in rescale)
    pixels = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), _INT16.min, _INT16.max)
    new.Rows, new.Columns = values.shape
    new.SamplesPerPixel, new.PhotometricInterpretation = 1, "MONOCHROME2"
    new.BitsAllocated, new.BitsStored, new.HighBit, new.PixelRepresentation = 16, 16, 15, 1
    new.RescaleSlope, new.RescaleIntercept = rescale[0], rescale[1]
    new.RescaleType = "HU" if new.Modality == "CT" else "US"
    low, high = units.window
    new.WindowCenter, new.WindowWidth = format_number_as_ds((low + high) / 2), format_number_as_ds(high - low)
    new.PixelData = pixels.astype("<i2").tobytes()
