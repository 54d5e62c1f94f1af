"""Read the body of a request into files of a private folder, and never more of it than the limits allow.

Clients' file names appear in messages and in ZIP files only, and never as a path. Imports python-multipart.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from p2pzoo_serve.interface import ClientGone, Limits, Refusal

NUMPY_MAGIC = b"\x93NUMPY"
MAX_NAME = 60  # characters of a client's file name that are kept
PARSER_EVENTS = ("header_field", "header_value", "header_end", "headers_finished", "part_data", "part_end", "end")
RAW_TYPES = ("application/octet-stream",)  # besides image/*


@dataclass(frozen=True)
class Upload:
    """A file of a client: the name that it gave, made harmless, and where its content is."""

    name: str
    path: Path


def safe_stem(name: str) -> str:
    """The base name of a client's file without its suffix, with letters, digits, "-", "_", "." and blanks only.

    >>> safe_stem("../../etc/passwd.png"), safe_stem("C:\\\\Users\\\\a\\\\my photo.jpeg"), safe_stem("..")
    ('passwd', 'my photo', 'image')
    """
    base = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    stem = base.rpartition(".")[0] or base
    kept = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in stem)
    return kept.strip(". ")[:MAX_NAME].rstrip(". ") or "image"


async def receive_uploads(
    receive: Any, headers: Mapping[str, str], folder: Path, limits: Limits, max_files: int
) -> list[Upload]:
    """Write the images of a body, multipart/form-data or one raw image, into this folder as 1.image, 2.image, …

    receive  of ASGI. Raises Refusal for a body that is too large, too slow or no image upload, and ClientGone.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "the body is compressed: send it without Content-Encoding")
    kind, parameters = parse_options_header(headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        files: _MultipartFiles | _RawFile = _MultipartFiles(parameters.get(b"boundary", b""), folder, max_files)
    elif max_files > 1:
        raise Refusal(415, "a batch is sent as multipart/form-data, one part for each image")
    elif kind.startswith(b"image/") or kind.decode("latin-1") in RAW_TYPES:
        files = _RawFile(folder)
    else:
        given = f"not as {kind.decode('latin-1')!r:.80}" if kind else "with a Content-Type"
        raise Refusal(415, f"send the image as multipart/form-data, image/* or application/octet-stream, {given}")
    try:
        async for chunk in read_body(receive, headers, limits):
            files.write(chunk)
        return files.finish()
    except FormParserError:
        raise Refusal(400, "the multipart body is damaged: send one part with a file name for each image") from None
    finally:
        files.close()


async def read_body(receive: Any, headers: Mapping[str, str], limits: Limits) -> AsyncIterator[bytes]:
    """Yield the chunks of a body. Raises Refusal as soon as it is too large or too slow, and ClientGone."""
    too_large = Refusal(413, f"the body is larger than {limits.megabytes:g} MB: send smaller or fewer images")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.bytes:
        raise too_large
    now = asyncio.get_running_loop().time
    began, received, is_complete = now(), 0, False
    while not is_complete:
        patience = min(limits.patience, began + limits.patience + received / limits.rate - now())
        try:
            message = await asyncio.wait_for(receive(), patience)
        except TimeoutError:
            raise Refusal(408, "the body arrives too slowly: send it again over a faster connection") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        received += len(chunk)
        if received > limits.bytes:
            raise too_large
        yield chunk
        is_complete = not message.get("more_body", False)


class _RawFile:
    """A body that is one image."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "1.image"
        self.file = self.path.open("xb")

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)

    def finish(self) -> list[Upload]:
        self.file.close()
        return [_finished("image", self.path)]

    def close(self) -> None:
        self.file.close()


class _MultipartFiles:
    """The files of a multipart body, each written while it arrives."""

    def __init__(self, boundary: bytes, folder: Path, max_files: int) -> None:
        if not boundary:
            raise Refusal(400, "the Content-Type of the multipart body has no boundary: send it with one")
        callbacks: Any = {f"on_{event}": getattr(self, f"_{event}") for event in PARSER_EVENTS}
        self.parser = MultipartParser(boundary, callbacks)
        self.folder, self.max_files = folder, max_files
        self.uploads: list[Upload] = []
        self.file: BinaryIO | None = None
        self.field = self.value = self.disposition = b""
        self.has_ended = False

    def write(self, chunk: bytes) -> None:
        self.parser.write(chunk)

    def finish(self) -> list[Upload]:
        self.parser.finalize()
        if not self.has_ended:
            raise Refusal(400, "the multipart body ends in the middle: send it again")
        if not self.uploads:
            raise Refusal(400, "the body has no file: send one part with a file name for each image")
        return self.uploads

    def close(self) -> None:
        if self.file:
            self.file.close()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self.field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _header_end(self) -> None:
        if self.field.lower() == b"content-disposition":
            self.disposition = self.value
        self.field = self.value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        self.disposition = b""
        if b"filename" not in options:
            raise Refusal(400, "a part of the body is no file: options belong into the query, as in ?seed=1")
        if len(self.uploads) >= self.max_files:
            most = "one image; POST /batch takes several" if self.max_files == 1 else f"at most {self.max_files} images"
            raise Refusal(413, f"the body has more files than allowed: send {most}")
        name = safe_stem(options[b"filename"].decode("utf-8", "replace"))
        path = self.folder / f"{len(self.uploads) + 1}.image"
        self.file = path.open("xb")
        self.uploads.append(Upload(name, path))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        assert self.file is not None
        self.file.write(data[start:end])

    def _part_end(self) -> None:
        assert self.file is not None
        self.file.close()
        self.uploads[-1] = _finished(self.uploads[-1].name, self.uploads[-1].path)

    def _end(self) -> None:
        self.has_ended = True


def _finished(name: str, path: Path) -> Upload:
    """An upload whose file is whole. p2pzoo knows NumPy arrays by their suffix, other images by their content."""
    with path.open("rb") as file:
        is_array = file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC
    return Upload(name, path.rename(path.with_suffix(".npy")) if is_array else path)
