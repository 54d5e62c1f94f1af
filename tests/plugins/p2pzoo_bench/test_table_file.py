"""Table files: what they can contain, and the messages for wrong ones."""

import contextlib
import functools
import tomllib

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_bench.claims_file import is_claims_file, read_claims
from p2pzoo_bench.table_file import inline, read_table

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import shipped_dir

GOOD = """\
title = "Losses"
baseline = "both"
seeds = 2
[metrics.psnr]
use = "psnr"
[columns]
psnr = "PSNR"
"psnr.pooled" = "pooled"
[rows.l1]
recipe = "zoo:ablation_l1.toml"
label = "L1"
published = { psnr = 20 }
[rows.both]
recipe = "mine.toml"
set = ["train.images=4"]
[rows.photos]
target = true
"""


def write_and_read(tmp_path, text):
    file = tmp_path / "losses.toml"
    file.write_text(text)
    return read_table(str(file))


def test_a_table_has_the_content_of_its_file(tmp_path):
    table = write_and_read(tmp_path, GOOD)
    assert (table.name, table.title, table.baseline, table.seeds) == ("losses", "Losses", "both", 2)
    assert table.columns == {"psnr": "PSNR", "psnr.pooled": "pooled"}
    l1, both, photos = table.rows
    assert (l1.label, l1.recipe, l1.published) == ("L1", "zoo:ablation_l1.toml", {"psnr": 20.0})
    assert (both.label, both.recipe, both.overrides) == ("both", str(tmp_path / "mine.toml"), ("train.images=4",))
    assert photos.recipe is None
    assert table.trained == [l1, both]
    assert table.overrides({}) == ['metrics.psnr={use = "psnr"}']
    assert table.overrides({"psnr": "not here"}) == []


def test_the_first_row_with_a_recipe_is_the_default_baseline(tmp_path):
    assert write_and_read(tmp_path, GOOD.replace('baseline = "both"\n', "")).baseline == "l1"


@pytest.mark.parametrize("file", sorted(shipped_dir("benchmarks").glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_tables_can_be_read_from_anywhere(file):
    if is_claims_file(str(file)):
        assert read_claims(f"zoo:{file.name}").claims == read_claims(str(file)).claims
    else:
        assert read_table(f"zoo:{file.name}") == read_table(str(file))


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (("seeds = 2", "seeds = 0"), "losses.toml:3  seeds = 0: must be a number, 1 or more"),
        (("seeds = 2", "seeds = true"), "losses.toml:3  seeds = True"),
        (("seeds = 2", "seedz = 2"), "losses.toml:3  a table file has no 'seedz': did you mean 'seeds'?"),
        (('baseline = "both"', 'baseline = "bth"'), "losses.toml:2  baseline = 'bth': no row with a recipe"),
        (('baseline = "both"', 'baseline = "photos"'), "losses.toml:2  baseline = 'photos': no row with a recipe"),
        (("psnr = 20 }", "psmr = 20 }"), "losses.toml:12  published: no column 'psmr': did you mean 'psnr'?"),
        (("psnr = 20 }", 'psnr = "20" }'), "losses.toml:12  published must contain numbers"),
        (("target = true", "target = false"), "losses.toml:16  [rows.photos] needs either a recipe or target = true"),
        (("target = true", 'target = true\nrecipe = "x.toml"'), "losses.toml:16  [rows.photos] needs either"),
        (('set = ["train.images=4"]', "set = 4"), "losses.toml:15  set must be an array of strings"),
        (('label = "L1"', "lable = 1"), "losses.toml:11  [rows.l1] has no 'lable': did you mean 'label'?"),
        (("[columns]", "[colums]"), "losses.toml:6  a table file has no 'colums': did you mean 'columns'?"),
        (('recipe = "mine.toml"', 'recipe = ""'), "recipe must be a path or zoo:NAME"),
        (("seeds = 2", "seeds ="), "losses.toml: broken TOML"),
    ],
)  # fmt: skip
def test_a_fault_is_reported_with_its_line(tmp_path, replacement, message):
    with pytest.raises(UserError) as error:
        write_and_read(tmp_path, GOOD.replace(*replacement))
    assert any(message in fault for fault in error.value.faults), error.value.faults


