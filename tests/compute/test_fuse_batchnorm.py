"""Batch norms fused into convolutions: which are fused, that the output is the same, and which are not."""

import pytest
import torch
from p2pzoo_pix2pix.generators import EncoderDecoder, UNet
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from p2pzoo.compute.fuse_batchnorm import fuse_conv_bn

X = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)


def randomize_norms(network):
    """Give the norms random statistics and scales, so that they are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._NormBase):
            for tensor in (norm.running_mean, norm.weight, norm.bias):
                if tensor is not None:
                    tensor.data.normal_(0.5, 0.5, generator=generator)
            if norm.running_var is not None:
                norm.running_var.uniform_(0.5, 3, generator=generator)
    return network


def count_norms(network):
    return sum(isinstance(module, nn.modules.batchnorm._NormBase) for module in network.modules())


@pytest.mark.parametrize("network", [UNet, EncoderDecoder])
@pytest.mark.parametrize("bias", ["pytorch", "lua"])
def test_a_fused_generator_gives_the_same_output(network, bias):
    torch.manual_seed(0)
    G = randomize_norms(network(3, 3, (32, 32), width=8, bias=bias))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    fused = fuse_conv_bn(G)
    assert (count_norms(G), count_norms(fused)) == (7, 0)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), G.eval()(x), rtol=0, atol=1e-5)


def test_the_network_itself_does_not_change():
    G = randomize_norms(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    state = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    fuse_conv_bn(G)
    assert G.training
    assert isinstance(G[1], nn.BatchNorm2d)
    assert all(torch.equal(tensor, state[name]) for name, tensor in G.state_dict().items())


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.ConvTranspose2d(4, 6, 4, stride=2, bias=False),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_fused_into_every_kind_of_convolution(convolution, affine):
    chain = randomize_norms(nn.Sequential(convolution, nn.BatchNorm2d(6, affine=affine), nn.Tanh()))
    fused = fuse_conv_bn(chain)
    assert count_norms(fused) == 0
    torch.testing.assert_close(fused(X), chain.eval()(X))


class CustomSequential(nn.Sequential):
    """A subclass of Sequential with another forward."""

    def forward(self, x):
        return self[1](torch.relu(self[0](x)))


class CustomNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).abs()


def convolution_with_hook():
    convolution = nn.Conv2d(4, 6, 3)
    convolution.register_forward_hook(lambda module, x, y: y.abs())
    return convolution


@pytest.mark.parametrize(
    "chain",
    [
        CustomSequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
        nn.Sequential(nn.Conv2d(4, 6, 3), CustomNorm(6)),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6)),
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        nn.Sequential(convolution_with_hook(), nn.BatchNorm2d(6)),
        nn.Sequential(spectral_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)),
        nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)),
    ],
)
def test_layers_that_do_more_than_convolve_and_normalise_are_not_fused(chain):
    randomize_norms(chain)
    with torch.no_grad():
        chain(X)  # in training mode, so that spectral norm takes a power iteration
        fused = fuse_conv_bn(chain)
        assert count_norms(fused) == count_norms(chain)
        torch.testing.assert_close(fused(X), chain.eval()(X))
