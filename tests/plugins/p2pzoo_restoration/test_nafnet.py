"""nafnet: the public code's outputs and weights, its start, its value ranges, and what it refuses."""

import json
import re

import pytest
import torch
from p2pzoo_export.weights import export_weights, import_weights
from p2pzoo_restoration.nafnet import NAFBlock, NAFNet
from p2pzoo_restoration.state_dict_formats import NAFNET
from torch import nn
from torch.nn import functional as F

from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

SMALL = {"width": 4, "encoder_blocks": (1, 2), "middle_blocks": 2, "decoder_blocks": (2, 1)}


class Normalise(nn.Module):
    """Over channels, with the names of `LayerNorm2d` of megvii-research/NAFNet."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        normal = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * normal + self.bias[:, None, None]


class PublicBlock(nn.Module):
    """`NAFBlock` of NAFNet_arch.py."""

    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3, self.conv4, self.conv5 = nn.Conv2d(c, c, 1), nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.norm1, self.norm2 = Normalise(c), Normalise(c)
        self.beta, self.gamma = nn.Parameter(torch.zeros(1, c, 1, 1)), nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x):
        a, b = self.conv2(self.conv1(self.norm1(x))).chunk(2, 1)
        y = x + self.conv3(a * b * self.sca(a * b)) * self.beta
        a, b = self.conv4(self.norm2(y)).chunk(2, 1)
        return y + self.conv5(a * b) * self.gamma


class Public(nn.Module):
    """`NAFNet` of the same file, for images in [0, 1]."""

    def __init__(self, channels, width, enc, mid, dec):
        super().__init__()
        stage = lambda count, c: nn.Sequential(*(PublicBlock(c) for _ in range(count)))  # noqa: E731
        widths = [width * 2**i for i in range(len(enc))]
        self.intro, self.ending = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.encoders = nn.ModuleList(stage(*each) for each in zip(enc, widths, strict=True))
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, 2) for c in widths)
        self.middle_blks = stage(mid, 2 * widths[-1])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * c, 4 * c, 1, bias=False), nn.PixelShuffle(2)) for c in widths[::-1]
        )
        self.decoders = nn.ModuleList(stage(*each) for each in zip(dec, widths[::-1], strict=True))

    def forward(self, x):
        h, kept = self.intro(x), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            kept.append(encoder(h))
            h = down(kept[-1])
        h = self.middle_blks(h)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            h = decoder(up(h) + kept.pop())
        return self.ending(h) + x


def randomise(network, seed=0):
    """Set weights so large that each layer changes the image."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        random = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(random / parameter[0].numel() ** 0.5 if parameter.ndim == 4 else 0.5 + 0.3 * random)
    return network


