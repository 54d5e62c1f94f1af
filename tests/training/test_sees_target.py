"""A generator that sees the target in training: the encoder of BicycleGAN, whose code is drawn at use."""

import json

import numpy as np
import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from PIL import Image
from torch import nn

import p2pzoo
from p2pzoo.plugin import Batch
from p2pzoo.training.accumulation import AccumulatingObjective
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.utils.errors import UserError

PLUGIN = '''
import torch
from torch import nn
import p2pzoo


class Bicycle(nn.Module):
    """G(x, z) with z = E(y) in training and z from N(0, 1) at use (arXiv:1711.11586, the cVAE half)."""

    sees_target = True

    def __init__(self, in_channels, out_channels, *, codes: int = 2, kl: float = 0.01):
        super().__init__()
        self.codes, self.loss_weights = codes, {"kl": kl}
        self.encode = nn.Sequential(
            nn.Conv2d(out_channels, 8, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2 * codes, 1)
        )
        self.decode = nn.Sequential(
            nn.Conv2d(in_channels + codes, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, out_channels, 1), nn.Tanh()
        )

    def forward(self, x, y=None):
        if y is None:
            return self.translate(x, torch.randn(len(x), self.codes, 1, 1, device=x.device, dtype=x.dtype))
        mean, log_variance = self.encode(y).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.translate(x, z), {"kl": (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2}

    def translate(self, x, z):
        return self.decode(torch.cat([x, z.expand(-1, -1, *x.shape[2:])], dim=1))


class NoWeights(Bicycle):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.loss_weights = None


class Timed(Bicycle):
    takes_time = True


@p2pzoo.hookimpl
def register_generators(register):
    register("bicycle", Bicycle)
    register("timed", Timed)
    register("no-weights", NoWeights)
'''
BICYCLE = ('generator={use="bicycle"}',)


@pytest.fixture(autouse=True)
def plugin(install):
    install("bicycle_plugin", PLUGIN)


class TestRuns:
    @pytest.mark.parametrize(
        "overrides",
        [
            ("train.ema=0.9",),
            ("train.accumulate=2", "train.batch_size=4", "train.d_steps=2", "train.pool_size=3"),
            ("train.order=lua", "evaluate.test_mode=eval"),
            ('drop=["discriminator", "gan_loss"]', "train.accumulate=2", "train.batch_size=2"),
        ],
        ids=lambda overrides: overrides[0],
    )
    def test_a_killed_run_resumes_with_bit_identical_results(self, run, tmp_path, overrides):
        overrides = (*BICYCLE, *overrides)
        result = run(tmp_path / "whole", *overrides)
        assert result.exit_code == 0, result.output
        with after(STEP, simulate_kill, call=3), pytest.raises(SimulatedKill):
            run(tmp_path / "killed", *overrides)
        assert run(tmp_path / "killed", *overrides).exit_code == 0
        assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")

    def test_its_losses_are_in_the_log(self, run, tmp_path):
        assert run(tmp_path, *BICYCLE).exit_code == 0
        lines = [json.loads(line) for line in (only(tmp_path) / "metrics.jsonl").read_text().splitlines()]
        kl = [line["G.kl"] for line in lines]
        assert len(kl) == 10
        assert len(set(kl)) > 1
        assert "G.l1" in lines[0]

    def test_at_use_its_code_is_drawn_by_seed_and_image(self, run, run_cli, tmp_path):
        assert run(tmp_path / "runs", *BICYCLE).exit_code == 0
        model = p2pzoo.load(only(tmp_path / "runs"), device="cpu")
        x = np.full((64, 64, model.in_channels), 100, np.uint8)
        for mode in ("paper", "eval"):
            first, again, other = (model.translate(x, test_mode=mode, seed=seed) for seed in (0, 0, 1))
            assert np.array_equal(first, again)
            assert not np.array_equal(first, other)

        with pytest.raises(ValueError, match="the generator draws its own noise, which would differ from tile to tile"):
            model.translate(x, test_mode="eval", tile=32)

        Image.fromarray(x).save(tmp_path / "x.png")
        result = run_cli(
            "translate", only(tmp_path / "runs"), tmp_path / "x.png", "-o", tmp_path / "out", "--samples", 3
        )
        assert result.exit_code == 0, result.output
        assert np.asarray(Image.open(tmp_path / "out" / "x-spread.png")).any()
        graph = run_cli("export", only(tmp_path / "runs"), "--to", "torch-export", "-o", tmp_path / "graph.pt2")
        assert graph.exit_code == 2
        assert "the generator draws its own noise, which a graph cannot repeat" in graph.output

    def test_a_process_is_refused_in_one_line(self, run, tmp_path):
        result = run(tmp_path / "runs", *BICYCLE, "process.use=bridge")
        assert result.exit_code == 2
        assert "generator 'bicycle_plugin:bicycle' sees the target in training" in result.output.splitlines()[-1]
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ((*BICYCLE, "losses.kl.use=l2"), "has a loss 'kl', which [losses.kl] has too: rename one of them"),
            (('generator={use="no-weights"}',), "has sees_target = True and loss_weights None"),
            (('generator={use="timed"}',), "has sees_target = True and takes_time = True: it can have one of the two"),
        ],
    )
    def test_what_cannot_be_trained_is_refused_in_one_line(self, run, tmp_path, overrides, message):
        result = run(tmp_path / "runs", *overrides)
        assert result.exit_code == 2
        assert message in result.output.splitlines()[-1]
        assert not (tmp_path / "runs").exists()


