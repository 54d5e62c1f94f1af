"""Metrics of several samples: what they are given, who else is given it, and that a run and `p2pzoo evaluate` agree."""

import json
import weakref

import pytest
import torch
from fault_injection import only
from torch import nn

from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute, Translations
from p2pzoo.data import Store, single_batches
from p2pzoo.models.test_modes import translate
from p2pzoo.models.translator import Translator
from p2pzoo.plugin.loader import registry
from p2pzoo.runs.evaluate import build_metric, count_samples, describe_metric, measure, measure_all, try_metrics
from p2pzoo.testing import ComponentCase
from p2pzoo.testing.tiny_components import TinyDataset
from p2pzoo.utils.errors import UserError


class Recorder:
    """A metric that keeps what it is given."""

    version, better = "1", None

    def __init__(self, samples=None):
        self.given = []
        if samples:
            self.samples = samples

    def measure(self, batch, y_hat):
        self.given.append(y_hat.clone())
        return {"mean": y_hat.flatten(1).mean(1)}

    def reduce(self, statistics):
        return {"value": statistics["mean"].mean().item()}


@pytest.fixture
def store():
    return Store(TinyDataset("test"))


@pytest.fixture
def engine():
    return Engine(Compute(device="cpu", threads=1))


def build_G(dropout=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Dropout(dropout), nn.Tanh())


def test_metrics_share_samples_and_others_see_the_first(store, engine):
    G, metrics = build_G(), {"one": Recorder(), "few": Recorder(2), "many": Recorder(4)}
    statistics = measure_all(metrics, engine, store, Translator(G, Translations()))
    assert count_samples(metrics) == 4
    for index, batch in enumerate(map(engine.to_device, single_batches(store, range(len(store))))):
        expected = torch.stack([translate(G, batch.x, "paper", seed=seed) for seed in range(4)], dim=1)
        assert torch.equal(metrics["many"].given[index], expected)
        assert torch.equal(metrics["few"].given[index], metrics["many"].given[index][:, :2])
        assert torch.equal(metrics["one"].given[index], metrics["many"].given[index][:, 0])
    assert len(statistics["many.mean"]) == len(store)


def test_a_metric_of_samples_changes_no_bit_of_the_others(store, engine):
    for dropout in (0.0, 0.5):
        alone, beside = (
            measure_all(metrics, engine, store, Translator(build_G(dropout), Translations()))["one.mean"]
            for metrics in ({"one": Recorder()}, {"one": Recorder(), "many": Recorder(3)})
        )
        assert torch.equal(alone, beside)


def test_without_random_numbers_all_samples_are_equal(store, engine):
    metric = Recorder(3)
    measure_all({"many": metric}, engine, store, Translator(build_G(dropout=0.0), Translations()))
    for y_hats in metric.given:
        assert y_hats.shape[:2] == (1, 3)
        assert torch.equal(y_hats, y_hats[:, :1].expand_as(y_hats))


def test_the_samples_of_one_image_are_in_memory_at_a_time(store, engine):
    translate_x, earlier = Translator(build_G(), Translations()), []

    def watched(x, count):
        assert not [each for each in earlier if each() is not None]
        samples = translate_x(x, count)
        earlier.extend(map(weakref.ref, samples))
        return samples

    class Mean(Recorder):
        def measure(self, batch, y_hat):
            return {"mean": y_hat.flatten(1).mean(1)}

    measure_all({"many": Mean(3)}, engine, store, watched)
    assert len(earlier) == 3 * len(store)


def test_a_metric_is_tried_with_samples_that_differ(store):
    metric = Recorder(5)
    try_metrics({"many": metric}, store)
    assert metric.given[0].shape[:2] == (1, 5)
    assert not torch.equal(metric.given[0][:, 0], metric.given[0][:, 1])


