"""Parameters that may differ at use: [evaluate.process], [metrics.NAME.evaluate.process] and [evaluate.also.NAME]."""

import pytest

from p2pzoo import config
from p2pzoo.utils.errors import UserError

FLOW = "zoo:modern/flow.toml"


def load(*overrides, recipe=FLOW):
    return config.load(recipe, "smoke", overrides)


def test_they_are_in_the_protocol_and_not_in_the_run_id():
    experiment = load("evaluate.process.steps=4", "evaluate.process.eta=1")
    assert experiment.translations.protocol()["process"] == {"steps": 4, "eta": 1.0}
    assert experiment.id == load().id
    assert "process" not in load().translations.protocol(), "numbers of runs without it keep their protocol"


def test_a_metric_can_have_its_own_on_top_of_those_of_all():
    experiment = load("evaluate.process.steps=4", "metrics.l1.evaluate.process.eta=1")
    translations = {name: each.translations.process for name, each in experiment.measurements.items()}
    assert translations["l1"] == {"steps": 4, "eta": 1.0}
    assert translations["psnr"] == {"steps": 4}


def test_further_translations_are_measured_under_their_name():
    experiment = load("evaluate.also.fast.process.steps=1", "evaluate.also.other={test_mode='eval'}", "evaluate.at=[2]")
    names = [name for name in experiment.measurements if name.startswith("l1")]
    assert names == ["l1", "l1@2", "l1@fast", "l1@other"]
    fast, other = (experiment.measurements[f"l1@{name}"].translations for name in ("fast", "other"))
    assert (fast.process, fast.test_mode) == ({"steps": 1}, "paper")
    assert (other.process, other.test_mode) == ({}, "eval")


def test_a_metric_that_says_which_translations_it_measures_is_not_measured_on_others():
    experiment = load("evaluate.also.other={test_mode='eval'}", "metrics.l1.evaluate.test_mode='paper'")
    assert "l1@other" not in experiment.measurements
    assert "psnr@other" in experiment.measurements


def test_the_resolved_recipe_says_the_same():
    overrides = ("evaluate.process.steps=4", "evaluate.also.fast.process.steps=1", "metrics.l1.evaluate.process.eta=1")
    resolved = load(*overrides).resolved()
    assert resolved["evaluate"]["process"] == {"steps": 4}
    assert resolved["evaluate"]["also"] == {"fast": {"process": {"steps": 1}}}
    assert resolved["metrics"]["l1"]["evaluate"] == {"process": {"eta": 1.0}}
    assert not load().resolved()["evaluate"].keys() & {"process", "generator", "also"}


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("evaluate.process.sigma=1", "'sigma' cannot differ from the training: only steps, eta can"),
        ("evaluate.process.steps=0", "steps = 0: input should be greater than or equal to 1"),
        ("evaluate.process.eta=2", "eta = 2: input should be less than or equal to 1"),
        ("evaluate.generator.width=3", "'width' cannot differ from the training: it has none that can"),
        ("evaluate.process=3", "process = 3: give a table, { parameter = value }"),
        ("metrics.l1.evaluate.process.sigma=1", "'sigma' cannot differ from the training: only steps, eta can"),
        ("evaluate.also.fast.process.steps=0", "steps = 0: input should be greater than or equal to 1"),
        ("evaluate.also.3={weights='last'}", "also.3: the name must be letters, digits, - and _, a letter first"),
        ("evaluate.also.fast={weigths='last'}", "has no parameter 'weigths': did you mean 'weights'?"),
        ("evaluate.also.fast=3", "also.fast must be a table, not 3"),
        ("evaluate.also.fast={test_mode='eval',test_batch=4}", "uses running statistics, so a test_batch changes"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(override, fault):
    with pytest.raises(UserError) as caught:
        load(override)
    [message] = caught.value.faults
    assert fault in message


def test_a_recipe_without_a_process_says_so():
    with pytest.raises(UserError, match=r"process: this recipe has no \[process\] whose parameters could differ"):
        load("evaluate.process.steps=1", recipe="zoo:base.toml")