class Seeing(nn.Module):
    sees_target = True

    def __init__(self, returned=None):
        super().__init__()
        self.weight, self.loss_weights = nn.Parameter(torch.tensor(0.5)), {"code": 3.0, "size": 0.5}
        self.returned = returned

    def forward(self, x, y=None):
        if self.returned:
            return self.returned(x)
        if y is None:
            return x * self.weight
        return (x + y) * self.weight, {"code": self.weight**2, "size": self.weight * y.mean()}


class Distance:
    side = "generator"

    def __call__(self, out):
        return (out.y - out.y_hat).mean()


def step_of(kind, G, batch):
    def backward(loss, optimizer):
        for part in [loss] if isinstance(loss, torch.Tensor) else loss:
            part.backward()

    objective = kind(Trainable(G, None), None, None, [Term("distance", Distance(), 2.0)], backward)
    return objective.step(batch, 0)


def batch_of(count=4):
    torch.manual_seed(0)
    return Batch(*torch.rand(2, count, 3, 4, 4), tuple(map(str, range(count))))


@pytest.mark.parametrize("kind", [Objective, lambda *args: AccumulatingObjective(*args, parts=2)])
def test_its_losses_are_summed_with_its_own_weights(kind):
    G, batch = Seeing(), batch_of()
    logs = step_of(kind, G, batch)
    expected = -2 * (batch.x + batch.y).mean() + 3 * 2 * 0.5 + 0.5 * batch.y.mean()
    torch.testing.assert_close(G.weight.grad, expected)
    assert set(logs) == {"G.distance", "G.code", "G.size"}
    assert logs["G.code"] == 0.25, "unweighted, as all losses in the log"
    torch.testing.assert_close(logs["G.size"], 0.5 * batch.y.mean())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x, r"returns a Tensor for G\(x, y\): it must return \(ŷ, \{name: loss\}\)"),
        (
            lambda x: (x, {"code": x.mean()}),
            r"returns the losses \['code'\] for G\(x, y\), and its loss_weights are for",
        ),
        (lambda x: (x[:, :1], {"code": x.mean(), "size": x.mean()}), "the generator makes images of 1×4×4"),
    ],
)
def test_another_result_is_a_mistake_with_one_line(returned, message):
    with pytest.raises(UserError, match=message):
        step_of(Objective, Seeing(returned), batch_of())
