"""lama: the public code's outputs and weights, its Fourier unit, its export, and what it refuses."""

import re

import pytest
import torch
from p2pzoo_export import graphs
from p2pzoo_export.weights import export_weights, import_weights
from p2pzoo_restoration.lama import FourierUnit, LaMa
from torch import nn
from torch.nn import functional as F

from p2pzoo.models.load import load_model
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

SMALL = {"width": 4, "downsamplings": 2, "blocks": 1}


class Unit(nn.Module):
    """`FourierUnit` of saicinpainting/training/modules/ffc.py."""

    def __init__(self, c):
        super().__init__()
        self.conv_layer, self.bn = nn.Conv2d(2 * c, 2 * c, 1, bias=False), nn.BatchNorm2d(2 * c)

    def forward(self, x):
        batch, c, height, width = x.shape
        spectrum = torch.fft.rfft2(x, norm="ortho")
        h = torch.stack([spectrum.real, spectrum.imag], dim=2).reshape(batch, 2 * c, height, width // 2 + 1)
        h = F.relu(self.bn(self.conv_layer(h))).reshape(batch, c, 2, height, width // 2 + 1)
        return torch.fft.irfft2(torch.complex(h[:, :, 0], h[:, :, 1]), s=(height, width), norm="ortho")


class Spectral(nn.Module):
    """`SpectralTransform` with enable_lfu=False."""

    def __init__(self, entering, leaving):
        super().__init__()
        half = leaving // 2
        self.conv1 = nn.Sequential(nn.Conv2d(entering, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.fu = Unit(half)
        self.conv2 = nn.Conv2d(half, leaving, 1, bias=False)

    def forward(self, x):
        x = self.conv1(x)
        return self.conv2(x + self.fu(x))


class FFC(nn.Module):
    def __init__(self, entering, leaving, kernel, stride, padding):
        super().__init__()
        for source, channels in zip("lg", entering, strict=True):
            for target, to in zip("lg", leaving, strict=True):
                if not channels or not to:
                    layer = None
                elif source == target == "g":
                    layer = Spectral(channels, to)
                else:
                    layer = nn.Conv2d(channels, to, kernel, stride, padding, bias=False, padding_mode="reflect")
                self.add_module(f"conv{source}2{target}", layer)

    def forward(self, local, global_):
        def total(target):
            parts = [getattr(self, f"convl2{target}"), getattr(self, f"convg2{target}")]
            terms = [part(h) for part, h in zip(parts, (local, global_), strict=True) if part is not None]
            return sum(terms) if terms else None

        return total("l"), total("g")


class Layer(nn.Module):
    """`FFC_BN_ACT` with ReLU. A kernel of 7 has its padding before it."""

    def __init__(self, entering, leaving, kernel=3, stride=1):
        super().__init__()
        self.ffc = FFC(entering, leaving, kernel, stride, 1 if kernel == 3 else 0)
        self.bn_l, self.bn_g = (nn.BatchNorm2d(c) if c else nn.Identity() for c in leaving)

    def forward(self, h):
        local, global_ = self.ffc(*h) if isinstance(h, tuple) else self.ffc(h, None)
        return F.relu(self.bn_l(local)), None if global_ is None else F.relu(self.bn_g(global_))


class Block(nn.Module):
    """`FFCResnetBlock`."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = Layer(channels, channels), Layer(channels, channels)

    def forward(self, h):
        return tuple(a + b for a, b in zip(h, self.conv2(self.conv1(h)), strict=True))


class Concatenate(nn.Module):
    def forward(self, h):
        return torch.cat(h, dim=1)


class Public(nn.Module):
    """`FFCResNetGenerator` with a sigmoid, for images in [0, 1]."""

    def __init__(self, channels, width, downs, blocks, ratio):
        super().__init__()
        widths = [width * 2**i for i in range(downs + 1)]
        global_ = int(widths[-1] * ratio)
        split = (widths[-1] - global_, global_)
        layers = [nn.ReflectionPad2d(3), Layer((channels[0], 0), (width, 0), kernel=7)]
        for i in range(downs):
            layers.append(Layer((widths[i], 0), split if i == downs - 1 else (widths[i + 1], 0), stride=2))
        layers += [*(Block(split) for _ in range(blocks)), Concatenate()]
        for c in widths[:0:-1]:
            layers += [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1), nn.BatchNorm2d(c // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, channels[1], 7), nn.Sigmoid())

    def forward(self, x):
        return self.model(x)


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


def images(channels=4, height=24, width=40, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(channels=(4, 3), size=(16, 16), **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LaMa(*channels, size, **{**SMALL, **options})


def public(downs=3, blocks=2, ratio=0.75):
    return randomise(Public((4, 3), 4, downs, blocks, ratio))


@pytest.fixture
def imported(tmp_path):
    """imported(tensors): the generator that `p2pzoo import` makes of a file with these tensors, and the file's path."""

    def imported(tensors):
        torch.save(tensors, tmp_path / "their.pth")
        result = import_weights(tmp_path / "their.pth", registry(), {}, test_mode="eval")
        result.save(tmp_path / "model.safetensors")
        return result, tmp_path / "model.safetensors"

    return imported


class TestPublicCode:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(("downs", "blocks", "ratio"), [(3, 2, 0.75), (1, 1, 0.4), (2, 3, 0.6)])
    def test_imported_weights_give_the_same_images(self, downs, blocks, ratio, training, imported):
        theirs = public(downs, blocks, ratio)
        result, _ = imported(theirs.state_dict())
        assert result.use == "restoration:lama"
        params = result.header["generator"]["params"]
        assert params.items() >= {"width": 4, "downsamplings": downs, "blocks": blocks}.items()
        assert params["ratio"] == pytest.approx(ratio, abs=0.1)
        x = images().double()
        expected = 2 * theirs.double().train(training)((x + 1) / 2) - 1
        assert expected.std() > 0.1
        torch.testing.assert_close(result.network.double().train(training)(x), expected, atol=1e-6, rtol=0)

    def test_a_checkpoint_of_its_training_is_read_too(self, imported):
        """It has the discriminator beside the generator."""
        theirs = public()
        tensors = {f"generator.{name}": tensor for name, tensor in theirs.state_dict().items()}
        result, _ = imported({"state_dict": tensors | {"discriminator.model0.0.weight": torch.zeros(1)}})
        x = images()
        torch.testing.assert_close(result.network.eval()(x), 2 * theirs.eval()((x + 1) / 2) - 1, atol=1e-5, rtol=0)

    def test_it_says_how_that_code_translates(self, imported):
        assert any("--test-mode eval" in note for note in imported(public().state_dict())[0].notes)

    def test_export_gives_the_imported_weights_back(self, imported, tmp_path):
        theirs = public()
        _, file = imported(theirs.state_dict())
        export_weights(file, "lama", tmp_path / "back.pth", registry())
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        assert back.keys() == theirs.state_dict().keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"norm": "group"}, "that format has no group norm"),
            ({"padding": "zeros"}, "that format has no zero padding"),
        ],
    )
    def test_what_the_public_code_does_not_have_is_refused(self, parameters, message, tmp_path):
        torch.save(public().state_dict(), tmp_path / "their.pth")
        with pytest.raises(UserError, match=message):
            import_weights(tmp_path / "their.pth", registry(), parameters)

    def test_parameters_match_the_public_code(self):
        with torch.device("meta"):
            ours, theirs, big = (
                sum(p.numel() for p in G.parameters())
                for G in (LaMa(3, 3, (256, 256)), Public((3, 3), 64, 3, 9, 0.75), LaMa(4, 3, (256, 256), blocks=18))
            )
        assert ours == theirs
        assert f"{ours:,}" in LaMa.__doc__
        assert round(big / 1e6) == 51  # of Big LaMa


