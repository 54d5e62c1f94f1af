"""The training step: the order of updates, which gradients reach G and D, and the paper's formulas by hand."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from p2pzoo.compute.engine import Engine, frozen
from p2pzoo.config.settings import Compute, Optimizer
from p2pzoo.plugin.batch import Batch
from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.accumulation import AccumulatingObjective
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.image_pool import ImagePool
from p2pzoo.utils.errors import UserError


class TinyD(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 1, 3)

    def forward(self, x, y):
        return [self.conv(torch.cat([x, y], 1))]

    def features(self, x, y):
        return [self.forward(x, y)]


class Log:
    """The paper's log loss; records in which update it is called."""

    def __init__(self):
        self.calls = []

    def discriminator_loss(self, out):
        self.calls.append(("D", out.side, out.y_hat.requires_grad))
        return 0.5 * (-F.logsigmoid(out.real[0]).mean() - F.logsigmoid(-out.fake[0]).mean())

    def generator_loss(self, out):
        self.calls.append(("G", out.side, out.y_hat.requires_grad))
        return -F.logsigmoid(out.fake[0]).mean()


class L1:
    side = "generator"

    def __call__(self, out):
        return (out.y_hat - out.y).abs().mean()


class GradientPenalty:
    side = "discriminator"

    def __call__(self, out):
        y = out.y.clone().requires_grad_()
        [gradient] = torch.autograd.grad(out.D(out.x, y)[0].sum(), y, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()


@pytest.fixture
def game():
    torch.manual_seed(0)
    G, D = nn.Conv2d(3, 3, 3, padding=1), TinyD()
    batch = Batch(torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 8, 8) * 2 - 1, ("a", "b"))
    return G, D, batch


def sgd(network):
    return Trainable(network, torch.optim.SGD(network.parameters(), lr=0.1))


def descend(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_a_step_is_the_papers_formulas_by_hand(game):
    G, D, batch = game
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    gan = Log()
    logs = Objective(sgd(G), sgd(D), gan, [Term("l1", L1(), 100.0)], descend).step(batch, 0)

    fake = G2(batch.x)
    real_logits, fake_logits = D2(batch.x, batch.y)[0], D2(batch.x, fake.detach())[0]
    d_loss = 0.5 * (F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
                    + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits)))  # fmt: skip
    descend(d_loss, torch.optim.SGD(D2.parameters(), lr=0.1))
    after = D2(batch.x, fake)[0]
    l1 = F.l1_loss(fake, batch.y)
    g_loss = F.binary_cross_entropy_with_logits(after, torch.ones_like(after)) + 100 * l1
    D2.zero_grad()
    descend(g_loss, torch.optim.SGD(G2.parameters(), lr=0.1))

    for ours, by_hand in zip([*G.parameters(), *D.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
        torch.testing.assert_close(ours, by_hand)
    assert gan.calls == [("D", "discriminator", False), ("G", "generator", True)]
    torch.testing.assert_close(logs["D.gan"], d_loss.detach())
    torch.testing.assert_close(logs["G.l1"], l1.detach())
    torch.testing.assert_close(logs["D.real"], real_logits.detach().mean())
    torch.testing.assert_close(logs["D.fake"], fake_logits.detach().mean())


def test_each_update_changes_one_network_only(game):
    G, D, batch = game
    updates = []

    def watch(loss, optimizer):
        before = [p.detach().clone() for p in (*G.parameters(), *D.parameters())]
        descend(loss, optimizer)
        changed = [not torch.equal(a, b) for a, b in zip(before, (*G.parameters(), *D.parameters()), strict=True)]
        updates.append((any(changed[:2]), any(changed[2:])))

    Objective(sgd(G), sgd(D), Log(), [], watch).step(batch, 0)
    assert updates == [(False, True), (True, False)], "D, then G"
    assert all(p.requires_grad for p in D.parameters()), "frozen only during the update of G"


def test_a_discriminator_side_loss_reaches_d_twice_differentiably(game):
    G, D, batch = game
    D2 = copy.deepcopy(D)
    Objective(sgd(G), sgd(D), Log(), [Term("r1", GradientPenalty(), 10.0)], descend).step(batch, 0)
    Objective(sgd(copy.deepcopy(G)), sgd(D2), Log(), [], descend).step(batch, 0)
    assert not torch.equal(D.conv.weight, D2.conv.weight)


def test_without_a_discriminator_g_learns_from_its_losses_alone(game):
    G, _, batch = game
    logs = [Objective(sgd(G), None, None, [Term("l1", L1(), 1.0)], descend).step(batch, i)["G.l1"] for i in range(20)]
    assert logs[-1] < logs[0]


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 1), nn.Conv2d(3, 3, 2, stride=2)], ids=["channels", "size"])
def test_a_generator_whose_images_have_another_shape_is_an_error_that_says_so(layer):
    objective = Objective(Trainable(layer, None), None, None, [], lambda *_: None)
    batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), ("a", "b"))
    with pytest.raises(UserError, match=r"the generator makes images of \d×\d×\d .* where the targets have 3×8×8"):
        objective.step(batch, 0)


