"""`p2pzoo data fetch`: archives from a server on loopback, drawn here; what is kept, what is refused, what is left."""

import contextlib
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
from p2pzoo_data_tools import download
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


def picture(seed, side=96):
    noise = np.random.default_rng(seed).integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


FILES = {f"doors/{folder}/{n}.png": picture(n) for folder, count in COUNTS.items() for n in range(count)}


def packed(files, *others, mode="w:gz"):
    """A tar of {name: bytes}, and of further TarInfos without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in others:
            tar.addfile(member)
    return out.getvalue()


def member(name, kind, link=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


WHOLE = packed(FILES)


class Server:
    """Serves `body` under every path. Knows what it was asked.

    cut      of the next answers: after how many bytes of each the connection is closed, once `stall` is set
    ranges   "yes"; "no": ignores them and says nothing of them; "lies": says it can, and sends everything
    """

    def __init__(self):
        self.body, self.cut, self.ranges, self.status = WHOLE, [], "yes", 200
        self.requests, self.hold, self.headers = [], threading.Event(), {}
        self.stall = threading.Event()
        for event in (self.hold, self.stall):
            event.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):  # a client that hangs up
                pass

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/data"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, to):
        self.requests.append((to.path, to.headers.get("Range")))
        self.hold.wait(30)
        etag = f'"{hashlib.sha256(self.body).hexdigest()[:8]}"'
        if self.status != 200:
            to.send_error(self.status)
            return
        start, asked = 0, to.headers.get("Range")
        same = to.headers.get("If-Range", etag) == etag
        if asked and self.ranges == "yes" and same:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.body):
                to.send_error(416)
                return
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        else:
            to.send_response(200)
        if self.ranges != "no":
            to.send_header("Accept-Ranges", "bytes")
        for name, value in {"ETag": etag, **self.headers}.items():
            to.send_header(name, value)
        content = self.body[start:]
        to.send_header("Content-Length", str(len(content)))
        to.end_headers()
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
    """publish(size=…): the plugin whose dataset `doors` is published on the server; the cache is empty."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.delenv("P2PZOO_MIRROR", raising=False)
    monkeypatch.setattr(download, "RETRIES", 0)

    install("doors_zoo", PLUGIN)

    def publish(**about):
        known = {"name": "doors", "url": f"{server.url}/doors.tar.gz", "images": COUNTS, "licence": "for all"}
        (tmp_path / "site" / "doors.json").write_text(json.dumps(known | about))

    return publish


@pytest.fixture
def doors(publish):
    publish(size=len(WHOLE))


@pytest.fixture
def data(tmp_path):
    return tmp_path / "cache" / "datasets"


