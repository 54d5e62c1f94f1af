"""Blocks computed again in the backward pass: the same bits, less memory, and no buffer moved twice."""

import copy

import pytest
import torch
from p2pzoo_pix2pix.discriminators import PatchDiscriminator
from p2pzoo_pix2pix.generators import UNet
from torch import nn

from p2pzoo.compute.activation_checkpointing import with_activation_checkpointing
from p2pzoo.compute.conv_as_gemm import convs_as_gemm
from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.utils.errors import UserError

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spectral():
    def layer(channels, of):
        return nn.Sequential(of(nn.Conv2d(channels, 4, 3)), nn.LeakyReLU(0.2))

    return nn.Sequential(layer(3, nn.utils.spectral_norm), layer(4, nn.utils.parametrizations.spectral_norm))


NETWORKS = {
    "batch norm and dropout": lambda: UNet(3, 3, SIZE, width=4),
    "spectral norm": spectral,
}


def trained(network, rewritten):
    """Losses of three steps, and all that they leave: weights, buffers, gradients. Two passes before each backward."""
    network = copy.deepcopy(network)
    placed = rewritten(network)
    optimizer = torch.optim.SGD(placed.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        torch.manual_seed(step)
        loss = sum(placed(torch.rand(2, 3, *SIZE) * 2 - 1).square().mean() for _ in range(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    gradients = {f"{name}.grad": parameter.grad for name, parameter in network.named_parameters()}
    return losses, network.state_dict() | gradients


def saved_bytes(network):
    """Of what a forward pass keeps for the backward pass, weights apart."""
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.rand(1, 3, *SIZE))
    return sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("plain", "again"),
    [
        (lambda m: m, with_activation_checkpointing),
        (convs_as_gemm, lambda m: convs_as_gemm(with_activation_checkpointing(m))),
    ],
    ids=["torch's kernels", "lowered"],
)
def test_losses_weights_buffers_and_gradients_are_the_same_bits(name, plain, again):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    losses, left = trained(network, plain)
    losses_again, left_again = trained(network, again)
    assert losses_again == losses
    assert left_again.keys() == left.keys()
    assert [key for key in left if not left[key].equal(left_again[key])] == []


def test_less_is_kept_for_the_backward_pass():
    G = UNet(3, 3, SIZE, width=16)  # of an activation, a convolution, a norm and a joint in each level, the joints stay
    assert saved_bytes(with_activation_checkpointing(G)) < 0.6 * saved_bytes(G)


def test_gradients_of_gradients_are_the_same_bits():
    D = PatchDiscriminator(3, 3, SIZE, width=4)
    found = []
    for judge in (D, with_activation_checkpointing(D)):
        torch.manual_seed(0)
        y = torch.rand(1, 3, *SIZE, requires_grad=True)
        (slope,) = torch.autograd.grad(judge(y, y)[0].sum(), y, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [block[0].weight for block in D.blocks]))
    assert all(plain.equal(again) for plain, again in zip(*found, strict=True))


def test_nothing_is_kept_or_shown_of_it():
    G = UNet(3, 3, SIZE, width=4)
    placed = Engine(Compute(device="cpu", checkpointing=True)).prepare_model(G)
    assert placed.state_dict().keys() == G.state_dict().keys()
    assert {id(parameter) for parameter in placed.parameters()} == {id(parameter) for parameter in G.parameters()}
    assert repr(placed) == repr(G)
    assert "forward" not in vars(G.encoder[0])


def test_a_block_that_overwrites_its_input_is_refused():
    layers = [nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(4, 1, 1))]
    network = with_activation_checkpointing(nn.Sequential(nn.Sequential(*layers)))
    with pytest.raises(UserError, match=r"0\.1 \(Sequential\) changes its input in place.*checkpointing=false"):
        network(torch.rand(1, 3, 8, 8))


def test_a_network_without_blocks_stays_as_it_is_with_a_warning():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.warns(UserWarning, match="Sequential has no blocks"):
        assert with_activation_checkpointing(network) is network


@pytest.mark.usefixtures("no_reports")
def test_a_run_gives_the_same_with_it_and_is_the_same_run(run, tmp_path):
    left = []
    for setting in ("false", "true"):
        runs = tmp_path / setting
        answer = run(runs, "train.images=10", f"compute.checkpointing={setting}", "train.ema=0.9")
        assert answer.exit_code == 0, answer.output
        [folder] = runs.glob("*/*")
        tensors, _ = load_tensors(folder / "checkpoints" / "images-0000000010.safetensors")
        left.append((folder.name, (folder / "metrics.jsonl").read_text(), tensors))
    (name, log, tensors), (name_again, log_again, tensors_again) = left
    assert name_again == name
    assert log_again == log
    assert all(tensors[key].equal(tensors_again[key]) for key in tensors | tensors_again)
