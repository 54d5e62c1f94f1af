"""Recipes, `-s` overrides and table files that nobody should write."""

import pytest
import tomli_w
from hypothesis import strategies as st
from p2pzoo_bench.table_file import read_table

from p2pzoo import config
from p2pzoo.utils.paths import shipped

RECIPE = "zoo:ablation_patch70.toml"


def toml(tree) -> bytes | None:
    """The tree as a file; None where TOML has no such thing."""
    try:
        return tomli_w.dumps(tree).encode()
    except (UnicodeEncodeError, TypeError, ValueError):
        return None


def files(tree, text, altered, damaged, values):
    """Altered in what they say, in their bytes, or nothing of the kind."""
    return st.one_of(
        altered(tree, values).map(toml).filter(bool),
        damaged(text),
        st.binary(max_size=60),
        st.just(b"a = " + b"[" * 3000),
        st.just(b"a" + b".a" * 3000 + b" = 1"),
    )


@pytest.fixture(scope="module")
def resolved():
    tree = config.load(RECIPE, "smoke").resolved()
    return {name: value for name, value in tree.items() if name != "profile"}


def test_recipes(each, zoo, resolved, altered, damaged, values, tmp_path):
    profiles = {"laptop": {"train": {"images": 3}}}
    tree = {**resolved, "extends": ["zoo:base.toml"], "drop": ["losses.l1"], "profiles": profiles}
    text = (shipped("recipes") / "base.toml").read_bytes()
    file = tmp_path / "recipe.toml"

    def act(content):
        file.write_bytes(content)
        return zoo("recipe", file)

    each(files(tree, text, altered, damaged, values), act)


def test_what_a_recipe_extends(each, zoo, hostile, tmp_path):
    (tmp_path / "loop.toml").write_text('extends = "loop.toml"')
    ours = ["zoo:", "zoo:..", "zoo:../README.md", "zoo:/etc/passwd"]
    named = st.sampled_from([*ours, "loop.toml", "", ".", "/dev/zero", "/dev/tty"])
    file = tmp_path / "recipe.toml"

    def act(extends):
        file.write_bytes(toml({"extends": extends}))
        return zoo("recipe", file)

    told = (named | hostile).filter(lambda text: toml({"a": text}))
    each(told | st.lists(told, max_size=3), act)


def test_overrides(each, zoo, resolved, hostile, values):
    keys = sorted(
        f"{table}.{key}" for table, own in resolved.items() if isinstance(own, dict) for key in own
    )  # fmt: skip
    written = values.map(lambda value: toml({"v": value})).filter(bool).map(lambda text: text.decode()[4:].strip())
    asked = st.builds("{}={}".format, st.sampled_from(keys) | hostile, written | hostile) | hostile
    asked = asked.filter(lambda text: "\0" not in text)  # no command line can have it
    each(
        st.lists(asked, min_size=1, max_size=3),
        lambda overrides: zoo("recipe", RECIPE, *(part for text in overrides for part in ("-s", text))),
    )


def test_tables(each, altered, damaged, values, tmp_path):
    tree = {
        "title": "t", "source": "s", "baseline": "a", "seeds": 2, "metrics": {"m": {"use": "l1"}},
        "columns": {"m": "M", "l1": "L1"},
        "rows": {
            "a": {"recipe": "zoo:ablation_l1.toml", "label": "A", "set": ["train.images=3"], "published": {"m": 0.5}},
            "b": {"target": True},
        },
    }  # fmt: skip
    text = (shipped("benchmarks") / "table1_losses.toml").read_bytes()
    file = tmp_path / "table.toml"

    def act(content):
        file.write_bytes(content)
        read_table(str(file))

    each(files(tree, text, altered, damaged, values), act)