def test_weights_scale_the_loss_but_not_the_logs(game):
    G, D, batch = game
    totals = []
    logs = Objective(sgd(G), sgd(D), Log(), [Term("l1", L1(), 7.0)], lambda loss, _: totals.append(loss.item()),
                     gan_weight=3.0).step(batch, 0)  # fmt: skip
    assert totals == pytest.approx([3 * logs["D.gan"].item(), 3 * logs["G.gan"].item() + 7 * logs["G.l1"].item()])


def test_step_outputs_compute_d_once_and_again_for_the_generator(game):
    G, D, batch = game
    calls = []
    D.register_forward_hook(lambda *_: calls.append(1))
    out = StepOutputs(batch, G(batch.x), D)
    _ = out.real, out.real, out.fake, out.fake
    assert len(calls) == 2
    _ = out.for_generator().fake
    assert len(calls) == 3


def test_step_outputs_without_d_raise_an_error(game):
    G, _, batch = game
    with pytest.raises(UserError, match=r"needs a discriminator: add \[discriminator\] and \[gan_loss\]"):
        _ = StepOutputs(batch, G(batch.x)).real


def test_frozen_parameters_get_no_gradient_but_pass_it_on(game):
    G, D, batch = game
    with frozen(D):
        StepOutputs(batch, G(batch.x), D).for_generator().fake[0].mean().backward()
    assert D.conv.weight.grad is None
    assert G.weight.grad.abs().sum() > 0


def test_the_pool_returns_matching_pairs_and_half_of_them_are_old():
    pool = ImagePool(4, seed=0)
    pairs = []
    for step in range(200):
        x = torch.full((1, 1, 1, 1), float(step))
        pairs.append(tuple(float(part) for part in pool(x, -x, step)))
    assert all(x == -y_hat for x, y_hat in pairs)
    assert [int(x) for x, _ in pairs[:4]] == [0, 1, 2, 3], "while it fills, it returns the new pair"
    old = sum(x != step for step, (x, _) in enumerate(pairs[4:], 4))
    assert 70 < old < 130