class TestFourierUnit:
    def test_each_pixel_depends_on_all_others(self):
        unit = randomise(FourierUnit(2, "batch")).eval()
        h = images(2, 6, 7, 1).requires_grad_()
        unit(h)[0, 0, 0, 0].backward()
        assert h.grad.ne(0).all()

    def test_it_passes_images_on_where_the_spectrum_does_not_change(self):
        """With odd sides, whose spectrum has another half. A spectrum without negative parts passes the ReLU."""
        unit = FourierUnit(1, "batch").eval()
        unit.mix.weight.data.copy_(torch.eye(2)[:, :, None, None])
        h = torch.zeros(1, 1, 5, 7)
        h[..., 0, 0] = 1  # the spectrum of an impulse is constant and real
        torch.testing.assert_close(unit(h), h / (1 + unit.finish[0].eps) ** 0.5, atol=1e-6, rtol=0)

    def test_it_is_computed_in_float32_under_autocast_to_bfloat16(self):
        unit = randomise(FourierUnit(4, "batch")).eval()
        h = images(4, 8, 8).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            half = unit(h)
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, unit(h.float()).bfloat16())

    def test_float64_stays_float64(self):
        unit, h = randomise(FourierUnit(4, "batch")).double().eval(), images(4, 8, 8).double()
        assert unit(h).dtype == torch.float64
        assert (unit(h) - unit(h.float().double())).abs().max() < 1e-6


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_translation_has_the_size_of_x_and_the_range_of_images(norm, padding):
    G = randomise(build(norm=norm, padding=padding))
    y_hat = G(images())
    assert y_hat.shape == (2, 3, 24, 40)
    assert y_hat.abs().max() <= 1


@pytest.mark.slow
def test_onnx_files_compute_the_fourier_transform_at_any_size(imported, tmp_path):
    """Of weights so large that the Fourier units matter. The bottleneck of 12 × 20 has odd sides: 3 × 5."""
    _, file = imported(public(downs=2).state_dict())
    model = load_model(file, device="cpu")
    result = graphs.export_graph(model, tmp_path / "model.onnx", "onnx")
    assert result.difference < 1e-4
    assert result.sides == "any sides that are multiples of 4, any batch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "instance"}, "norm must be 'batch' or 'group', not 'instance'"),
        ({"padding": "circular"}, "padding must be 'reflect' or 'zeros', not 'circular'"),
        ({"ratio": 0.01}, "ratio = 0.01: 0 of the 16 channels of a block would be global; at least 2 must be global"),
        ({"ratio": 0.999}, "ratio = 0.999: 16 of the 16 channels of a block would be global"),
    ],
)
def test_invalid_parameters_are_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**options)


@pytest.mark.parametrize(("size", "nearest"), [((18, 40), "16×40 or 20×40"), ((4, 9), "8×8 or 8×12")])
def test_a_wrong_size_is_an_error_with_the_nearest_sizes(size, nearest):
    message = f"lama needs sides that are multiples of 4, at least 8, not {size[0]}×{size[1]}; the nearest that fit: "
    with pytest.raises(ValueError, match=re.escape(message + nearest)):
        build(size=size)
    with pytest.raises(ValueError, match=re.escape(message + nearest)):
        build()(images(4, *size))
