"""Download the archive that a dataset is published in, verify it, and extract it into the cache, once.

    CACHE/datasets/NAME/            content of the archive
    CACHE/datasets/NAME.json        source of the archive, its SHA-256, number and size of its images
    CACHE/datasets/NAME.files.json  size and SHA-256 of each file of the folder (`p2pzoo.utils.file_digests`)
    CACHE/datasets/NAME.part        the archive until it is extracted, or as much of it as an interrupted download has
                                    received, if its server can resume it; NAME.part.json has its origin
    CACHE/datasets/.NAME.tmp/       work in progress; if no process holds the lock, a process was killed

`p2pzoo.plugin.Archive` describes an archive. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from p2pzoo.images.find_images import find_images
from p2pzoo.plugin import Archive
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.file_digests import (
    Digests,
    compute_digests,
    find_altered,
    read_digests,
    write_digests,
)
from p2pzoo.utils.files import naming, read_json, write_json
from p2pzoo.utils.untar import extract
from p2pzoo_data_tools.resumable_download import Meter, ResumableDownload, origin_file

# Limits of what an archive may unpack to, against decompression bombs: MAX_EXPANSION × its length + EXTRA_BYTES, and
# MAX_MEMBERS_PER_IMAGE × its images + EXTRA_MEMBERS. Images hardly compress, so real archives stay far below.
MAX_EXPANSION, EXTRA_BYTES = 20, 64 << 20
MAX_MEMBERS_PER_IMAGE, EXTRA_MEMBERS = 4, 1000
MAX_BYTES_PER_IMAGE = 16 << 20  # of an archive of unknown size; it takes no more than half of the free disk either


@dataclass(frozen=True)
class FetchedDataset:
    """A dataset in the cache.

    images  number of images by folder
    sha256  of the archive; None if the dataset was put there by hand
    is_new  whether this call extracted it
    num_restored  number of damaged or missing files that this call fetched again
    """

    folder: Path
    images: Mapping[str, int]
    sha256: str | None
    is_new: bool
    num_restored: int = 0


def fetch(
    archive: Archive, meter: Meter, note: Callable[[str], None], *, mirror: str | None = None, local: Path | None = None
) -> FetchedDataset:
    """Put an archive's content into the cache, or verify what is there, and fetch files again that are damaged or
    missing. Safe to call in several processes at once.

    mirror  URL of a folder that has the file, instead of the archive's own server
    local   the file itself, instead of a download
    note    called with one line that the user should see

    The archive's SHA-256 is recorded at the first fetch; later fetches must have the same. Raises UserError if the
    archive is unavailable or damaged, if its length, SHA-256 or number of images differs, or if it holds members that
    are not allowed. Nothing is left then, except an interrupted download that can be resumed. Where anything else stops
    the extraction, such as Ctrl-C or a full disk, the download stays, and the next call extracts it without a request.
    """
    if mirror and not mirror.lower().startswith(("http://", "https://")):
        raise UserError(f"--mirror {mirror}: not a URL of a server; it must begin with http:// or https://")
    root = archive.folder.parent
    root.mkdir(parents=True, exist_ok=True)
    with _lock(
        root / f".{archive.name}.lock", lambda: note(f"waiting for another process that fetches {archive.name}")
    ):
        record = read_json(_record_file(archive))
        damaged = _find_damaged(archive, meter) if archive.folder.is_dir() else {}
        if archive.folder.is_dir() and not damaged:
            _remove_part(archive)  # a process was killed after it had extracted it
            return _verify_folder(archive, record, meter)
        if damaged:
            note(f"{archive.folder}: {_describe_damaged(damaged)}: fetching the archive again")
        with _temporary_folder(root / f".{archive.name}.tmp") as folder:
            if local:
                _check_length(archive, _local_size(local), str(local))
                file, source = local, str(local)
            else:
                source = f"{mirror.rstrip('/')}/{_file_name(archive)}" if mirror else archive.url
                file = _download(archive, source, folder, meter, note)
            try:
                fetched = _unpack(archive, file, source, folder, record, damaged, meter)
            except UserError:  # it is the wrong archive, or damaged
                if not local:
                    _remove_part(archive)
                raise
        _remove_part(archive)
        return fetched


def _unpack(
    archive: Archive, file: Path, source: str, temporary: Path, record: Any, damaged: Digests, meter: Meter
) -> FetchedDataset:
    """Extract the archive, and put all of it or what was damaged into place. Raises UserError for a wrong archive."""
    unpacked = _extract_and_verify(archive, file, source, temporary, record, meter)
    if not damaged:
        return _install(archive, unpacked, record, meter)
    _restore(archive, unpacked, damaged)
    return replace(_verify_folder(archive, record, meter), num_restored=len(damaged))


def describe_state(archive: Archive) -> str:
    """Return what the cache has: "fetched", "interrupted" or "not fetched"."""
    if archive.folder.is_dir():
        return "fetched"
    return "interrupted" if _part_file(archive).exists() else "not fetched"


# --- what the cache has ----------------------------------------------------------------------------------------


def _record_file(archive: Archive) -> Path:
    return archive.folder.with_name(f"{archive.name}.json")


def _measure(folder: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of images by folder, and their bytes in total."""
    files = {name: find_images(folder / name) if (folder / name).is_dir() else [] for name in names}
    counts = {name: len(paths) for name, paths in files.items()}
    return {"images": counts, "bytes": sum(path.stat().st_size for paths in files.values() for path in paths)}


