"""Digests of a folder's files: what is compared, and what is refused."""

import os

import pytest

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.file_digests import compute_digests, find_altered, find_resized, read_digests, write_digests


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    for name in ("a.txt", "b/c d.txt", os.fsdecode(b"b/\xe9.txt")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name!a}")
    return folder


def test_digests_survive_a_file_and_find_what_changed(folder, tmp_path):
    write_digests(tmp_path / "files.json", compute_digests(folder))
    digests = read_digests(tmp_path / "files.json")
    assert digests == compute_digests(folder)
    assert find_resized(folder, digests) == find_altered(folder, digests) == []

    (folder / "a.txt").write_text("CONTENT of 'a.txt'")
    (folder / "new.txt").touch()
    assert find_resized(folder, digests) == []
    assert find_altered(folder, digests) == ["a.txt"]

    (folder / "b/c d.txt").unlink()
    (folder / "b/c d.txt").mkdir()
    assert find_resized(folder, digests) == ["b/c d.txt"]
    assert find_altered(folder, digests) == ["a.txt", "b/c d.txt"]


def test_a_pipe_in_place_of_a_file_is_not_read(folder):
    digests = compute_digests(folder)
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    assert find_altered(folder, digests) == ["a.txt"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.txt", "b/../../a.txt", ""])
def test_names_that_leave_the_folder_are_refused(tmp_path, name, folder):
    write_digests(tmp_path / "files.json", {name: compute_digests(folder)["a.txt"]})
    with pytest.raises(UserError, match=r"files\.json: is damaged: remove it"):
        read_digests(tmp_path / "files.json")


def test_no_file_means_no_digests(tmp_path):
    assert read_digests(tmp_path / "files.json") is None
