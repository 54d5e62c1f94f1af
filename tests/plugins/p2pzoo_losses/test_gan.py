"""GAN losses that came after pix2pix, compared with values computed by hand."""

import importlib
import math
from types import SimpleNamespace

import p2pzoo_losses
import pytest
import torch
from p2pzoo_losses.gan import Hinge, NonSaturating, Relativistic, WassersteinGP
from torch import nn

from p2pzoo import config
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.gan_step import Objective, Trainable

GAMES = {
    "hinge": Hinge(),
    "non-saturating": NonSaturating(),
    "wgan-gp": WassersteinGP(),
    "relativistic, average": Relativistic(),
    "relativistic, pairing": Relativistic(variant="pairing"),
}
games = pytest.mark.parametrize("gan", GAMES.values(), ids=GAMES)


class Linear(nn.Module):
    """Logits (B, 1, H, W), the products of y with weights (C, H, W) summed over channels: a D whose gradient is known.

    D(x, y), their mean, has the gradient weight / (H·W).
    """

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, y):
        return [(self.weight * y).sum(1, keepdim=True)]


class Convolutional(nn.Module):
    """A smooth conditional D that treats each image of a batch independently."""

    def __init__(self, scales=1):
        super().__init__()
        self.scales = scales
        self.first, self.last = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 1, 3)

    def forward(self, x, y):
        h = torch.tanh(self.first(torch.cat([x, y], 1)))
        return [self.last(h[..., :: i + 1, :: i + 1]) for i in range(self.scales)]


def with_logits(real, fake):
    """The part of StepOutputs that a GAN loss reads: logits of D, one map per scale."""
    return SimpleNamespace(real=[torch.as_tensor(m) for m in real], fake=[torch.as_tensor(m) for m in fake])


def images(count, size=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, size, size, generator=draw) * 2 - 1 for _ in range(3))


def step_outputs(D, count=2, size=6, **more):
    x, y, y_hat = images(count, size)
    return StepOutputs(Batch(x, y, ("a",) * count), y_hat, D, **more)


def softplus(value):
    return math.log(1 + math.exp(value))


def test_every_registered_component_can_be_imported_and_names_its_source():
    registered = {}
    for hook in (p2pzoo_losses.register_gan_losses, p2pzoo_losses.register_losses):
        hook(lambda name, factory, **about: registered.update({name: (factory, about)}))
    assert set(registered) == {
        *(
            "hinge",
            "non-saturating",
            "wgan-gp",
            "relativistic",
            "r1",
            "r2",
            "feature-matching",
            "perceptual",
            "ssim",
            "ms-ssim",
        ),
        *("charbonnier", "edge", "focal-frequency", "lab-color", "total-variation"),
        *("lecam", "gradient-difference", "registration", "shift-tolerant-l1", "lpips", "dists"),
        *("patchnce", "patchnce-network", "diversity-sensitive"),
    }
    for factory, about in registered.values():
        module, attribute = factory.split(":")
        assert callable(getattr(importlib.import_module(module), attribute))
        assert about["summary"]
        assert about["paper"]


def test_hinge_is_constant_beyond_logits_of_one():
    out = with_logits(real=[[2.0, -1.0]], fake=[[0.5, -3.0]])
    assert Hinge().discriminator_loss(out).item() == pytest.approx((0 + 2) / 2 + (1.5 + 0) / 2)
    assert Hinge().generator_loss(out).item() == pytest.approx((-0.5 + 3) / 2)
    assert Hinge().discriminator_loss(with_logits([[1.0]], [[-1.0]])).item() == 0
    assert Hinge().discriminator_loss(with_logits([[0.0]], [[0.0]])).item() == 2


def test_the_non_saturating_loss_by_hand():
    out = with_logits(real=[[2.0, -1.0]], fake=[[0.5, -3.0]])
    of_real, of_fake = (softplus(-2) + softplus(1)) / 2, (softplus(0.5) + softplus(-3)) / 2
    assert NonSaturating().discriminator_loss(out).item() == pytest.approx(of_real + of_fake)
    assert NonSaturating().generator_loss(out).item() == pytest.approx((softplus(-0.5) + softplus(3)) / 2)