def there(data):
    """What lies in the cache, the lock aside."""
    return sorted(
        path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


WHOLE_TREE = sorted([*FILES, "doors.json"])


@pytest.mark.usefixtures("doors")
class TestFetch:
    def test_what_the_archive_holds_lies_in_the_cache_afterwards(self, zoo, data):
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 0, told.output
        assert f"{data / 'doors'}: train 4, val 2 images" in told.output
        assert hashlib.sha256(WHOLE).hexdigest() in told.output
        assert "licence: for all" in told.output
        assert there(data) == WHOLE_TREE
        for name, content in FILES.items():
            assert (data / name).read_bytes() == content

    def test_again_it_asks_no_server_and_changes_nothing(self, zoo, data, server):
        zoo("data", "fetch", "doors")
        before = {path: path.stat().st_mtime_ns for path in data.rglob("*.png")}
        server.requests.clear()
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 0
        assert "as they were fetched" in told.output
        assert server.requests == []
        assert {path: path.stat().st_mtime_ns for path in data.rglob("*.png")} == before

    @pytest.mark.parametrize("harm", ["lost", "shorter"])
    def test_again_it_sees_that_something_is_missing(self, zoo, data, harm):
        zoo("data", "fetch", "doors")
        file = data / "doors/train/1.png"
        file.unlink() if harm == "lost" else file.write_bytes(file.read_bytes()[:-1])
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 2
        assert f"{data / 'doors'}: holds train {3 if harm == 'lost' else 4}, val 2 images" in told.output

    @pytest.mark.parametrize("how", ["option", "environment"])
    def test_a_mirror_is_asked_for_the_same_file_name(self, zoo, data, server, monkeypatch, how):
        mirror = server.url.replace("/data", "/elsewhere/")
        if how == "environment":
            monkeypatch.setenv("P2PZOO_MIRROR", mirror)
        told = zoo("data", "fetch", "doors", *(["--mirror", mirror] if how == "option" else []))
        assert told.exit_code == 0, told.output
        assert [path for path, _ in server.requests] == ["/elsewhere/doors.tar.gz"]
        assert there(data) == WHOLE_TREE

    @pytest.mark.parametrize("mode", ["w:gz", "w", "w:bz2", "w:xz"])
    def test_a_local_archive_needs_no_server(self, zoo, data, server, publish, tmp_path, mode):
        file = tmp_path / "mine.tar"
        file.write_bytes(packed(FILES, mode=mode))
        publish(size=None)
        told = zoo("data", "fetch", "doors", "--from", file)
        assert told.exit_code == 0, told.output
        assert server.requests == []
        assert there(data) == WHOLE_TREE
        assert file.exists()

    def test_an_archive_without_a_top_folder_is_as_good(self, zoo, data, publish, server):
        server.body = packed({name.removeprefix("doors/"): content for name, content in FILES.items()})
        publish(size=None)
        assert zoo("data", "fetch", "doors").exit_code == 0
        assert there(data) == WHOLE_TREE

    def test_a_server_that_calls_gzip_an_encoding_gives_the_file_itself(self, zoo, data, server):
        server.headers["Content-Encoding"] = "x-gzip"
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 0, told.output
        assert json.loads((data / "doors.json").read_text())["sha256"] == hashlib.sha256(WHOLE).hexdigest()

    def test_of_two_processes_at_once_one_waits_for_the_other(self, start, wait_for, data, server):
        server.hold.clear()
        first = start("-m", "p2pzoo", "data", "fetch", "doors")
        wait_for(lambda: server.requests, first)
        second = start("-m", "p2pzoo", "data", "fetch", "doors")
        assert second.stdout.readline() == "waiting for another process that fetches doors\n"
        server.hold.set()
        told = [process.communicate(timeout=100)[0] for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], told
        assert ["as they were fetched" in one for one in told] == [False, True]
        assert len(server.requests) == 1
        assert there(data) == WHOLE_TREE

    def test_what_a_killed_process_left_half_made_is_removed(self, zoo, data):
        half = data / ".doors.tmp" / "extracted" / "doors" / "train"
        half.mkdir(parents=True)
        (half / "0.png").write_bytes(b"half")
        assert zoo("data", "fetch", "doors").exit_code == 0
        assert there(data) == WHOLE_TREE


HALF = len(WHOLE) // 2


@pytest.mark.usefixtures("doors")
class TestResume:
    def test_a_download_that_is_cut_goes_on_where_it_was(self, zoo, data, server, monkeypatch):
        monkeypatch.setattr(download, "RETRIES", 1)
        server.cut = [HALF]
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 0, told.output
        [(_, first), (_, second)] = server.requests
        assert first is None
        assert 0 < begin(second) <= HALF
        assert there(data) == WHOLE_TREE

    def test_so_does_the_next_call(self, zoo, data, server):
        server.cut = [HALF]
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 2
        assert "bytes are kept, and the next call goes on with them" in told.output
        assert there(data) == ["doors.part", "doors.part.json"]
        assert zoo("data", "fetch").output.count("begun") == 1

        kept = (data / "doors.part").stat().st_size
        assert zoo("data", "fetch", "doors").exit_code == 0
        assert [asked for _, asked in server.requests] == [None, f"bytes={kept}-"]
        assert there(data) == WHOLE_TREE

    def test_a_process_that_is_killed_has_kept_what_it_had(self, zoo, start, wait_for, data, server):
        server.cut = [HALF]
        server.stall.clear()
        killed = start("-m", "p2pzoo", "data", "fetch", "doors")
        part = data / "doors.part"
        wait_for(lambda: part.exists() and part.stat().st_size, killed)
        killed.kill()
        killed.wait()
        server.stall.set()
        kept = part.stat().st_size
        assert zoo("data", "fetch", "doors").exit_code == 0
        assert server.requests[-1][1] == f"bytes={kept}-"
        assert there(data) == WHOLE_TREE

    @pytest.mark.parametrize("ranges", ["no", "lies"])
    def test_a_server_that_ignores_ranges_is_asked_for_all_of_it(self, zoo, data, server, monkeypatch, ranges):
        monkeypatch.setattr(download, "RETRIES", 1)
        server.cut, server.ranges = [HALF], ranges
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 0, told.output
        assert len(server.requests) == 2
        assert there(data) == WHOLE_TREE

    def test_nothing_is_kept_of_what_its_server_cannot_go_on_with(self, zoo, data, server):
        server.cut, server.ranges = [HALF], "no"
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 2
        assert "nothing is kept" in told.output
        assert there(data) == []

    def test_two_versions_are_never_joined(self, zoo, data, server, publish):
        publish(size=None)
        server.cut = [HALF]
        zoo("data", "fetch", "doors")
        server.body = packed(FILES | {"doors/more.txt": b"1" * 1000})
        assert zoo("data", "fetch", "doors").exit_code == 0
        assert begin(server.requests[-1][1]) > 0
        assert json.loads((data / "doors.json").read_text())["sha256"] == hashlib.sha256(server.body).hexdigest()

    def test_nor_are_two_servers(self, zoo, data, server):
        server.cut = [HALF]
        zoo("data", "fetch", "doors")
        told = zoo("data", "fetch", "doors", "--mirror", server.url.replace("/data", "/mirror"))
        assert told.exit_code == 0, told.output
        assert [asked for _, asked in server.requests] == [None, None]

    def test_a_part_that_is_longer_than_the_file_is_begun_anew(self, zoo, data, server, monkeypatch):
        server.cut = [HALF]
        zoo("data", "fetch", "doors")
        (data / "doors.part").write_bytes(WHOLE + b"more")
        monkeypatch.setattr(download, "RETRIES", 1)
        assert zoo("data", "fetch", "doors").exit_code == 0
        assert there(data) == WHOLE_TREE


def begin(asked):
    return int(asked.removeprefix("bytes=").rstrip("-"))


@pytest.mark.usefixtures("doors")
class TestRefused:
    def refused(self, zoo, data, *arguments, left=()):
        told = zoo("data", "fetch", "doors", *arguments)
        assert told.exit_code == 2
        assert len(told.output.splitlines()) == 1, told.output
        assert there(data) == list(left)
        return told.output

    def test_no_such_file_on_the_server(self, zoo, data, server, monkeypatch):
        monkeypatch.setattr(download, "RETRIES", 3)
        server.status = 404
        told = self.refused(zoo, data)
        assert f"{server.url}/doors.tar.gz: the server answers 404 Not Found" in told
        assert "--mirror URL" in told
        assert "--from PATH" in told
        assert len(server.requests) == 1, "asking again would not help"

    def test_a_server_in_trouble_is_asked_again(self, zoo, data, server, monkeypatch):
        monkeypatch.setattr(download, "RETRIES", 1)
        server.status = 503
        assert "the server answers 503" in self.refused(zoo, data)
        assert len(server.requests) == 2

    def test_no_server(self, zoo, data, server):
        server.close()
        assert "no connection to the server; nothing is kept. Try again" in self.refused(zoo, data)

    @pytest.mark.parametrize("mirror", ["ftp://a.b/c", "/some/folder"])
    def test_a_mirror_that_is_no_url(self, zoo, data, mirror):
        assert f"--mirror {mirror}: give a URL that begins with http" in self.refused(zoo, data, "--mirror", mirror)

    def test_another_length_is_seen_before_the_download(self, zoo, data, server):
        server.body = WHOLE + bytes(10)
        told = self.refused(zoo, data)
        assert f"{len(WHOLE) + 10:,} bytes, where the archive has {len(WHOLE):,}" in told

    def test_a_local_file_of_another_length(self, zoo, data, tmp_path):
        (tmp_path / "short.tar.gz").write_bytes(WHOLE[:-1])
        told = self.refused(zoo, data, "--from", tmp_path / "short.tar.gz")
        assert f"{len(WHOLE) - 1:,} bytes, where the archive has {len(WHOLE):,}" in told
        assert (tmp_path / "short.tar.gz").exists()

    @pytest.mark.parametrize("what", ["nothing.tar.gz", "."])
    def test_no_local_file(self, zoo, data, tmp_path, what):
        assert f"--from {tmp_path / what}: no " in self.refused(zoo, data, "--from", tmp_path / what)

    @pytest.mark.parametrize("place", [0.3, 0.6, 1.0])
    def test_a_flipped_bit(self, zoo, data, server, place):
        harmed = bytearray(WHOLE)
        harmed[min(int(place * len(WHOLE)), len(WHOLE) - 6)] ^= 4
        server.body = bytes(harmed)
        assert "no whole tar archive (" in self.refused(zoo, data)

    @pytest.mark.parametrize("body", [WHOLE[:HALF], b"<html>moved</html>", b"", b"\x1f\x8b"], ids=len)
    def test_no_whole_archive(self, zoo, data, server, publish, body):
        publish(size=None)
        server.body = body
        told = self.refused(zoo, data)
        assert f"{server.url}/doors.tar.gz: no whole tar archive (" in told

    def test_too_few_images(self, zoo, data, server, publish):
        publish(size=None)
        server.body = packed(dict(itertools.islice(FILES.items(), 5)))
        assert "holds train 4, val 1 images, where train 4, val 2 were published" in self.refused(zoo, data)

    @pytest.mark.parametrize(
        "name", ["../out.png", "doors/../../out.png", "/tmp/out.png", "doors\\..\\..\\out.png", "C:/out.png"]
    )
    def test_members_that_would_leave_their_folder(self, zoo, data, server, publish, tmp_path, name):
        publish(size=None)
        server.body = packed(FILES | {name: b"out"})
        before = set(tmp_path.rglob("*"))
        assert "has a member that would leave its folder" in self.refused(zoo, data)
        assert {path for path in set(tmp_path.rglob("*")) - before if path.name == "out.png"} == set()

    @pytest.mark.parametrize(
        ("kind", "link"),
        [(tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, "train"), (tarfile.LNKTYPE, "doors/train/0.png")],
    )
    def test_links(self, zoo, data, server, publish, kind, link):
        publish(size=None)
        server.body = packed(FILES, member("doors/link", kind, link))
        assert "has a link in it ('doors/link')" in self.refused(zoo, data)

    @pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
    def test_devices(self, zoo, data, server, publish, kind):
        publish(size=None)
        server.body = packed(FILES, member("doors/device", kind))
        assert "has a device or pipe in it" in self.refused(zoo, data)

    @pytest.mark.parametrize("where", ["in a member", "after the end"])
    def test_a_bomb_of_bytes(self, zoo, data, server, publish, monkeypatch, where):
        publish(size=None)
        monkeypatch.setattr(download, "MOST_MORE_BYTES", 1 << 20)
        zeros = bytes((1 << 20) + 40 * len(WHOLE))
        inside, after = ({"doors/zeros": zeros}, b"") if where == "in a member" else ({}, zeros)
        server.body = gzip.compress(packed(FILES | inside, mode="w") + after)
        assert "unpacks to more than" in self.refused(zoo, data)

    def test_a_bomb_of_members(self, zoo, data, server, publish, monkeypatch):
        publish(size=None)
        monkeypatch.setattr(download, "MOST_MORE_MEMBERS", 100)
        server.body = packed(FILES | {f"doors/{n}": b"" for n in range(200)})
        assert "holds more than 124 files and folders" in self.refused(zoo, data)

    def test_a_sparse_file(self, zoo, data, server, publish):
        """Its length is what it says, whatever is in the archive: here a terabyte."""
        publish(size=None)
        sparse = member("doors/huge", tarfile.GNUTYPE_SPARSE)
        sparse.size = 1 << 40
        server.body = sparse.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
        assert "has a sparse file in it ('doors/huge')" in self.refused(zoo, data)

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_a_header_that_would_fill_the_memory(self, zoo, data, server, publish, kind):
        publish(size=None)
        header = member("x", kind)
        header.size = 1 << 21
        server.body = header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22)
        assert "has a header of 2,097,152 bytes" in self.refused(zoo, data)


