"""What is around the files: pipes in their place, names in any bytes, plugins that raise."""

import os
import re
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st

from p2pzoo.images.io import write_png
from p2pzoo.plugin import hookspecs, loader
from p2pzoo.utils.errors import UserError

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("register_"))


@pytest.fixture
def pairs(tmp_path):
    """(folder of pairs, a recipe that reads them)"""
    folder = tmp_path / "pairs"
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            write_png(folder / split / f"{number}.png", np.full((64, 128, 3), number + len(split), np.uint8))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'extends = "zoo:base.toml"\n[dataset]\nuse = "side-by-side"\nroot = "{folder}"\n')
    return folder, recipe


COMMANDS = (
    "translate zoo:earth-small PIPE -o OUT", "translate PIPE X -o OUT", "translate RUN X -o OUT", "data check RECIPE",
    "data stats RECIPE", "run RECIPE --profile smoke", "run PIPE", "recipe PIPE", "import PIPE -o OUT.safetensors",
    "export PIPE --to junyanz -o OUT", "gallery RUN -o OUT", "compare RUN", "card RUN -o OUT", "bench PIPE --dry-run",
    "data fetch facades --from PIPE", "data combine PAIRS PAIRS -o OUT", "data split PAIRS -o OUT",
    "data check RECIPE -o PIPE --force", "study RUN -o OUT", "study-analyze PIPE", "diff PIPE zoo:base.toml",
)  # fmt: skip
IN_A_RUN = ("status.json", "results.json", "recipe.toml", "model.safetensors", "env.json", "metrics.jsonl", ".lock")


def test_pipes_in_place_of_files(try_each, run_cli, pairs, tmp_path, monkeypatch):
    """Opening a pipe waits for its other end: only regular files are opened."""
    folder, recipe = pairs
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")

    def act(case):
        command, in_run, in_data = case
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        for name in ("status.json", "results.json"):
            (run / name).write_text("{}")
        (run / in_run).unlink(missing_ok=True)
        os.mkfifo(run / in_run)
        pipe = folder / in_data
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        words = {
            "PIPE": tmp_path / "pipe.png", "RUN": run, "RECIPE": recipe, "PAIRS": folder, "X": tmp_path / "pipe.png"
        }  # fmt: skip
        result = run_cli(*(words.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in command.split()))
        pipe.unlink()
        return result

    in_data = st.sampled_from(["train/0.png", "test/pipe.png", "val/0.npy", "train/a.tif"])
    try_each(st.tuples(st.sampled_from(COMMANDS), st.sampled_from(IN_A_RUN), in_data), act, fraction=0.2)


def test_names_of_files_in_any_bytes(try_each, run_cli, hostile, pairs, tmp_path):
    folder, recipe = pairs
    image = (folder / "train" / "0.png").read_bytes()
    raw = st.binary(max_size=30) | hostile.map(lambda text: text.encode(errors="surrogatepass")) | st.just(b"a" * 251)
    raw = raw.map(lambda name: name.replace(b"/", b"").replace(b"\0", b"")[:251])

    def act(case):
        name, split, command = case
        file = os.fsencode(folder / split) + b"/" + name + b".png"
        with open(file, "wb") as opened:
            opened.write(image)
        try:
            if command == "translate":
                return run_cli("translate", "zoo:earth-small", folder / split, "-o", tmp_path / "out", "--force")
            return run_cli("data", *command.split(), recipe)
        finally:
            os.unlink(file)

    commands = st.sampled_from(["check", "stats", "check --json", "translate"])
    try_each(st.tuples(raw, st.sampled_from(["train", "test"]), commands), act, fraction=0.2, least_taken=1)


RAISING = """
import p2pzoo

class Odd(Exception):
    def __str__(self):
        return {text!r}

class Net:
    {text!r}
    def __init__(self, in_channels: int, out_channels: int, *, width: int = 3):
        raise Odd

@p2pzoo.hookimpl
def {hook}(register):
    {body}
"""
BODIES = (
    "raise Odd", "raise {text!r}", "raise KeyError({text!r})", "raise SystemExit({text!r})", "register({text!r}, Net)",
    'register("net", Net, summary={text!r}, paper={text!r})', 'register("net", {text!r})', "register()",
    'register("net", "odd_zoo:" + {text!r})', "return {text!r}", 'register("net", 3)',
    'register("net", Net, summary=None)', "import {module}",
)  # fmt: skip


def test_plugins_that_raise(try_each, run_cli, install, hostile, tmp_path, monkeypatch):
    install("odd_zoo", "")
    plugin = tmp_path / "site" / "odd_zoo.py"

    def act(case):
        text, hook, body, command = case
        body = body.replace("{text!r}", repr(text)).replace("{module}", "nothing_of_this_name")
        source = RAISING.replace("{text!r}", repr(text)).replace("{hook}", hook).replace("{body}", body)
        plugin.write_text(source, "utf-8", errors="surrogatepass")
        monkeypatch.delitem(__import__("sys").modules, "odd_zoo", raising=False)
        loader.plugins.cache_clear()
        loader.registry.cache_clear()
        result = run_cli(*command.split())
        if result.exit_code == 1:  # `show` builds the network
            assert re.fullmatch(r"plugin 'odd_zoo' \(odd_zoo 1\.0\) failed: Odd.* shows where\)\n", result.output)
            raise UserError(result.output)
        return result

    commands = st.sampled_from(
        ["plugins", "list", "list --json", "show generator net", "recipe zoo:base.toml", "plugins --json"]
    )
    texts = hostile.filter(lambda text: "\ud800" not in text)
    try_each(st.tuples(texts, st.sampled_from(HOOKS), st.sampled_from(BODIES), commands), act, least_taken=1)
