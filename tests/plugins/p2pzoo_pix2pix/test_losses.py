"""The losses of pix2pix, compared with values computed by hand."""

import importlib
import math
from types import SimpleNamespace

import p2pzoo_pix2pix
import pytest
import torch
from p2pzoo_pix2pix.losses import L1, L2, LeastSquares, Vanilla

from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs


def with_logits(real, fake):
    """The part of StepOutputs that a GAN loss reads: logits of D, one map per scale."""
    return SimpleNamespace(real=[torch.as_tensor(m) for m in real], fake=[torch.as_tensor(m) for m in fake])


def with_images(y, y_hat):
    batch = Batch(x=torch.zeros_like(y), y=y, ids=("a",))
    return StepOutputs(batch, y_hat).for_generator()


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def test_every_registered_loss_can_be_imported():
    registered = {}
    for hook in (p2pzoo_pix2pix.register_gan_losses, p2pzoo_pix2pix.register_losses):
        hook(lambda name, factory, **about: registered.update({name: factory}))
    assert set(registered) == {"vanilla", "lsgan", "l1", "l2"}
    for factory in registered.values():
        module, attribute = factory.split(":")
        getattr(importlib.import_module(module), attribute)()


def test_vanilla_is_the_papers_log_loss_with_the_loss_of_d_halved():
    out = with_logits(real=[[2.0, -1.0]], fake=[[0.5, 3.0]])
    D_real, D_fake = [sigmoid(2), sigmoid(-1)], [sigmoid(0.5), sigmoid(3)]
    d_loss = -(sum(math.log(p) for p in D_real) / 2 + sum(math.log(1 - p) for p in D_fake) / 2)
    g_loss = -sum(math.log(p) for p in D_fake) / 2
    assert Vanilla().discriminator_loss(out).item() == pytest.approx(d_loss / 2, rel=1e-5)
    assert Vanilla(halved=False).discriminator_loss(out).item() == pytest.approx(d_loss, rel=1e-5)
    assert Vanilla().generator_loss(out).item() == pytest.approx(g_loss, rel=1e-5)
    assert Vanilla(halved=False).generator_loss(out).item() == pytest.approx(g_loss, rel=1e-5)


def test_log_eps_gives_the_log_loss_of_a_sigmoid_that_saturates():
    """As in the Lua and TensorFlow codes. 1e-12 changes the loss only if the sigmoid rounds to 0 or 1."""
    out = with_logits(real=[[2.0, -1.0]], fake=[[0.5, 3.0]])
    for method in ("discriminator_loss", "generator_loss"):
        logits, sigmoids = (getattr(gan, method)(out).item() for gan in (Vanilla(), Vanilla(log_eps=1e-12)))
        assert sigmoids == pytest.approx(logits, rel=1e-5)
    assert Vanilla(log_eps=0.1).generator_loss(with_logits([[0.0]], [[0.0]])).item() == pytest.approx(-math.log(0.6))
    assert Vanilla(log_eps=0.1).discriminator_loss(with_logits([[0.0]], [[0.0]])).item() == pytest.approx(
        -math.log(0.6)
    )

    sure = torch.tensor([100.0], requires_grad=True)
    losses = {
        eps: Vanilla(log_eps=eps, halved=False).discriminator_loss(with_logits([[0.0]], [sure])) for eps in (0.0, 1e-12)
    }
    assert losses[1e-12].item() == pytest.approx(math.log(2) - math.log(1e-12), rel=1e-5), "the largest possible loss"
    assert [torch.autograd.grad(loss, sure)[0].item() for loss in losses.values()] == [1.0, 0.0]


def test_least_squares_uses_logits_without_a_sigmoid():
    out = with_logits(real=[[2.0, -1.0]], fake=[[0.5, 3.0]])
    assert LeastSquares().discriminator_loss(out).item() == pytest.approx(((1 + 4) / 2 + (0.25 + 9) / 2) / 2)
    assert LeastSquares().generator_loss(out).item() == pytest.approx((0.25 + 4) / 2)


@pytest.mark.parametrize(("gan", "expected"), [(Vanilla, math.log(2)), (LeastSquares, 0.5)])
def test_losses_of_a_discriminator_with_logits_of_0(gan, expected):
    assert gan().discriminator_loss(with_logits([[0.0]], [[0.0]])).item() == pytest.approx(expected)


@pytest.mark.parametrize(("gan", "right", "wrong"), [(Vanilla, 40.0, -40.0), (LeastSquares, 1.0, 0.0)])
def test_both_losses_reach_their_minimum_at_the_right_logits(gan, right, wrong):
    assert gan().discriminator_loss(with_logits([[right]], [[wrong]])).item() == pytest.approx(0, abs=1e-6)
    assert gan().generator_loss(with_logits([[wrong]], [[right]])).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_of_g_does_not_saturate_when_d_is_certain():
    """The gradient of −log D stays at 1; that of log(1 − D) would vanish (§3.3)."""
    logit = torch.tensor([-30.0], requires_grad=True)
    Vanilla().generator_loss(with_logits([[0.0]], [logit])).backward()
    assert logit.grad.item() == pytest.approx(-1)


@pytest.mark.parametrize("gan", [Vanilla, LeastSquares])
def test_no_logit_makes_a_loss_or_gradient_infinite(gan):
    real, fake = (torch.tensor([-1e4, 1e4], requires_grad=True) for _ in range(2))
    out = with_logits([real], [fake])
    (gan().discriminator_loss(out) + gan().generator_loss(out)).backward()
    assert real.grad.isfinite().all()
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize("gan", [Vanilla, LeastSquares])
def test_every_scale_has_the_same_weight(gan):
    real, fake = [[1.0] * 8, [3.0]], [[-2.0] * 8, [0.5]]
    both = with_logits(real, fake)
    each = [with_logits([r], [f]) for r, f in zip(real, fake, strict=True)]
    for method in ("discriminator_loss", "generator_loss"):
        alone = [getattr(gan(), method)(out).item() for out in each]
        assert getattr(gan(), method)(both).item() == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize(("loss", "expected"), [(L1, (0.5 + 0 + 2 + 1) / 4), (L2, (0.25 + 0 + 4 + 1) / 4)])
def test_reconstruction_losses_are_means_over_all_values(loss, expected):
    y = torch.tensor([0.5, 0.25, 1.0, -1.0]).view(1, 1, 2, 2)
    y_hat = torch.tensor([0.0, 0.25, -1.0, 0.0]).view(1, 1, 2, 2).requires_grad_()
    value = loss()(with_images(y, y_hat))
    assert value.item() == pytest.approx(expected)
    assert loss()(with_images(y, y)).item() == 0
    value.backward()
    assert y_hat.grad.flatten()[2] < 0  # descending moves ŷ up, to y


def test_reconstruction_losses_are_losses_of_the_generator():
    assert L1.side == L2.side == "generator"


def test_a_gan_loss_works_on_step_outputs():
    y, y_hat = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    out = StepOutputs(Batch(x=y, y=y, ids=("a",)), y_hat, D=lambda x, y: [2 * y])
    assert Vanilla().discriminator_loss(out).item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)
