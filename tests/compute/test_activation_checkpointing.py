"""Activation checkpointing: bit-identical results, less memory, and each buffer is updated once."""

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
    """One order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spectral_norm_network():
    def layer(channels, normalize):
        return nn.Sequential(normalize(nn.Conv2d(channels, 4, 3)), nn.LeakyReLU(0.2))

    return nn.Sequential(layer(3, nn.utils.spectral_norm), layer(4, nn.utils.parametrizations.spectral_norm))


NETWORKS = {
    "batch norm and dropout": lambda: UNet(3, 3, SIZE, width=4),
    "spectral norm": spectral_norm_network,
}


def train(network, rewrite):
    """Return the losses of three steps, and the weights, buffers and gradients after them.

    Each backward pass follows two forward passes.
    """
    network = copy.deepcopy(network)
    rewritten = rewrite(network)
    optimizer = torch.optim.SGD(rewritten.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        torch.manual_seed(step)
        loss = sum(rewritten(torch.rand(2, 3, *SIZE) * 2 - 1).square().mean() for _ in range(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    gradients = {f"{name}.grad": parameter.grad for name, parameter in network.named_parameters()}
    return losses, network.state_dict() | gradients


def saved_bytes(network):
    """Return the bytes that a forward pass saves for the backward pass, without weights."""
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    saved = {}

    def save(tensor):
        if tensor.data_ptr() not in weights:
            saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        network(torch.rand(1, 3, *SIZE))
    return sum(tensor.nbytes for tensor in saved.values())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("plain", "checkpointed"),
    [
        (lambda m: m, with_activation_checkpointing),
        (convs_as_gemm, lambda m: convs_as_gemm(with_activation_checkpointing(m))),
    ],
    ids=["torch's kernels", "matrix products"],
)
def test_losses_weights_buffers_and_gradients_are_bit_identical(name, plain, checkpointed):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    expected_losses, expected_tensors = train(network, plain)
    losses, tensors = train(network, checkpointed)
    assert losses == expected_losses
    assert tensors.keys() == expected_tensors.keys()
    assert [key for key in tensors if not tensors[key].equal(expected_tensors[key])] == []


def test_less_is_saved_for_the_backward_pass():
    # each level has an activation, a convolution, a norm and a concatenation; only the concatenation is still saved
    G = UNet(3, 3, SIZE, width=16)
    assert saved_bytes(with_activation_checkpointing(G)) < 0.6 * saved_bytes(G)


def test_gradients_of_gradients_are_bit_identical():
    D = PatchDiscriminator(3, 3, SIZE, width=4)
    gradients = []
    for discriminator in (D, with_activation_checkpointing(D)):
        torch.manual_seed(0)
        y = torch.rand(1, 3, *SIZE, requires_grad=True)
        (slope,) = torch.autograd.grad(discriminator(y, y)[0].sum(), y, create_graph=True)
        gradients.append(torch.autograd.grad(slope.square().sum(), [block[0].weight for block in D.blocks]))
    assert all(plain.equal(checkpointed) for plain, checkpointed in zip(*gradients, strict=True))


def test_state_dict_and_repr_do_not_change():
    G = UNet(3, 3, SIZE, width=4)
    prepared = Engine(Compute(device="cpu", checkpointing=True)).prepare_model(G)
    assert prepared.state_dict().keys() == G.state_dict().keys()
    assert {id(parameter) for parameter in prepared.parameters()} == {id(parameter) for parameter in G.parameters()}
    assert repr(prepared) == repr(G)
    assert "forward" not in vars(G.encoder[0])


def test_a_block_that_changes_its_input_in_place_is_rejected():
    layers = [nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(4, 1, 1))]
    network = with_activation_checkpointing(nn.Sequential(nn.Sequential(*layers)))
    with pytest.raises(
        UserError,
        match=r"0\.1 \(Sequential\) changes its input in place and cannot be recomputed; .*checkpointing=false",
    ):
        network(torch.rand(1, 3, 8, 8))


def test_a_network_without_blocks_is_returned_itself_with_a_warning():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.warns(UserWarning, match="Sequential has no blocks"):
        assert with_activation_checkpointing(network) is network


def test_a_run_with_checkpointing_is_bit_identical_and_has_the_same_id(run, tmp_path):
    outcomes = []
    for setting in ("false", "true"):
        runs = tmp_path / setting
        answer = run(runs, "train.images=5", f"compute.checkpointing={setting}", "train.ema=0.9")
        assert answer.exit_code == 0, answer.output
        [folder] = runs.glob("*/*")
        tensors, _ = load_tensors(folder / "checkpoints" / "images-0000000005.safetensors")
        outcomes.append((folder.name, (folder / "metrics.jsonl").read_text(), tensors))
    (name, log, tensors), (name_again, log_again, tensors_again) = outcomes
    assert name_again == name
    assert log_again == log
    assert all(tensors[key].equal(tensors_again[key]) for key in tensors | tensors_again)
