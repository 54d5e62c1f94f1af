"""What G sees in training, and which parameters and channels the processes refuse."""

import doctest
import math

import pytest
import torch
from p2pzoo_process import interpolants, processes, sampler
from p2pzoo_process.processes import Bridge, Diffusion, Flow

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


def test_a_bridge_refuses_other_channels_and_names_the_way_out():
    with pytest.raises(ValueError, match='use = "flow" or "diffusion"'):
        Bridge(1, 3)
    assert Flow(1, 3).channels == Diffusion(1, 3).channels == 5


@pytest.mark.parametrize("module", [interpolants, processes, sampler])
def test_the_examples_in_docstrings_are_true(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0
