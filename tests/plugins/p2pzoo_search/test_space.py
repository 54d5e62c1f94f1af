"""The table [search]: what it may say, and one line with file and line for each fault."""

import pytest
from p2pzoo_search.space import Choices, Range, read_space

from p2pzoo import config
from p2pzoo.utils.errors import UserError


@pytest.fixture
def faults_of(tmp_path, monkeypatch):
    """faults_of("generator.width = [32]"): the faults of a recipe whose table [search] begins in line 2."""
    monkeypatch.chdir(tmp_path)

    def faults_of(search):
        (tmp_path / "mine.toml").write_text(f'extends = "zoo:base.toml"\n[search]\n{search}\n')
        with pytest.raises(UserError) as caught:
            read_space("mine.toml")
        return [*map(str, caught.value.faults)]

    return faults_of


def test_it_names_choices_ranges_metric_and_share(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'extends = "zoo:base.toml"\n[search]\nmetric = "psnr.pooled"\nshare = 0.25\ngenerator.width = [32, 64]\n'
        'discriminator.use = ["patch", "pixel"]\noptimizer.betas = [[0.5, 0.999], [0.9, 0.999]]\n'
        "[search.losses.l1]\nweight = { low = 10, high = 200.0, log = true }\n"
    )
    space = read_space(str(file))
    assert (space.metric, space.share) == ("psnr.pooled", 0.25)
    assert dict(space.settings) == {
        "discriminator.use": Choices(("patch", "pixel")),
        "generator.width": Choices((32, 64)),
        "optimizer.betas": Choices(([0.5, 0.999], [0.9, 0.999])),
        "losses.l1.weight": Range(10, 200.0, log=True),
    }
    assert next(iter(space.settings)) == "discriminator.use", "it drops the parameters of the component before it"
    assert space.where("generator", "width") == f"{file}:5"


def test_other_commands_skip_it(tmp_path):
    plain, searched, above = (tmp_path / name for name in ("plain.toml", "searched.toml", "above.toml"))
    plain.write_text('extends = "zoo:base.toml"\n')
    searched.write_text('extends = "zoo:base.toml"\n[search]\nmetric = "l1"\ngenerator.width = [32, 64]\n')
    above.write_text('extends = "searched.toml"\n')
    ids = {config.load(str(file), "smoke").id for file in (plain, searched, above)}
    assert len(ids) == 1
    assert "search" not in config.load(str(searched), "smoke").resolved()


@pytest.mark.parametrize(
    ("search", "fault"),
    [
        ("generatr.width = [1, 2]", "mine.toml:3  [search] generatr.width: a recipe has no 'generatr'"),
        ("generator.width = [32]", "mine.toml:3  [search] generator.width: [32] gives no choice"),
        ("generator.width = []", "mine.toml:3  [search] generator.width: [] gives no choice"),
        ("generator.width = [32, 32]", "mine.toml:3  [search] generator.width: [32, 32] gives no choice"),
        ("generator.width = 32", "mine.toml:3  [search] generator.width: 32 is one value"),
        ("generator.width = {low = 3, high = 3}", "the range from 3 to 3 is empty: low must be less than high"),
        ("generator.width = {low = 3}", "generator.width: a range has low, high and"),
        ("generator.width = {low = 3, high = 9, step = 2}", "generator.width: a range has low, high and"),
        ("generator.width = {low = 3, high = inf}", "low = 3, high = inf: both must be numbers"),
        ("generator.width = {low = true, high = 3}", "low = True, high = 3: both must be numbers"),
        ("generator.width = {low = 0, high = 9, log = true}", "low = 0: with log = true it must be above 0"),
        ("generator.width = {low = 1, high = 9, log = 2}", "log = 2: write log = true, or remove it"),
        ("generator = {}", "mine.toml:3  [search] generator: a range has low, high"),
        ("train.images = [1, 2]", "[search] train.images: a search cannot change it"),
        ("evaluate.split = ['val', 'test']", "[search] evaluate.split: a search cannot change it"),
        ("dataset.size = [64, 128]", "[search] dataset.size: a search cannot change it"),
        ("share = 0\ngenerator.width = [1, 2]", "mine.toml:3  [search] share = 0: must be above 0 and at most 1"),
        ("metric = 3\ngenerator.width = [1, 2]", "mine.toml:3  [search] metric = 3: give the name of a metric"),
        ("metric = 'l1'", "mine.toml:2  [search] names no setting"),
    ],
)
def test_a_fault_is_one_line_that_says_where(faults_of, search, fault):
    [line] = faults_of(search)
    assert fault in line
    assert "\n" not in line


def test_a_recipe_without_the_table_is_refused_with_an_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "zoo:base.toml"\n')
    with pytest.raises(UserError, match=r"mine.toml: has no table \[search\]: add it, with settings such as generator"):
        read_space("mine.toml")


def test_a_file_that_is_no_recipe_has_the_message_of_other_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "zoo:base.toml"\n[search\n')
    with pytest.raises(UserError, match=r"mnie.toml: no such recipe: did you mean 'mine.toml'\?"):
        read_space("mnie.toml")
    with pytest.raises(UserError, match=r"mine.toml:2  broken TOML: "):
        read_space("mine.toml")
