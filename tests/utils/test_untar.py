"""Extraction with the tarfile module of Python 3.11.0 to 3.11.3, which has no filters: Debian 12 has 3.11.2."""

import io
import tarfile

import pytest

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.untar import extract

LIMITS = {"max_bytes": 1 << 20, "max_members": 10}


@pytest.fixture(autouse=True)
def no_filters(monkeypatch):
    for name in ("data_filter", "FilterError"):
        monkeypatch.delattr(tarfile, name, raising=False)
    plain = tarfile.TarFile.extract

    def extract_without_filter(self, member, path="", set_attrs=True, *, numeric_owner=False):
        return plain(self, member, path, set_attrs, numeric_owner=numeric_owner)

    # pretends to have no filter; the module of now must not warn that none is given
    monkeypatch.setattr(tarfile.TarFile, "extraction_filter", staticmethod(lambda member, path: member), raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extract", extract_without_filter)


def write_archive(folder, name, **header):
    member = tarfile.TarInfo(name)
    for key, value in header.items():
        setattr(member, key, value)
    member.size = 3
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.addfile(member, io.BytesIO(b"abc"))
    (folder / "into").mkdir()
    return folder / "a.tar", folder / "into"


def test_a_file_is_extracted(tmp_path):
    file, into = write_archive(tmp_path, "train/1.txt", mode=0o6777)
    extract(file, into, **LIMITS)
    assert (into / "train" / "1.txt").read_bytes() == b"abc"
    assert (into / "train" / "1.txt").stat().st_mode & 0o7111 == 0, "no bits of the archive's mode are set"


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("../out.txt", {}, "would leave its folder"),
        ("/tmp/out.txt", {}, "would leave its folder"),
        ("C:\\out.txt", {}, "would leave its folder"),
        ("a", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "contains a link"),
        ("a", {"type": tarfile.LNKTYPE, "linkname": "../x"}, "contains a link"),
        ("a", {"type": tarfile.FIFOTYPE}, "a device or pipe"),
    ],
)
def test_what_a_filter_would_refuse_is_refused(name, header, message, tmp_path):
    file, into = write_archive(tmp_path, name, **header)
    with pytest.raises(UserError, match=message):
        extract(file, into, **LIMITS)
    assert list(into.iterdir()) == []
