"""Malicious archives are extracted into their own folder, or refused; no other file changes."""

import io
import shutil
import tarfile

from hypothesis import strategies as st

from p2pzoo.utils.untar import extract

KINDS = (
    tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE,
    tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME,
)  # fmt: skip
PATHS = ("a", "a/b", "../out", "/out", "a/../../out", "..", "C:\\out", "a\\..\\..\\out", "//out", "./a", "a/")
MAX_BYTES, MAX_MEMBERS = 1 << 20, 20


def pack(members, mode):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{mode}") as tar:
        for name, kind, link, size, body in members:
            info = tarfile.TarInfo(name.replace("\ud800", "?"))
            info.type, info.linkname, info.size = kind, link.replace("\ud800", "?"), size
            tar.addfile(info, io.BytesIO(body + bytes(max(0, min(size, 4 * MAX_BYTES) - len(body)))))
    return out.getvalue()


def listing(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_archives(try_each, hostile, damaged, tmp_path):
    names = st.sampled_from(PATHS) | hostile
    bodies = st.binary(max_size=30)
    kinds = st.sampled_from(KINDS)
    plain = bodies.flatmap(lambda body: st.tuples(names, kinds, names, st.just(len(body)), st.just(body)))
    large = st.tuples(names, st.just(tarfile.REGTYPE), st.just(""), st.just(2 * MAX_BYTES), st.just(b""))
    many = st.just([("a", b"0", "", 0, b"")] * (MAX_MEMBERS + 1))
    members = st.lists(plain, max_size=4) | st.lists(plain | large, max_size=3) | many
    files = st.builds(pack, members, st.sampled_from(["", "gz", "bz2", "xz"]))
    (tmp_path / "out").write_text("mine")
    (tmp_path / "link").mkdir()

    def act(content):
        file, into = tmp_path / "a.tar", tmp_path / "into"
        file.write_bytes(content)
        into.mkdir()
        before = listing(tmp_path)
        try:
            extract(file, into, max_bytes=MAX_BYTES, max_members=MAX_MEMBERS)
        finally:
            extracted = listing(into)
            after = {path: mtime for path, mtime in listing(tmp_path).items() if not path.is_relative_to(into)}
            size = sum(path.stat().st_size for path in extracted)
            links = [path for path in into.rglob("*") if path.is_symlink()]
            shutil.rmtree(into)
        assert after == before
        assert links == []
        assert size <= MAX_BYTES

    try_each(files | files.flatmap(damaged), act)
