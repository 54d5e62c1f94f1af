"""reference/lua.toml trains like train.lua.

The test compares it in float64 with a transcription of train.lua's step, in which each layer computes its own gradient,
as in Torch7: from its old input and its current weights.
"""

import copy
import math

import pytest
import torch
from p2pzoo_pix2pix.losses import L1
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from p2pzoo import config
from p2pzoo.compute.engine import Engine
from p2pzoo.models.initialization import make_discriminator, make_generator
from p2pzoo.plugin.batch import Batch
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.lua_order import LuaObjective
from p2pzoo.training.setup import build_objective
from p2pzoo.utils.errors import UserError

SIDE, STEPS = 64, 6
LR = 2e-3  # ten times the paper's: differences grow above the tolerance in a few steps


class Torch7Adam:
    """optim.adam: eps joins √v before the correction."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = 0

    def step(self, gradients):
        self.t += 1
        step_size = LR * math.sqrt(1 - 0.999**self.t) / (1 - 0.5**self.t)
        for p, m, v, gradient in zip(self.parameters, self.m, self.v, gradients, strict=True):
            m.mul_(0.5).add_(0.5 * gradient)
            v.mul_(0.999).add_(0.001 * gradient * gradient)
            p.data -= step_size * m / (v.sqrt() + 1e-8)


class Torch7D:
    """D as a chain of layers, each with updateOutput, updateGradInput and accGradParameters of Torch7's nn."""

    def __init__(self, D):
        self.layers = [layer for block in D.blocks for layer in block] + [D.to_logit]
        self.parameters = [p for layer in self.layers for p in layer.parameters()]

    @torch.no_grad()
    def forward(self, h):
        self.inputs = []
        for layer in self.layers:
            self.inputs.append(h)
            if isinstance(layer, nn.Conv2d):
                h = F.conv2d(h, layer.weight, layer.bias, layer.stride, layer.padding)
            elif isinstance(layer, nn.BatchNorm2d):
                centred, deviation = moments(h)
                h = column(layer.weight) * centred / deviation + column(layer.bias)
            else:
                h = torch.where(h > 0, h, 0.2 * h)
        self.output = torch.sigmoid(h)

    @torch.no_grad()
    def backward(self, gradient):
        """(gradient of the input, gradients of the parameters), from the gradient of the output."""
        gradient, found = gradient * self.output * (1 - self.output), []
        for layer, h in zip(reversed(self.layers), reversed(self.inputs), strict=True):
            if isinstance(layer, nn.Conv2d):
                geometry = {"stride": layer.stride, "padding": layer.padding}
                found = [conv2d_weight(h, layer.weight.shape, gradient, **geometry), gradient.sum((0, 2, 3)), *found]
                gradient = conv2d_input(h.shape, layer.weight, gradient, **geometry)
            elif isinstance(layer, nn.BatchNorm2d):
                centred, deviation = moments(h)
                normed, over = centred / deviation, (0, 2, 3)
                found = [(gradient * normed).sum(over), gradient.sum(over), *found]
                means = gradient.mean(over, True), (gradient * normed).mean(over, True)
                gradient = column(layer.weight) / deviation * (gradient - means[0] - normed * means[1])
            else:
                gradient = torch.where(h > 0, gradient, 0.2 * gradient)
        return gradient, found


def moments(h):
    centred = h - h.mean((0, 2, 3), True)
    return centred, (centred.square().mean((0, 2, 3), True) + 1e-5).sqrt()


def column(values):
    return values[:, None, None]


def bce(output, label):
    """nn.BCECriterion: (the loss, its gradient)."""
    loss = -(label * torch.log(output + 1e-12) + (1 - label) * torch.log(1 - output + 1e-12)).mean()
    return loss.item(), -(label - output) / ((1 - output + 1e-12) * (output + 1e-12)) / output.numel()


class TrainLua:
    """createRealFake, fDx and fGx."""

    def __init__(self, G, D):
        self.G, self.D = G, Torch7D(D)
        self.adam_G, self.adam_D = Torch7Adam(G.parameters()), Torch7Adam(self.D.parameters)
        self.convolutions = convolutions(G) + convolutions(D)

    def zero_biases(self):
        for convolution in self.convolutions:
            convolution.bias.data.zero_()

    def step(self, real_A, real_B):
        fake_B = self.G(real_A)
        fake_AB = torch.cat([real_A, fake_B.detach()], 1)

        self.zero_biases()
        self.D.forward(torch.cat([real_A, real_B], 1))
        err_real, df_do = bce(self.D.output, 1.0)
        gradients = self.D.backward(df_do)[1]
        self.D.forward(fake_AB)
        err_fake, df_do = bce(self.D.output, 0.0)
        self.adam_D.step([a + b for a, b in zip(gradients, self.D.backward(df_do)[1], strict=True)])

        self.zero_biases()
        err_G, df_do = bce(self.D.output, 1.0)  # of before D's step
        df_dg = self.D.backward(df_do)[0][:, real_A.shape[1] :]
        df_do_AE = torch.sign(fake_B.detach() - real_B) / real_B.numel()
        parameters = self.adam_G.parameters
        self.adam_G.step(torch.autograd.grad(fake_B, parameters, df_dg + 100 * df_do_AE))
        return {"D.gan": err_real + err_fake, "G.gan": err_G}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair(step):
    draw = torch.Generator().manual_seed(step)
    return Batch(*(torch.rand(1, 3, SIDE, SIDE, generator=draw) * 2 - 1 for _ in range(2)), ("a",))