def test_large_logits_keep_the_gradients_of_the_non_saturating_loss():
    real, fake = (torch.tensor([-1e4, 1e4], requires_grad=True) for _ in range(2))
    out = with_logits([real], [fake])
    NonSaturating().discriminator_loss(out).backward()
    assert real.grad.tolist() == [-0.5, 0]
    assert fake.grad.tolist() == [0, 0.5]


def test_the_recipe_with_lazy_r1_has_the_numbers_of_stylegan2():
    """The public code: r1 · (γ / 2) · k in each k-th step, with γ = 10 and k = 16; D's rate is multiplied by 16/17, and
    the betas 0 and 0.99 of D are raised to this power."""
    recipe = config.load("zoo:modern/non_saturating.toml", "gpu")
    assert recipe.gan_loss.entry.name == "non-saturating"
    assert recipe.optimizer.lr_discriminator == pytest.approx(16 / 17 * recipe.optimizer.lr, rel=1e-5)
    assert recipe.optimizer.betas == (0.0, 0.99)
    weight, r1 = recipe.losses["r1"].weight, recipe.losses["r1"].build()
    D = Linear(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)))
    squared_gradient = D.weight.square().sum().item() / 16**2
    values = [weight * r1(step_outputs(D, size=4, step=step)).item() for step in range(33)]
    assert values[::16] == pytest.approx([squared_gradient * (10 / 2) * 16] * 3, rel=1e-5)
    assert not any(value for step, value in enumerate(values) if step % 16)


def test_relativistic_pairing_compares_two_images():
    out = with_logits(real=[[2.0, -1.0]], fake=[[0.5, 3.0]])
    gan = Relativistic(variant="pairing")
    assert gan.discriminator_loss(out).item() == pytest.approx((softplus(0.5 - 2) + softplus(3 + 1)) / 2)
    assert gan.generator_loss(out).item() == pytest.approx((softplus(2 - 0.5) + softplus(-1 - 3)) / 2)


def test_relativistic_average_compares_each_logit_with_the_mean_of_the_others():
    out = with_logits(real=[[2.0, -1.0]], fake=[[0.5, 3.0]])  # means 0.5 and 1.75
    sigmoid = lambda logit: 1 / (1 + math.exp(-logit))  # noqa: E731
    D_real, D_fake = [sigmoid(2 - 1.75), sigmoid(-1 - 1.75)], [sigmoid(0.5 - 0.5), sigmoid(3 - 0.5)]
    d_loss = -sum(map(math.log, D_real)) / 2 - sum(math.log(1 - p) for p in D_fake) / 2
    g_loss = -sum(map(math.log, D_fake)) / 2 - sum(math.log(1 - p) for p in D_real) / 2
    assert Relativistic().discriminator_loss(out).item() == pytest.approx(d_loss, rel=1e-5)
    assert Relativistic().generator_loss(out).item() == pytest.approx(g_loss, rel=1e-5)


@pytest.mark.parametrize(("variant", "ignorant"), [("average", 2 * math.log(2)), ("pairing", math.log(2))])
def test_relativistic_losses_at_equal_logits(variant, ignorant):
    out = with_logits([[7.0, 7.0]], [[7.0, 7.0]])
    assert Relativistic(variant=variant).discriminator_loss(out).item() == pytest.approx(ignorant)
    assert Relativistic(variant=variant).generator_loss(out).item() == pytest.approx(ignorant)


