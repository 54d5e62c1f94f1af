"""attention-unet: the public code's outputs with the same weights, its gates, and what it refuses."""

import re

import pytest
import torch
from p2pzoo_restoration.attention_unet import AttentionGate, AttentionUNet
from torch import nn
from torch.nn import functional as F

SMALL = {"width": 4, "levels": 3}


class PublicGate(nn.Module):
    """`MultiAttentionBlock` of ozan-oktay/Attention-Gated-Networks, in two dimensions."""

    def __init__(self, c, of_signal):
        super().__init__()
        self.theta = nn.Conv2d(c, c, 2, 2, bias=False)
        self.phi = nn.Conv2d(of_signal, c, 1)
        self.psi = nn.Conv2d(c, 1, 1)
        self.W = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))
        self.combine_gates = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())

    def forward(self, x, g):
        theta = self.theta(x)
        f = F.relu(theta + F.interpolate(self.phi(g), theta.shape[2:], mode="bilinear"))
        weights = F.interpolate(self.psi(f).sigmoid(), x.shape[2:], mode="bilinear")
        return self.combine_gates(self.W(weights.expand_as(x) * x))


def public_convs(entering, leaving):
    """`UnetConv3`. Biases before batch norm, which removes them, are left out."""
    layers = []
    for c in (entering, leaving):
        layers += [nn.Conv2d(c, leaving, 3, 1, 1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()]
    return nn.Sequential(*layers)


class Public(nn.Module):
    """`unet_CT_single_att_dsv_3D` with its five levels, in two dimensions and without deep supervision."""

    def __init__(self, channels, width):
        super().__init__()
        f = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(public_convs(a, b) for a, b in zip([channels[0], *f], f, strict=False))
        self.gating = nn.Sequential(nn.Conv2d(f[4], f[4], 1, bias=False), nn.BatchNorm2d(f[4]), nn.ReLU())
        self.attention = nn.ModuleList(PublicGate(f[i], f[i + 1]) for i in (3, 2, 1))
        self.up = nn.ModuleList(public_convs(f[i + 1] + f[i], f[i]) for i in (3, 2, 1, 0))
        self.final = nn.Conv2d(width, channels[1], 1)

    def forward(self, x):
        conv1 = self.down[0](x)
        conv2 = self.down[1](F.max_pool2d(conv1, 2))
        conv3 = self.down[2](F.max_pool2d(conv2, 2))
        conv4 = self.down[3](F.max_pool2d(conv3, 2))
        center = self.down[4](F.max_pool2d(conv4, 2))
        double = nn.Upsample(scale_factor=2, mode="bilinear")
        up4 = self.up[0](torch.cat([self.attention[0](conv4, self.gating(center)), double(center)], 1))
        up3 = self.up[1](torch.cat([self.attention[1](conv3, up4), double(up4)], 1))
        up2 = self.up[2](torch.cat([self.attention[2](conv2, up3), double(up3)], 1))
        up1 = self.up[3](torch.cat([conv1, double(up2)], 1))
        return self.final(up1).tanh()


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.add_(1)
            part.running_mean.normal_(0, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return network


def images(channels=3, height=16, width=24, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(channels=(3, 3), size=(16, 16), **options):
    return AttentionUNet(*channels, size, **{**SMALL, **options})


@pytest.mark.parametrize("training", [True, False])
def test_it_equals_the_public_code_with_the_same_weights(training):
    theirs = randomise(Public((3, 2), 2)).double()
    ours = AttentionUNet(3, 2, (32, 32), width=2).double()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = images(height=32, width=64).double()
    answers = []
    for G in (theirs.train(training), ours.train(training)):
        y_hat = G(x)
        y_hat.square().mean().backward()
        answers.append((y_hat.detach(), [p.grad for p in G.parameters()]))
    assert answers[0][0].std() > 0.01
    torch.testing.assert_close(answers[1], answers[0], atol=1e-9, rtol=1e-9)


def test_the_default_has_the_public_codes_parameters():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in G.parameters()) for G in (AttentionUNet(3, 3, (64, 64)), Public((3, 3), 64))]
    assert counts[0] == counts[1]
    assert f"{counts[0]:,}" in AttentionUNet.__doc__


class TestGate:
    def test_a_coefficient_of_0_removes_a_pixel_and_1_keeps_it(self):
        gate = AttentionGate(4, 8, "batch")
        gate.leave = nn.Identity()
        h, g = images(4, 8, 8), images(8, 4, 4)
        for bias, expected in ((-100.0, 0 * h), (100.0, h)):
            nn.init.constant_(gate.to_coefficient.bias, bias)
            torch.testing.assert_close(gate(h, g), expected, atol=1e-6, rtol=0)

    def test_coefficients_depend_on_the_features_and_on_the_signal(self):
        gate = randomise(AttentionGate(4, 8, "batch"))
        h, g = images(4, 8, 8), images(8, 4, 4)
        first = gate.coefficients(h, g)
        assert first.shape == (2, 1, 4, 4)
        assert 0 < first.min() < first.max() < 1
        assert not torch.allclose(first, gate.coefficients(h.flip(0), g))
        assert not torch.allclose(first, gate.coefficients(h, g.flip(0)))

    @pytest.mark.parametrize("levels", [2, 3, 5])
    def test_every_skip_connection_but_the_first_has_one(self, levels):
        assert (
            sum(isinstance(part, AttentionGate) for part in build(levels=levels, size=(32, 32)).modules()) == levels - 2
        )


def test_a_closed_gate_cuts_the_skip_connection():
    """With both gates closed, of the way down only the first level and the coarsest one are left."""
    G = randomise(build(levels=4)).eval()
    for gate in G.gates:
        nn.init.constant_(gate.to_coefficient.bias, -100.0)
    opened = []
    for gate in G.gates:
        gate.register_forward_hook(lambda gate, _, left: opened.append(left - gate.leave(torch.zeros_like(left))))
    G(images())
    assert len(opened) == 2
    assert all(left.abs().max() < 1e-6 for left in opened)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_translation_has_the_size_of_x_and_the_range_of_images(norm):
    G = randomise(build(channels=(1, 2), norm=norm))
    y_hat = G(images(1))
    assert y_hat.shape == (2, 2, 16, 24)
    assert y_hat.abs().max() <= 1


def test_an_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="norm must be 'batch' or 'group', not 'instance'"):
        build(norm="instance")


@pytest.mark.parametrize(("size", "nearest"), [((18, 40), "16×40 or 20×40"), ((4, 9), "8×8 or 8×12")])
def test_a_wrong_size_is_an_error_with_the_nearest_sizes(size, nearest):
    message = f"attention-unet needs sides that are multiples of 4, at least 8, not {size[0]}×{size[1]}; the nearest"
    with pytest.raises(ValueError, match=re.escape(message) + f" that fit: {nearest}"):
        build(size=size)
    with pytest.raises(ValueError, match=re.escape(message)):
        build()(images(3, *size))
