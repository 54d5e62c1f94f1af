"""Tables that say something else than their numbers do. Each test states what should hold, and fails until it does."""

import pytest
from noise_pairs import draw_pairs
from p2pzoo_bench import own_data, rates
from p2pzoo_bench.rates import Rate
from p2pzoo_bench.table_file import read_table

from p2pzoo import config
from p2pzoo.plugin.loader import registry

ONE = """
extends = "zoo:base.toml"
drop = ["metrics.ssim", "metrics.psnr", "discriminator", "gan_loss"]
[dataset]
use = "folders"
inputs = "a"
targets = "b"
size = [32, 32]
[generator]
width = 4
depth = 3
norm = "group"
noise = "none"
[train]
batch_size = 2
images = 2
log_every = 100
[compute]
device = "cpu"
"""
TABLE = """
folds = 3
set = ["dataset.folds=3"]
[columns]
l1 = "L1"
[rows.one]
recipe = "one.toml"
"""


def wrong(reason):
    return pytest.mark.xfail(strict=True, reason=reason)


# --- own data, budgets, and runs that are found ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    draw_pairs(tmp_path, 36, 32)
    (tmp_path / "one.toml").write_text(ONE)
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path


def own_arguments(folder):
    table = read_table(str(folder / "table.toml"))
    return table, str(folder / "one.toml"), "smoke", (), registry()


def bench(run_cli, folder, *options):
    result = run_cli("bench", folder / "table.toml", "--profile", "smoke", "--runs", folder / "runs", *options)
    assert result.exit_code == 0, result.output
    return result.output


def split_of(folder, fold, split):
    dataset = config.load(str(folder / "one.toml"), "smoke", ["dataset.folds=3", f"dataset.fold={fold}"]).dataset
    dataset = dataset.build(split=split)
    return {dataset[index].id for index in range(len(dataset))}


class TestBudget:
    @pytest.fixture
    def budget(self, run_cli, folder, monkeypatch):
        """budget("-s", …): the lines of a dry run of 1 s for each row, where a step takes 0.1 s; .measured: threads."""
        measured = []

        def measure(name, recipe):
            measured.append(recipe)
            return Rate(0.1, 0.001)

        def budget(*options):
            return bench(
                run_cli, folder, "--data", folder / "one.toml", "--budget", "1s", "--dry-run", *options
            ).splitlines()

        monkeypatch.setattr(rates, "_measure_in_process", measure)
        budget.measured = measured
        return budget

    @wrong("-s comes after the images of the budget")
    def test_a_number_of_images_of_the_command_line_does_not_replace_the_budget_silently(self, budget):
        lines = budget("-s", "train.images=100")
        assert not any("100 images" in line for line in lines)

    @wrong("the key of a rate has the recipe, and not the number of threads")
    def test_the_speed_is_measured_again_with_another_number_of_threads(self, budget):
        for threads in (1, 2):
            budget("--cpus-per-run", threads)
        assert len(budget.measured) == 2

    @wrong("the sizes of the three splits are added, although val is test here")
    def test_pairs_are_counted_once(self, folder, budget):
        for side in "ab":
            for number in range(22):
                split = folder / side / ("train" if number < 10 else "test")
                split.mkdir(exist_ok=True)
                (folder / side / f"{number:03}.png").rename(split / f"{number:03}.png")
            for rest in (folder / side).glob("*.png"):
                rest.unlink()
        assert any(line.startswith("22 pairs of") for line in budget())

    @wrong("a dataset with ten folds of its own is tested on three of them, which the sentence does not say")
    def test_it_does_not_say_that_every_pair_is_tested_where_it_is_not(self, folder, budget):
        (folder / "one.toml").write_text('extends = "zoo:base.toml"\n')
        own = own_data.on_own_data(*own_arguments(folder))
        experiment = config.load("zoo:base.toml", "smoke")
        tested = sum(
            len(config.load("zoo:base.toml", "smoke", [f"dataset.fold={fold}"]).dataset.build(split="test"))
            for fold in range(own.table.seeds)
        )
        assert experiment.dataset.values["fold"] is None
        assert own.pairs <= tested
