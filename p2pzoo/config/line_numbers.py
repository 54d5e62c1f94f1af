"""Find the line of a TOML file that sets each key: tomllib does not report it. Imports nothing of p2pzoo.

A TOML statement ends with its line, except inside arrays and multi-line strings. So this module collects lines until
tomllib can parse them under their table header; tomllib stays the only parser.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

KeyPath = tuple[str, ...]


def key_lines(text: str) -> dict[KeyPath, int]:
    """{path of a key or table: the line (from 1) where it is first set} of a text that tomllib accepts.

    >>> key_lines("[generator]\\nwidth = 64")
    {('generator',): 1, ('generator', 'width'): 2}
    """
    lines: dict[KeyPath, int] = {}
    header, pending, start = "", "", 0
    for number, line in enumerate(re.findall(r".*?\n|.+", text, re.DOTALL), 1):
        if not pending:
            start = number
            if line.lstrip().startswith("["):
                header = line if line.endswith("\n") else line + "\n"
                for path in _paths(tomllib.loads(header)):
                    lines.setdefault(path, number)
                continue
        pending += line
        try:
            parsed = tomllib.loads(header + pending)
        except tomllib.TOMLDecodeError:
            continue  # inside an array or a multi-line string
        for path in _paths(parsed):
            lines.setdefault(path, start)
        pending = ""
    return lines


def _paths(value: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    if prefix:
        yield prefix
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*prefix, key))
