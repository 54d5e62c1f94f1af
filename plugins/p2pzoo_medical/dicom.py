"""Series of DICOM files as volumes. Messages name files, never what their headers say of the patient."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo_medical.copies import cached_copy, combine_states, file_state
from p2pzoo_medical.volume import Volume, check_affine, require

DICOM_SUFFIXES = (".dcm", ".ima")
MAX_TILT = 0.5  # degrees: headers are written rounded
MAX_UNEVEN = 0.02  # of the distance of two slices from that of the others
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "SeriesInstanceUID", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsStored",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation",
]  # fmt: skip
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes run to the left, to the back and to the head


@dataclass(frozen=True)
class Series:
    """The values of a series, of which one uncompressed file is made: a slice across its files would read all of them.

    files  from the lowest slice to the highest
    scales (slope, intercept) of each
    """

    folder: Path
    files: tuple[Path, ...]
    scales: tuple[tuple[float, float], ...]
    shape: tuple[int, int, int]
    dtype: str
    state: str

    def place(self) -> tuple[Path, int]:
        size = np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))
        return cached_copy(["series", self.state], size, str(self.folder), self._write), 0

    def _write(self, file: BinaryIO) -> None:
        for path, (slope, intercept) in zip(self.files, self.scales, strict=True):
            pixels = read_pixels(path)
            if pixels.shape != self.shape[1::-1]:
                raise UserError(f"{path}: has {pixels.shape} pixels, not those of its header: the file is damaged")
            values = pixels * np.float64(slope) + intercept
            file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())


def find_dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder itself, sorted by name; other files are ignored.

    Raises UserError for one that ends with .dcm or .ima and is none.
    """
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file():
            continue
        with path.open("rb") as file:
            is_dicom = file.read(132)[128:] == b"DICM"
        if is_dicom:
            files.append(path)
        elif path.suffix.lower() in DICOM_SUFFIXES:
            raise UserError(f"{path}: is no DICOM file, or is damaged: copy it again from where it came from")
    return files


def open_series(folder: Path) -> Volume:
    """A folder with the files of one series as a volume. Reads headers only, once for each state of the files.

    Raises UserError for files of several series, slices that are missing, there twice or tilted, colours, several
    frames in one file, and pixels that cannot be decoded here.
    """
    try:
        files = find_dicom_files(folder)
        states = tuple(file_state(file) for file in files)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    if len(files) < 2:
        raise UserError(
            f"{folder}: has {format_count(len(files), 'DICOM file')} itself, and a series of slices has two or more"
        )
    return _open_files(folder, tuple(files), states)


@functools.lru_cache(maxsize=1024)  # the splits of a dataset open the same series
def _open_files(folder: Path, files: tuple[Path, ...], states: tuple[Any, ...]) -> Volume:
    with quiet_pydicom():
        headers = [_read_header(file) for file in files]
        _check_alike(folder, files, headers)
        places = np.array([[*map(float, header.ImagePositionPatient)] for header in headers])
        across, down = np.array([*map(float, headers[0].ImageOrientationPatient)]).reshape(2, 3)
        normal = np.cross(across, down)
        order = np.argsort(places @ normal, kind="stable")
        files, headers, places = tuple(files[i] for i in order), [headers[i] for i in order], places[order]
        step = _check_positions(folder, files, places, normal)
        row_height, column_width = (float(side) for side in headers[0].PixelSpacing)
        affine = np.eye(4)
        affine[:3, :3] = np.stack([across * column_width, down * row_height, step], axis=1)
        affine[:3, 3] = places[0]
        affine = _LPS_TO_RAS @ affine
        check_affine(affine, folder)
        scales = tuple((_number(h, "RescaleSlope", 1.0), _number(h, "RescaleIntercept", 0.0)) for h in headers)
        shape = int(headers[0].Columns), int(headers[0].Rows), len(files)
        dtype = _value_dtype(headers, scales)
        state, version = combine_states(states)
        return Volume(
            folder, shape, affine, dtype, state, version, Series(folder, files, scales, shape, dtype, state), dtype,
            modality=str(headers[0].get("Modality") or "") or None,
            patient=str(headers[0].get("PatientID") or "").strip() or None,
        )  # fmt: skip


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom's warnings of unusual values print these values, which can be names."""
    from pydicom.config import disable_value_validation

    require("pydicom", "reading DICOM series")
    with disable_value_validation():
        yield


