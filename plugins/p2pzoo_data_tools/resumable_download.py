"""Download a file over HTTP, and resume it where it was interrupted, in this process or in an earlier one.

A finished download stays until its user removes it: it is recognised by its length and SHA-256, without a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.file_digests import FileDigest, find_altered
from p2pzoo.utils.files import naming, read_object, write_json

MAX_RETRIES = 3  # after the first attempt
RETRY_WAIT = 1  # seconds before the first retry; each further one waits as much longer
MAX_REDIRECTS = 10
TIMEOUT = (10, 60)  # seconds: to connect; without receiving a byte
READ_SIZE = 1 << 20  # bytes of a file at a time
CHUNK = 1 << 15  # bytes per read: 32 KiB, so that the progress bar moves on slow connections too
ALTERNATIVES = "use another server (--mirror URL) or your own copy (--from PATH)"


class Meter(Protocol):
    """Shows progress on a terminal. The function that it yields takes a number of bytes that are done."""

    def __call__(self, doing: str, total: int | None) -> contextlib.AbstractContextManager[Callable[[int], None]]: ...


class ResumableDownload:
    """A download to the file `part`, which is kept: incomplete, if its server can resume it; complete, until `remove`.

    name           what the progress bar shows
    url            http or https address
    part           file for the bytes received so far; `part`.json has their origin, and of a complete file its digest
    meter          shows the progress
    expected_size  bytes, if known
    check_length   called with the total length before the body is read; raises UserError to refuse it
    max_size       bytes; a longer body is refused where neither the server nor `expected_size` says its length

    A request asks for the missing bytes (HTTP Range, RFC 9110 §14) of the same version of the file (If-Range). If the
    server answers with the whole file, the download starts from the first byte.
    """

    def __init__(
        self,
        name: str,
        url: str,
        part: Path,
        meter: Meter,
        *,
        expected_size: int | None,
        check_length: Callable[[int], None],
        max_size: int,
    ) -> None:
        self.name, self.url, self.part, self.meter = name, url, part, meter
        self.expected_size, self.check_length, self.max_size = expected_size, check_length, max_size
        self.origin_file = origin_file(part)
        origin = read_object(self.origin_file) or {}
        version = origin.get("same")  # ETag or Last-Modified
        self.version = version if isinstance(version, str) else None
        length, sha256 = origin.get("length"), origin.get("sha256")
        is_known = isinstance(length, int) and isinstance(sha256, str)
        self.digest = FileDigest(length, sha256) if is_known else None  # type: ignore[arg-type]
        self.is_resumable = origin.get("url") == url
        if not self.is_resumable:
            self.remove()

    def find_complete(self) -> bool:
        """Whether an earlier call received the whole file. One that has changed since is removed."""
        if self.digest is None or not self.part.exists():
            return False
        with self.meter(f"verifying {self.name}", self.digest.size) as advance:
            altered = find_altered(self.part.parent, {self.part.name: self.digest}, lambda data: advance(len(data)))
        try:
            self.check_length(self.digest.size)
        except UserError:  # this version of p2pzoo expects another file
            altered.append(self.part.name)
        if altered:
            self.remove()
        return not altered

    def receive(self) -> None:
        """Download what `part` lacks, with retries. Raises UserError; a part that can be resumed is kept."""
        import requests

        try:
            for attempt in range(MAX_RETRIES + 1):
                try:
                    return self._request()
                except (ValueError, requests.TooManyRedirects) as error:
                    self._keep_or_remove()
                    reason = f"it, or an address that it redirects to, is not valid ({error})"
                    raise UserError(f"{self.url}: {reason}; {ALTERNATIVES}") from None
                except requests.RequestException:
                    if attempt == MAX_RETRIES:
                        raise
                    time.sleep(RETRY_WAIT * (attempt + 1))
        except requests.RequestException as error:
            kept = self._keep_or_remove()
            raise UserError(f"{self.url}: {_describe_error(error)}; {kept}. Try again, or {ALTERNATIVES}") from None
        except BaseException:
            self._keep_or_remove()
            raise

    def _request(self) -> None:
        import requests

        received, sha256 = self._hash_part()
        headers = {"Accept-Encoding": "identity"}
        if received:
            headers["Range"] = f"bytes={received}-"
            headers |= {"If-Range": self.version} if self.version else {}
        with _open(self.url, headers) as response:
            if response.status_code == 416:  # the file is not longer than the part, so it is another version
                self.remove()
                raise requests.ConnectionError("the file on the server has changed")
            if 400 <= response.status_code < 500:
                status = f"{response.status_code} {response.reason}"
                raise UserError(f"{self.url}: the server answers {status}; {ALTERNATIVES}")
            if response.status_code >= 500:
                raise requests.ConnectionError(f"the server answers {response.status_code} {response.reason}")
            resumes = response.status_code == 206 and _first_byte(response.headers) == received
            received, sha256 = (received, sha256) if resumes else (0, hashlib.sha256())
            total = self._total(response.headers, received)
            self._read_origin(response.headers, resumes)
            limit = self.max_size if total is None else total
            with self.meter(self.name, total) as advance:
                advance(received)
                received += self._write(response, "ab" if resumes else "wb", limit - received, advance, sha256)
        if received > limit:
            self.remove()
            raise UserError(
                f"{self.url}: the server sends more than {limit:,} bytes, too many for this archive; {ALTERNATIVES}"
            )
        if total is not None and received != total:
            raise requests.ConnectionError(f"the connection ended after {received:,} of {total:,} bytes")
        self.digest = FileDigest(received, sha256.hexdigest())
        self._store_origin()

    def _hash_part(self) -> tuple[int, Any]:
        """Return the length of what earlier requests received, and its SHA-256, to be updated."""
        sha256, received = hashlib.sha256(), 0
        if self.part.exists():
            with (
                self.meter(f"verifying {self.name}", self.part.stat().st_size) as advance,
                self.part.open("rb") as file,
            ):
                while data := file.read(READ_SIZE):
                    sha256.update(data)
                    advance(len(data))
                    received += len(data)
        return received, sha256

    def _write(self, response: Any, mode: str, limit: int, advance: Callable[[int], None], sha256: Any) -> int:
        """Write the body to the part and return its number of bytes. A reply may be endless: it stops at the limit.

        sha256  is updated with what is written
        """
        received = 0
        with naming(self.part), self.part.open(mode) as file:
            for chunk in _iter_raw(response):
                received += len(chunk)
                if received > limit:
                    break
                file.write(chunk)
                sha256.update(chunk)
                advance(len(chunk))
        return received

    def _keep_or_remove(self) -> str:
        """Keep the part if it is complete or can be resumed; return what happened, as text."""
        if (self.is_resumable or self.digest) and self.part.exists():
            return f"{self.part.stat().st_size:,} bytes are kept, and the next call resumes from them"
        self.remove()
        return "nothing is kept"

    def _total(self, headers: Mapping[str, str], received: int) -> int | None:
        length = headers.get("Content-Length")
        if length is None:
            return self.expected_size
        if not re.fullmatch(r"[0-9]{1,18}", length):
            self.remove()
            raise UserError(f"{self.url}: the server's Content-Length is not a number: {length[:40]!r}; {ALTERNATIVES}")
        total = received + int(length)
        try:
            self.check_length(total)
        except UserError:
            self.remove()
            raise
        return total

    def _read_origin(self, headers: Mapping[str, str], resumes: bool) -> None:
        """Store what a later request needs to resume this response."""
        self.is_resumable = resumes or headers.get("Accept-Ranges") == "bytes"
        tag = headers.get("ETag", "")
        is_weak = tag.startswith("W/")  # If-Range takes strong tags only (RFC 9110 §13.1.5)
        version = headers.get("Last-Modified") if is_weak or not tag else tag
        self.version = version if version and re.fullmatch(r"[!-~ ]{1,200}", version) else None  # fit for a header
        self.digest = None
        if self.is_resumable:
            self._store_origin()
        else:
            self.origin_file.unlink(missing_ok=True)

    def _store_origin(self) -> None:
        of_complete = {"length": self.digest.size, "sha256": self.digest.sha256} if self.digest else {}
        write_json(self.origin_file, {"url": self.url, "same": self.version, **of_complete})

    def remove(self) -> None:
        """Remove the download, complete or not."""
        self.digest = None
        for file in (self.part, self.origin_file):
            file.unlink(missing_ok=True)


def origin_file(part: Path) -> Path:
    """The file that describes where `part` comes from."""
    return part.with_name(f"{part.name}.json")


@contextlib.contextmanager
def _open(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """The response after redirects, its body not read. requests would read the bodies of redirects, however long."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            return None

    with Session() as session:
        for _ in range(MAX_REDIRECTS):
            with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                if not response.is_redirect:
                    yield response
                    return
                url = urljoin(url, response.headers["Location"])
    raise requests.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")


def _iter_raw(response: Any) -> Iterator[bytes]:
    """Yield the bytes as sent: some servers declare a .gz file as Content-Encoding, which requests would decompress."""
    import requests
    import urllib3

    try:
        yield from response.raw.stream(CHUNK, decode_content=False)
    except urllib3.exceptions.TimeoutError:
        raise requests.Timeout from None
    except urllib3.exceptions.HTTPError:
        raise requests.ConnectionError("the connection was interrupted") from None


def _first_byte(headers: Mapping[str, str]) -> int:
    """Return the position of the first byte of a partial response, -1 if it is missing."""
    match = re.match(r"bytes ([0-9]{1,18})-", headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _describe_error(error: Exception) -> str:
    """Describe in a few words what requests describes in several lines of nested errors."""
    import requests

    match error:
        case requests.Timeout():
            return "the server did not answer in time"
        case requests.ConnectionError() if not isinstance(error.args[0], str):
            return "no connection to the server"
    return str(error)
