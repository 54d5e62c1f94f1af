"""The sampler against what is known in closed form: y given x is normal, and G is its exact conditional mean."""

import math
from itertools import pairwise

import pytest
import torch
from p2pzoo_process import interpolants
from p2pzoo_process.processes import Bridge, Diffusion, Flow
from p2pzoo_process.sampler import GaussianSampler, plan_steps
from torch import nn

MEAN, VARIANCE, X = 0.3, 1.0, -0.4
COEFFICIENTS = {
    "bridge": interpolants.bridge(0.5),
    "bridge with much noise": interpolants.bridge(1.0),
    "flow": interpolants.flow,
    "diffusion": interpolants.diffusion,
}
STEPS, ETAS = (1, 4, 50), (0.0, 0.5, 1.0)


def coefficients_at(coefficients, t):
    return [value.item() for value in coefficients(torch.tensor(t, dtype=torch.float64))]


def gain(a, c, v):
    """k of E[y | s] = μ + k (s - a μ - b x); 0 where s does not depend on y."""
    return a * v / (a * a * v + c * c) if a or c else 0.0


def expected_variance(coefficients, steps, eta, v=VARIANCE):
    """Of the sampler's output: the recursion of P, the variance of s, written from the formula of the sampler."""
    rows = [coefficients_at(coefficients, 1 - i / steps) for i in range(steps)]
    p = rows[0][2] ** 2
    for (a, _, c), (a_next, _, c_next) in pairwise(rows):
        k = gain(a, c, v)
        if c == 0:
            p = a_next**2 * k**2 * p + c_next**2
            continue
        g2 = eta**2 * (1 - (a * c_next / (a_next * c)) ** 2)
        p = (a_next * k + c_next * math.sqrt(1 - g2) * (1 - a * k) / c) ** 2 * p + c_next**2 * g2
    a, _, c = rows[-1]
    return gain(a, c, v) ** 2 * p