def _read_header(path: Path) -> Any:
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS])
        _ = [header.get(name) for name in _TAGS]  # values are converted when they are first asked for
    except Exception:  # pydicom's errors can print values, which can be names
        raise UserError(f"{path}: cannot be read as DICOM: the file is damaged") from None
    missing = [
        name
        for name in ("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows")
        if header.get(name) in (None, "")
    ]
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise UserError(f"{path}: has several frames in one file (enhanced DICOM): convert it to NIfTI, with dcm2niix")
    if missing:
        raise UserError(f"{path}: has no {missing[0]}, so it is no slice of a volume: move it out of the folder")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise UserError(f"{path}: is a colour image, not a slice with measured values: move it out of the folder")
    _check_decodable(path, header.file_meta.get("TransferSyntaxUID"))
    return header


def _check_decodable(path: Path, syntax: Any) -> None:
    """Raises UserError if no package that is installed decodes pixels that are stored in this way."""
    from pydicom.pixels import get_decoder

    if syntax is None:
        raise UserError(f"{path}: does not say how its pixels are stored (TransferSyntaxUID): export it again")
    try:
        is_available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise UserError(
            f"{path}: its pixels are stored in an unknown way (transfer syntax {syntax}): export it uncompressed"
        ) from None
    if not is_available:
        raise UserError(
            f"{path}: its pixels are stored as {syntax.name}, which needs another package: pip install "
            "'pylibjpeg[all]', or export it uncompressed"
        )


def _check_alike(folder: Path, files: Sequence[Path], headers: Sequence[Any]) -> None:
    """Raises UserError if files are of several series, or their slices have different sizes or directions."""
    if count := len({str(header.SeriesInstanceUID) for header in headers}) - 1:
        raise UserError(f"{folder}: has files of {count + 1} series: give each series a folder of its own")
    first = headers[0]
    for path, header in zip(files, headers, strict=True):
        names = f"{files[0].name} and {path.name}"
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            raise UserError(f"{folder}: {names} have different numbers of pixels: give each its own folder")
        for name in ("ImageOrientationPatient", "PixelSpacing"):
            if not np.allclose([*map(float, header.get(name))], [*map(float, first.get(name))], atol=1e-4):
                raise UserError(f"{folder}: {names} have different {name}: give each its own folder")


def _check_positions(folder: Path, files: Sequence[Path], places: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The vector (3,) from slice to slice. Raises UserError for slices that are missing, there twice or tilted."""
    steps = np.diff(places, axis=0)
    distances = steps @ normal
    usual = float(np.median(distances[distances > 1e-3])) if (distances > 1e-3).any() else 0.0
    for number, distance in enumerate(distances):
        names = f"{files[number].name} and {files[number + 1].name}"
        if distance <= max(1e-3, 0.1 * usual):
            raise UserError(f"{folder}: two slices at one place, {names}: remove one of them")
        if abs(distance - usual) > MAX_UNEVEN * usual:
            raise UserError(
                f"{folder}: slices are missing, or their distances differ: {distance:.4g} mm between {names}, "
                f"{usual:.4g} mm elsewhere: export the whole series again, or resample it"
            )
    step = (places[-1] - places[0]) / (len(places) - 1)
    angle = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    if angle > MAX_TILT:
        raise UserError(
            f"{folder}: the gantry was tilted by {angle:.1f}°, so slices are shifted: make a volume with right angles "
            "of it, with dcm2niix"
        )
    return step


def _number(header: Any, name: str, default: float) -> float:
    value = header.get(name)
    return default if value in (None, "") else float(value)


def _value_dtype(headers: Sequence[Any], scales: Sequence[tuple[float, float]]) -> str:
    """int16 where it holds all values that the pixels can have after the rescale, else float32."""
    for header, (slope, intercept) in zip(headers, scales, strict=True):
        bits = int(header.get("BitsStored") or 16)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.get("PixelRepresentation") else (0, 2**bits - 1)
        ends = [slope * end + intercept for end in (low, high)]
        if slope != int(slope) or intercept != int(intercept) or min(ends) < -(2**15) or max(ends) >= 2**15:
            return "float32"
    return "int16"


def read_pixels(path: Path) -> np.ndarray:
    """(rows, columns) as stored, before the rescale. Raises UserError."""
    import pydicom

    try:
        with quiet_pydicom():
            return np.asarray(pydicom.dcmread(path).pixel_array)
    except Exception:  # pydicom's errors can print values, which can be names
        raise UserError(
            f"{path}: its pixels cannot be decoded: the file is damaged, or export it uncompressed"
        ) from None
