"""Recipes and surroundings that are odd, not wrong by a key: one clear line each, in little time."""

import time

import pytest

from p2pzoo.config.recipe import read_recipe
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import parse_json, parse_toml


def test_a_byte_order_mark_is_no_fault(tmp_path):
    file = tmp_path / "notepad.toml"
    file.write_bytes(b'\xef\xbb\xbfextends = "zoo:base.toml"\ntitel = "x"\n')
    with_fault = read_recipe(str(file))
    assert with_fault.values["generator"]["use"]
    assert with_fault.faults[0].split("  ")[0].endswith("notepad.toml:2")
    assert parse_toml("\ufeffa = 1") == parse_json('\ufeff{"a": 1}') == {"a": 1}


def test_a_long_chain_of_extends_is_refused(tmp_path):
    for number in range(1500):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    (tmp_path / "1500.toml").write_text("")
    with pytest.raises(UserError, match=r"^\S+:1  `extends` is more than 64 files deep$"):
        read_recipe(str(tmp_path / "0.toml"))


@pytest.mark.parametrize("name", ["loop.toml", "child.toml"])
def test_a_link_that_leads_to_itself_is_refused(name, tmp_path):
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "child.toml").write_text('extends = "loop.toml"')
    with pytest.raises(UserError, match=r"loop\.toml: a symbolic link that leads back to itself$"):
        read_recipe(str(tmp_path / name))
    (tmp_path / "faded.toml").write_text("")
    with pytest.raises(UserError, match=r"fadde\.toml: no such recipe: did you mean 'faded\.toml'\?$"):
        read_recipe(str(tmp_path / "fadde.toml"))


@pytest.mark.parametrize("number", ["0x" + "F" * 100_000, "0b" + "1" * 100_000])
def test_a_number_without_an_end_is_refused(number, tmp_path):
    file = tmp_path / "long.toml"
    file.write_text(f"seed = 1\n[train]\nimages = {number}\n")
    with pytest.raises(UserError, match=r"long\.toml:\d+  broken TOML: an integer of more than 64 bits"):
        read_recipe(str(file))


@pytest.mark.parametrize(
    "child", ['[generator]\nuse = "resnet"\n', "[generator]\n" + "\n".join(f"k{i} = 2" for i in range(40_000))],
    ids=["another use", "all keys again"],
)  # fmt: skip
def test_many_keys_take_little_time(child, tmp_path):
    keys = "\n".join(f"k{i} = 1" for i in range(40_000))
    (tmp_path / "base.toml").write_text(f'[generator]\nuse = "unet"\n{keys}\n')
    (tmp_path / "child.toml").write_text(f'extends = "base.toml"\n{child}')
    began = time.process_time()
    read_recipe(str(tmp_path / "child.toml"))
    assert time.process_time() - began < 20, "a quadratic merge takes minutes"


@pytest.mark.parametrize("value", ["", "two"])
def test_an_unusable_world_size(value, fork, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    process = fork("run", "no-such.toml")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams(closed, tmp_path):
    import subprocess
    import sys

    command = f"{sys.executable} -m p2pzoo list metric --json {closed}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    if not closed.startswith(">"):
        assert result.stdout.startswith("[")
