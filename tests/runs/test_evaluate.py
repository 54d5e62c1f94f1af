"""Which metric ranks the test images for a report's best and worst."""

from types import SimpleNamespace

import pytest
import torch

from p2pzoo.models import safetensors_io
from p2pzoo.runs.evaluate import rank_images

NAN = float("nan")


def component(better, values):
    """A metric whose image i has values[i]."""
    metric = SimpleNamespace(better=better, reduce=lambda statistics: {"value": statistics["of"].mean().item()})
    return SimpleNamespace(build=lambda dataset: metric, values=values, evaluate={})


@pytest.fixture
def ranked(tmp_path):
    def ranked(**metrics):
        run = SimpleNamespace(stats=tmp_path / "stats.safetensors")
        tensors = {f"{name}.of": torch.tensor(metric.values) for name, metric in metrics.items()}
        safetensors_io.save_tensors(run.stats, tensors, {})
        store = type("Store", (), {"dataset": None, "__len__": lambda self: 3})()
        ranking = rank_images(SimpleNamespace(metrics=metrics), run, store)
        return ranking and (ranking[0], [index for index, _ in ranking[1]])

    return ranked


def test_the_first_metric_ranks_in_its_own_direction(ranked):
    values = [2.0, 3.0, 1.0]
    assert ranked(near=component("lower", values), far=component("higher", values)) == ("near", [2, 0, 1])
    assert ranked(far=component("higher", values), near=component("lower", values)) == ("far", [1, 0, 2])


def test_a_metric_with_translations_of_its_own_ranks_nothing(ranked):
    """The images are shown as [evaluate] says."""
    other, near = component("lower", [1.0, 2.0, 3.0]), component("lower", [3.0, 2.0, 1.0])
    other.evaluate = {"test_mode": "eval"}
    assert ranked(other=other, near=near) == ("near", [2, 1, 0])


def test_a_metric_without_a_direction_ranks_nothing(ranked):
    ratio, near = component(None, [1.0, 2.0, 3.0]), component("lower", [3.0, 2.0, 1.0])
    assert ranked(ratio=ratio, near=near) == ("near", [2, 1, 0])
    assert ranked(ratio=ratio) is None


def test_a_metric_without_values_of_single_images_ranks_nothing(ranked):
    sets, near = component("lower", [NAN, NAN, NAN]), component("lower", [3.0, 2.0, 1.0])
    assert ranked(sets=sets, near=near) == ("near", [2, 1, 0])


def test_without_metrics_there_is_no_ranking(ranked):
    assert ranked() is None


NAN_METRIC = """
import p2pzoo

class Unknown:
    version = "1"
    better = "lower"

    def __init__(self, dataset): ...

    def measure(self, batch, y_hat):
        return {"value": y_hat.mean((1, 2, 3))}

    def reduce(self, statistics):
        return {"value": float("nan")}

@p2pzoo.hookimpl
def register_metrics(register):
    register("unknown", Unknown)
"""


def test_a_metric_that_is_nan_is_reported_and_the_exit_code_is_not_0(install, run, tmp_path):
    install("unknown_metric", NAN_METRIC)
    for _ in range(2):  # also when the results are there already
        result = run(tmp_path, "metrics.mine.use=unknown", "train.images=2")
        assert result.exit_code == 1
        assert result.output.splitlines()[-1].startswith("mine: not a number (nan)")
        assert "l1 " in result.output
