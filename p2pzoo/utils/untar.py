"""Extract an untrusted tar file into a new folder. Imports nothing heavy.

An archive may hold files and folders with relative names, up to limits on their number and size. Links, devices and
names that lead out of the folder are refused.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Self

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import naming

DECOMPRESSORS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by first bytes
BROKEN_ARCHIVE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError)
EXTENDED_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
MAX_EXTENDED_HEADER = 1 << 20  # bytes: tarfile reads such a header into memory; real ones have a few hundred
BAD_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.ELOOP)
MAX_NAME_SHOWN = 100  # characters, so that a message stays one line
READ_SIZE = 1 << 18  # bytes: 256 KiB, as large a piece as reading gets faster by


class _RefusedArchive(Exception):
    """The archive holds something that is not extracted; the message says what."""


def extract(
    file: Path, into: Path, *, max_bytes: int, max_members: int, on_read: Callable[[bytes], object] = len
) -> None:
    """Extract a tar file, compressed or not. The file is read once, from its first byte to its last.

    into         an empty folder that exists
    max_bytes    limit of the size of the unpacked archive
    max_members  limit of the number of files and folders
    on_read      called with the file's bytes, piece by piece, in order

    Raises UserError if the file is no complete tar archive, if it has links, devices or names that lead out of `into`,
    or if it exceeds a limit. Files that were extracted before the error stay in `into`.
    """
    try:
        with file.open("rb") as raw:
            decompress = DECOMPRESSORS.get(raw.read(2), lambda stream: stream)
            raw.seek(0)
            compressed = _ReportingReader(raw, on_read)
            unpacked = _LimitedReader(decompress(compressed), max_bytes)
            options: dict[str, Any] = {"fileobj": unpacked, "tarinfo": _LimitedHeader}
            with tarfile.open(mode="r|", **options) as tar:
                _extract_members(tar, into, max_members)
            for stream in (unpacked, compressed):  # read to the end: the checksum is there, and on_read sees all bytes
                while stream.read(READ_SIZE):
                    pass
    except _RefusedArchive as error:
        raise UserError(f"{file}: {error}; nothing of it is kept") from None
    except (*BROKEN_ARCHIVE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # only errors of decompressors have no errno
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: not a complete tar archive ({reason})") from None


def _extract_members(tar: tarfile.TarFile, into: Path, max_members: int) -> None:
    # a second check, after _refuse_unsafe; Python 3.11.0 to 3.11.3 do not have it
    checked: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    count = 0
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header, so memory would grow
        count += 1
        if count > max_members:
            raise _RefusedArchive(f"holds more than {max_members:,} files and folders, the limit for this archive")
        _refuse_unsafe(member)
        try:
            with naming(into / member.name[:MAX_NAME_SHOWN]):
                tar.extract(member, into, set_attrs=False, **checked)
        except getattr(tarfile, "FilterError", ()) as error:
            raise _RefusedArchive(str(error)) from None
        except OSError as error:
            if error.errno not in BAD_NAME:
                raise
            reason = f"{member.name[:MAX_NAME_SHOWN]!r}: {error.strerror}"
            raise _RefusedArchive(f"has a member whose name is impossible in this folder ({reason})") from None


def _refuse_unsafe(member: tarfile.TarInfo) -> None:
    """Raise _RefusedArchive unless this is a plain file or a folder, inside the archive's own folder."""
    name = member.name[:MAX_NAME_SHOWN]
    # a sparse file unpacks to more bytes than the archive has, so max_bytes would not limit it
    if not (member.isfile() or member.isdir()) or member.issparse():
        is_link, is_sparse = member.issym() or member.islnk(), member.issparse()
        kind = "a link" if is_link else "a sparse file" if is_sparse else "a device or pipe"
        raise _RefusedArchive(f"contains {kind} ({name!r})")
    paths = (PurePosixPath(member.name), PureWindowsPath(member.name))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise _RefusedArchive(f"has a member that would leave its folder ({name!r})")


class _LimitedHeader(tarfile.TarInfo):
    """A header; extended headers that are too long for memory are refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED_HEADERS and header.size > MAX_EXTENDED_HEADER:
            raise _RefusedArchive(f"has an extended header of {header.size:,} bytes (limit {MAX_EXTENDED_HEADER:,})")
        return header


class _ReportingReader:
    """A file that passes every piece it reads to a function."""

    def __init__(self, file: BinaryIO, on_read: Callable[[bytes], object]) -> None:
        self._file, self._on_read = file, on_read

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_read(data)
        return data


class _LimitedReader:
    """A stream that refuses to give more than `max_bytes`."""

    def __init__(self, stream: Any, max_bytes: int) -> None:
        self._stream, self._max_bytes, self._bytes_left = stream, max_bytes, max_bytes

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise _RefusedArchive(f"unpacks to more than {self._max_bytes:,} bytes, the limit for this archive")
        return data