def _find_damaged(archive: Archive, meter: Meter) -> Digests:
    """The files of the folder that are missing, or not as they were fetched. Empty if that was not recorded."""
    digests = read_digests(archive.digests_file) or {}
    with meter(f"verifying {archive.name}", sum(digest.size for digest in digests.values())) as advance:
        names = find_altered(archive.folder, digests, lambda data: advance(len(data)))
    return {name: digests[name] for name in names}


def _describe_damaged(damaged: Digests) -> str:
    subject = "1 file is" if len(damaged) == 1 else f"{len(damaged):,} files are"
    return f"{subject} damaged or missing ({next(iter(damaged))}{', ...' * (len(damaged) > 1)})"


def _record_digests(archive: Archive, folder: Path, meter: Meter) -> None:
    length = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with meter(f"computing SHA-256 of {archive.name}", length) as advance:
        write_digests(archive.digests_file, compute_digests(folder, lambda data: advance(len(data))))


def _verify_folder(archive: Archive, record: Any, meter: Meter) -> FetchedDataset:
    content = _measure(archive.folder, record["holds"]["images"] if record else archive.images)
    is_fetched = record is not None
    if not is_fetched:  # put there by hand: only the number of images can be verified
        record = {"holds": {"images": dict(archive.images), "bytes": content["bytes"]}}
    if content != record["holds"]:
        expected = f"{_format_counts(record['holds']['images'])} of {record['holds']['bytes']:,} bytes"
        actual = f"{_format_counts(content['images'])} images of {content['bytes']:,} bytes"
        raise UserError(f"{archive.folder}: holds {actual}, not {expected}; remove the folder and fetch it again")
    if is_fetched and not archive.digests_file.exists():  # fetched by an earlier version
        _record_digests(archive, archive.folder, meter)
    return FetchedDataset(archive.folder, content["images"], record.get("sha256"), is_new=False)


def _format_counts(images: Mapping[str, int]) -> str:
    return ", ".join(f"{folder} {count}" for folder, count in images.items())


# --- from a file to a folder -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unpacked:
    """An archive's content in a temporary folder. content: as `_measure` returns it. length: of the archive."""

    folder: Path
    source: str
    length: int
    sha256: str
    content: dict[str, Any]


def _extract_and_verify(
    archive: Archive, file: Path, source: str, temporary: Path, record: Any, meter: Meter
) -> _Unpacked:
    extracted = temporary / "extracted"
    extracted.mkdir()
    sha256 = _extract(archive, file, source, extracted, meter)
    if record and record["sha256"] != sha256:
        message = f"SHA-256 is {sha256}, but the first fetch, from {record['source']}, had {record['sha256']}"
        raise UserError(f"{source}: {message}: another file. Remove {_record_file(archive)} if you trust this one")
    top = _find_top_folder(extracted, archive.images)
    content = _measure(top, archive.images)
    if content["images"] != dict(archive.images):
        message = (
            f"holds {_format_counts(content['images'])} images, but {_format_counts(archive.images)} were published"
        )
        raise UserError(f"{source}: {message}; nothing of it is kept. Fetch it from another place (--mirror, --from)")
    return _Unpacked(top, source, file.stat().st_size, sha256, content)