class ExactMean(nn.Module):
    """G that predicts E[y | x, s] for y ~ N(MEAN, v), from images x, s and t of one channel each."""

    def __init__(self, coefficients, v=VARIANCE):
        super().__init__()
        self.coefficients, self.v = coefficients, v

    def forward(self, seen):
        x, s, t = seen.split(1, dim=1)
        a, b, c = self.coefficients(t)
        k = (a * self.v / (a * a * self.v + c * c)).nan_to_num()
        return MEAN + k * (s - a * MEAN - b * x)


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("steps", STEPS)
def test_samples_have_the_mean_and_the_variance_of_the_closed_form(name, steps, eta):
    coefficients = COEFFICIENTS[name]
    sampler = GaussianSampler(
        ExactMean(coefficients), plan_steps(coefficients, steps, eta), 1 / steps,
        out_channels=1, starts_at_x="bridge" in name,
    )  # fmt: skip
    torch.manual_seed(0)
    samples = sampler(torch.full((1, 1, 400, 400), X, dtype=torch.float64))
    # 160,000 samples: the standard error of a variance is 0.35 % of it
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert samples.var().item() == pytest.approx(expected_variance(coefficients, steps, eta), rel=0.015, abs=1e-12)


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("steps", [*STEPS, 1000])
def test_the_plan_has_exactly_the_variance_of_the_closed_form(name, steps, eta):
    coefficients = COEFFICIENTS[name]
    plan = plan_steps(coefficients, steps, eta)
    p = coefficients_at(coefficients, 1.0)[2] ** 2
    for step in plan:
        a, _, c = coefficients_at(coefficients, step.t)
        p = (step.keep + step.of_y * gain(a, c, VARIANCE)) ** 2 * p + step.of_noise**2
    a, _, c = coefficients_at(coefficients, 1 / steps)
    variance = gain(a, c, VARIANCE) ** 2 * p
    assert variance == pytest.approx(expected_variance(coefficients, steps, eta), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("eta", ETAS)
def test_a_thousand_steps_reach_the_true_variance_within_two_percent(name, eta):
    """The missing part falls about as 1 / steps. It grows with σ² / v: 4 % for σ = 1, η = 1 and v = 0.1."""
    variance = expected_variance(COEFFICIENTS[name], 1000, eta)
    assert 0.98 * VARIANCE < variance < VARIANCE
    missing = [VARIANCE - expected_variance(COEFFICIENTS[name], steps, eta) for steps in (1000, 2000)]
    assert missing[0] / missing[1] == pytest.approx(2, rel=0.1)


def test_a_bridge_with_more_noise_than_the_target_has_needs_more_steps():
    assert expected_variance(interpolants.bridge(1.0), 1000, 1.0, v=0.1) / 0.1 == pytest.approx(0.96, abs=0.01)
    assert expected_variance(interpolants.bridge(1.0), 4000, 1.0, v=0.1) / 0.1 > 0.98


class Recorder(nn.Module):
    """G that keeps what it saw and returns a constant."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, seen):
        self.seen.append(seen)
        return torch.full_like(seen[:, :1], 0.25)


@pytest.mark.parametrize("process", [Bridge(1, 1, steps=4), Flow(1, 1, steps=4), Diffusion(1, 1, steps=4)])
def test_g_is_asked_at_the_times_of_the_grid(process):
    G = Recorder()
    process.sampler(G)(torch.zeros(2, 1, 4, 4))
    assert [seen[:, 2].unique().tolist() for seen in G.seen] == [[1.0], [0.75], [0.5], [0.25]]


class TimedRecorder(Recorder):
    def forward(self, seen, t):
        self.seen.append((seen, t))
        return torch.full_like(seen[:, :1], 0.25)


@pytest.mark.parametrize("process", [Bridge, Flow, Diffusion])
def test_a_generator_that_takes_the_time_sees_the_same_images_without_the_plane(process):
    plain, timed = Recorder(), TimedRecorder()
    for takes_time, G in ((False, plain), (True, timed)):
        torch.manual_seed(0)
        process(1, 1, takes_time, steps=4, eta=1.0).sampler(G)(torch.rand(2, 1, 4, 4))
    for with_plane, (seen, t) in zip(plain.seen, timed.seen, strict=True):
        assert torch.equal(seen, with_plane[:, :2])
        assert torch.equal(t, with_plane[:, 2, 0, 0])


class Varied(nn.Module):
    """G whose output depends on all that it sees."""

    def forward(self, seen):
        return seen.mean(1, keepdim=True).tanh()


@pytest.mark.parametrize("process", [Bridge, Flow, Diffusion])
@pytest.mark.parametrize(
    ("steps", "times"),
    [
        (1, [1]),
        (3, [1, 2 / 3, 1 / 3]),
        (4, [1, 0.75, 0.5, 0.25]),
        (10, [1, 0.7, 0.4, 0.1]),
        (1000, [1, 0.667, 0.334, 0.001]),
    ],
)
def test_the_path_has_some_times_and_ends_with_the_translation(process, steps, times):
    sampler, x = process(1, 1, steps=steps, eta=0.5).sampler(Varied()), torch.rand(2, 1, 4, 4)
    torch.manual_seed(0)
    path = sampler.path(x, 4)
    torch.manual_seed(0)
    assert torch.equal(path[-1][1], sampler(x))
    assert [t for t, _ in path] == pytest.approx(times)
    assert len(path) == 1 or not torch.equal(path[0][1], path[1][1])


def test_a_bridge_begins_at_x_and_a_flow_at_noise():
    x = torch.rand(1, 1, 4, 4)
    of_bridge, of_flow = Recorder(), Recorder()
    Bridge(1, 1, steps=1).sampler(of_bridge)(x)
    torch.manual_seed(3)
    Flow(1, 1, steps=1).sampler(of_flow)(x)
    torch.manual_seed(3)
    assert torch.equal(of_bridge.seen[0][:, 1:2], x)
    assert torch.equal(of_flow.seen[0][:, 1:2], torch.randn(1, 1, 4, 4))


def draws_noise(process):
    before = torch.get_rng_state()
    process.sampler(Recorder())(torch.zeros(1, 1, 4, 4))
    return not torch.equal(before, torch.get_rng_state())


def test_a_sampler_draws_noise_only_where_it_has_a_weight():
    assert not draws_noise(Bridge(1, 1, steps=1, eta=1.0))
    assert not draws_noise(Bridge(1, 1, sigma=0.0, steps=4, eta=1.0))
    assert draws_noise(Bridge(1, 1, steps=2))
    assert draws_noise(Flow(1, 1, steps=1))


def test_without_eta_noise_is_drawn_once():
    for process in (Bridge(1, 1, steps=5), Flow(1, 1, steps=5), Diffusion(1, 1, steps=5)):
        torch.manual_seed(0)
        process.sampler(Recorder())(torch.zeros(1, 1, 4, 4))
        after = torch.get_rng_state()
        torch.manual_seed(0)
        torch.randn(1, 1, 4, 4)
        assert torch.equal(after, torch.get_rng_state())


def test_g_gets_images_in_the_memory_format_of_x():
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    G = Recorder()
    Flow(3, 1, steps=2, eta=1.0).sampler(G)(x)
    assert all(seen.is_contiguous(memory_format=torch.channels_last) for seen in G.seen)