@pytest.mark.parametrize("variant", ["average", "pairing"])
def test_relativistic_losses_depend_only_on_differences_of_logits(variant):
    gan, one, other = Relativistic(variant=variant), [[2.0, -1.0]], [[0.5, 3.0]]
    shifted = with_logits([[9.0, 6.0]], [[7.5, 10.0]])
    assert gan.discriminator_loss(with_logits(one, other)).item() == pytest.approx(
        gan.discriminator_loss(shifted).item(), rel=1e-5
    )
    assert gan.generator_loss(with_logits(one, other)).item() == pytest.approx(
        gan.discriminator_loss(with_logits(other, one)).item(), rel=1e-5
    )


@pytest.mark.parametrize("variant", ["average", "pairing"])
def test_relativistic_gradients_flow_through_the_means(variant):
    """Compare them with finite differences."""
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64).requires_grad_()
    gan = Relativistic(variant=variant)
    for side in (gan.discriminator_loss, gan.generator_loss):
        assert torch.autograd.gradcheck(lambda both, side=side: side(with_logits(both[:1], both[1:])), logits)


@pytest.mark.parametrize("variant", ["average", "pairing"])
def test_no_logit_makes_a_relativistic_loss_or_its_gradient_infinite(variant):
    real, fake = (torch.tensor([-1e4, 1e4], requires_grad=True) for _ in range(2))
    out, gan = with_logits([real], [fake]), Relativistic(variant=variant)
    (gan.discriminator_loss(out) + gan.generator_loss(out)).backward()
    assert real.grad.isfinite().all()
    assert fake.grad.isfinite().all()


class TestWassersteinGP:
    def test_the_penalty_of_a_linear_critic_by_hand(self):
        D = Linear(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)))
        out = step_outputs(D, size=4)
        length = D.weight.norm().item() / 16
        distance = (D.weight * (out.y_hat - out.y)).sum((1, 2, 3)).mean().item() / 16
        for penalty in (10.0, 3.0):
            value = WassersteinGP(penalty=penalty).discriminator_loss(out).item()
            assert value == pytest.approx(distance + penalty * (length - 1) ** 2, rel=1e-5)
        assert WassersteinGP().generator_loss(out).item() == pytest.approx(-out.fake[0].mean().item())

    def test_the_gradient_of_the_penalty_reaches_d(self):
        """∇ λ (‖w‖/n − 1)² = 2 λ (‖w‖/n − 1) w / (n ‖w‖), plus the gradient of the distance."""
        D = Linear(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)))
        out = step_outputs(D, size=4)
        WassersteinGP().discriminator_loss(out).backward()
        w = D.weight.detach()
        of_distance = (out.y_hat - out.y).mean(0) / 16
        of_penalty = 2 * 10 * (w.norm() / 16 - 1) * w / (16 * w.norm())
        torch.testing.assert_close(D.weight.grad, of_distance + of_penalty)

    def test_training_d_brings_the_length_of_its_gradient_to_one(self):
        """For two images at a distance d, the optimal gradient length of a linear critic is 1 + d / 2λ."""
        y, y_hat = torch.full((1, 1, 1, 2), 0.6), torch.full((1, 1, 1, 2), -0.2)
        distance = math.hypot(0.8, 0.8)
        for penalty in (10.0, 100.0):
            D = Linear(torch.tensor([[[2.0, 1.0]]]))
            descent = torch.optim.SGD(D.parameters(), lr=0.1 / penalty, momentum=0.9)
            for _ in range(200):
                descent.zero_grad()
                WassersteinGP(penalty=penalty).discriminator_loss(StepOutputs(Batch(y, y, ("a",)), y_hat, D)).backward()
                descent.step()
            assert D.weight.norm().item() / 2 == pytest.approx(1 + distance / (2 * penalty), rel=1e-3)

    def test_each_image_has_its_own_random_interpolation_and_the_same_x(self):
        calls = []

        class Watched(Convolutional):
            def forward(self, x, y):
                calls.append((x, y.detach()))
                return super().forward(x, y)

        out = step_outputs(Watched(), count=8)
        torch.manual_seed(0)
        WassersteinGP().discriminator_loss(out)
        [(x, between)] = [(x, y) for x, y in calls if not (torch.equal(y, out.y) or torch.equal(y, out.y_hat))]
        assert torch.equal(x, out.x)
        shares = ((between - out.y_hat) / (out.y - out.y_hat)).flatten(1)
        torch.testing.assert_close(shares, shares[:, :1].expand_as(shares), atol=1e-3, rtol=0)
        assert ((shares > 0) & (shares < 1)).all()
        assert len({round(share, 3) for share in shares[:, 0].tolist()}) == 8

    def test_the_interpolation_follows_torchs_seed(self):
        torch.manual_seed(0)
        out = step_outputs(Convolutional())
        values = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            values.append(WassersteinGP().discriminator_loss(out).item())
        assert values[0] == values[1] != values[2]

    def test_an_images_penalty_does_not_depend_on_the_rest_of_the_batch(self, monkeypatch):
        monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.3))
        torch.manual_seed(0)
        D = Convolutional(scales=2)
        x, y, y_hat = images(3)
        of_batch = WassersteinGP().discriminator_loss(StepOutputs(Batch(x, y, ("a",) * 3), y_hat, D))
        each = [StepOutputs(Batch(x[i : i + 1], y[i : i + 1], ("a",)), y_hat[i : i + 1], D) for i in range(3)]
        alone = torch.stack([WassersteinGP().discriminator_loss(out) for out in each])
        torch.testing.assert_close(of_batch, alone.mean())

    def test_a_constant_critic_has_a_finite_gradient(self):
        D = Linear(torch.zeros(3, 4, 4))
        value = WassersteinGP().discriminator_loss(step_outputs(D, size=4))
        value.backward()
        assert value.item() == 10
        assert D.weight.grad.isfinite().all()

    def test_a_recipe_without_a_discriminator_is_an_error(self):
        with pytest.raises(ValueError, match=r"no \[discriminator\]"):
            WassersteinGP().discriminator_loss(step_outputs(None))


