"""Commands print on every terminal: what it cannot encode becomes ASCII; names of files do not control it."""

import io
import json
import sys

import numpy as np
import pytest

from p2pzoo.images.io import write_png
from p2pzoo.utils.terminal import escape, prepare_streams

COMMANDS = """
import sys
from p2pzoo.cli import main
for line in sys.stdin.buffer.read().decode("utf-8").splitlines():
    try:
        main(line.split("|"))
    except SystemExit as error:
        print(f"exit {error.code}", flush=True)
"""
READING = (
    "--help", "list", "list|--json", "list|recipes", "list|metric", "show|generator|unet", "show|loss|l1|--json",
    "show|train", "recipe|zoo:base.toml", "recipe|zoo:base.toml|--json", "diff|zoo:base.toml|zoo:modern/resnet9.toml",
    "plugins", "plugins|--json", "check-plugin|export", "data|fetch", "data|stats|DATA",
    "data|check|DATA", "data|check|DATA|--json", "show|generator|ünknown", "translate|zoo:earth-small|ŷ.png|-o|y.png",
)  # fmt: skip


SLOW = pytest.mark.slow


@pytest.mark.parametrize("encoding", ["cp1252", pytest.param("ascii", marks=SLOW), pytest.param("utf-8", marks=SLOW)])
def test_every_command_that_reads_prints_on_a_terminal_of_another_encoding(encoding, fork, tmp_path, monkeypatch):
    folder = tmp_path / "daten → ŷ"
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        for name in ("1", "→é", "b\x1b[2J"):
            write_png(folder / split / f"{name}.png", np.zeros((64, 128, 3), np.uint8))
    recipe = tmp_path / "data.toml"
    recipe.write_text(f'extends = "zoo:base.toml"\n[dataset]\nuse = "side-by-side"\nroot = "{folder}"\n', "utf-8")
    commands = "\n".join(READING).replace("DATA", str(recipe))
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    process = fork(code=COMMANDS, env={"PYTHONIOENCODING": encoding}, output=log)
    process.stdin.write(commands)
    process.stdin.close()
    assert process.wait(timeout=300) == 0
    output = log.read_bytes().decode(encoding)
    codes = [line for line in output.splitlines() if line.startswith("exit ")]
    assert len(codes) == len(READING), output
    assert set(codes) <= {"exit 0", "exit 1", "exit 2"}, output
    assert "Traceback" not in output
    assert "p2pzoo failed" not in output, output
    assert "\x1b" not in output
    assert f"{'ŷ' if encoding == 'utf-8' else 'y^'}.png: no such file" in output


@pytest.fixture
def stream(monkeypatch):
    """stream(encoding): stdout of this encoding, prepared for the commands."""

    def stream(encoding):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        monkeypatch.setattr(sys, "stdout", out)
        prepare_streams()
        return out

    return stream


@pytest.mark.parametrize(
    ("encoding", "text", "printed"),
    [
        ("ascii", "ŷ → 3 × 4, Ω, 🙂", "y^ -> 3 x 4, \\u03a9, \\ud83d\\ude42"),
        ("cp1252", "ŷ → 3 × 4, é", "y^ -> 3 × 4, é"),
        ("utf-8", "ŷ → 🙂 \udce9", "ŷ → 🙂 \\udce9"),
    ],
)
def test_what_a_terminal_lacks_becomes_ascii_or_an_escape(encoding, text, printed, stream):
    out = stream(encoding)
    out.write(text)
    assert out.buffer.getvalue().decode(encoding) == printed


def test_a_json_document_keeps_its_meaning_in_every_encoding(stream):
    from p2pzoo.cli.options import print_json

    value = {"ŷ → é 🙂": "\x1b\udce9 × ü"}
    for encoding in ("ascii", "cp1252", "utf-8"):
        out = stream(encoding)
        print_json(value)
        assert json.loads(out.buffer.getvalue().decode(encoding)) == value


def test_no_stream_at_all_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    prepare_streams()


def test_characters_that_control_a_terminal_are_escaped():
    assert escape("a\nb\x1b[2J\x9b\u202e\u2028ŷ\udc80") == "a\\nb\\x1b[2J\\x9b\\u202e\\u2028ŷ\\udc80"
    assert escape("a\nb\x1b", keep="\n") == "a\nb\\x1b"
