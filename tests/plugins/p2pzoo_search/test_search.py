"""`p2pzoo search`: trials of one length on the validation images, resumed, and what it writes."""

import json
import math
import shutil
import signal
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("optuna")

import p2pzoo_bench.rates
import p2pzoo_search.budget
import p2pzoo_search.trials
from p2pzoo_bench.run_missing import Stopped
from p2pzoo_search.space import read_space
from p2pzoo_search.study import SearchStudy
from p2pzoo_search.trials import Request, Search

from p2pzoo import config
from p2pzoo.plugin.loader import registry
from p2pzoo.runs.results import write_results
from p2pzoo.runs.run_folder import Run, find_run
from p2pzoo.utils.errors import UserError

SEARCH = """
[search]
metric = "l1"
share = 0.5
optimizer.lr = { low = 1e-5, high = 0.01, log = true }
generator.width = [2, 3]
"""


@pytest.fixture
def mine(tmp_path, tiny, monkeypatch):
    """A recipe in the current folder that trains 4 images without D."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.toml"
    drop = 'drop = ["discriminator", "gan_loss"]'
    file.write_text(f'extends = "{tiny}"\n{drop}\n[train]\nimages = 4\nbatch_size = 1\n{SEARCH}')
    return file


@pytest.fixture
def trained(monkeypatch):
    """The experiments that the trials would train: their runs have results at once, the best at a rate of 0.001.

    `stop_at`: a signal comes when so many are trained. `fail`: why the next runs end before they train. `options`:
    those of the last run.
    """

    class Trained(list):
        stop_at = None
        fail = None
        options = ()

    trained = Trained()

    def run_missing(jobs, executor, progress):
        if trained.fail:
            return {job.id: trained.fail for job in jobs}
        for job in jobs:
            if len(trained) == trained.stop_at:
                raise Stopped(signal.SIGINT)
            write_complete(job.run, job.experiment)
            trained.append(job.experiment)
            trained.options = job.options
        return {}

    monkeypatch.setattr(p2pzoo_search.trials, "run_missing", run_missing)
    return trained


def write_complete(run, experiment):
    run.folder.mkdir(parents=True, exist_ok=True)
    run.set_status(state="complete", id=experiment.id)
    score = abs(math.log10(experiment.optimizer.lr) + 3) + experiment.generator.values["width"]
    write_results(run.results, {
        "id": experiment.id, "recipe": "trials", "profile": "smoke", "seed": experiment.seed, "images": 2,
        "metrics": {"l1": {"value": score, "protocol": "a"}}, "measured": {"l1": "a"},
        "protocols": {"a": {"split": experiment.evaluate.split}},
    })  # fmt: skip


@pytest.fixture
def search(run_cli, mine):
    """search("--trials", 3): the JSON document of a search."""

    def search(*options, exit_code=0):
        result = run_cli("search", mine.name, "--profile", "smoke", "--json", "--quiet", *options)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.output[result.output.index("{") :])

    return search


def test_trials_have_one_length_and_are_measured_on_the_validation_images(search, trained):
    document = search("--trials", "3")
    assert [trial["trial"] for trial in document["trials"]] == [1, 2, 3]
    assert document["images"] == 2
    assert {(e.train.images_seen, e.evaluate.split) for e in trained} == {(2, "val")}
    for trial in document["trials"]:
        assert 1e-5 <= trial["settings"]["optimizer.lr"] <= 0.01
        assert trial["settings"]["generator.width"] in (2, 3)
    assert document["best"]["score"] == min(trial["score"] for trial in document["trials"])


def test_tpe_comes_near_the_best_settings(search, trained):
    best = search("--trials", "20")["best"]
    assert best["settings"]["generator.width"] == 2
    assert 2.5e-4 < best["settings"]["optimizer.lr"] < 4e-3


def test_the_number_of_a_test_split_is_no_score(search, trained, monkeypatch):
    monkeypatch.setattr(p2pzoo_search.trials, "VALIDATION", "evaluate.split='test'")
    assert "no trial has a score" in search("--trials", "1", exit_code=2)["error"]


def test_the_best_settings_are_a_recipe_of_full_length_that_is_tested_once(search, trained, mine, run_cli):
    document = search("--trials", "2")
    best = config.load(document["file"], "smoke")
    assert best.train.images_seen == 4
    assert best.evaluate.split == "test"
    assert best.generator.values["width"] == document["best"]["settings"]["generator.width"]
    assert best.optimizer.lr == document["best"]["settings"]["optimizer.lr"]
    assert tomllib.loads((mine.parent / document["file"]).read_text())["extends"] == "../../mine.toml"
    assert document["command"] == "p2pzoo run search/mine/best.toml --profile smoke"
    page = (mine.parent / document["page"]).read_text()
    assert "The score of the best of 2 trials is optimistic" in page
    assert document["command"] in page
    text = run_cli("search", "mine.toml", "--profile", "smoke", "--trials", "2").output
    assert "optimistic" in text
    assert text.splitlines()[-1] == f"next             {document['command']}"


def test_what_s_sets_holds_for_all_trials_and_in_the_best_recipe(search, trained):
    document = search("--trials", "1", "-s", "losses.l1.weight=7", "-s", "evaluate.test_mode=eval")
    assert {(e.losses["l1"].weight, e.evaluate.test_mode) for e in trained} == {(7, "eval")}
    best = config.load(document["file"], "smoke")
    assert (best.losses["l1"].weight, best.evaluate.test_mode, best.evaluate.split) == (7, "eval", "test")


def test_the_best_recipe_has_what_the_best_trial_had_where_another_component_drops_parameters(search, trained, mine):
    mine.write_text(mine.read_text().replace("generator.width = [2, 3]", 'generator.use = ["resnet6", "resnet9"]'))
    document = search("--trials", "1", "-s", "generator.width=12", "-s", "optimizer.betas=[0.4, 0.9]")
    [trial], best = trained, config.load(document["file"], "smoke")
    assert trial.generator.values["width"] == 64, "the default: `use` drops what -s sets for the one before"
    assert best.generator == replace(trial.generator, where=best.generator.where, places=best.generator.places)
    assert best.optimizer == trial.optimizer


def test_paths_of_s_in_the_best_recipe_hold_from_every_folder(search, trained, mine, tmp_path, monkeypatch):
    for side in ("inputs", "targets"):
        for split in ("train", "val", "test"):
            (tmp_path / "data" / side / split).mkdir(parents=True)
            Image.new("RGB", (64, 64), (len(split), 0, 0)).save(tmp_path / "data" / side / split / f"{split}.png")
    mine.write_text(mine.read_text().replace("[search]", '[dataset]\nuse = "folders"\nsize = [64, 64]\n[search]'))
    absolute = tmp_path / "data" / "targets"
    document = search("--trials", "1", "-s", "dataset.inputs=data/inputs", "-s", f"dataset.targets={absolute}")
    tree = tomllib.loads((tmp_path / document["file"]).read_text())
    assert tree["dataset"] == {"inputs": "../../data/inputs", "targets": str(absolute)}
    monkeypatch.chdir(tmp_path / "data")
    with warnings.catch_warnings(action="error"):
        best = config.load("../search/mine/best.toml", "smoke")
    assert len(best.dataset.build(split="test")) == 1


def test_an_address_of_s_stays_one_in_the_best_recipe(search, trained):
    document = search("--trials", "1", "-s", "init.generator=zoo:earth-small", "--study", "given")
    assert tomllib.loads(Path(document["file"]).read_text())["init"] == {"generator": "zoo:earth-small"}


def test_finished_trials_are_found_again_and_more_can_follow(search, trained):
    first = search("--trials", "2")
    trained.clear()
    assert search("--trials", "2") == first
    assert trained == []
    longer = search("--trials", "3")
    assert longer["trials"][:2] == first["trials"]
    assert len(longer["trials"]) == 3


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_search_goes_on_with_the_trials_it_would_have_tried(search, trained, mine, jobs):
    whole = search("--trials", "4", "--jobs", jobs, "--study", "whole")
    trained.clear()
    trained.stop_at = 3
    stopped = search("--trials", "4", "--jobs", jobs, "--study", "other", exit_code=130)
    assert "the same command resumes from there" in stopped["error"]
    trained.stop_at = None
    resumed = search("--trials", "4", "--jobs", jobs, "--study", "other")
    key = ("settings", "score", "state")
    assert [[t[k] for k in key] for t in resumed["trials"]] == [[t[k] for k in key] for t in whole["trials"]]
    assert len({e.id for e in trained}) == len(trained), "no trial is trained twice"


def test_the_seed_decides_the_trials_and_seeds_their_runs(search, trained):
    first, same, other = (search("--trials", "2", "--study", s, "--seed", s[0]) for s in ("1a", "1b", "2"))
    settings = [[trial["settings"] for trial in document["trials"]] for document in (first, same, other)]
    assert settings[0] == settings[1] != settings[2]
    assert {e.seed for e in trained} == {1, 2}


def test_the_recipes_own_settings_are_the_first_trial_if_the_table_allows_them(search, trained, mine):
    mine.write_text(mine.read_text().replace("generator.width = [2, 3]", "generator.width = [2, 8]"))
    [trial] = search("--trials", "1")["trials"]
    assert trial["settings"] == {"optimizer.lr": 2e-4, "generator.width": 8}


def test_the_recipes_own_component_is_the_first_trial_whatever_its_full_name(search, trained, mine):
    mine.write_text(mine.read_text().replace("generator.width = [2, 3]", 'generator.use = ["resnet6", "unet"]'))
    [trial] = search("--trials", "1")["trials"]
    assert trial["settings"] == {"generator.use": "unet", "optimizer.lr": 2e-4}


def test_a_line_says_why_the_recipes_own_settings_are_no_trial(run_cli, trained, mine):
    command = ("search", mine.name, "--profile", "smoke", "--trials", "1")
    line = "the recipe's own settings are no trial: [search] does not allow its generator.width = 8"
    assert line in run_cli(*command).output
    assert line not in run_cli(*command).output, "the study has begun without them"


def test_a_trial_whose_settings_do_not_go_together_fails_alone(search, trained, mine):
    table = SEARCH.replace("generator.width = [2, 3]", 'generator.use = ["unet", "resnet6"]\ngenerator.depth = [2, 3]')
    mine.write_text(mine.read_text().replace(SEARCH, table))
    document = search("--trials", "4")
    failed = [trial for trial in document["trials"] if trial["state"] == "failed"]
    assert failed
    assert all(trial["settings"]["generator.use"] == "resnet6" for trial in failed)
    assert "has no parameter 'depth'" in failed[0]["reason"]
    assert document["best"]["settings"]["generator.use"] == "unet"


def test_a_fault_of_the_machine_uses_up_no_trial_at_once(search, trained):
    trained.fail = "killed by signal 9"
    error = search("--trials", "3", exit_code=1)["error"]
    assert error.startswith("trial 1 of 3: killed by signal 9; mend this if it lies in the machine: the same command")
    trained.fail = None
    [trial] = search("--trials", "1")["trials"]
    assert trial["state"] == "finished", "it was tried again"
    trained.fail = "no such file"
    assert search("--trials", "2", exit_code=1)
    assert [trial["state"] for trial in search("--trials", "2")["trials"]] == ["finished", "failed"]


def test_a_trial_that_diverged_has_failed_at_once(search, trained, monkeypatch):
    trained.fail = "G.l1 is nan"
    monkeypatch.setattr(p2pzoo_search.trials, "has_diverged", lambda run: True)
    assert "no trial has a score: G.l1 is nan" in search("--trials", "2", exit_code=2)["error"]


def test_another_search_in_the_folder_is_refused(search, trained, mine):
    search("--trials", "1")
    fault = search("--trials", "1", "--metric", "psnr", exit_code=2)["error"]
    assert fault.startswith('--study search/mine: its trials have another metric ("l1", now "psnr")')
    fault = search("--trials", "1", "-s", "evaluate.weights=average", exit_code=2)["error"]
    assert "its trials have another measurement (weights: average instead of " in fault
    mine.write_text(mine.read_text().replace("images = 4", "images = 6"))
    assert "its trials have another recipe" in search("--trials", "1", exit_code=2)["error"]


def test_scores_on_other_data_are_refused(search, trained, mine, tmp_path):
    for split, number in (("train", 4), ("val", 2), ("test", 2)):
        (tmp_path / "pairs" / split).mkdir(parents=True)
        for name in range(number):
            Image.new("RGB", (64, 32), (40 * name, 9, 9)).save(tmp_path / "pairs" / split / f"{name}.png")
    dataset = '[dataset]\nuse = "side-by-side"\nroot = "pairs"\n'
    mine.write_text(mine.read_text().replace("[train]", f"{dataset}[train]"))
    search("--trials", "1")
    search("--trials", "1")
    Image.new("RGB", (64, 32)).save(tmp_path / "pairs" / "val" / "9.png")
    assert "its trials have another data" in search("--trials", "1", exit_code=2)["error"]


@pytest.mark.parametrize(
    ("before", "after", "options", "fault"),
    [
        (
            "generator.width",
            "generator.widht",
            (),
            "mine.toml:11  [search] generator.widht: [generator] has no parameter",
        ),
        ("[2, 3]", "[2, 0]", (), "mine.toml:11  [search] generator.width: [generator] width = 0"),
        ('"l1"', '"l2"', (), "mine.toml:8  metric 'l2': the recipe does not measure it"),
        ('"l1"', '"psnr.pool"', (), "mine.toml:8  metric 'psnr.pool': no such part: did you mean 'psnr.pooled'?"),
        ('metric = "l1"', "", (), "[search] names no metric"),
        ("", "", ("-s", "generator.width=5"), "-s generator.width=5: mine.toml:11 searches it; remove one of them"),
        ("", "", ("-s", "generator={width=5}"), "-s generator={width=5}: mine.toml:11 searches it; remove one of them"),
        ("", "", ("-s", "train={epochs=2}"), "-s train={epochs=2}: `p2pzoo search` sets it for all trials; remove it"),
        (
            "",
            "",
            ("-s", "evaluate.split=test"),
            "-s evaluate.split=test: `p2pzoo search` sets it for all trials; remove it",
        ),
        ("", "", ("--budget", "1h"), "--budget: mine.toml:9 has share, the length of a trial; remove one of them"),
        (
            "",
            "",
            ("--metric", "histogram", "-s", "generator.norm=none"),
            "--metric  metric 'histogram': the recipe does",
        ),
    ],
)
def test_a_fault_is_one_line_before_training(search, trained, mine, before, after, options, fault):
    mine.write_text(mine.read_text().replace(before, after, 1) if before else mine.read_text())
    error = search("--trials", "1", *options, exit_code=2)
    assert fault in error["error"]
    assert len(error["faults"]) == 1
    assert trained == []


def test_a_metric_without_a_direction_is_refused(search, trained, monkeypatch):
    monkeypatch.setattr(config.load("zoo:base.toml", "smoke").metrics["l1"].factory, "better", None)
    assert "metric 'l1': neither more nor less of it is better" in search("--trials", "1", exit_code=2)["error"]


def test_data_without_validation_images_of_its_own_is_refused(search, trained, mine, tmp_path):
    for side in ("inputs", "targets"):
        for split in ("train", "test"):
            (tmp_path / side / split).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / side / split / f"{number}.png")
    data = '[dataset]\nuse = "folders"\ninputs = "inputs"\ntargets = "targets"\nsize = [64, 64]\n'
    mine.write_text(mine.read_text().replace("[search]", f"{data}[search]"))
    error = search("--trials", "1", exit_code=2)
    assert "dataset 'datasets:folders' has no val split of its own: give it a val split" in error["error"]
    for side in ("inputs", "targets"):
        shutil.copytree(tmp_path / side / "test", tmp_path / side / "val")
        Image.new("RGB", (64, 64)).save(tmp_path / side / "val" / "more.png")
    assert search("--trials", "1")["best"]


def interrupt_a_trial_of_older_code(search, trained):
    """A search whose first trial has a checkpoint of other code. Returns its run."""
    trained.stop_at = 0
    search("--trials", "1", exit_code=130)
    trained.stop_at = None
    space = read_space("mine.toml")
    study = SearchStudy(Path("search/mine"), space, "lower", 0)
    interrupted = Search(
        Request("mine.toml", "smoke", (), None, space, registry()), study, Path("search/mine"), "l1", 2
    )
    [trial] = study.unfinished()
    run = interrupted.find_run(trial)
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "images-1.safetensors").touch()
    run.set_status(state="interrupted", sources={"core": "0.1 other"})
    return run


def test_an_interrupted_trial_of_older_code_stops_the_search_until_it_is_accepted(search, trained):
    run = interrupt_a_trial_of_older_code(search, trained)
    for _ in range(2):
        error = search("--trials", "1", exit_code=2)
        assert error["faults"] == [
            f"{run.folder}: trial 1 began with other code (core changed since): go on with --accept-stale, or search "
            "from the start in another --study"
        ]
        assert trained == []
    [trial] = search("--trials", "1", "--accept-stale")["trials"]
    assert trial["state"] == "finished"
    assert trained.options == ("--accept-stale",)


def test_a_line_names_finished_trials_of_older_code(run_cli, search, trained, mine):
    [trial] = search("--trials", "1")["trials"]
    command = ("search", mine.name, "--profile", "smoke", "--trials", "1")
    line = f"{trial['run']}: the code changed after this run (core)"
    assert line not in run_cli(*command).output
    Run(mine.parent / trial["run"]).set_status(sources={"core": "0.1 other"})
    assert line in run_cli(*command, "--quiet").output


@pytest.fixture
def rates(monkeypatch):
    """{name: recipe} of what was measured. `rates.step`: seconds of a step of a recipe."""
    from p2pzoo_bench.rates import Rate

    class Rates(dict):
        step = None

    measured = Rates()

    def measure_rates(recipes, file):
        read = {name: tomllib.loads(recipe) for name, recipe in recipes.items()}
        measured.update(read)
        return {name: Rate(measured.step(recipe), 1e-30) for name, recipe in read.items()}

    monkeypatch.setattr(p2pzoo_search.budget, "measure_rates", measure_rates)
    return measured


def test_a_budget_gives_each_trial_the_time_of_the_slowest_choice(search, trained, mine, rates):
    rates.step = lambda recipe: recipe["generator"]["width"] / 8
    mine.write_text(mine.read_text().replace("share = 0.5", "").replace("[2, 3]", "[2, 16]"))
    assert search("--trials", "2", "--budget", "22s")["images"] == 5, "11 s for each trial, 2 s a step"
    assert {recipe["generator"]["width"] for recipe in rates.values()} == {2, 8, 16}
    assert search("--trials", "2", "--budget", "40s")["images"] == 5, "the study goes on with the length it began with"
    assert "give more time, or fewer trials" in search("--budget", "1s", "--study", "b", exit_code=2)["error"]


def test_a_setting_whose_speed_cannot_be_measured_is_named(search, trained, mine, rates, monkeypatch):
    def step(recipe):
        if recipe["generator"]["width"] == 16:
            raise p2pzoo_bench.rates.UnknownSpeed("mine-abc: its speed cannot be measured: too little memory")
        return 1.0

    rates.step = step
    monkeypatch.setattr(p2pzoo_search.budget, "name_rate", lambda experiment, threads: "mine-abc")
    mine.write_text(mine.read_text().replace("share = 0.5", "").replace("[2, 3]", "[2, 16]"))
    assert search("--trials", "2", "--budget", "22s", exit_code=2)["error"] == (
        "mine.toml:11  [search] generator.width=16: its speed cannot be measured: too little memory: remove this value"
    )


def test_a_budget_measures_both_ends_of_a_range_that_changes_the_time(search, trained, mine, rates):
    rates.step = lambda recipe: recipe["generator"]["width"] / 8
    text = mine.read_text().replace("share = 0.5", "losses.l1.weight = {low = 1, high = 9}")
    mine.write_text(text.replace("[2, 3]", "{low = 2, high = 16}"))
    assert search("--trials", "2", "--budget", "22s")["images"] == 5, "11 s for each trial, at most 2 s a step"
    assert {recipe["generator"]["width"] for recipe in rates.values()} == {2, 8, 16}
    assert len(rates) == 3, "neither the learning rate nor the weight of a loss changes the time"


@pytest.mark.parametrize(
    ("batches", "seconds", "images"),
    [
        ("[1, 4]", {1: 0.15, 4: 0.4}, 6664),  # 0.15 s an image: 6,666 images, the last step of 4 is whole
        ("[4, 3]", {3: 0.6, 4: 0.4}, 4998),  # 0.2 s an image: 5,000 images, steps of 3 would end at 5,001
        ("[8, 16]", {4: 0.4, 8: 1.2, 16: 1.2}, 6656),  # 0.15 s: steps of 16
        ("{low = 2, high = 4}", {2: 0.3, 4: 0.4}, 6664),  # a batch of 3 is tried too
    ],
)
def test_a_budget_compares_seconds_of_an_image_not_of_a_step(search, trained, mine, rates, batches, seconds, images):
    rates.step = lambda recipe: seconds[recipe["train"]["batch_size"]]
    text = mine.read_text().replace("share = 0.5", f"train.batch_size = {batches}")
    mine.write_text(text.replace("generator.width = [2, 3]", "").replace("batch_size = 1", "batch_size = 4"))
    document = search("--trials", "1", "--budget", "1000s")
    assert document["images"] == images
    [trial] = trained
    each = max(seconds.values()) if trial.train.batch_size not in seconds else seconds[trial.train.batch_size]
    assert trial.train.steps * each <= 1000


def test_a_speed_holds_for_these_threads_and_this_device(search, trained, mine, rates, monkeypatch):
    rates.step = lambda recipe: 1.0
    for module in ("p2pzoo_bench.rates", "p2pzoo_bench.executors"):
        monkeypatch.setattr(f"{module}.count_usable_cores", lambda: 8)
    mine.write_text(mine.read_text().replace("share = 0.5", ""))

    def measured(*options):
        rates.clear()
        search("--trials", "4", "--budget", "1s", "--study", "slow", "-s", "compute.threads=0", *options, exit_code=2)
        return {*rates}

    first = measured("--jobs", "2")
    assert measured("--jobs", "2") == first
    assert not measured("--jobs", "1") & first
    monkeypatch.setattr(p2pzoo_bench.rates, "pick_device", lambda device: "cuda")
    assert not measured("--jobs", "2") & first


def test_optuna_is_named_where_it_is_missing(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "p2pzoo_search.study", raising=False)
    with pytest.raises(UserError, match=r"needs the package optuna .*: pip install 'p2pzoo\[search\]'"):
        importlib.import_module("p2pzoo_search.study")


@pytest.mark.slow
def test_trials_are_runs_in_processes_of_their_own(run_cli, mine):
    result = run_cli("search", mine.name, "--profile", "smoke", "--trials", "2", "--jobs", "2", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output[result.output.index("{") :])
    for trial in document["trials"]:
        results = json.loads(find_run(mine.parent / trial["run"]).results.read_text())
        number = results["metrics"]["l1"]
        assert trial["score"] == number["value"]
        assert results["protocols"][number["protocol"]]["split"] == "val"