def experiment(*overrides):
    small = ["generator.width=4", "discriminator.width=4", "discriminator.receptive_field=16", "compute.device=cpu"]
    return config.load("zoo:reference/lua.toml", "smoke", [*small, *overrides])


def without_dropout(G):
    """Torch7 draws dropout masks with another random generator."""
    for part in G.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return G


def trained(*overrides):
    """(logs of each step, final weights) of reference/lua.toml."""
    made = experiment(*overrides)
    engine = Engine(made.compute)
    objective = build_objective(made, engine, (3, 3), (SIDE, SIDE))
    without_dropout(objective.G.network)
    logs = []
    for step in range(STEPS):
        engine.set_lr(LR, step)
        logs.append(objective.step(engine.to_device(pair(step)), step))
    return logs, [p.detach() for trainable in objective.trainables for p in trainable.network.parameters()]


@pytest.fixture(scope="module")
def transcribed():
    """The same for the transcription."""
    torch.set_default_dtype(torch.float64)
    made = experiment()
    G, D = (make(made, (3, 3), (SIDE, SIDE)) for make in (make_generator, make_discriminator))
    lua = TrainLua(without_dropout(G), D)
    logs = [lua.step(batch.x, batch.y) for batch in map(pair, range(STEPS))]
    return logs, [p.detach() for p in (*G.parameters(), *D.parameters())]


def furthest(weights, others):
    return max((a - b).abs().max().item() for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize("switches", [["compute.lowering=true"], ["compute.lowering=false", "compute.one_pass=false"]])
def test_the_step_equals_that_of_train_lua(transcribed, switches):
    logs, weights = trained(*switches)
    assert furthest(weights, transcribed[1]) < 1e-9
    for ours, its in zip(logs, transcribed[0], strict=True):
        assert {name: ours[name].item() for name in its} == pytest.approx(its, rel=0, abs=1e-9)


@pytest.mark.parametrize(
    "override",
    [
        'train.order="pytorch"',
        "train.zero_biases=false",
        "optimizer.eps_before_correction=false",
        "gan_loss.halved=true",
        'generator.bias="pytorch"',
    ],
)
def test_each_setting_of_the_recipe_changes_the_weights(transcribed, override):
    _, weights = trained(override)
    same = [other for other in transcribed[1] if "bias=" not in override or other.ndim == 4]
    assert furthest([w for w in weights if "bias=" not in override or w.ndim == 4], same) > 1e-7


# --- the order of updates --------------------------------------------------------------------------------------


class LogLoss:
    def discriminator_loss(self, out):
        return -F.logsigmoid(out.real[0]).mean() - F.logsigmoid(-out.fake[0]).mean()

    def generator_loss(self, out):
        return -F.logsigmoid(out.fake[0]).mean()


class Copying(nn.Conv2d):
    """A layer that computes with a copy of its weights, as mixed precision does."""

    def forward(self, h):
        return F.conv2d(h, self.weight * 1.0)


class LinearD(nn.Module):
    """D(x, y) = w · y. Its gradient with respect to y is w, so a test sees whether the old or the new w was used."""

    def __init__(self, layer=nn.Conv2d):
        super().__init__()
        self.conv = layer(3, 1, 1, bias=False)

    def forward(self, x, y):
        return [self.conv(y)]


def take_step(kind, optimizer, D):
    torch.manual_seed(0)
    G = nn.Conv2d(3, 3, 1)
    gradients, batch = [], pair(0)

    def descend(loss, adam):
        adam.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in G.parameters() if p.grad is not None])
        adam.step()

    trainables = [Trainable(network, optimizer(network.parameters(), lr=0.1)) for network in (G, D)]
    logs = kind(*trainables, LogLoss(), [], descend).step(batch, 0)
    return logs, gradients[-1], G, batch


