"""Each key has the line on which it is set, in every form that TOML has."""

import tomllib

from hypothesis import assume, given
from hypothesis import strategies as st

from p2pzoo.config.line_numbers import key_lines

names = st.sampled_from(["a", "b", "c", "width", '"quoted key"', "'lit.eral'", "k-1"])
dotted = st.lists(names, min_size=1, max_size=3)
scalars = st.sampled_from(["1", "2.5", "true", '"text # no comment"', "'[not.a.table]'", "1979-05-27", "[]", "{}"])
long_values = st.sampled_from(
    [
        '"""\n[header.lookalike]\nwidth = 9\n"""',
        "'''\na = 1\n'''",
        "[\n  1,  # one\n  2,\n]",
        '[\n  "]",\n  [ "x", "y" ],\n]',
        "[\n  { a = 1 },\n  { a = 2 },\n]",
    ]
)
inline = st.sampled_from(["{ x = 1 }", "{ x.y = 1, z = [1, 2] }"])
filler = st.sampled_from(["", "# width = 3", "   ", "\t# [comment]"])
statements = st.tuples(st.sampled_from(["header", "key"]), dotted, st.one_of(scalars, long_values, inline), filler)


def unquoted(part: str) -> str:
    return part.strip("\"'")


@given(st.lists(statements, max_size=12), st.booleans())
def test_each_key_is_reported_on_the_line_where_its_statement_begins(document, ends_with_newline):
    text, line, table, expected = "", 1, (), {}
    for form, key, value, blank in document:
        text += blank + "\n"
        line += 1
        path = tuple(map(unquoted, key))
        if form == "header":
            table = path
            statement = f"[{'.'.join(key)}]"
        else:
            path = (*table, *path)
            statement = f"{' . '.join(key)} = {value}"
        for end in range(1, len(path) + 1):
            expected.setdefault(path[:end], line)
        if form == "key" and value.startswith("{ x"):
            inner = [("x",), ("x", "y"), ("z",)] if "y" in value else [("x",)]
            for tail in inner:
                expected.setdefault((*path, *tail), line)
        text += statement + "\n"
        line += statement.count("\n") + 1
    if not ends_with_newline:
        text = text.removesuffix("\n")
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)

    assert key_lines(text) == expected


def test_only_a_newline_ends_a_line():
    assert key_lines('["a\x85b"]\n"c\u2028" = 1\nd = 2') == {
        ("a\x85b",): 1, ("a\x85b", "c\u2028"): 2, ("a\x85b", "d"): 3,
    }  # fmt: skip


def test_windows_line_endings_and_no_final_newline():
    assert key_lines("a = 1\r\n[t]\r\nb = '''\r\nx'''\r\nc = 2") == {("a",): 1, ("t",): 2, ("t", "b"): 3, ("t", "c"): 5}
