"""The average of G's weights equals the formula bit for bit, in a few calls, at the end of each step."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from p2pzoo.plugin.batch import Batch
from p2pzoo.training.gan_step import Objective, Term, Trainable
from p2pzoo.training.weight_average import WeightAverage


class Calls(TorchDispatchMode):
    """The operators that Python calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def network(width=4):
    layers = [nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 3, 1)) for _ in range(5)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("decay", [0.3, 0.998])
def test_it_is_bit_identical_to_a_loop_over_the_tensors(decay):
    average, G = network(), network()
    expected = copy.deepcopy(average)
    in_one_call = WeightAverage(average, G, decay)
    for _ in range(3):
        G(torch.rand(2, 3, 32, 32))  # changes the buffers, floating-point ones and a count
        with torch.no_grad():
            for parameter in G.parameters():
                parameter += torch.randn_like(parameter)
            for mean, parameter in zip(expected.parameters(), G.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
            for buffer, newest in zip(expected.buffers(), G.buffers(), strict=True):
                buffer.copy_(newest)
        in_one_call.update()
        assert all(map(torch.equal, average.state_dict().values(), expected.state_dict().values()))
    assert average[0][1].num_batches_tracked == 3


def test_the_number_of_calls_does_not_grow_with_the_network():
    average = WeightAverage(network(), network(), 0.9)
    with Calls() as calls:
        average.update()
    assert calls.names == ["_foreach_lerp_", "_foreach_copy_", "_foreach_copy_"], "weights, and buffers of two dtypes"


def test_a_network_without_buffers_has_an_average():
    average, G = nn.Linear(2, 1), nn.Linear(2, 1)
    WeightAverage(average, G, 0).update()
    assert torch.equal(average.weight, G.weight)


class L1:
    side = "generator"

    def __call__(self, out):
        return (out.y_hat - out.y).abs().mean()


def test_a_step_updates_the_average_from_the_new_weights_and_an_update_alone_does_not():
    G = nn.Conv2d(3, 3, 1)
    optimizer = torch.optim.SGD(G.parameters(), lr=0.1)

    def descend(loss, optimizer):
        loss.backward()
        optimizer.step()

    objective = Objective(Trainable(G, optimizer), None, None, [Term("l1", L1(), 1.0)], descend)
    average = copy.deepcopy(G)
    objective.average = WeightAverage(average, G, 0.75)
    before = G.weight.detach().clone()
    batch = Batch(*torch.rand(2, 1, 3, 4, 4), ("a",))
    objective.update(batch, 0)
    assert torch.equal(average.weight, before)
    objective.step(batch, 1)
    torch.testing.assert_close(average.weight, 0.75 * before + 0.25 * G.weight)