def test_y_itself_stands_for_all_samples(store):
    metrics = {name: registry().get("metric", name).load()(store.dataset) for name in ("crps", "coverage")}
    [batch] = single_batches(store, range(1))
    statistics = measure(metrics, batch, [batch.y], store.dataset)
    assert {name: value.item() for name, value in statistics.items()} == {
        "crps.error": 0, "crps.spread": 0, "coverage.covered": 1, "coverage.width": 0,
    }  # fmt: skip


@pytest.mark.parametrize("samples", [1, 0, "3", 2.0, True])
def test_a_metric_with_another_number_of_samples_is_refused(samples):
    class Wrong(Recorder):
        def __init__(self, dataset):
            super().__init__(samples)
            self.samples = samples

    component = ComponentCase.from_entry(registry().get("metric", "l1")).component
    object.__setattr__(component, "factory", Wrong)
    with pytest.raises(
        UserError, match=f"^metric 'metrics:l1' has samples = {samples!r}, .*: set a whole number from 2"
    ):
        build_metric(component, None)


def test_the_protocol_has_the_samples_of_a_metric_without_such_a_parameter():
    component = ComponentCase.from_entry(registry().get("metric", "l1")).component
    assert describe_metric(component, Recorder(7))["samples"] == 7
    assert "samples" not in describe_metric(component, Recorder())


# --- runs ------------------------------------------------------------------------------------------------------

SAMPLED = ("metrics.crps={use='crps', samples=3}", "metrics.coverage={use='coverage', samples=4}")
FLOW = ("generator.norm=group", "generator.noise=none", "process.use=flow", "process.steps=2", "train.images=4")


@pytest.fixture(scope="module")
def flow(run, tmp_path_factory):
    """The folder of a run whose translations are random in both test modes."""
    runs = tmp_path_factory.mktemp("flow")
    result = run(runs, *FLOW, *SAMPLED, "metrics.even={use='crps', samples=3, evaluate={test_mode='eval'}}")
    assert result.exit_code == 0, result.output
    return only(runs)


def read_metrics(folder):
    results = json.loads((folder / "results.json").read_text())
    return {name: number["value"] for name, number in results["metrics"].items()}, results


def test_a_sampled_run_has_its_numbers_with_the_samples_in_the_protocol(flow):
    metrics, results = read_metrics(flow)
    assert 0 < metrics["crps"] < metrics["l1"]
    assert 0 < metrics["coverage"] < 1
    assert metrics["coverage.width"] > 0
    protocols = {name: results["protocols"][digest]["metric"] for name, digest in results["measured"].items()}
    assert {name: protocol.get("samples") for name, protocol in protocols.items()} == {
        "l1": None, "psnr": None, "crps": 3, "coverage": 4, "even": 3,
    }  # fmt: skip
    assert protocols["coverage"]["nominal"] == 0.6


def test_p2pzoo_evaluate_has_the_numbers_of_the_run(flow, run_cli):
    expected, _ = read_metrics(flow)
    result = run_cli("evaluate", flow, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.output)
    assert {name: number["value"] for name, number in measured["metrics"].items()} == expected
    assert [timing["translations"]["test_mode"] for timing in measured["timings"]] == ["paper", "eval"]


def test_a_model_without_random_numbers_has_its_l1_as_crps(run, tmp_path):
    result = run(tmp_path, "generator.noise=none", "train.images=4", *SAMPLED)
    assert result.exit_code == 0, result.output
    metrics, _ = read_metrics(only(tmp_path))
    assert metrics["crps"] == metrics["l1"]
    assert metrics["coverage.width"] == 0


def test_one_sample_is_refused_with_the_line_of_the_recipe(run_cli, tiny, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'extends = "{tiny}"\n[metrics.crps]\nuse = "crps"\nsamples = 1\n')
    result = run_cli("run", recipe, "--profile", "smoke", "--runs", tmp_path / "runs")
    assert result.exit_code == 2
    assert f"{recipe}:4" in result.output
    assert "samples" in result.output
    assert not (tmp_path / "runs").exists()
