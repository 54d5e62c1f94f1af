"""Files are written completely or not at all; damaged JSON and TOML are refused with a reason."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest
from fault_injection import largest_file

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import (
    MAX_NESTING,
    atomic_write,
    check_page_folder,
    copy_file,
    fingerprint,
    page_folder,
    parse_json,
    parse_toml,
    read_json,
    read_object,
    remove_leftovers,
    write_json,
    write_text,
)


def test_a_written_file_replaces_the_old_one(tmp_path):
    file = tmp_path / "notes.txt"
    write_text(file, "old")
    write_text(file, "new, ŷ")
    assert file.read_text("utf-8") == "new, ŷ"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_while_writing_keeps_the_old_file_and_names_it(tmp_path):
    file = tmp_path / "notes.txt"
    write_text(file, "old")

    def write_half():
        with atomic_write(file) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        write_half()
    assert caught.value.filename == str(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch):
    """kill(n): the process ends at rename number n, as by SIGKILL: nothing is cleaned up."""

    def kill(at):
        calls, replace = 0, os.replace

        def killed(*paths):
            nonlocal calls
            calls += 1
            if calls == at:
                monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
                raise Killed
            replace(*paths)

        monkeypatch.setattr(os, "replace", killed)

    return kill


PAGE = ("page.js", "images/a.png", "images/b.png", "index.html")


def write_page(folder, content):
    check_page_folder(folder, "page.js")
    with page_folder(folder) as unfinished:
        (unfinished / "images").mkdir()
        for name in PAGE:
            (unfinished / name).write_text(content)


@pytest.mark.parametrize("before", ["none", "empty folder", "older page"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_page_can_be_written_again_after_a_kill_at_any_moment(before, at, kill, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    if before == "empty folder":
        folder.mkdir()
    elif before == "older page":
        write_page(folder, "old")
        (folder / "mine.txt").touch()
    kill(at)
    with contextlib.suppress(Killed):
        write_page(folder, "killed")
    if (folder / "index.html").exists() and (folder / "index.html").read_text() == "killed":
        assert all((folder / name).read_text() == "killed" for name in PAGE)
    monkeypatch.undo()
    write_page(folder, "new")
    assert {(folder / name).read_text() for name in PAGE} == {"new"}
    expected = {"page.js", "images", "index.html", *(["mine.txt"] if before == "older page" else [])}
    assert {file.name for file in folder.iterdir()} == expected
    assert [*tmp_path.iterdir()] == [folder]


def test_an_error_while_a_page_is_written_leaves_no_folder_and_names_it(tmp_path):
    def fail():
        with page_folder(tmp_path / "a" / "page"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "a" / "page")
    assert [*(tmp_path / "a").iterdir()] == []


def test_a_folder_with_other_files_gets_no_page(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="contains other files"):
        check_page_folder(tmp_path, "page.js")
    with pytest.raises(UserError, match="is a file"):
        check_page_folder(tmp_path / "mine.txt", "page.js")


def test_a_copy_that_does_not_fit_names_the_copy(tmp_path):
    (tmp_path / "old").write_bytes(bytes(100_000))
    with largest_file(1000), pytest.raises(OSError, match="File too large") as caught:
        copy_file(tmp_path / "old", tmp_path / "new")
    assert caught.value.filename == str(tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["old"]


def test_json_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"ŷ": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == read_object(tmp_path / "a.json") == {"ŷ": [1, 2.5, None]}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b'"\\u0000"'])
def test_a_damaged_json_file_reads_as_none(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
    assert read_object(tmp_path / "a.json") is None


def test_a_missing_json_file_reads_as_none_and_another_value_is_no_object(tmp_path):
    assert read_json(tmp_path / "none.json") is None
    write_json(tmp_path / "list.json", [1])
    assert read_json(tmp_path / "list.json") == [1]
    assert read_object(tmp_path / "list.json") is None


def test_values_are_parsed_up_to_the_limit_of_nesting():
    assert parse_json("[" * (MAX_NESTING - 1) + "]" * (MAX_NESTING - 1))
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1))
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 1_000_000)  # deeper than Python's own stack


@pytest.mark.parametrize("text", ['{"a": ["\\u0000"]}', '{"\\u0000": 1}'])
def test_a_nul_character_is_refused(text):
    with pytest.raises(ValueError, match="contains a NUL character"):
        parse_json(text)
    with pytest.raises(ValueError, match="contains a NUL character"):
        parse_toml('a = "\\u0000"')


def test_an_error_in_toml_names_the_place():
    with pytest.raises(ValueError, match="line 2"):
        parse_toml("a = 1\nb = \n")


def test_the_fingerprint_changes_with_names_and_sizes_alone(tmp_path):
    files = [tmp_path / name for name in ("b.png", "a.png")]
    for file in files:
        file.write_bytes(b"123")
    before = fingerprint(files)
    assert len(before) == 12
    assert fingerprint(reversed(files)) == before
    files[0].write_bytes(b"456")
    assert fingerprint(files) == before, "contents are not read"
    files[0].write_bytes(b"4567")
    assert fingerprint(files) != before
    assert fingerprint(files[:1]) != fingerprint(files)


# --- temporary names, and what is written to ---


def test_processes_that_write_one_file_at_once_do_not_disturb_each_other(tmp_path):
    file = tmp_path / "a.txt"
    with atomic_write(file) as first, atomic_write(file) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first", "the last to finish"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["x" * 252 + ".md", "ŷ" * 126 + ".md"])
def test_a_name_can_have_255_bytes(name, tmp_path):
    file = tmp_path / name
    assert len(os.fsencode(name)) == 255
    write_text(file, "written")
    assert file.read_text() == "written"


def test_what_killed_writers_of_a_file_left_can_be_removed(tmp_path):
    with atomic_write(tmp_path / "other.txt") as other:
        other.write_text("in work")
        with atomic_write(tmp_path / "a.txt") as left:
            left.write_text("of a killed process")
            copy = shutil.copy(left, left.with_name(left.name.replace(".tmp", "1.tmp")))
        remove_leftovers(tmp_path / "a.txt")
        assert not Path(copy).exists()
        assert other.exists()


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    link, dangling = tmp_path / "link.txt", tmp_path / "dangling.txt"
    link.symlink_to(tmp_path / "real" / "a.txt")
    dangling.symlink_to("real/b.txt")
    for file, name in ((link, "a.txt"), (dangling, "b.txt")):
        write_text(file, "new")
        assert file.is_symlink()
        assert (tmp_path / "real" / name).read_text() == "new"
    assert sorted(file.name for file in tmp_path.rglob("*.txt")) == ["a.txt", "b.txt", "dangling.txt", "link.txt"]


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, what in (("pipe", "a pipe"), ("folder", "a folder"), ("null", "a device"), ("loop", "a link to itself")):
        with pytest.raises(UserError, match=rf"{name}: is {what}, which is not replaced: give the name of a file"):
            write_text(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()
    assert len(list(tmp_path.iterdir())) == 4