def _install(archive: Archive, new: _Unpacked, record: Any, meter: Meter) -> FetchedDataset:
    """Move into place. The records are written before the folder is moved, so that a fetched folder always has them."""
    _record_digests(archive, new.folder, meter)
    if not record:
        facts = {"source": new.source, "length": new.length, "sha256": new.sha256, "holds": new.content}
        write_json(_record_file(archive), facts)
    new.folder.replace(archive.folder)
    return FetchedDataset(archive.folder, new.content["images"], new.sha256, is_new=True)


def _restore(archive: Archive, new: _Unpacked, damaged: Digests) -> None:
    """Replace the damaged and missing files, and no other."""
    if others := find_altered(new.folder, damaged):
        message = f"its {others[0]} is not the file that was fetched first"
        raise UserError(f"{new.source}: {message}: remove {archive.folder} and fetch it again")
    for name in damaged:
        target = archive.folder / name
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            (new.folder / name).replace(target)


def _extract(archive: Archive, file: Path, source: str, into: Path, meter: Meter) -> str:
    """Extract the archive; return its SHA-256, computed in the same pass."""
    length, digest = file.stat().st_size, hashlib.sha256()
    with meter(f"extracting {archive.name}", length) as advance:

        def on_read(data: bytes) -> None:
            digest.update(data)
            advance(len(data))

        try:
            extract(
                file,
                into,
                max_bytes=MAX_EXPANSION * length + EXTRA_BYTES,
                max_members=MAX_MEMBERS_PER_IMAGE * sum(archive.images.values()) + EXTRA_MEMBERS,
                on_read=on_read,
            )
        except UserError as error:
            raise UserError(str(error).replace(str(file), source, 1)) from None
    return digest.hexdigest()


def _find_top_folder(folder: Path, names: Mapping[str, Any]) -> Path:
    """Return the single folder at the top of the archive, if it has one, else `folder`."""
    content = list(folder.iterdir())
    return content[0] if len(content) == 1 and content[0].is_dir() and content[0].name not in names else folder


def _check_length(archive: Archive, length: int, source: str) -> None:
    if archive.size is not None and length != archive.size:
        message = f"has {length:,} bytes, but the archive has {archive.size:,}: another file, or an incomplete one"
        raise UserError(f"{source}: {message}. Fetch it from another place (--mirror, --from)")


def _local_size(file: Path) -> int:
    if not file.is_file():
        raise UserError(f"--from {file}: {'not a file' if file.exists() else 'no such file'}; give the archive itself")
    return file.stat().st_size


@contextlib.contextmanager
def _lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; call `on_wait` first if another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Make an empty folder; remove it at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- from a server to a file -----------------------------------------------------------------------------------


def _file_name(archive: Archive) -> str:
    return urlsplit(archive.url).path.rpartition("/")[2]


def _part_file(archive: Archive) -> Path:
    return archive.folder.with_name(f"{archive.name}.part")


def _remove_part(archive: Archive) -> None:
    for file in (_part_file(archive), origin_file(_part_file(archive))):
        file.unlink(missing_ok=True)


def _download(archive: Archive, url: str, folder: Path, meter: Meter, note: Callable[[str], None]) -> Path:
    """Return the complete archive. It stays where it is until `_remove_part`."""
    part = _part_file(archive)
    download = ResumableDownload(
        archive.name,
        url,
        part,
        meter,
        expected_size=archive.size,
        check_length=lambda length: _check_length(archive, length, url),
        max_size=min(MAX_BYTES_PER_IMAGE * sum(archive.images.values()), shutil.disk_usage(folder).free // 2),
    )
    if download.find_complete():
        note(f"{part}: an earlier call downloaded it; extracting it now")
    else:
        download.receive()
    return part