@pytest.mark.usefixtures("doors")
class TestChecksum:
    @pytest.mark.parametrize("way", ["server", "mirror", "file"])
    def test_another_file_than_the_first_time_is_refused(self, zoo, data, server, publish, tmp_path, way):
        publish(size=None)
        zoo("data", "fetch", "doors")
        remove(data / "doors")
        server.body = packed(FILES | {"doors/train/0.png": picture(99)})
        (tmp_path / "mine.tar.gz").write_bytes(server.body)
        how = {"mirror": ["--mirror", server.url], "file": ["--from", tmp_path / "mine.tar.gz"]}.get(way, [])
        told = zoo("data", "fetch", "doors", *how)
        assert told.exit_code == 2
        assert hashlib.sha256(WHOLE).hexdigest() in told.output
        assert hashlib.sha256(server.body).hexdigest() in told.output
        assert f"Remove {data / 'doors.json'} if you trust this one" in told.output
        assert there(data) == ["doors.json"]

        (data / "doors.json").unlink()
        assert zoo("data", "fetch", "doors", *how).exit_code == 0

    def test_the_same_file_is_taken_again(self, zoo, data):
        zoo("data", "fetch", "doors")
        remove(data / "doors")
        assert zoo("data", "fetch", "doors").exit_code == 0
        assert there(data) == WHOLE_TREE


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()


