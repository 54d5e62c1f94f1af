"""The diversity-sensitive loss: its value by hand, its limit, its gradient, and which recipes it is refused in."""

import pytest
import torch
from p2pzoo_losses.diversity import DiversitySensitive
from p2pzoo_pix2pix.generators import UNet
from torch import nn

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs


class Scaled(nn.Module):
    """ŷ = x + weight · z, with a z of two values per image."""

    takes_z = True

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.drawn = []

    def draw_z(self, x):
        self.drawn.append(torch.randn(len(x), 2, 1, 1))
        return self.drawn[-1]

    def forward(self, x, z=None):
        return x + self.weight * z


def step_outputs(G, count=3):
    x = torch.rand(count, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return StepOutputs(Batch(x, x, ("a",) * count), x, G=G).for_generator()


def test_it_is_minus_the_ratio_of_the_distances():
    G = Scaled(0.3)
    assert DiversitySensitive()(step_outputs(G)).item() == pytest.approx(-0.3, rel=1e-5)
    assert not torch.equal(*G.drawn)


def test_the_distances_are_those_of_each_image():
    """ŷ is x plus z in the first image, and x in the others."""

    class OfOneImage(Scaled):
        def forward(self, x, z=None):
            return x + torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1) * z

    assert DiversitySensitive(limit=5.0)(step_outputs(OfOneImage(1.0))).item() == pytest.approx(-1 / 3, rel=1e-5)
    assert DiversitySensitive(limit=0.6)(step_outputs(OfOneImage(1.0))).item() == pytest.approx(-0.2, rel=1e-5)


def test_beyond_its_limit_it_is_constant_and_below_it_g_learns_larger_differences():
    G = Scaled(0.8)
    value = DiversitySensitive(limit=0.5)(step_outputs(G))
    value.backward()
    assert value.item() == pytest.approx(-0.5)
    assert not G.weight.grad
    DiversitySensitive(limit=2.0)(step_outputs(G)).backward()
    assert G.weight.grad.item() == pytest.approx(-1, rel=1e-5)


def test_a_generator_that_ignores_z_has_a_loss_of_0_and_a_finite_gradient():
    G = Scaled(0.0)
    value = DiversitySensitive()(step_outputs(G))
    value.backward()
    assert value.item() == 0
    assert G.weight.grad.isfinite()


def test_translations_in_half_precision_are_compared_in_fp32():
    class Half(Scaled):
        def forward(self, x, z=None):
            return super().forward(x, z).bfloat16()

    value = DiversitySensitive()(step_outputs(Half(0.3)))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(-0.3, rel=2e-2)


def test_a_unet_with_gaussian_noise_takes_z():
    torch.manual_seed(0)
    G = UNet(3, 3, (32, 32), width=4, depth=2, noise="gaussian")
    x = torch.rand(2, 3, 32, 32)
    out = StepOutputs(Batch(x, x, ("a", "b")), x, G=G).for_generator()
    value = DiversitySensitive()(out)
    value.backward()
    assert -1 <= value.item() < 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in G.parameters())
    torch.manual_seed(1)
    drawn = G(x)
    torch.manual_seed(1)
    assert torch.equal(drawn, G(x, z=G.draw_z(x))), "without z it draws the same one"
    with pytest.raises(ValueError, match='this generator takes no z: it has noise = "dropout", not "gaussian"'):
        UNet(3, 3, (32, 32), width=4, depth=2)(x, z=x[:, :1])


class TestRecipes:
    LOSS = ("losses.d.use=diversity-sensitive", "train.images=4")

    def test_it_trains(self, run, tmp_path):
        answer = run(tmp_path, *self.LOSS, "generator.noise=gaussian", "train.batch_size=2")
        assert answer.exit_code == 0, answer.output

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (
                (),
                "[losses.d] needs z, which generator 'pix2pix:unet' does not take: remove it, or use a generator that "
                'does, such as "unet" with noise = "gaussian"',
            ),
            (
                ("generator.noise=gaussian", "generator.norm=group", "process.use=flow"),
                "[losses.d] needs z, which no generator with a process has: remove it, or [process]",
            ),
        ],
        ids=["no z", "a process"],
    )
    def test_a_generator_without_z_is_refused_before_training(self, overrides, message, run, tmp_path):
        answer = run(tmp_path / "runs", *self.LOSS, *overrides)
        assert answer.exit_code == 2
        assert message in answer.output.splitlines()[-1]
        assert answer.first_step is None
        assert not (tmp_path / "runs").exists()
