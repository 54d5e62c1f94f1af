"""What G sees in training, and which parameters and channels the processes refuse."""

import math
import re
from pathlib import Path

import pytest
import torch
from p2pzoo_process import interpolants, processes
from p2pzoo_process.processes import Bridge, Diffusion, Flow

from p2pzoo.plugin.loader import registry

U = torch.tensor([0.0, 0.1, 0.55, 0.999])  # t = 1, 0, 0.5 and almost 1


def example(channels=(3, 3)):
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(4, count, 8, 8, generator=generator) for count in (*channels, channels[1]))
    return x, y, z


def test_one_in_ten_samples_is_at_the_start_and_the_others_are_uniform():
    t = interpolants.sample_time(torch.arange(0, 1, 1e-4))
    assert (t == 1).float().mean().item() == pytest.approx(0.1, abs=1e-3)
    assert t[t < 1].min() == 0
    assert t[t < 1].mean().item() == pytest.approx(0.5, abs=1e-3)
    assert t.max() == 1


def test_the_logit_normal_law_is_the_sigmoid_of_a_normal_number():
    t = interpolants.sample_time(torch.arange(0, 1, 1e-5, dtype=torch.float64), "logit-normal")
    assert (t == 1).float().mean().item() == pytest.approx(0.1, abs=1e-3)
    assert 0 <= t.min() <= t.max() <= 1
    logits = t[(t > 0) & (t < 1)].logit()
    assert (logits.mean().item(), logits.std().item()) == pytest.approx((0, 1), abs=1e-3)
    last = interpolants.sample_time(torch.tensor([1 - 2**-24]), "logit-normal")  # the largest u
    assert 0.99 < last.item() <= 1


class TestLossWeight:
    @pytest.mark.parametrize("process", [Bridge, Flow, Diffusion])
    def test_by_default_there_is_none(self, process):
        assert process(3, 3).loss_weight is None

    @pytest.mark.parametrize("law", ["uniform", "logit-normal"])
    @pytest.mark.parametrize(
        ("process", "options"), [(Bridge, {}), (Bridge, {"sigma": 0.0}), (Flow, {}), (Diffusion, {})]
    )
    def test_its_mean_over_the_times_of_training_is_one(self, process, options, law):
        made = process(3, 3, loss_weight="snr", time_law=law, **options)
        u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert made.loss_weight(interpolants.sample_time(u, law)).mean().item() == pytest.approx(1, abs=0.01)

    @pytest.mark.parametrize(
        ("process", "snr"),
        [
            (Bridge(3, 3, loss_weight="snr", sigma=0.5), lambda t: (1 - t) / (0.25 * t)),
            (Flow(3, 3, loss_weight="snr"), lambda t: ((1 - t) / t) ** 2),
            (Diffusion(3, 3, loss_weight="snr"), lambda t: 1 / math.tan(math.pi / 2 * t) ** 2),
        ],
    )
    def test_it_is_one_more_than_the_signal_to_noise_ratio_up_to_25(self, process, snr):
        times = [0.02, 0.3, 0.5, 0.9]
        end, *weights = process.loss_weight(torch.tensor([1.0, *times])).tolist()
        assert [w / end for w in weights] == pytest.approx([min(1 + snr(t), 25) for t in times], rel=1e-5)
        assert process.loss_weight(torch.tensor([0.0])).item() == pytest.approx(25 * end)

    def test_without_noise_all_times_but_the_start_count_alike(self):
        end, *weights = Bridge(3, 3, sigma=0.0, loss_weight="snr").loss_weight(torch.tensor([1.0, 0.0, 0.5, 0.9]))
        assert [(w / end).item() for w in weights] == pytest.approx([25, 25, 25])

    def test_the_readme_names_the_losses_that_apply_it(self):
        text = " ".join((Path(processes.__file__).parent / "README.md").read_text("utf-8").split())
        named = re.search(r"on velocities\. ([^.]*) apply w to each image", text)[1]
        applying = {each.name for each in registry().of("loss") if getattr(each.load(), "uses_sample_weight", False)}
        assert {*re.findall("`(.*?)`", named)} == applying
        assert "none of these five is refused" in text
        assert len(applying) == 5

    def test_the_law_of_the_time_is_used(self):
        x, y, z = example()
        u = torch.linspace(0.1, 0.999, 4)
        assert torch.equal(
            Flow(3, 3, time_law="logit-normal").noised(x, y, u, z)[1], interpolants.sample_time(u, "logit-normal")
        )
        assert not torch.equal(Flow(3, 3).noised(x, y, u, z)[1], interpolants.sample_time(u, "logit-normal"))


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_a_bridge_is_y_at_0_and_exactly_x_at_1(sigma):
    x, y, z = example()
    seen, t = Bridge(3, 3, sigma=sigma).noised(x, y, U, z)
    assert t.tolist()[:2] == [1.0, 0.0]
    assert torch.equal(seen[0, 3:6], x[0])
    assert torch.equal(seen[1, 3:6], y[1])
    torch.testing.assert_close(seen[2, 3:6], 0.5 * (x[2] + y[2]) + 0.5 * sigma * z[2])


def test_a_flow_is_y_at_0_and_exactly_noise_at_1():
    x, y, z = example((1, 3))
    seen, _ = Flow(1, 3).noised(x, y, U, z)
    assert torch.equal(seen[0, 1:4], z[0])
    assert torch.equal(seen[1, 1:4], y[1])
    torch.testing.assert_close(seen[2, 1:4], 0.5 * (y[2] + z[2]))


def test_diffusion_is_y_at_0_and_exactly_noise_at_1():
    x, y, z = example((1, 3))
    seen, _ = Diffusion(1, 3).noised(x, y, U, z)
    assert torch.equal(seen[0, 1:4], z[0])
    assert torch.equal(seen[1, 1:4], y[1])
    torch.testing.assert_close(seen[2, 1:4], math.sqrt(0.5) * (y[2] + z[2]))


@pytest.mark.parametrize("process", [Bridge(3, 3), Flow(3, 3), Diffusion(3, 3)])
def test_g_sees_x_the_mixture_and_one_plane_with_the_time(process):
    x, y, z = example()
    seen, t = process.noised(x, y, U, z)
    assert seen.shape == (4, process.channels, 8, 8)
    assert torch.equal(seen[:, :3], x)
    assert torch.equal(seen[:, 6], t[:, None, None].expand(4, 8, 8))


@pytest.mark.parametrize("process", [Bridge, Flow, Diffusion])
def test_a_generator_that_takes_the_time_sees_no_plane(process):
    x, y, z = example()
    with_plane, t = process(3, 3).noised(x, y, U, z)
    timed = process(3, 3, True)
    seen, passed = timed.noised(x, y, U, z)
    assert (timed.passes_time, timed.channels) == (True, 6)
    assert torch.equal(seen, with_plane[:, :6])
    assert torch.equal(passed, t)


def test_a_bridge_refuses_other_channels_and_names_the_way_out():
    with pytest.raises(ValueError, match='use = "flow" or "diffusion"'):
        Bridge(1, 3)
    assert Flow(1, 3).channels == Diffusion(1, 3).channels == 5