class TestTerms:
    def test_terms_have_to_be_accepted(self, zoo, data, server, publish):
        publish(registration="doors ask for it at https://doors.example")
        told = zoo("data", "fetch", "doors")
        assert told.exit_code == 2
        assert "doors ask for it at https://doors.example. Once you have agreed: --accept-licence" in told.output
        assert server.requests == []
        assert zoo("data", "fetch", "doors", "--accept-licence").exit_code == 0
        assert there(data) == WHOLE_TREE


@pytest.mark.usefixtures("doors")
class TestList:
    def test_without_a_name_it_lists_what_there_is(self, zoo):
        def row():
            [line] = [line for line in zoo("data", "fetch").output.splitlines() if line.startswith("doors ")]
            return line

        assert f"{len(WHOLE):,} bytes" in row()
        assert "for all" in row()
        assert "not there" in row()
        zoo("data", "fetch", "doors")
        assert "there" in row()
        assert "not there" not in row()

    def test_the_papers_datasets_are_among_it(self, zoo):
        listed = {line.split()[0] for line in zoo("data", "fetch").output.splitlines() if line.strip()}
        assert {"cityscapes", "facades", "maps", "edges2shoes", "edges2handbags", "night2day"} <= listed

    def test_a_dataset_without_an_archive_is_no_name_for_it(self, zoo):
        told = zoo("data", "fetch", "folders")
        assert told.exit_code == 2
        assert "dataset 'folders' has no archive to fetch: known are" in told.output
        assert "did you mean 'doors'?" in zoo("data", "fetch", "door").output