def images(channels=3, height=16, width=24, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(channels=(3, 3), size=(16, 16), **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NAFNet(*channels, size, **{**SMALL, **options})


def public(channels=3):
    """With most of its image within the limits."""
    network = randomise(Public(channels, 4, (1, 2), 2, (2, 1)))
    for parameter in network.ending.parameters():
        parameter.data.mul_(0.05)
    return network


@pytest.fixture
def imported(tmp_path):
    """imported(network, parameters): the generator that `p2pzoo import` makes of its file, and the file's path."""

    def imported(network, parameters=None):
        torch.save({"params": network.state_dict()}, tmp_path / "their.pth")
        result = import_weights(tmp_path / "their.pth", registry(), parameters or {})
        result.save(tmp_path / "model.safetensors")
        return result, tmp_path / "model.safetensors"

    return imported


class TestPublicCode:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_imported_weights_give_the_same_images(self, channels, imported):
        theirs = public(channels)
        result, _ = imported(theirs)
        assert result.use == "restoration:nafnet"
        params = result.header["generator"]["params"]
        assert {key: params[key] for key in SMALL} == json.loads(json.dumps(SMALL))
        assert params["residual"]
        x = images(channels)
        expected = 2 * theirs((x + 1) / 2).clamp(0, 1) - 1
        assert (expected.abs() < 1).float().mean() > 0.5
        torch.testing.assert_close(result.network.eval()(x), expected, atol=1e-6, rtol=0)

    def test_gradients_are_the_same(self, imported):
        theirs = public()
        ours = imported(theirs)[0].network.double()
        theirs.double()
        x = images(batch=1).double()
        weight = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (ours(x) * weight).sum().backward()
        (2 * theirs((x + 1) / 2) * weight).sum().backward()  # not limited, and so is the gradient here
        names, gradients = NAFNET.names(ours), {name: p.grad for name, p in theirs.named_parameters()}
        for name, parameter in ours.named_parameters():
            module, _, leaf = name.rpartition(".")
            torch.testing.assert_close(parameter.grad, gradients.pop(f"{names[module]}.{leaf}"))
        assert not gradients

    def test_export_gives_the_imported_weights_back(self, imported, tmp_path):
        theirs = public()
        _, file = imported(theirs)
        export_weights(file, "nafnet", tmp_path / "back.pth", registry())
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        assert back.keys() == theirs.state_dict().keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())

    def test_weights_without_a_residual_are_refused(self, imported):
        with pytest.raises(UserError, match="that format always adds x to ŷ: set residual = true"):
            imported(public(), {"residual": False})

    def test_a_missing_tensor_is_named(self, tmp_path):
        tensors = public().state_dict()
        del tensors["ups.1.0.weight"]
        torch.save(tensors, tmp_path / "their.pth")
        with pytest.raises(UserError, match="the nearest is generator 'nafnet' of nafnet, but 1 tensor") as raised:
            import_weights(tmp_path / "their.pth", registry(), {})
        assert "'ups.1.0.weight' is missing" in str(raised.value)

    @pytest.mark.parametrize(("width", "millions"), [(32, 29.16), (64, 115.98)])
    def test_the_default_is_the_papers_network_for_denoising(self, width, millions):
        with torch.device("meta"):
            count = sum(p.numel() for p in NAFNet(3, 3, (256, 256), width=width).parameters())
        assert round(count / 1e6, 2) == millions  # 36 blocks; the public code's models of these widths
        assert width != 32 or f"{count:,}" in NAFNet.__doc__


class TestResidual:
    def test_it_begins_as_x_where_the_last_layer_is_0(self):
        G = build(residual=True)
        for parameter in G.leave.parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(G(images()), images())

    def test_a_pixel_beyond_the_limit_can_come_back(self):
        G = build(residual=True)
        nn.init.constant_(G.leave.bias, 5.0)
        y_hat = G(images())
        assert y_hat.min() == y_hat.max() == 1
        F.l1_loss(y_hat, torch.zeros_like(y_hat)).backward()
        assert (G.leave.bias.grad > 0).all()

    def test_other_channels_are_an_error(self):
        message = "residual = true adds x to ŷ, but G sees 4 channels and ŷ has 3: set residual = false"
        with pytest.raises(ValueError, match=re.escape(message)):
            build(channels=(4, 3), residual=True)
        assert build(channels=(4, 3))(images(4)).shape == (2, 3, 16, 24)

    def test_without_it_the_last_layer_is_a_tanh(self):
        G = randomise(build())
        with torch.no_grad():
            y_hat = G(images())
            G.leave = nn.Sequential(G.leave, nn.Hardtanh(-1e-3, 1e-3))
            small = G(images())
        assert y_hat.abs().max() <= 1
        torch.testing.assert_close(small.abs().max(), torch.tensor(1e-3).tanh())


def test_blocks_begin_as_the_identity():
    h = images(8)
    assert torch.equal(NAFBlock(8)(h), h)


def test_dropout_is_noise_in_training_alone():
    G = randomise(build(dropout=0.5))
    assert not torch.equal(G(images()), G(images()))
    assert torch.equal(G.eval()(images()), G(images()))
    assert not any(isinstance(part, nn.Dropout) for part in build().modules())


def test_different_levels_down_and_up_are_an_error():
    with pytest.raises(ValueError, match="encoder_blocks has 3 levels and decoder_blocks 2: give as many numbers in"):
        build(encoder_blocks=(1, 1, 1))


@pytest.mark.parametrize(("size", "nearest"), [((18, 40), "16×40 or 20×40"), ((2, 9), "4×8 or 4×12")])
def test_a_wrong_size_is_an_error_with_the_nearest_sizes(size, nearest):
    message = f"nafnet needs sides that are multiples of 4, not {size[0]}×{size[1]}; the nearest that fit: {nearest}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(size=size)
    with pytest.raises(ValueError, match=re.escape(message)):
        build()(images(3, *size))