@pytest.mark.parametrize("gan", [gan for name, gan in GAMES.items() if name != "wgan-gp"])  # which asks D itself
def test_every_scale_has_the_same_weight(gan):
    real, fake = [[1.0] * 8, [3.0]], [[-2.0] * 8, [0.5]]
    each = [with_logits([r], [f]) for r, f in zip(real, fake, strict=True)]
    for method in ("discriminator_loss", "generator_loss"):
        alone = [getattr(gan, method)(out).item() for out in each]
        assert getattr(gan, method)(with_logits(real, fake)).item() == pytest.approx(sum(alone) / 2, rel=1e-5)


@games
def test_each_loss_changes_its_own_network_and_gradients_reach_it(gan):
    torch.manual_seed(0)
    G, D = nn.Conv2d(3, 3, 3, padding=1), Convolutional()
    x, y, _ = images(2)
    moved = []

    def descend(loss, optimizer):
        loss.backward()
        moved.append([any(p.grad is not None and p.grad.any() for p in each.parameters()) for each in (G, D)])
        optimizer.zero_grad()

    players = [Trainable(each, torch.optim.SGD(each.parameters(), lr=0.1)) for each in (G, D)]
    Objective(*players, gan, [], descend).step(Batch(x, y, ("a", "b")), 0)
    assert moved == [[False, True], [True, False]], "[G, D] in D's move, then in G's"


@games
def test_d_separates_the_logits_and_g_raises_those_of_its_images(gan):
    """D separates real from fake logits; G raises those of its images."""
    real, fake = (torch.zeros(2, 1, 3, 3, requires_grad=True) for _ in range(2))
    out = SimpleNamespace(**vars(with_logits([real], [fake])), **{name: torch.zeros(2, 3, 6, 6) for name in ("x", "y")})
    out.y_hat, out.D = out.y, Linear(torch.ones(3, 6, 6))
    gan.discriminator_loss(out).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    gan.generator_loss(out).backward()
    assert (fake.grad < 0).all()
