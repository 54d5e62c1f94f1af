"""Text for terminals: what they cannot encode, and what must not control them. Imports nothing heavy."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys

# line ends and other control characters, marks that change the text direction, surrogates
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_IN_ASCII = {  # p2pzoo's own characters; others become escapes
    "ŷ": "y^", "ỹ": "y~", "×": "x", "→": "->", "←": "<-", "↑": "^", "↓": "v", "…": "...", "·": ".", "−": "-", "–": "-",
    "—": "-", "±": "+-", "≥": ">=", "≤": "<=", "²": "^2", "³": "^3", "√": "sqrt", "°": " deg", "§": "section ",
    "─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "├": "|", "└": "`", "✓": "v", "✗": "x", "σ": "sigma", "Σ": "sum",
    "λ": "lambda", "γ": "gamma", "ε": "eps", "μ": "mu", "α": "alpha", "β": "beta", "∇": "grad", "‖": "||", "•": "*",
}  # fmt: skip
_ASCII = "p2pzoo-ascii"  # click writes UTF-8 to streams whose encoding is called "ascii"
_ERRORS = "p2pzoo-terminal"


def escape(text: str, keep: str = "") -> str:
    r"""The text with escapes for characters that break a line or control the terminal: file names can have them.

    keep  characters that stay, such as "\n"

    >>> print(escape("a\x1b[2J.png"))
    a\x1b[2J.png
    """
    return _UNPRINTABLE.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text
    )


def escape_json(document: str) -> str:
    """A JSON document with escapes for the characters that control a terminal and that JSON lets stand in strings."""
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t\r" else _json_escape(match[0]), document)


def prepare_streams() -> None:
    """Let stdout and stderr write all characters: those that their encoding lacks become ASCII, or escapes.

    A stream that is closed (`>&-`) is replaced by the null device: else the next file that is opened would become it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue  # open, as in a window without a terminal
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error(_ERRORS, _replace)
    codecs.register(_find_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a terminal
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else stream.encoding, errors=_ERRORS)


def drop_unread_output() -> None:
    """Send what nobody reads any more (`| head`) to the null device: else Python ends with exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # a stream that is closed
            try:
                stream.flush()
            except BrokenPipeError:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character) or _json_escape(character) for character in lost), error.end


def _json_escape(character: str) -> str:
    """As JSON has it, so that JSON documents keep their meaning."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _find_ascii(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII.replace("-", "_"):
        return None
    ascii_codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_codec.encode, ascii_codec.decode, ascii_codec.streamreader, ascii_codec.streamwriter,
        ascii_codec.incrementalencoder, ascii_codec.incrementaldecoder, name=_ASCII,
    )  # fmt: skip
