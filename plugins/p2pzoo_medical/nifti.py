"""NIfTI files: opening, with refusals of what a volume is not, and writing with the header of another volume."""

from __future__ import annotations

import gzip
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo_medical.copies import cached_copy, combine_states, file_state
from p2pzoo_medical.units import DTYPES, Units
from p2pzoo_medical.volume import Volume, check_affine, require

SUFFIXES = (".nii.gz", ".nii")
_CHUNK = 1 << 20  # bytes that are decompressed at once
_GZIP_LEVEL = 6


def nifti_stem(path: Path) -> str | None:
    """The name without .nii or .nii.gz; None for another file.

    >>> nifti_stem(Path("ct/sub-01.nii.gz")), nifti_stem(Path("notes.txt"))
    ('sub-01', None)
    """
    return next((path.name[: -len(end)] for end in SUFFIXES if path.name.lower().endswith(end)), None)


@dataclass(frozen=True)
class PlainFile:
    """The values of a .nii file."""

    path: Path
    offset: int

    def place(self) -> tuple[Path, int]:
        return self.path, self.offset


@dataclass(frozen=True)
class CompressedFile:
    """The values of a .nii.gz file, of which an uncompressed copy is made: single slices of it cannot be read."""

    path: Path
    offset: int
    size: int

    def place(self) -> tuple[Path, int]:
        key = ["nifti", file_state(self.path), "checksum"]  # copies without this word were made without comparing it
        return cached_copy(key, self.size, str(self.path), self._write), 0

    def _write(self, file: BinaryIO) -> None:
        left = self.size
        try:
            with gzip.open(self.path) as source:
                source.read(self.offset)
                while left and (data := source.read(min(_CHUNK, left))):
                    file.write(data)
                    left -= len(data)
                while source.read(_CHUNK):  # to the end of the stream: its checksum is there
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error):
            left = left or self.size
        if left:
            raise UserError(f"{self.path}: the file is truncated or damaged: copy it again from where it came from")


def open_nifti(path: Path) -> Volume:
    """A NIfTI file as a volume. Reads the header only.

    Raises UserError for a file that is none, for more or fewer than three dimensions, colours, values that cannot be
    used, and an affine that is missing or sheared.
    """
    image = load_image(path)
    header = image.header
    shape = tuple(header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        what = f"{len(shape)}D, {'×'.join(map(str, shape))}"
        raise UserError(f"{path}: is {what}, and a volume has three dimensions: split it into one file for each volume")
    raw_dtype = header.get_data_dtype()
    if raw_dtype.name not in DTYPES:
        raise UserError(f"{path}: values of {raw_dtype} cannot be used: convert it to numbers, such as float32")
    if int(header["qform_code"]) <= 0 and int(header["sform_code"]) <= 0:
        raise UserError(
            f"{path}: has neither a qform nor an sform, so left and right are not known: set one from where it came"
        )
    check_affine(image.affine, path)
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    offset, size = int(image.dataobj.offset), raw_dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    is_compressed = path.name.lower().endswith(".gz")
    if not is_compressed and path.stat().st_size < offset + size:
        raise UserError(f"{path}: the file is truncated: copy it again from where it came from")
    raw = CompressedFile(path, offset, size) if is_compressed else PlainFile(path, offset)
    return Volume(
        path, shape, np.asarray(image.affine, float), _value_dtype(raw_dtype, slope, intercept),
        *combine_states([file_state(path)]), raw, raw_dtype.str, float(slope), float(intercept),
    )  # fmt: skip


def load_image(path: Path) -> Any:
    """The NIfTI image of nibabel, its header read. Raises UserError for a file that is none."""
    nibabel = require("nibabel", "reading NIfTI files")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        image = nibabel.load(path)
    except Exception as error:  # nibabel raises many kinds for damaged headers
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        raise UserError(f"{path}: cannot be read as NIfTI: it is damaged, or has another format") from None
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it
        raise UserError(f"{path}: is no NIfTI file: convert it to .nii or .nii.gz")
    return image


def _value_dtype(raw: np.dtype, slope: float, intercept: float) -> str:
    """A dtype that holds the values after the rescale: that of the file where there is none."""
    return raw.newbyteorder("=").name if (slope, intercept) == (1, 0) else "float32"


# --- write -------------------------------------------------------------------------------------------------------


def make_header(source: Volume, units: Units, description: str) -> Any:
    """A header for values in these units on the grid of a volume: its affine, the codes of qform and sform, and units.

    From a DICOM series it has both codes 1 (scanner) and mm. Nothing else of the source is taken: description, names
    and extensions of a header can hold the name of a patient.
    """
    nibabel = require("nibabel", "writing NIfTI files")
    made = nibabel.Nifti1Header if max(source.shape) < 2**15 else nibabel.Nifti2Header
    if source.path.is_file():
        image = load_image(source.path)
        made = type(image.header) if isinstance(image.header, nibabel.Nifti2Header) else made
        qform, sform = image.get_qform(), image.get_sform()
        codes = int(image.header["qform_code"]), int(image.header["sform_code"])
        lengths = image.header.get_xyzt_units()
    else:
        qform = sform = source.affine
        codes, lengths = (1, 1), ("mm", "unknown")
    header = made()
    header.set_data_dtype(units.dtype)
    header.set_data_shape(source.shape)
    header.set_xyzt_units(*lengths)
    header.set_zooms(np.linalg.norm(source.affine[:3, :3], axis=0))
    header.set_qform(qform, codes[0])
    header.set_sform(sform, codes[1])
    header.set_slope_inter(1, 0)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["cal_min"], header["cal_max"] = units.window
    return header


@contextmanager
def writing_nifti(path: Path, header: Any) -> Iterator[np.ndarray]:
    """Yield a map (i, j, k) of a new NIfTI file, to write to; at the end the file appears under its name, as a whole.

    For .nii.gz the map is that of a file beside it, which is then compressed and removed. The room is taken at once, so
    that a full disk is an OSError here. After an error nothing is left.
    """
    if path.name.lower().endswith(".gz"):
        with scratch_map(path, header) as (plain, values):
            yield values
            values.flush()
            with (
                atomic_write(path) as unfinished,
                plain.open("rb") as plain_file,
                unfinished.open("wb") as target,
                gzip.GzipFile("", "wb", _GZIP_LEVEL, target, mtime=0) as compressed,  # no name, no time
            ):
                shutil.copyfileobj(plain_file, compressed, _CHUNK)
    else:
        with atomic_write(path) as unfinished:
            values = new_map(unfinished, header)
            yield values
            values.flush()


@contextmanager
def scratch_map(path: Path, header: Any) -> Iterator[tuple[Path, np.memmap]]:
    """Yield a NIfTI file beside `path` that is removed at the end, and a map of its values."""
    plain = path.with_name(f".{secrets.token_hex(6)}-{os.getpid()}.nii.tmp")
    try:
        yield plain, new_map(plain, header)
    finally:
        plain.unlink(missing_ok=True)


def new_map(path: Path, header: Any) -> np.memmap:
    """Write a NIfTI file whose values are 0, and map them. Raises OSError where they do not fit on the disk."""
    offset = int(header.sizeof_hdr) + 4
    header.set_data_offset(offset + -offset % 16)
    offset = int(header.get_data_offset())
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    size = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    with path.open("wb") as file:
        header.write_to(file)
        file.write(bytes(offset - file.tell()))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", offset, shape, order="F")