def test_the_engine_equals_a_plain_optimizer(game):
    G, _, batch = game
    G2 = copy.deepcopy(G)
    engine = Engine(Compute(device="cpu"))
    placed = engine.prepare_model(G)
    optimizer = engine.build_optimizer(placed, Optimizer())
    plain = torch.optim.Adam(G2.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for _ in range(3):
        engine.backward_and_step((placed(batch.x) - batch.y).abs().mean(), optimizer)
        plain.zero_grad()
        (G2(batch.x) - batch.y).abs().mean().backward()
        plain.step()
    torch.testing.assert_close(G.weight, G2.weight)


def test_with_d_steps_d_trains_on_each_part_and_g_on_the_last(game):
    G, D, _ = game
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    images = torch.rand(2, 6, 3, 8, 8) * 2 - 1
    logs = Objective(sgd(G), sgd(D), Log(), [Term("l1", L1(), 10.0)], descend, d_steps=3).step(Batch(*images, ()), 0)

    optimizer = torch.optim.SGD(D2.parameters(), lr=0.1)
    for x, y in zip(*(part.split(2) for part in images), strict=True):
        real, fake = D2(x, y)[0], D2(x, G2(x).detach())[0]
        d_loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        descend(d_loss, optimizer)
    g_loss = F.softplus(-D2(x, G2(x))[0]).mean() + 10 * F.l1_loss(G2(x), y)
    descend(g_loss, torch.optim.SGD(G2.parameters(), lr=0.1))

    for ours, by_hand in zip([*G.parameters(), *D.parameters()], [*G2.parameters(), *D2.parameters()], strict=True):
        torch.testing.assert_close(ours, by_hand)
    torch.testing.assert_close(logs["D.gan"], d_loss.detach())


def test_the_pool_is_called_in_each_update_of_d(game):
    G, D, _ = game
    calls = []
    pool = ImagePool(2, 0)

    def recording_pool(x, y_hat, update):
        calls.append((update, len(x)))
        return pool(x, y_hat, update)

    objective = Objective(sgd(G), sgd(D), Log(), [], descend, pool=recording_pool, d_steps=2)
    for step in range(2):
        objective.step(Batch(*torch.rand(2, 4, 3, 8, 8), ()), step)
    assert calls == [(0, 2), (1, 2), (2, 2), (3, 2)]


def train_in_parts(game, parts, *, d_steps=1, pool=None, alone=False, gan=None):
    """Two steps in float64 with the engine's `backward_and_step`: the logs, and the weights at the end."""
    G, D, _ = (copy.deepcopy(part) for part in game)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 2, 6 * d_steps, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    engine = Engine(Compute(device="cpu"))
    trainables = [
        Trainable(n.double(), engine.build_optimizer(n.double(), Optimizer(use="SGD", lr=0.1))) for n in (G, D)
    ]
    kind = Objective if parts == 1 else functools.partial(AccumulatingObjective, parts=parts)
    terms = [Term("l1", L1(), 10.0), Term("r1", GradientPenalty(), 0.01)]
    if alone:
        trainables[1], terms = None, terms[:1]
    options = {"pool": pool and ImagePool(pool, 0), "d_steps": d_steps}
    objective = kind(*trainables, None if alone else Log(), terms, engine.backward_and_step, **options)
    logs = [objective.step(Batch(*each, ()), step) for step, each in enumerate(images)]
    return logs, [*G.parameters(), *D.parameters()]


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize(
    "options",
    [{}, {"d_steps": 2}, {"pool": 4}, {"alone": True}],
    ids=["one update of D", "two updates of D", "image pool", "no discriminator"],
)
def test_a_step_in_parts_is_the_same_step(game, parts, options):
    (logs, weights), (others, other_weights) = (
        train_in_parts(game, 1, **options),
        train_in_parts(game, parts, **options),
    )
    for one, other in zip(logs, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            mean_logit = name in ("D.real", "D.fake")  # in float32 whatever D computes in
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6 if mean_logit else 1e-12)
    for one, other in zip(weights, other_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_networks_compute_one_part_at_a_time(game):
    G, D, _ = game
    sizes = []
    for network in (G, D):
        network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    engine = Engine(Compute(device="cpu"))
    trainables = [Trainable(network, engine.build_optimizer(network, Optimizer())) for network in (G, D)]
    AccumulatingObjective(*trainables, Log(), [], engine.backward_and_step, parts=3).step(
        Batch(*torch.rand(2, 6, 3, 8, 8), ()), 0
    )
    assert set(sizes) == {2}


def test_a_batch_is_split_with_all_its_fields():
    images = torch.arange(4.0).view(4, 1, 1, 1)
    batch = Batch(images, -images, ("a", "b", "c", "d"), images[:, 0].long(), (None, "B", "C", "D"))
    first, second = batch.split(2)
    assert (first.x.flatten().tolist(), second.y.flatten().tolist()) == ([0, 1], [-2, -3])
    assert (first.ids, second.ids, first.blocks, second.blocks) == (("a", "b"), ("c", "d"), (None, "B"), ("C", "D"))
    assert second.labels.flatten().tolist() == [2, 3]
    assert batch.split(1) == [batch]


def test_a_loss_of_either_side_can_read_the_number_of_the_step(game):
    G, D, batch = game
    logs = []

    class Reading:
        def __init__(self, side):
            self.side = side

        def __call__(self, out):
            logs.append((out.side, out.step))
            return out.y.new_zeros(())

    terms = [Term(side, Reading(side), 1.0) for side in ("generator", "discriminator")]
    for step in (3, 7):
        Objective(sgd(G), sgd(D), Log(), terms, descend).step(batch, step)
    Objective(sgd(G), None, None, [Term("l1", L1(), 1.0), terms[0]], descend).step(batch, 9)
    assert logs == [("discriminator", 3), ("generator", 3), ("discriminator", 7), ("generator", 7), ("generator", 9)]


def test_a_fake_from_the_pool_comes_with_its_x(game):
    G, D, batch = game
    x_hat, y_hat = torch.rand(2, 2, 3, 8, 8)
    out = StepOutputs(batch, G(batch.x), D, pooled=(x_hat, y_hat))
    assert torch.equal(out.x_fake, x_hat)
    assert torch.equal(out.x, batch.x)
    assert torch.equal(out.for_generator().x_fake, batch.x)
