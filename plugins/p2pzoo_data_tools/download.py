"""The archives that datasets are published in: downloaded, checked and extracted into the cache, once.

    CACHE/datasets/NAME/       what the archive holds
    CACHE/datasets/NAME.json   where it came from, its SHA-256, and how much it holds
    CACHE/datasets/NAME.part   a download that was cut off, if its server can go on with it; NAME.part.json says of what
    CACHE/datasets/.NAME.tmp/  what is being made: of a process that was killed if none holds the lock

What a Dataset class says of its archive is `contracts.Archive`. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from p2pzoo.images.io import find_images
from p2pzoo.plugin import Archive
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import read_json, write_json
from p2pzoo.utils.untar import extract

RETRIES = 3
TIMEOUT = (10, 60)  # seconds: to connect; without a byte
CHUNK = 1 << 15
# what an archive of images unpacks to: they hardly compress
MOST_TIMES_ITS_LENGTH, MOST_MORE_BYTES = 20, 64 << 20
MOST_MEMBERS_PER_IMAGE, MOST_MORE_MEMBERS = 4, 1000


class Meter(Protocol):
    """Shows a person how far something is. Inside, the function is told of bytes that have been done."""

    def __call__(self, doing: str, total: int | None) -> contextlib.AbstractContextManager[Callable[[int], None]]: ...


@dataclass(frozen=True)
class Fetched:
    """What is there now. `sha256`: of the archive, None where it was not fetched; `new`: whether this call got it."""

    folder: Path
    images: Mapping[str, int]
    sha256: str | None
    new: bool


def fetch(
    archive: Archive, meter: Meter, note: Callable[[str], None], *, mirror: str | None = None, local: Path | None = None
) -> Fetched:
    """Get an archive into the cache, or look whether all of it is there. Safe to call in several processes at once.

    mirror  URL of a folder that has the file, in place of the archive's own
    local   the file itself, in place of a download
    note    is told, in a line, what a person should know

    The archive's SHA-256 is recorded when it is fetched first; whatever is fetched later must have the same. Raises
    UserError where it cannot be had, has another length, SHA-256 or number of images, is broken, or has members that
    it may not have: then nothing is left of it, but a download that can be gone on with.
    """
    if mirror and urlsplit(mirror).scheme not in ("http", "https"):
        raise UserError(f"--mirror {mirror}: give a URL that begins with http:// or https://")
    root = archive.folder.parent
    root.mkdir(parents=True, exist_ok=True)
    with _alone(
        root / f".{archive.name}.lock", lambda: note(f"waiting for another process that fetches {archive.name}")
    ):
        record = read_json(_record(archive))
        if archive.folder.is_dir():
            return _there(archive, record)
        with _making(root / f".{archive.name}.tmp") as making:
            if local:
                _check_length(archive, _local(local), str(local))
                return _extracted(archive, local, str(local), making, record, meter)
            url = f"{mirror.rstrip('/')}/{_file_name(archive)}" if mirror else archive.url
            file = _download(archive, url, making, meter)
            return _extracted(archive, file, url, making, record, meter)


def there(archive: Archive) -> str:
    """In a word or two, what is in the cache of it."""
    if archive.folder.is_dir():
        return "there"
    return "begun" if _part(archive).exists() else "not there"


# --- what is there ---------------------------------------------------------------------------------------------


def _record(archive: Archive) -> Path:
    return archive.folder.with_name(f"{archive.name}.json")


def _measure(folder: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """How many images, and bytes of them, the folders hold."""
    found = {name: find_images(folder / name) if (folder / name).is_dir() else [] for name in names}
    images = {name: len(files) for name, files in found.items()}
    return {"images": images, "bytes": sum(file.stat().st_size for files in found.values() for file in files)}


def _there(archive: Archive, record: Any) -> Fetched:
    holds = _measure(archive.folder, record["holds"]["images"] if record else archive.images)
    if record is None:  # put there by hand: how many there are is all that can be checked
        record = {"holds": {"images": dict(archive.images), "bytes": holds["bytes"]}}
    if holds != record["holds"]:
        wanted = f"{_listed(record['holds']['images'])} of {record['holds']['bytes']:,} bytes in all"
        told = f"holds {_listed(holds['images'])} images of {holds['bytes']:,} bytes, not {wanted}"
        raise UserError(f"{archive.folder}: {told}: remove it, and fetch it again")
    return Fetched(archive.folder, holds["images"], record.get("sha256"), new=False)


def _listed(images: Mapping[str, int]) -> str:
    return ", ".join(f"{folder} {count}" for folder, count in images.items())


# --- from a file to a folder -----------------------------------------------------------------------------------


def _extracted(archive: Archive, file: Path, source: str, making: Path, record: Any, meter: Meter) -> Fetched:
    """Extract beside, check, and put in place. The record comes first: a folder that is there always has its own."""
    length, digest = file.stat().st_size, hashlib.sha256()
    into = making / "extracted"
    into.mkdir()
    with meter(f"extracting {archive.name}", length) as advance:

        def watch(data: bytes) -> None:
            digest.update(data)
            advance(len(data))

        try:
            extract(
                file,
                into,
                most_bytes=MOST_TIMES_ITS_LENGTH * length + MOST_MORE_BYTES,
                most_members=MOST_MEMBERS_PER_IMAGE * sum(archive.images.values()) + MOST_MORE_MEMBERS,
                watch=watch,
            )
        except UserError as error:
            raise UserError(str(error).replace(str(file), source, 1)) from None
    sha256 = digest.hexdigest()
    if record and record["sha256"] != sha256:
        told = f"SHA-256 {sha256}, and what was fetched first, from {record['source']}, had {record['sha256']}"
        raise UserError(f"{source}: {told}: it is another file. Remove {_record(archive)} if you trust this one")
    made = _inner(into, archive.images)
    holds = _measure(made, archive.images)
    if holds["images"] != dict(archive.images):
        told = f"holds {_listed(holds['images'])} images, where {_listed(archive.images)} were published"
        raise UserError(f"{source}: {told}; nothing of it is kept")
    if not record:
        write_json(_record(archive), {"source": source, "length": length, "sha256": sha256, "holds": holds})
    made.replace(archive.folder)
    return Fetched(archive.folder, holds["images"], sha256, new=True)


def _inner(folder: Path, names: Mapping[str, Any]) -> Path:
    """The archive's one top folder, or where it was extracted to."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in names else folder


