"""Files are written completely or not at all; damaged JSON and TOML are refused with a reason."""

import errno

import pytest

from p2pzoo.utils.files import (
    MAX_NESTING,
    atomic_write,
    fingerprint,
    parse_json,
    parse_toml,
    read_json,
    read_object,
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