@pytest.mark.parametrize("layer", [nn.Conv2d, Copying])
@pytest.mark.parametrize("fused", [False, True], ids=["adam", "fused adam"])
def test_g_uses_the_old_logits_and_the_new_weights(fused, layer):
    """With both kinds of Adam: the default one marks weights as changed, the fused one does not."""
    torch.manual_seed(1)
    D = LinearD(layer)
    old = copy.deepcopy(D)
    torch.manual_seed(0)
    G = nn.Conv2d(3, 3, 1)
    logs, gradients, _, batch = take_step(LuaObjective, lambda p, lr: torch.optim.Adam(p, lr=lr, fused=fused), D)
    y_hat = G(batch.x)
    logits = old(batch.x, y_hat)[0]
    assert logs["G.gan"].item() == pytest.approx(-F.logsigmoid(logits).mean().item(), abs=1e-12)
    assert not torch.equal(D.conv.weight, old.conv.weight)
    to_logits = -(1 - torch.sigmoid(logits)) / logits.numel()
    expected = torch.autograd.grad(y_hat, list(G.parameters()), to_logits * D.conv.weight[0])
    for found, by_hand in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)


def test_in_the_default_order_g_uses_the_updated_d():
    torch.manual_seed(1)
    D = LinearD()
    logs, gradients, *_ = take_step(Objective, torch.optim.SGD, D)
    torch.manual_seed(0)
    G = nn.Conv2d(3, 3, 1)
    loss = -F.logsigmoid(D(None, G(pair(0).x))[0]).mean()
    assert logs["G.gan"].item() == pytest.approx(loss.item(), abs=1e-12)
    for found, by_hand in zip(gradients, torch.autograd.grad(loss, list(G.parameters())), strict=True):
        torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)


def test_layers_get_their_forward_back():
    D = LinearD()
    take_step(LuaObjective, torch.optim.SGD, D)
    assert "forward" not in vars(D.conv)


def test_d_is_not_compiled_because_its_layers_must_be_called():
    made = experiment("compute.compile=true")
    objective = build_objective(made, Engine(made.compute), (3, 3), (SIDE, SIDE))
    assert [hasattr(trainable.network, "_orig_mod") for trainable in (objective.G, objective.D)] == [True, False]


def test_a_d_with_weights_outside_its_layers_is_refused():
    class Scaled(LinearD):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(UserError, match="whose weights all belong to layers without submodules; Scaled has both"):
        take_step(LuaObjective, torch.optim.SGD, Scaled())


def test_without_a_discriminator_the_order_changes_nothing():
    class L1:
        side = "generator"

        def __call__(self, out):
            return (out.y_hat - out.y).abs().mean()

    G = nn.Conv2d(3, 3, 1)
    moves = []
    terms = [Term("l1", L1(), 1.0)]
    logs = LuaObjective(Trainable(G, "adam"), None, None, terms, lambda _, adam: moves.append(adam)).step(pair(0), 0)
    assert (list(logs), moves) == (["G.l1"], ["adam"])


def test_biases_are_zero_in_each_forward_of_d_and_small_after_each_step():
    made = experiment()
    engine = Engine(made.compute)
    objective = build_objective(made, engine, (3, 3), (SIDE, SIDE))
    D, G = objective.D.network, objective.G.network
    biases = []
    D.register_forward_pre_hook(lambda *_: biases.extend(m.bias.abs().max().item() for m in convolutions(D)))
    for step in range(3):
        engine.set_lr(LR, step)
        objective.step(engine.to_device(pair(step)), step)
    assert set(biases) == {0.0}
    left = [m.bias.abs().max().item() for part in (G, D) for m in convolutions(part)]
    assert 0 < max(left) < 10 * LR, "one step of Adam"
    norms = [m.bias.abs().max().item() for m in G.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norms), "the shift of a norm is no bias of a convolution"


def test_frozen_biases_are_not_set_to_zero():
    frozen, learning = nn.Conv2d(3, 3, 1).requires_grad_(False), nn.Conv2d(3, 3, 1)
    G = Trainable(nn.Sequential(frozen, learning), None)
    objective = Objective(G, None, None, [Term("l1", L1(), 1.0)], lambda loss, optimizer: None, zero_biases=True)
    x = torch.rand(1, 3, 4, 4)
    objective.step(Batch(x, x, ("a",)), 0)
    assert frozen.bias.abs().min() > 0
    assert not learning.bias.any()


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


@pytest.mark.parametrize("setting", ['train.order="lua"', "train.zero_biases=true"])
def test_activation_checkpointing_is_refused_if_weights_change_before_the_backward(setting):
    with pytest.raises(UserError, match=r"\[compute\] checkpointing = true: \[train\]"):
        config.load("zoo:base.toml", "smoke", [setting, "compute.checkpointing=true"])
