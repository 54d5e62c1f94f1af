"""Tar files from strangers -> a new folder, and nowhere else. Imports nothing heavy.

What an archive may do is little: hold files and folders with relative names, not too many and not too large.
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

COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by their first bytes
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError)
EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
MOST_IN_EXTENSIONS = 1 << 20  # bytes of what belongs to a header, which tarfile reads into memory
NO_NAMES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.ELOOP)
MOST_TOLD = 100  # characters of a name
BLOCK = 1 << 18


class Refused(Exception):
    """Why an archive is not extracted."""


def extract(
    file: Path, into: Path, *, most_bytes: int, most_members: int, watch: Callable[[bytes], object] = len
) -> None:
    """Extract a tar file, compressed or not, which is read once from its first byte to its last.

    into          there, and empty
    most_bytes    of all that it unpacks to
    most_members  files and folders
    watch         is shown the file's own bytes, in order

    Raises UserError where it is no whole tar file, or has links, devices, names that lead out of `into`, or more than
    it may have. What was extracted until then is left in `into`.
    """
    try:
        with file.open("rb") as raw:
            unpack = COMPRESSED.get(raw.read(2), lambda stream: stream)
            raw.seek(0)
            stream = _Watched(raw, watch)
            unpacked = _Bounded(unpack(stream), most_bytes)
            with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Header) as tar:  # type: ignore[call-overload]
                _extract_all(tar, into, most_members)
            for rest in (unpacked, stream):  # to the checksum, and to the end
                while rest.read(BLOCK):
                    pass
    except Refused as error:
        raise UserError(f"{file}: {error}; nothing of it is kept") from None
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # decompressors' own have none
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: no whole tar archive ({reason})") from None


def _extract_all(tar: tarfile.TarFile, into: Path, most_members: int) -> None:
    members = 0
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # they would grow with the archive
        members += 1
        if members > most_members:
            raise Refused(f"holds more than {most_members:,} files and folders, which none such should")
        _check(member)
        try:
            tar.extract(member, into, set_attrs=False, filter="data")
        except tarfile.FilterError as error:
            raise Refused(str(error)) from None
        except OSError as error:
            if error.errno not in NO_NAMES:
                raise
            told = f"{member.name[:MOST_TOLD]!r}: {error.strerror}"
            raise Refused(f"has a member whose name no folder can hold ({told})") from None


def _check(member: tarfile.TarInfo) -> None:
    name = member.name[:MOST_TOLD]
    if not (member.isfile() or member.isdir()) or member.issparse():  # whose length is what it says
        link, sparse = member.issym() or member.islnk(), member.issparse()
        what = "a link" if link else "a sparse file" if sparse else "a device or pipe"
        raise Refused(f"has {what} in it ({name!r})")
    paths = (PurePosixPath(member.name), PureWindowsPath(member.name))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise Refused(f"has a member that would leave its folder ({name!r})")


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENSIONS and header.size > MOST_IN_EXTENSIONS:
            raise Refused(f"has a header of {header.size:,} bytes")
        return header


class _Watched:
    def __init__(self, file: BinaryIO, watch: Callable[[bytes], object]) -> None:
        self._file, self._watch = file, watch

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._watch(data)
        return data


class _Bounded:
    def __init__(self, file: Any, most_bytes: int) -> None:
        self._file, self._most, self._left = file, most_bytes, most_bytes

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise Refused(f"unpacks to more than {self._most:,} bytes, which none such should")
        return data