SEARCHED = GOOD.replace("[metrics.psnr]", '[search]\nmetric = "psnr"\nshare = 0.5\n[metrics.psnr]').replace(
    'baseline = "both"', 'baseline = "both"\nprimary = "psnr"'
)


@pytest.mark.parametrize("key", [
    "title", "source", "baseline", "seeds", "folds", "profile", "answer", "groups", "pooled_spread", "primary", "set",
    "study", "search", "search.metric", "search.share", "metrics", "metrics.psnr", "columns", "columns.psnr", "rows",
    *(f"rows.l1{key}" for key in ("", ".recipe", ".label", ".set", ".trials", ".evaluate", ".published", ".folds",
                                  ".target", ".blur", ".flat", ".other_fold")),
])  # fmt: skip
def test_a_value_of_another_type_is_read_or_refused_with_a_user_error(tmp_path, key):
    *path, last = key.split(".")
    for value in (3, True, "x", [], ["l1"], [[1]], {}, {"a": 1}, {"a": {"b": 1}}):
        tree = tomllib.loads(SEARCHED)
        functools.reduce(dict.__getitem__, path, tree)[last] = value
        with contextlib.suppress(UserError):
            write_and_read(tmp_path, tomli_w.dumps(tree))


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (('primary = "psnr"', 'primary = ["psnr"]'), "losses.toml:3  primary must be a string, the name of a column"),
        (('[columns]\npsnr = "PSNR"\n"psnr.pooled" = "pooled"\n', ""), "losses.toml  [columns] needs a heading"),
        (('[metrics.psnr]\nuse = "psnr"\n', ""), "losses.toml  [metrics] must contain tables"),
    ],
)
def test_faults_of_a_table_with_a_search(tmp_path, replacement, message):
    text = SEARCHED.replace(*replacement)
    for key in ("columns", "metrics"):
        text = text if f"[{key}" in text else f"{key} = 3\n" + text
    with pytest.raises(UserError) as error:
        write_and_read(tmp_path, text)
    assert any(message in fault.replace(".toml:1", ".toml") for fault in error.value.faults), error.value.faults


def test_all_faults_are_reported_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        write_and_read(tmp_path, GOOD.replace("seeds = 2", "seeds = 0").replace("psnr = 20 }", "psmr = 20 }"))
    assert len(error.value.faults) == 2


def test_a_missing_table_is_reported_with_a_suggestion(tmp_path):
    write_and_read(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"lossses.toml: no such table: did you mean 'losses.toml'\?"):
        read_table(str(tmp_path / "lossses.toml"))


values = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), values))
def test_any_table_can_be_written_on_one_line(value):
    line = inline(value)
    assert "\n" not in line
    assert tomllib.loads(f"v = {line}")["v"] == value


@given(st.text())
def test_any_text_is_read_or_refused_with_a_user_error(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("tables") / "any.toml"
    file.write_text(text, "utf-8", errors="surrogatepass")
    with pytest.raises(UserError):
        read_table(str(file))


OLDER = (
    "best",
    "bf16",
    "search_full",
    "search_half",
    "zoo",
)


@pytest.mark.parametrize("file", sorted(shipped_dir("benchmarks").glob("*.toml")), ids=lambda file: file.stem)
def test_tables_of_protocol_2_show_what_their_scorers_say_of_changed_photos(file):
    if is_claims_file(str(file)) or file.stem in OLDER:
        return
    table = read_table(str(file))
    if any(column.startswith("fcn") for column in table.columns):
        targets = [row for row in table.rows if row.recipe is None]
        assert {row.blur for row in targets} == {0, 0.5, 1, 2}
        assert any(row.flat for row in targets)
