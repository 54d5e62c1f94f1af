"""An error inside a component names it: kind, name, distribution, method."""

import pytest

from p2pzoo import config
from p2pzoo.config.component_errors import naming_components
from p2pzoo.utils.errors import ComponentError, UserError

PLUGIN = """
from typing import Literal
import torch
from p2pzoo.plugin import hookimpl
from p2pzoo.utils.errors import UserError

class Broken:
    version, better, side = "1", None, "generator"
    def __init__(self, *, at: Literal["measure", "reduce", "call", "user"] = "reduce"):
        self.at = at
    def __call__(self, out):
        return self.helper() if self.at == "call" else out.y_hat.mean()
    def measure(self, batch, y_hat):
        if self.at == "user":
            raise UserError("my own words")
        return {"a": self.helper() if self.at == "measure" else torch.rand(len(y_hat))}
    def reduce(self, statistics):
        return {"value": self.helper() if self.at == "reduce" else float(statistics["a"].mean())}
    def helper(self):
        return sum({}["e"] for _ in range(3))

@hookimpl
def register_metrics(register):
    register("broken", Broken, summary="x", paper="none")

@hookimpl
def register_losses(register):
    register("broken", Broken, summary="x", paper="none")
"""
TINY = ("dataset.size=64", "dataset.stride=256", "generator.width=4", "discriminator.width=4", "train.images=2")


@pytest.fixture
def broken(install):
    install("broken_zoo", PLUGIN)


@pytest.mark.parametrize("at", ["measure", "reduce"])
def test_a_metric_fails_before_the_training_and_names_itself(at, broken, run, tmp_path):
    result = run(tmp_path, "metrics.mine.use=broken", f"metrics.mine.at={at}")
    assert result.exit_code == 1
    assert result.first_step is None, "it is tried before the training"
    line = result.output.splitlines()[-1]
    assert line.startswith("-s metrics.mine")
    assert f"metric 'broken_zoo:broken' (broken_zoo 1.0) failed in {at}: KeyError: 'e' (`p2pzoo --debug" in line
    assert not list(tmp_path.rglob("status.json"))


def test_a_loss_fails_in_a_step_and_names_itself(broken, run, tmp_path):
    result = run(tmp_path, "losses.mine.use=broken", "losses.mine.at=call")
    assert result.exit_code == 1
    assert (
        "loss 'broken_zoo:broken' (broken_zoo 1.0) failed in __call__: KeyError: 'e'" in result.output.splitlines()[-1]
    )


def test_the_words_of_a_component_stay(broken, run, tmp_path):
    result = run(tmp_path, "metrics.mine.use=broken", "metrics.mine.at=user")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith("my own words")


def test_errors_elsewhere_stay():
    experiment = config.load("zoo:base.toml", "smoke", TINY)
    with pytest.raises(ZeroDivisionError), naming_components(experiment.components()):
        _ = 1 / 0
    with pytest.raises(UserError, match=r"^mine$"), naming_components(experiment.components()):
        raise UserError("mine")


def test_a_network_names_itself_and_its_forward():
    import torch

    experiment = config.load("zoo:base.toml", "smoke", TINY)
    G = experiment.generator.build(in_channels=3, out_channels=3, size=(64, 64))
    with (
        pytest.raises(ComponentError, match=r"generator 'pix2pix:unet' \(p2pzoo .*\) failed in forward: \w+Error: "),
        naming_components(experiment.components()),
    ):
        G(torch.zeros(1, 5, 64, 64))


def test_metrics_are_tried_without_a_change_of_random_numbers(broken):
    import torch

    from p2pzoo.data import Store
    from p2pzoo.runs.evaluate import build_metrics, try_metrics

    experiment = config.load("zoo:base.toml", "smoke", [*TINY, "metrics.mine.use=broken", "metrics.mine.at=call"])
    store = Store(experiment.dataset.build(split="test"))
    before = torch.get_rng_state()
    try_metrics(build_metrics(experiment, store, experiment.metrics), store)
    assert torch.equal(torch.get_rng_state(), before)
