"""Replies of servers with any bytes: `data fetch` keeps to the archive's size, and says in a line what is wrong."""

import io
import socketserver
import tarfile
import threading
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from p2pzoo_data_tools import download, resumable_download
from p2pzoo_datasets.published import Facades

COUNTS = {"train": 2, "val": 1}
MAX_BYTES = 1 << 16  # of an archive of unknown size


def make_archive():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for folder, count in COUNTS.items():
            for number in range(count):
                info = tarfile.TarInfo(f"facades/{folder}/{number}.jpg")
                info.size = 9
                tar.addfile(info, io.BytesIO(b"no pixels"))
    return out.getvalue()


ARCHIVE = make_archive()
NAMES = ("Content-Length", "Content-Range", "Location", "ETag", "Last-Modified", "Accept-Ranges", "Content-Encoding",
         "Transfer-Encoding", "Connection", "Set-Cookie", "X")  # fmt: skip
VALUES = (b"", b"0", b"-1", b"1e9", b"9" * 5000, str(len(ARCHIVE)).encode(), b"bytes 0-1/2", b"bytes 99-", b"bytes",
          b"gzip", b"chunked", b"/x", b"//", b"http://[", b"file:///etc/passwd", b"http://127.0.0.1:1/", b"\xff\x00",
          b"\x1b[2J", b'"a"', b'W/"a"', b"a" * 70_000)  # fmt: skip


@pytest.fixture
def server():
    """A server that sends `reply`, byte by byte, and closes the connection; `.endless`: zeros after it."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.settimeout(5)
            try:
                self.request.recv(65536)
                self.request.sendall(self.server.reply)
                while self.server.endless:
                    self.request.sendall(bytes(65536))
            except OSError:
                pass

    class Server(socketserver.ThreadingTCPServer):
        reply, endless, daemon_threads, allow_reuse_address, block_on_close = b"", False, True, True, False

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def replies(damaged):
    """(bytes of a reply, whether zeros follow without end)"""
    headers = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | st.binary(max_size=20)), max_size=4)
    status = st.sampled_from(
        [b"200 OK", b"206 Partial", b"302 Found", b"304 No", b"404 \x1b[2J", b"416 Range", b"500 No"]
    )
    bodies = st.just(ARCHIVE) | damaged(ARCHIVE)

    def make(status, headers, body, with_length):
        length = f"Content-Length: {len(body)}\r\n".encode() if with_length else b""
        lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers)
        return b"HTTP/1.1 " + status + b"\r\n" + length + lines + b"\r\n" + body

    whole = st.builds(make, status, headers, bodies, st.booleans())
    return st.tuples(whole | whole.flatmap(damaged), st.sampled_from([False, False, False, True]))


def test_replies_of_servers(try_each, run_cli, replies, server, tmp_path, monkeypatch):
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(resumable_download, "MAX_RETRIES", 0)
    monkeypatch.setattr(resumable_download, "TIMEOUT", (2, 0.05))  # a server that keeps silent
    monkeypatch.setattr(download, "MAX_BYTES_PER_IMAGE", MAX_BYTES // sum(COUNTS.values()))
    url = f"http://127.0.0.1:{server.server_address[1]}/facades.tar.gz"

    def act(case):
        (server.reply, server.endless), known = case
        archive = replace(Facades.archive, url=url, size=len(ARCHIVE) if known else None, images=COUNTS)
        monkeypatch.setattr(Facades, "archive", archive)
        try:
            return run_cli("data", "fetch", "facades")
        finally:
            size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
            assert size <= 4 * MAX_BYTES
            if archive.folder.exists():
                for file in sorted((tmp_path / "datasets").rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()

    try_each(st.tuples(replies, st.booleans()), act)
