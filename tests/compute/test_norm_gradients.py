"""The gradients of norms do not depend on the memory order of their output gradients, and batch norm gets fast ones."""

import copy

import pytest
import torch
from torch import nn

from p2pzoo.compute.engine import Engine
from p2pzoo.compute.norm_gradients import fix_instance_norms, speed_up_batch_norms
from p2pzoo.config.settings import Compute

LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Residual(nn.Module):
    """A block as in many generators: no activation between the norm and the next convolution."""

    def __init__(self, affine):
        super().__init__()
        self.first, self.second = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.norm = nn.InstanceNorm2d(64, affine=affine)

    def forward(self, x):
        return self.second(x + self.norm(self.first(x)))


def gradients(network, x):
    network.zero_grad()
    network(x).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("switches", [{}, {"lowering": False}, {"channels_last": False}], ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_of_a_prepared_network_are_those_of_the_plain_one(switches, affine, batch):
    torch.manual_seed(0)
    plain = Residual(affine).double()
    x = torch.randn(batch, 64, 8, 8, dtype=torch.float64)
    expected = gradients(plain, x)
    engine = Engine(Compute(device="cpu", **switches))
    actual = gradients(engine.prepare_model(copy.deepcopy(plain)), x.contiguous(memory_format=engine.memory_format))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient_layout", LAYOUTS)
def test_it_is_twice_differentiable_in_every_memory_format(layout, gradient_layout):
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4).double()
    fix_instance_norms(norm)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn(1, 4, 3, 3, dtype=torch.float64).contiguous(memory_format=gradient_layout).requires_grad_()

    def gradient(x, dy):
        return torch.autograd.grad(norm(x), x, dy, create_graph=True)

    by_hand = x.detach().contiguous().requires_grad_()
    mean = by_hand.mean((2, 3), keepdim=True)
    deviation = (by_hand - mean).square().mean((2, 3), keepdim=True).add(norm.eps).sqrt()
    [expected] = torch.autograd.grad((by_hand - mean) / deviation, by_hand, dy.detach().contiguous())
    torch.testing.assert_close(gradient(x, dy)[0], expected, rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(gradient, (x, dy))


class Skip(nn.Module):
    """A skip connection as in a U-Net: the gradient of the norm is a slice of that of the concatenation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.second = nn.Conv2d(67, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)

    def forward(self, x):
        return self.second(torch.cat([x, self.norm(self.first(x))], 1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_norms_get_channels_last_gradients_through_a_skip_connection(precision):
    torch.manual_seed(0)
    plain, orders = Skip(), []
    network = copy.deepcopy(plain)
    prepared = Engine(Compute(device="cpu", precision=precision)).prepare_model(network)
    for name, part in prepared.named_modules():
        if name.endswith("norm"):  # hooks on a gradient run in the order in which they were added
            part.register_forward_hook(lambda _norm, _inputs, y: y.register_hook(lambda dy: orders.append(dy)) and None)
    x = torch.randn(2, 3, 8, 8)
    actual, expected = gradients(prepared, x.contiguous(memory_format=torch.channels_last)), gradients(plain, x)
    [dy] = orders
    assert dy.is_contiguous(memory_format=torch.channels_last)
    assert not dy.is_contiguous()
    for name, gradient in expected.items():
        error = (actual[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert error < (1e-5 if precision == "fp32" else 0.05), name


@pytest.mark.parametrize(
    ("kind", "fix"), [(nn.InstanceNorm2d, fix_instance_norms), (nn.BatchNorm2d, speed_up_batch_norms)]
)
def test_fixing_twice_adds_one_hook(kind, fix):
    norm = kind(4)
    fix(norm)
    fix(norm)
    assert len(norm._forward_hooks) == 1
    with torch.no_grad():
        norm(torch.randn(1, 4, 3, 3))
