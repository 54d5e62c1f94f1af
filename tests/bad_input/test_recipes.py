"""Malformed recipes, `-s` overrides and table files."""

import pytest
import tomli_w
from hypothesis import strategies as st
from p2pzoo_bench.table_file import read_table

from p2pzoo import config
from p2pzoo.utils.paths import shipped_dir

RECIPE = "zoo:ablation_patch70.toml"


def to_toml(tree) -> bytes | None:
    """The tree as TOML; None if TOML cannot represent it."""
    try:
        return tomli_w.dumps(tree).encode()
    except (UnicodeEncodeError, TypeError, ValueError):
        return None


def files(tree, text, altered, damaged, values):
    """Files with altered values, damaged bytes, or other content."""
    return st.one_of(
        altered(tree, values).map(to_toml).filter(bool),
        damaged(text),
        st.binary(max_size=60),
        st.just(b"a = " + b"[" * 3000),
        st.just(b"a" + b".a" * 3000 + b" = 1"),
    )


@pytest.fixture(scope="module")
def resolved():
    tree = config.load(RECIPE, "smoke").resolved()
    return {name: value for name, value in tree.items() if name != "profile"}


def test_recipes(try_each, run_cli, resolved, altered, damaged, values, tmp_path):
    profiles = {"laptop": {"train": {"images": 3}}}
    tree = {**resolved, "extends": ["zoo:base.toml"], "drop": ["losses.l1"], "profiles": profiles}
    text = (shipped_dir("recipes") / "base.toml").read_bytes()
    file = tmp_path / "recipe.toml"

    def act(content):
        file.write_bytes(content)
        return run_cli("recipe", file)

    try_each(files(tree, text, altered, damaged, values), act)


def test_extended_recipes(try_each, run_cli, hostile, tmp_path):
    (tmp_path / "loop.toml").write_text('extends = "loop.toml"')
    shipped_paths = ["zoo:", "zoo:..", "zoo:../README.md", "zoo:/etc/passwd"]
    paths = st.sampled_from([*shipped_paths, "loop.toml", "", ".", "/dev/zero", "/dev/tty"])
    file = tmp_path / "recipe.toml"

    def act(extends):
        file.write_bytes(to_toml({"extends": extends}))
        return run_cli("recipe", file)

    parents = (paths | hostile).filter(lambda text: to_toml({"a": text}))
    try_each(parents | st.lists(parents, max_size=3), act)


def test_overrides(try_each, run_cli, resolved, hostile, values):
    keys = sorted(
        f"{table}.{key}" for table, entries in resolved.items() if isinstance(entries, dict) for key in entries
    )  # fmt: skip
    literals = values.map(lambda value: to_toml({"v": value})).filter(bool).map(lambda text: text.decode()[4:].strip())
    overrides = st.builds("{}={}".format, st.sampled_from(keys) | hostile, literals | hostile) | hostile
    overrides = overrides.filter(lambda text: "\0" not in text)  # a command line cannot contain it
    try_each(
        st.lists(overrides, min_size=1, max_size=3),
        lambda texts: run_cli("recipe", RECIPE, *(part for text in texts for part in ("-s", text))),
    )


def test_tables(try_each, altered, damaged, values, tmp_path):
    tree = {
        "title": "t", "source": "s", "baseline": "a", "seeds": 2, "metrics": {"m": {"use": "l1"}},
        "columns": {"m": "M", "l1": "L1"},
        "rows": {
            "a": {"recipe": "zoo:ablation_l1.toml", "label": "A", "set": ["train.images=3"], "published": {"m": 0.5}},
            "b": {"target": True},
        },
    }  # fmt: skip
    text = (shipped_dir("benchmarks") / "table1_losses.toml").read_bytes()
    file = tmp_path / "table.toml"

    def act(content):
        file.write_bytes(content)
        read_table(str(file))

    try_each(files(tree, text, altered, damaged, values), act)
