"""`p2pzoo data fetch` from a server on loopback: what is kept, what is refused, what is left in the cache."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import itertools
import json
import tarfile
import threading

import numpy as np
import pytest
from p2pzoo_data_tools import download, resumable_download
from PIL import Image

PLUGIN = """
import json, pathlib
import p2pzoo
from p2pzoo.plugin import Archive

@p2pzoo.hookimpl
def register_datasets(register):
    register("doors", "doors_zoo:Doors", summary="Doors", paper="none")

class Published(type):
    @property
    def archive(cls):
        return Archive(**json.loads(pathlib.Path(__file__).with_name("doors.json").read_text()))

class Doors(metaclass=Published):
    pass
"""
COUNTS = {"train": 4, "val": 2}


def make_png(seed, side=96):
    noise = np.random.default_rng(seed).integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


FILES = {f"doors/{folder}/{n}.png": make_png(n) for folder, count in COUNTS.items() for n in range(count)}


def make_tar(files, *others, mode="w:gz"):
    """Return a tar of {name: bytes}, and of more TarInfos without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in others:
            tar.addfile(member)
    return out.getvalue()


def make_member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


ARCHIVE = make_tar(FILES)


class Server:
    """Serves `body` under every path, and records the requests.

    cut     for each of the next responses, number of bytes after which the connection closes, once `stall` is set
    endless   sends zeros until the client closes the connection, without a length; `sent`: how many
    redirect  redirects to this address
    ranges  "yes"; "no": ignores ranges and does not offer them; "lies": offers them, but sends the whole file
    """

    def __init__(self):
        self.body, self.cut, self.ranges, self.status = ARCHIVE, [], "yes", 200
        self.requests, self.hold, self.headers = [], threading.Event(), {}
        self.endless, self.sent, self.redirect = False, 0, None
        self.stall = threading.Event()
        for event in (self.hold, self.stall):
            event.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.respond(self)

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):  # a client that closes the connection
                pass

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/data"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def respond(self, to):
        self.requests.append((to.path, to.headers.get("Range")))
        self.hold.wait(30)
        etag = f'"{hashlib.sha256(self.body).hexdigest()[:8]}"'
        if self.redirect:
            to.send_response(302)
            to.send_header("Location", self.redirect)
            to.end_headers()
            with contextlib.suppress(ConnectionError):
                while self.endless:
                    self.sent += to.wfile.write(bytes(1 << 15))
            to.close_connection = True
            return
        if self.status != 200:
            to.send_error(self.status)
            return
        start, requested = 0, to.headers.get("Range")
        is_same_version = to.headers.get("If-Range", etag) == etag
        if requested and self.ranges == "yes" and is_same_version:
            start = int(requested.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.body):
                to.send_error(416)
                return
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        else:
            to.send_response(200)
        if self.ranges != "no":
            to.send_header("Accept-Ranges", "bytes")
        content = self.body[start:]
        lengths = {} if self.endless else {"Content-Length": str(len(content))}
        for name, value in {"ETag": etag, **lengths, **self.headers}.items():
            to.send_header(name, value)
        to.end_headers()
        with contextlib.suppress(ConnectionError):
            while self.endless:
                self.sent += to.wfile.write(bytes(1 << 15))
        cut = self.cut.pop(0) if self.cut else None
        with contextlib.suppress(ConnectionError):
            to.wfile.write(content[:cut])
        if cut is not None:
            self.stall.wait(30)
            to.close_connection = True

    def close(self):
        self.hold.set()
        self.stall.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def publish(install, tmp_path, server, monkeypatch):
    """publish(size=…): install a plugin whose dataset `doors` is published on the server; the cache is empty."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.delenv("P2PZOO_MIRROR", raising=False)
    monkeypatch.setattr(resumable_download, "RETRY_WAIT", 0)
    monkeypatch.setattr(resumable_download, "MAX_RETRIES", 0)

    install("doors_zoo", PLUGIN)

    def publish(**about):
        fields = {"name": "doors", "url": f"{server.url}/doors.tar.gz", "images": COUNTS, "licence": "for all"}
        (tmp_path / "site" / "doors.json").write_text(json.dumps(fields | about))

    return publish


@pytest.fixture
def doors(publish):
    publish(size=len(ARCHIVE))


@pytest.fixture
def data(tmp_path):
    return tmp_path / "cache" / "datasets"


def list_cache(data):
    """Return the files in the cache, without locks."""
    return sorted(
        path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


FETCHED_FILES = sorted([*FILES, "doors.files.json", "doors.json"])


@pytest.mark.usefixtures("doors")
class TestFetch:
    def test_the_archive_is_extracted_into_the_cache(self, run_cli, data):
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 0, result.output
        assert f"{data / 'doors'}: train 4, val 2 images" in result.output
        assert hashlib.sha256(ARCHIVE).hexdigest() in result.output
        assert "licence: for all" in result.output
        assert list_cache(data) == FETCHED_FILES
        for name, content in FILES.items():
            assert (data / name).read_bytes() == content

    def test_a_second_fetch_uses_no_server_and_changes_nothing(self, run_cli, data, server):
        run_cli("data", "fetch", "doors")
        before = {path: path.stat().st_mtime_ns for path in data.rglob("*.png")}
        server.requests.clear()
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 0
        assert "verified: unchanged since the fetch" in result.output
        assert server.requests == []
        assert {path: path.stat().st_mtime_ns for path in data.rglob("*.png")} == before

    @pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "folder"])
    def test_a_second_fetch_restores_damaged_files_and_no_others(self, run_cli, data, server, damage):
        run_cli("data", "fetch", "doors")
        file = data / "doors/train/1.png"
        if damage in ("missing", "folder"):
            file.unlink()
        else:
            content = file.read_bytes()
            file.write_bytes(content[:-1] + (b"" if damage == "truncated" else bytes([content[-1] ^ 1])))
        if damage == "folder":
            remove_folder(data / "doors/val")
        mine = data / "doors/mine.txt"
        mine.write_text("notes")
        before = {path: path.stat().st_mtime_ns for path in data.rglob("*.png") if path != file}
        server.requests.clear()
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 0, result.output
        what = "3 files are damaged or missing (train/1.png, ...)"
        what = what if damage == "folder" else "1 file is damaged or missing (train/1.png)"
        assert f"{data / 'doors'}: {what}: fetching the archive again\n" in result.output
        assert f"verified: {3 if damage == 'folder' else 1} file" in result.output
        assert len(server.requests) == 1
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert (data / "doors/train/1.png").read_bytes() == FILES["doors/train/1.png"]
        assert list_cache(data) == sorted([*FETCHED_FILES, "doors/mine.txt"])
        assert json.loads(run_cli("data", "fetch", "doors", "--json").output)["restored"] == 0

    def test_damaged_files_stay_if_the_archive_is_another_one(self, run_cli, data, server, publish):
        publish(size=None)
        run_cli("data", "fetch", "doors")
        file = data / "doors/train/1.png"
        file.write_bytes(b"damaged")
        server.body = make_tar(FILES | {"doors/train/1.png": make_png(99)})
        for records in ("doors.json", None):
            result = run_cli("data", "fetch", "doors")
            assert result.exit_code == 2
            assert "another file" in result.output if records else "is not the file that was fetched" in result.output
            assert file.read_bytes() == b"damaged"
            if records:
                (data / records).unlink()

    def test_an_image_that_was_added_is_reported(self, run_cli, data):
        run_cli("data", "fetch", "doors")
        (data / "doors/train/9.png").write_bytes(make_png(9))
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 2
        assert f"{data / 'doors'}: holds train 5, val 2 images" in result.output

    def test_what_an_earlier_version_fetched_is_recorded(self, run_cli, data):
        run_cli("data", "fetch", "doors")
        recorded = (data / "doors.files.json").read_bytes()
        (data / "doors.files.json").unlink()
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert (data / "doors.files.json").read_bytes() == recorded

    @pytest.mark.parametrize("content", ["", "[1]", "{}", '{"../a": "3 00"}', '{"train/1.png": 3}'])
    def test_a_damaged_list_of_files_is_reported(self, run_cli, data, content):
        run_cli("data", "fetch", "doors")
        (data / "doors.files.json").write_text(content)
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 2
        assert result.output.startswith(f"{data / 'doors.files.json'}: is damaged: remove it")
        assert len(result.output.splitlines()) == 1

    @pytest.mark.parametrize("how", ["option", "environment"])
    def test_a_mirror_is_used_with_the_same_file_name(self, run_cli, data, server, monkeypatch, how):
        mirror = server.url.replace("/data", "/elsewhere/")
        if how == "environment":
            monkeypatch.setenv("P2PZOO_MIRROR", mirror)
        result = run_cli("data", "fetch", "doors", *(["--mirror", mirror] if how == "option" else []))
        assert result.exit_code == 0, result.output
        assert [path for path, _ in server.requests] == ["/elsewhere/doors.tar.gz"]
        assert list_cache(data) == FETCHED_FILES

    @pytest.mark.parametrize("mode", ["w:gz", "w", "w:bz2", "w:xz"])
    def test_a_local_archive_needs_no_server(self, run_cli, data, server, publish, tmp_path, mode):
        file = tmp_path / "mine.tar"
        file.write_bytes(make_tar(FILES, mode=mode))
        publish(size=None)
        result = run_cli("data", "fetch", "doors", "--from", file)
        assert result.exit_code == 0, result.output
        assert server.requests == []
        assert list_cache(data) == FETCHED_FILES
        assert file.exists()

    def test_an_archive_without_a_top_folder_is_accepted(self, run_cli, data, publish, server):
        server.body = make_tar({name.removeprefix("doors/"): content for name, content in FILES.items()})
        publish(size=None)
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES

    def test_a_content_encoding_of_gzip_is_not_decompressed(self, run_cli, data, server):
        server.headers["Content-Encoding"] = "x-gzip"
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 0, result.output
        assert json.loads((data / "doors.json").read_text())["sha256"] == hashlib.sha256(ARCHIVE).hexdigest()

    def test_a_second_process_waits_for_the_first(self, start, wait_for, data, server):
        server.hold.clear()
        first = start("-m", "p2pzoo", "data", "fetch", "doors")
        wait_for(lambda: server.requests, first)
        second = start("-m", "p2pzoo", "data", "fetch", "doors")
        assert second.stdout.readline() == "waiting for another process that fetches doors\n"
        server.hold.set()
        outputs = [process.communicate(timeout=100)[0] for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], outputs
        assert ["verified: unchanged since the fetch" in output for output in outputs] == [False, True]
        assert len(server.requests) == 1
        assert list_cache(data) == FETCHED_FILES

    def test_the_temporary_files_of_a_killed_process_are_removed(self, run_cli, data):
        half = data / ".doors.tmp" / "extracted" / "doors" / "train"
        half.mkdir(parents=True)
        (half / "0.png").write_bytes(b"half")
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES


HALF = len(ARCHIVE) // 2


@pytest.mark.usefixtures("doors")
class TestResume:
    def test_an_interrupted_download_is_resumed(self, run_cli, data, server, monkeypatch):
        monkeypatch.setattr(resumable_download, "MAX_RETRIES", 1)
        server.cut = [HALF]
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 0, result.output
        [(_, first), (_, second)] = server.requests
        assert first is None
        assert 0 < first_byte(second) <= HALF
        assert list_cache(data) == FETCHED_FILES

    def test_the_next_call_resumes_an_interrupted_download(self, run_cli, data, server):
        server.cut = [HALF]
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 2
        assert "bytes are kept, and the next call resumes from them" in result.output
        assert list_cache(data) == ["doors.part", "doors.part.json"]
        assert run_cli("data", "fetch").output.count("interrupted") == 1

        kept = (data / "doors.part").stat().st_size
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert [requested for _, requested in server.requests] == [None, f"bytes={kept}-"]
        assert list_cache(data) == FETCHED_FILES

    def test_the_download_of_a_killed_process_is_resumed(self, run_cli, start, wait_for, data, server):
        server.cut = [HALF]
        server.stall.clear()
        killed = start("-m", "p2pzoo", "data", "fetch", "doors")
        part = data / "doors.part"
        wait_for(lambda: part.exists() and part.stat().st_size, killed)
        killed.kill()
        killed.wait()
        server.stall.set()
        kept = part.stat().st_size
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert server.requests[-1][1] == f"bytes={kept}-"
        assert list_cache(data) == FETCHED_FILES

    @pytest.mark.parametrize("ranges", ["no", "lies"])
    def test_a_server_that_ignores_ranges_sends_the_whole_file(self, run_cli, data, server, monkeypatch, ranges):
        monkeypatch.setattr(resumable_download, "MAX_RETRIES", 1)
        server.cut, server.ranges = [HALF], ranges
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 0, result.output
        assert len(server.requests) == 2
        assert list_cache(data) == FETCHED_FILES

    def test_a_download_that_cannot_be_resumed_is_removed(self, run_cli, data, server):
        server.cut, server.ranges = [HALF], "no"
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 2
        assert "nothing is kept" in result.output
        assert list_cache(data) == []

    def test_two_versions_of_a_file_are_not_mixed(self, run_cli, data, server, publish):
        publish(size=None)
        server.cut = [HALF]
        run_cli("data", "fetch", "doors")
        server.body = make_tar(FILES | {"doors/more.txt": b"1" * 1000})
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert first_byte(server.requests[-1][1]) > 0
        assert json.loads((data / "doors.json").read_text())["sha256"] == hashlib.sha256(server.body).hexdigest()

    def test_two_servers_are_not_mixed(self, run_cli, data, server):
        server.cut = [HALF]
        run_cli("data", "fetch", "doors")
        result = run_cli("data", "fetch", "doors", "--mirror", server.url.replace("/data", "/mirror"))
        assert result.exit_code == 0, result.output
        assert [requested for _, requested in server.requests] == [None, None]

    def test_a_part_that_is_longer_than_the_file_is_downloaded_again(self, run_cli, data, server, monkeypatch):
        server.cut = [HALF]
        run_cli("data", "fetch", "doors")
        (data / "doors.part").write_bytes(ARCHIVE + b"more")
        monkeypatch.setattr(resumable_download, "MAX_RETRIES", 1)
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES


KEPT = ["doors.part", "doors.part.json"]


@pytest.mark.usefixtures("doors")
class TestFinishedDownload:
    """It stays in the cache until the dataset is there, whatever stops the extraction."""

    @pytest.fixture
    def stop(self, run_cli, monkeypatch):
        """stop(error, at=…): fetch, and raise the error in this function of the extraction."""

        def stop(error, at="extract", *arguments):
            def fail(*_, **__):
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(download, at, fail)
                assert run_cli("data", "fetch", "doors", *arguments).exit_code != 0

        return stop

    @pytest.mark.parametrize("ranges", ["yes", "no"])
    @pytest.mark.parametrize("at", ["extract", "write_digests", "write_json"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
    def test_is_extracted_by_the_next_call_without_a_request(self, run_cli, data, server, stop, error, at, ranges):
        server.ranges = ranges
        stop(error, at)
        assert [name for name in list_cache(data) if name in KEPT] == KEPT
        assert not (data / "doors").exists()
        assert run_cli("data", "fetch").output.count("interrupted") == 1

        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 0, result.output
        assert f"{data / 'doors.part'}: an earlier call downloaded it" in result.output
        assert len(server.requests) == 1
        assert list_cache(data) == FETCHED_FILES
        assert json.loads((data / "doors.json").read_text())["source"] == f"{server.url}/doors.tar.gz"

    def test_of_which_the_last_part_was_resumed_is_kept_too(self, run_cli, data, server, stop):
        server.cut = [HALF]
        run_cli("data", "fetch", "doors")
        stop(KeyboardInterrupt())
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert len(server.requests) == 2

    def test_for_damaged_files_is_kept_too(self, run_cli, data, server, stop):
        run_cli("data", "fetch", "doors")
        (data / "doors" / "train" / "0.png").write_bytes(b"damaged")
        stop(KeyboardInterrupt())
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert len(server.requests) == 2
        assert list_cache(data) == FETCHED_FILES

    @pytest.mark.parametrize("change", [lambda old: old[:HALF] + b"?" + old[HALF + 1 :], lambda old: old + b"more"])
    def test_that_was_changed_since_is_downloaded_again(self, run_cli, data, server, stop, change):
        stop(KeyboardInterrupt())
        (data / "doors.part").write_bytes(change(ARCHIVE))
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert [requested for _, requested in server.requests] == [None, None]
        assert list_cache(data) == FETCHED_FILES

    @pytest.mark.parametrize("more", [{"length": "long"}, {"sha256": 7}, {"length": -1, "sha256": "?"}])
    def test_with_a_damaged_note_is_downloaded_again(self, run_cli, data, server, stop, monkeypatch, more):
        monkeypatch.setattr(resumable_download, "MAX_RETRIES", 1)
        stop(KeyboardInterrupt())
        note = data / "doors.part.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | more))
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES

    def test_of_another_length_than_a_newer_version_expects_is_downloaded_again(
        self, run_cli, data, server, publish, stop
    ):
        publish(size=None)
        stop(KeyboardInterrupt())
        server.body = make_tar(FILES | {"doors/more.txt": b"1" * 1000})
        publish(size=len(server.body))
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert json.loads((data / "doors.json").read_text())["length"] == len(server.body)

    def test_is_removed_if_it_is_the_wrong_archive(self, run_cli, data, server, publish, stop):
        publish(size=None)
        server.body = make_tar(dict(itertools.islice(FILES.items(), 5)))
        stop(KeyboardInterrupt())
        assert run_cli("data", "fetch", "doors").exit_code == 2
        assert list_cache(data) == []

    def test_is_not_needed_after_the_archive_came_from_a_file(self, run_cli, data, server, stop, tmp_path):
        stop(KeyboardInterrupt())
        (tmp_path / "mine.tar.gz").write_bytes(ARCHIVE[:-1])
        assert run_cli("data", "fetch", "doors", "--from", tmp_path / "mine.tar.gz").exit_code == 2
        assert list_cache(data) == KEPT, "the file is the wrong archive, not the download"
        (tmp_path / "mine.tar.gz").write_bytes(ARCHIVE)
        assert run_cli("data", "fetch", "doors", "--from", tmp_path / "mine.tar.gz").exit_code == 0
        assert list_cache(data) == FETCHED_FILES

    def test_of_a_process_that_was_killed_after_the_extraction_is_removed(self, run_cli, data):
        run_cli("data", "fetch", "doors")
        for name in KEPT:
            (data / name).write_bytes(b"")
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES


def first_byte(requested):
    return int(requested.removeprefix("bytes=").rstrip("-"))


@pytest.mark.usefixtures("doors")
class TestRefused:
    def fetch_refused(self, run_cli, data, *arguments):
        result = run_cli("data", "fetch", "doors", *arguments)
        assert result.exit_code == 2
        assert len(result.output.splitlines()) == 1, result.output
        assert list_cache(data) == []
        return result.output

    def test_a_missing_file_on_the_server(self, run_cli, data, server, monkeypatch):
        monkeypatch.setattr(resumable_download, "MAX_RETRIES", 3)
        server.status = 404
        message = self.fetch_refused(run_cli, data)
        assert f"{server.url}/doors.tar.gz: the server answers 404 Not Found" in message
        assert "--mirror URL" in message
        assert "--from PATH" in message
        assert len(server.requests) == 1, "a retry would not help"

    def test_a_server_error_is_retried(self, run_cli, data, server, monkeypatch):
        monkeypatch.setattr(resumable_download, "MAX_RETRIES", 1)
        server.status = 503
        assert "the server answers 503" in self.fetch_refused(run_cli, data)
        assert len(server.requests) == 2

    def test_no_server(self, run_cli, data, server):
        server.close()
        assert "no connection to the server; nothing is kept. Try again" in self.fetch_refused(run_cli, data)

    @pytest.mark.parametrize("mirror", ["ftp://a.b/c", "/some/folder"])
    def test_a_mirror_that_is_not_a_url(self, run_cli, data, mirror):
        message = self.fetch_refused(run_cli, data, "--mirror", mirror)
        assert f"--mirror {mirror}: not a URL of a server; it must begin with http" in message

    def test_a_mirror_that_is_not_a_valid_address(self, run_cli, data):
        assert "http://[/doors.tar.gz: it, or" in self.fetch_refused(run_cli, data, "--mirror", "http://[")

    def test_another_length_is_refused_before_the_download(self, run_cli, data, server):
        server.body = ARCHIVE + bytes(10)
        message = self.fetch_refused(run_cli, data)
        assert f"{len(ARCHIVE) + 10:,} bytes, but the archive has {len(ARCHIVE):,}" in message

    @pytest.mark.parametrize("known", [True, False])
    def test_an_endless_reply(self, known, run_cli, data, server, publish, monkeypatch):
        publish(size=len(ARCHIVE) if known else None)
        monkeypatch.setattr(download, "MAX_BYTES_PER_IMAGE", 1 << 18)
        server.endless = True
        message = self.fetch_refused(run_cli, data)
        limit = len(ARCHIVE) if known else sum(COUNTS.values()) << 18
        assert f"the server sends more than {limit:,} bytes, too many for this archive" in message
        assert server.sent < limit + (32 << 20)  # what the buffers of the connection hold

    @pytest.mark.parametrize("length", ["1e9", "-1", "", "9" * 5000, "\x1b[2J"])
    def test_a_length_that_is_no_number(self, length, run_cli, data, server):
        server.headers = {"Content-Length": length}
        message = self.fetch_refused(run_cli, data)
        assert "\x1b" not in message
        assert "Content-Length is not a number" in message

    @pytest.mark.parametrize(
        "address",
        ["http://[", "http://", "file:///etc/passwd", "http://a:99999999/", "http://.a/", "/x"],
    )
    def test_a_redirect_to_an_address_that_is_not_valid(self, address, run_cli, data, server):
        server.redirect = address
        message = self.fetch_refused(run_cli, data)
        assert "doors.tar.gz: it, or an address that it redirects to, is not valid" in message

    def test_an_endless_redirect(self, run_cli, data, server):
        server.redirect, server.endless = "/x", True
        assert "more than 10 redirects" in self.fetch_refused(run_cli, data)
        assert server.sent < 10 * (32 << 20)

    @pytest.mark.parametrize("headers", [{"ETag": '"\xe9\x01"'}, {"ETag": '"' + "a" * 9999 + '"'}])
    def test_a_version_that_is_no_header_is_not_sent_back(self, headers, run_cli, data, server):
        server.headers, server.cut = headers, [HALF]
        run_cli("data", "fetch", "doors")
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES

    @pytest.mark.parametrize("content", ["[1]", '{"url": 3, "same": [3]}', '{"url": "URL", "same": 7}'])
    def test_a_damaged_note_on_an_interrupted_download(self, content, run_cli, data, server):
        server.cut = [HALF]
        run_cli("data", "fetch", "doors")
        (data / "doors.part.json").write_text(content.replace("URL", f"{server.url}/doors.tar.gz"))
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES

    def test_a_local_file_of_another_length(self, run_cli, data, tmp_path):
        (tmp_path / "short.tar.gz").write_bytes(ARCHIVE[:-1])
        message = self.fetch_refused(run_cli, data, "--from", tmp_path / "short.tar.gz")
        assert f"{len(ARCHIVE) - 1:,} bytes, but the archive has {len(ARCHIVE):,}" in message
        assert (tmp_path / "short.tar.gz").exists()

    @pytest.mark.parametrize("what", ["nothing.tar.gz", "."])
    def test_a_local_file_that_does_not_exist(self, run_cli, data, tmp_path, what):
        assert f"--from {tmp_path / what}: no" in self.fetch_refused(run_cli, data, "--from", tmp_path / what)

    @pytest.mark.parametrize("place", [0.3, 0.6, 1.0])
    def test_a_flipped_bit(self, run_cli, data, server, place):
        damaged = bytearray(ARCHIVE)
        damaged[min(int(place * len(ARCHIVE)), len(ARCHIVE) - 6)] ^= 4
        server.body = bytes(damaged)
        assert "not a complete tar archive (" in self.fetch_refused(run_cli, data)

    @pytest.mark.parametrize("body", [ARCHIVE[:HALF], b"<html>moved</html>", b"", b"\x1f\x8b"], ids=len)
    def test_an_incomplete_archive(self, run_cli, data, server, publish, body):
        publish(size=None)
        server.body = body
        message = self.fetch_refused(run_cli, data)
        assert f"{server.url}/doors.tar.gz: not a complete tar archive (" in message

    def test_too_few_images(self, run_cli, data, server, publish):
        publish(size=None)
        server.body = make_tar(dict(itertools.islice(FILES.items(), 5)))
        assert "holds train 4, val 1 images, but train 4, val 2 were published" in self.fetch_refused(run_cli, data)

    @pytest.mark.parametrize(
        "name", ["../out.png", "doors/../../out.png", "/tmp/out.png", "doors\\..\\..\\out.png", "C:/out.png"]
    )
    def test_members_that_would_leave_their_folder(self, run_cli, data, server, publish, tmp_path, name):
        publish(size=None)
        server.body = make_tar(FILES | {name: b"out"})
        before = set(tmp_path.rglob("*"))
        assert "has a member that would leave its folder" in self.fetch_refused(run_cli, data)
        assert {path for path in set(tmp_path.rglob("*")) - before if path.name == "out.png"} == set()

    @pytest.mark.parametrize(
        ("kind", "link"),
        [(tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, "train"), (tarfile.LNKTYPE, "doors/train/0.png")],
    )
    def test_links(self, run_cli, data, server, publish, kind, link):
        publish(size=None)
        server.body = make_tar(FILES, make_member("doors/link", kind, link))
        assert "contains a link ('doors/link')" in self.fetch_refused(run_cli, data)

    @pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
    def test_devices(self, run_cli, data, server, publish, kind):
        publish(size=None)
        server.body = make_tar(FILES, make_member("doors/device", kind))
        assert "contains a device or pipe" in self.fetch_refused(run_cli, data)

    @pytest.mark.parametrize("where", ["in a member", "after the end"])
    def test_a_bomb_of_bytes(self, run_cli, data, server, publish, monkeypatch, where):
        publish(size=None)
        monkeypatch.setattr(download, "EXTRA_BYTES", 1 << 20)
        zeros = bytes((1 << 20) + 40 * len(ARCHIVE))
        inside, after = ({"doors/zeros": zeros}, b"") if where == "in a member" else ({}, zeros)
        server.body = gzip.compress(make_tar(FILES | inside, mode="w") + after)
        assert "unpacks to more than" in self.fetch_refused(run_cli, data)

    def test_a_bomb_of_members(self, run_cli, data, server, publish, monkeypatch):
        publish(size=None)
        monkeypatch.setattr(download, "EXTRA_MEMBERS", 100)
        server.body = make_tar(FILES | {f"doors/{n}": b"" for n in range(200)})
        assert "holds more than 124 files and folders" in self.fetch_refused(run_cli, data)

    def test_a_sparse_file(self, run_cli, data, server, publish):
        """A sparse file declares any length, here a terabyte, whatever the archive contains."""
        publish(size=None)
        sparse = make_member("doors/huge", tarfile.GNUTYPE_SPARSE)
        sparse.size = 1 << 40
        server.body = sparse.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
        assert "contains a sparse file ('doors/huge')" in self.fetch_refused(run_cli, data)

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_a_header_that_would_fill_the_memory(self, run_cli, data, server, publish, kind):
        publish(size=None)
        header = make_member("x", kind)
        header.size = 1 << 21
        server.body = header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22)
        assert "has an extended header of 2,097,152 bytes" in self.fetch_refused(run_cli, data)


@pytest.mark.usefixtures("doors")
class TestChecksum:
    @pytest.mark.parametrize("way", ["server", "mirror", "file"])
    def test_a_file_other_than_that_of_the_first_fetch_is_refused(self, run_cli, data, server, publish, tmp_path, way):
        publish(size=None)
        run_cli("data", "fetch", "doors")
        remove_folder(data / "doors")
        server.body = make_tar(FILES | {"doors/train/0.png": make_png(99)})
        (tmp_path / "mine.tar.gz").write_bytes(server.body)
        how = {"mirror": ["--mirror", server.url], "file": ["--from", tmp_path / "mine.tar.gz"]}.get(way, [])
        result = run_cli("data", "fetch", "doors", *how)
        assert result.exit_code == 2
        assert hashlib.sha256(ARCHIVE).hexdigest() in result.output
        assert hashlib.sha256(server.body).hexdigest() in result.output
        assert f"Remove {data / 'doors.json'} if you trust this one" in result.output
        assert list_cache(data) == ["doors.files.json", "doors.json"]

        (data / "doors.json").unlink()
        assert run_cli("data", "fetch", "doors", *how).exit_code == 0

    def test_the_same_file_is_accepted_again(self, run_cli, data):
        run_cli("data", "fetch", "doors")
        remove_folder(data / "doors")
        assert run_cli("data", "fetch", "doors").exit_code == 0
        assert list_cache(data) == FETCHED_FILES


def remove_folder(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()


class TestTerms:
    def test_terms_have_to_be_accepted(self, run_cli, data, server, publish):
        publish(registration="doors ask for it at https://doors.example")
        result = run_cli("data", "fetch", "doors")
        assert result.exit_code == 2
        assert "doors ask for it at https://doors.example. When you have agreed, add --accept-licence" in result.output
        assert server.requests == []
        assert run_cli("data", "fetch", "doors", "--accept-licence").exit_code == 0
        assert list_cache(data) == FETCHED_FILES


@pytest.mark.usefixtures("doors")
class TestList:
    def test_without_a_name_it_lists_the_datasets_and_their_state(self, run_cli):
        def row():
            [line] = [line for line in run_cli("data", "fetch").output.splitlines() if line.startswith("doors ")]
            return line

        assert f"{len(ARCHIVE):,} bytes" in row()
        assert "for all" in row()
        assert "not fetched" in row()
        run_cli("data", "fetch", "doors")
        assert "fetched" in row()
        assert "not fetched" not in row()

    def test_the_datasets_of_the_paper_are_listed(self, run_cli):
        listed = {line.split()[0] for line in run_cli("data", "fetch").output.splitlines() if line.strip()}
        assert {"cityscapes", "facades", "maps", "edges2shoes", "edges2handbags", "night2day"} <= listed

    def test_a_dataset_without_an_archive_is_refused(self, run_cli):
        result = run_cli("data", "fetch", "folders")
        assert result.exit_code == 2
        assert "dataset 'folders' has no archive to fetch: known are" in result.output
        assert "did you mean 'doors'?" in run_cli("data", "fetch", "door").output

    def test_an_unknown_name_is_answered_with_the_datasets_that_have_an_archive(self, run_cli):
        listed = run_cli("data", "fetch", "aerial_to_map").output.partition("known are ")[2]
        assert {"cityscapes", "doors", "maps"} <= set(listed.strip().split(", "))
        assert "earth" not in listed
        assert "no dataset 'day2night': did you mean 'night2day'?" in run_cli("data", "fetch", "day2night").output