def _check_length(archive: Archive, length: int, source: str) -> None:
    if archive.size is not None and length != archive.size:
        raise UserError(
            f"{source}: {length:,} bytes, where the archive has {archive.size:,}: it is another file, or cut"
        )


def _local(file: Path) -> int:
    """Its length."""
    if not file.is_file():
        raise UserError(f"--from {file}: {'no file' if file.exists() else 'no such file'}; give the archive itself")
    return file.stat().st_size


@contextlib.contextmanager
def _alone(lock: Path, wait: Callable[[], None]) -> Iterator[None]:
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        wait()
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def _making(folder: Path) -> Iterator[Path]:
    """An empty folder, which is gone at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- from a server to a file -----------------------------------------------------------------------------------


def _file_name(archive: Archive) -> str:
    return urlsplit(archive.url).path.rpartition("/")[2]


def _part(archive: Archive) -> Path:
    return archive.folder.with_name(f"{archive.name}.part")


def _download(archive: Archive, url: str, making: Path, meter: Meter) -> Path:
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    name = _file_name(archive)
    source = pooch.create(path=making, base_url="", registry={name: None}, urls={name: url}, retry_if_failed=RETRIES)
    resuming = Resuming(archive, url, _part(archive), meter)
    try:
        return Path(source.fetch(name, downloader=resuming))
    except requests.RequestException as error:
        kept = resuming.leave()
        raise UserError(
            f"{url}: {_told(error)}; {kept}. Try again, another server (--mirror URL), or your own copy (--from PATH)"
        ) from None
    except BaseException:
        resuming.leave()
        raise


class Resuming:
    """A pooch downloader that goes on where one was cut off, in this process or an earlier one.

    It asks for the rest of what it has (HTTP Range, RFC 9110 §14), if the file is still the same (If-Range), and
    begins anew where the server answers with the whole file.
    """

    def __init__(self, archive: Archive, url: str, part: Path, meter: Meter) -> None:
        self.archive, self.url, self.part, self.meter = archive, url, part, meter
        self.about = part.with_name(f"{part.name}.json")
        left = read_json(self.about) or {}
        self.same: str | None = left.get("same")  # what tells the server which version it was
        self.can_go_on = left.get("url") == url
        if not self.can_go_on:
            self._remove()

    def __call__(self, url: str, output_file: str, _pooch: Any) -> None:
        import requests

        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": self.same} if self.same else {}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # it has no more than we have: another file by now
                self._remove()
                raise requests.ConnectionError("the file has changed there")
            if 400 <= answer.status_code < 500:
                raise UserError(f"{url}: the server answers {answer.status_code} {answer.reason}: {ELSEWHERE}")
            if answer.status_code >= 500:
                raise requests.ConnectionError(f"the server answers {answer.status_code} {answer.reason}")
            goes_on = answer.status_code == 206 and _first(answer.headers) == have
            have = have if goes_on else 0
            total = self._total(answer.headers, have, url)
            self._begin(answer.headers, goes_on)
            with self.part.open("ab" if goes_on else "wb") as file, self.meter(self.archive.name, total) as advance:
                advance(have)
                for chunk in _bytes(answer):
                    file.write(chunk)
                    advance(len(chunk))
        got = self.part.stat().st_size
        if total is not None and got != total:
            raise requests.ConnectionError(f"cut off after {got:,} of {total:,} bytes")
        os.replace(self.part, output_file)
        self._remove()

    def leave(self) -> str:
        """What becomes of the part; in words."""
        if self.can_go_on and self.part.exists():
            return f"{self.part.stat().st_size:,} bytes are kept, and the next call goes on with them"
        self._remove()
        return "nothing is kept"

    def _total(self, headers: Mapping[str, str], have: int, url: str) -> int | None:
        length = headers.get("Content-Length")
        if length is None:
            return self.archive.size
        total = have + int(length)
        try:
            _check_length(self.archive, total, url)
        except UserError:
            self._remove()
            raise
        return total

    def _begin(self, headers: Mapping[str, str], goes_on: bool) -> None:
        self.can_go_on = goes_on or headers.get("Accept-Ranges") == "bytes"
        tag = headers.get("ETag", "")
        self.same = headers.get("Last-Modified") if tag.startswith("W/") or not tag else tag
        if self.can_go_on:
            write_json(self.about, {"url": self.url, "same": self.same})

    def _remove(self) -> None:
        for file in (self.part, self.about):
            file.unlink(missing_ok=True)


ELSEWHERE = "another server has it perhaps (--mirror URL), or you (--from PATH)"


def _bytes(answer: Any) -> Iterator[bytes]:
    """The file itself: some servers call a .gz a plain file with Content-Encoding, which requests would undo."""
    import requests
    import urllib3

    try:
        yield from answer.raw.stream(CHUNK, decode_content=False)
    except urllib3.exceptions.TimeoutError:
        raise requests.Timeout from None
    except urllib3.exceptions.HTTPError:
        raise requests.ConnectionError("the connection was cut") from None


def _first(headers: Mapping[str, str]) -> int:
    """The place of the first byte of a partial answer."""
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _told(error: Exception) -> str:
    """What requests says in several lines of nested errors, in a few words."""
    import requests

    match error:
        case requests.Timeout():
            return "no answer in time"
        case requests.ConnectionError() if not isinstance(error.args[0], str):
            return "no connection to the server"
    return str(error)
