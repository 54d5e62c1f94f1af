"""The U-Net and the encoder-decoder of pix2pix: sizes, published structure, skip connections, bottleneck, noise."""

import importlib
import re

import p2pzoo_pix2pix
import pytest
import torch
from p2pzoo_pix2pix.generators import EncoderDecoder, UNet
from p2pzoo_pix2pix.layers import BottleneckBatchNorm2d
from torch import nn

from p2pzoo.plugin import schema

BOTH = pytest.mark.parametrize("network", [UNet, EncoderDecoder])


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def images(channels, height, width, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1


def copy_weights(source, target, kinds=(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
    """Copy weights by kind of layer, in the order of execution, which is that of modules() in both networks."""
    for kind in kinds:
        pairs = zip(
            [m for m in source.modules() if isinstance(m, kind)],
            [m for m in target.modules() if isinstance(m, kind)],
            strict=True,
        )
        for theirs, ours in pairs:
            ours.load_state_dict(theirs.state_dict())


def randomise(module, seed=0):
    """Set weights so large that each layer changes the output, and running statistics other than the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.add_(1)
            m.running_mean.normal_(0, 0.2, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)


class UnetSkipConnectionBlock(nn.Module):
    """The block of junyanz/pytorch-CycleGAN-and-pix2pix `networks.py`, with batch norm."""

    def __init__(self, outer_nc, inner_nc, input_nc=None, submodule=None, kind="middle", use_dropout=False):
        super().__init__()
        self.outermost = kind == "outermost"
        input_nc = outer_nc if input_nc is None else input_nc
        downconv = nn.Conv2d(input_nc, inner_nc, kernel_size=4, stride=2, padding=1, bias=False)
        downrelu, downnorm = nn.LeakyReLU(0.2, True), nn.BatchNorm2d(inner_nc)
        uprelu, upnorm = nn.ReLU(True), nn.BatchNorm2d(outer_nc)
        if kind == "outermost":
            upconv = nn.ConvTranspose2d(inner_nc * 2, outer_nc, kernel_size=4, stride=2, padding=1)
            model = [downconv, submodule, uprelu, upconv, nn.Tanh()]
        elif kind == "innermost":
            upconv = nn.ConvTranspose2d(inner_nc, outer_nc, kernel_size=4, stride=2, padding=1, bias=False)
            model = [downrelu, downconv, uprelu, upconv, upnorm]
        else:
            upconv = nn.ConvTranspose2d(inner_nc * 2, outer_nc, kernel_size=4, stride=2, padding=1, bias=False)
            model = [downrelu, downconv, downnorm, submodule, uprelu, upconv, upnorm]
            model += [nn.Dropout(0.5)] if use_dropout else []
        self.model = nn.Sequential(*model)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def reference_unet(input_nc, output_nc, num_downs, ngf):
    """UnetGenerator of the same file, use_dropout=True."""
    block = UnetSkipConnectionBlock(ngf * 8, ngf * 8, kind="innermost")
    for _ in range(num_downs - 5):
        block = UnetSkipConnectionBlock(ngf * 8, ngf * 8, submodule=block, use_dropout=True)
    block = UnetSkipConnectionBlock(ngf * 4, ngf * 8, submodule=block)
    block = UnetSkipConnectionBlock(ngf * 2, ngf * 4, submodule=block)
    block = UnetSkipConnectionBlock(ngf, ngf * 2, submodule=block)
    return UnetSkipConnectionBlock(output_nc, ngf, input_nc=input_nc, submodule=block, kind="outermost")


@pytest.fixture(scope="module")
def reference_and_ours():
    """The transcription, and our U-Net with its weights, for 128 px: seven layers, as `unet_128` of that code."""
    reference = reference_unet(3, 2, num_downs=7, ngf=4)
    randomise(reference)
    ours = UNet(3, 2, (128, 128), width=4, dropout="pytorch")
    copy_weights(reference, ours)
    for layer in list(ours.decoder)[1:]:  # that code joins [encoder, decoder], models.lua [decoder, encoder]
        weight = layer[1].weight
        weight.data = torch.cat(weight.data.chunk(2)[::-1])
    return reference.double(), ours.double()


def test_every_registered_generator_can_be_imported():
    registered = {}
    p2pzoo_pix2pix.register_generators(lambda name, factory, **about: registered.update({name: (factory, about)}))
    assert set(registered) == {"unet", "encoder-decoder"}
    for factory, about in registered.values():
        module, attribute = factory.split(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), nn.Module)
        assert about["summary"]
        assert about["paper"].startswith("arXiv:1611.07004")


@pytest.mark.parametrize(
    ("network", "options", "count"),
    [
        (UNet, {}, 54_413_955),
        (UNet, {"bottleneck_norm": True}, 54_413_955 + 1024),
        (UNet, {"bias": "lua"}, 54_419_459),
        (EncoderDecoder, {}, 39_075_459),
        (EncoderDecoder, {"bottleneck_norm": True}, 39_075_459 + 1024),
        (EncoderDecoder, {"bias": "lua"}, 39_080_963),
    ],
)
def test_parameter_counts_match_the_public_codes(network, options, count):
    with torch.device("meta"):
        G = network(3, 3, (256, 256), **options)
        assert G(torch.empty(2, 3, 256, 256)).shape == (2, 3, 256, 256)
    assert parameters(G) == count


def test_colorization_has_one_input_and_two_output_channels():
    with torch.device("meta"):
        assert parameters(UNet(1, 2, (256, 256), bias="lua")) == 54_415_362


@pytest.mark.parametrize(("norm", "biases"), [("batch", 1), ("group", 1), ("none", 1), ("instance", 10)])
def test_biases_match_the_pytorch_code(norm, biases):
    G = UNet(3, 3, (32, 32), width=2, norm=norm)
    convolutions = [m for m in G.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert sum(m.bias is not None for m in convolutions) == biases
    assert convolutions[-1].bias is not None


@BOTH
@pytest.mark.parametrize("channels", [(1, 3), (3, 1), (4, 2)])
@pytest.mark.parametrize(("size", "depth"), [((32, 32), 5), ((64, 96), 5), ((96, 40), 3), ((64, 64), 6)])
def test_output_has_the_size_of_the_input_and_values_within_minus_1_and_1(network, channels, size, depth):
    G = network(*channels, size, width=2)
    y_hat = G(images(channels[0], *size))
    assert y_hat.shape == (2, channels[1], *size)
    assert y_hat.abs().max() <= 1
    assert G.size_divisor == 2**depth == 2 ** len(G.encoder) == 2 ** len(G.decoder)


def test_depth_stops_at_eight_and_can_be_set():
    with torch.device("meta"):
        assert UNet(3, 3, (512, 1024), width=1).size_divisor == 256
        assert UNet(3, 3, (512, 512), width=1, depth=9).size_divisor == 512
        assert UNet(3, 3, (256, 256), width=1, depth=2).size_divisor == 4


@BOTH
def test_a_network_accepts_any_multiple_of_its_divisor(network):
    G = network(3, 3, (32, 32), width=2).eval()
    assert G(images(3, 64, 96)).shape == (2, 3, 64, 96)
    with pytest.raises(ValueError, match=r"multiples of 32, not 48×64$"):
        G(images(3, 48, 64))


@pytest.mark.parametrize(
    ("size", "depth", "nearest"),
    [
        ((250, 250), None, "248×248 or 252×252"),
        ((31, 64), None, "32×64"),
        ((16, 16), None, "32×32"),
        ((33, 256), None, "32×256 or 36×256"),
        ((64, 96), 6, "64×64 or 64×128"),
        ((32, 32), 8, "256×256"),
    ],
)
def test_a_wrong_size_is_an_error_with_the_nearest_sizes(size, depth, nearest):
    with pytest.raises(ValueError, match=f"the nearest that fit: {nearest}$"):
        UNet(3, 3, size, width=1, depth=depth)
    for fitting in re.findall(r"(\d+)×(\d+)", nearest):
        UNet(3, 3, tuple(map(int, fitting)), width=1, depth=depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "depth must be at least 2, not 1"),
        ({"norm": "layer"}, "norm must be 'batch', 'instance', 'group' or 'none', not 'layer'"),
        ({"bias": "none"}, "bias must be 'pytorch' or 'lua', not 'none'"),
        ({"noise": "uniform"}, "noise must be"),
        ({"dropout": "lua"}, "dropout must be 'paper' or 'pytorch', not 'lua'"),
        ({"norm": "none", "bottleneck_norm": True}, "bottleneck_norm = true needs norm"),
        ({"noise": "none", "dropout": "paper"}, "dropout = 'paper' needs noise = 'dropout', not 'none'"),
        ({"noise": "gaussian", "dropout": "pytorch"}, "dropout = 'pytorch' needs noise = 'dropout', not 'gaussian'"),
        ({"dropout": "pytorch"}, "no layer at depth 5"),
    ],
)
def test_invalid_parameters_are_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        UNet(3, 3, (32, 32), width=1, **options)
    assert "\n" not in str(refusal.value)


def test_the_unet_equals_the_pytorch_code_in_eval_mode(reference_and_ours):
    reference, ours = (network.eval() for network in reference_and_ours)
    x = images(3, 128, 128).double()
    torch.testing.assert_close(ours(x), reference(x), atol=1e-9, rtol=0)


def test_the_unet_equals_the_pytorch_code_in_training_with_dropout_and_gradients(reference_and_ours):
    reference, ours = (network.train() for network in reference_and_ours)
    x = images(3, 128, 128).double()
    answers = []
    for network in (reference, ours):
        network.zero_grad()
        torch.manual_seed(3)  # dropout draws in the order of the layers
        y_hat = network(x)
        y_hat.square().mean().backward()
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        answers.append((y_hat.detach(), first.weight.grad))
    torch.testing.assert_close(answers[1], answers[0], atol=1e-9, rtol=1e-9)


def test_the_encoder_decoder_is_the_unet_with_zeros_in_its_skip_connections():
    without_skips = EncoderDecoder(3, 3, (32, 32), width=2, noise="none")
    joined = UNet(3, 3, (32, 32), width=2, noise="none")
    randomise(without_skips)
    for name, parameter in joined.named_parameters():
        parameter.data.zero_()
        own_weight = without_skips.get_parameter(name)
        parameter.data[: own_weight.shape[0]] = own_weight
    x = images(3, 32, 32)
    torch.testing.assert_close(joined(x), without_skips(x))


def with_constant_bottleneck(G, x):
    handle = G.encoder[-1].register_forward_hook(lambda module, args, output: torch.ones_like(output))
    try:
        return G.eval()(x)
    finally:
        handle.remove()


def test_only_the_bottleneck_connects_the_encoder_decoder_to_its_input():
    x, other = images(3, 32, 32, seed=1), images(3, 32, 32, seed=2)
    G = EncoderDecoder(3, 3, (32, 32), width=2)
    randomise(G)
    assert torch.equal(with_constant_bottleneck(G, x), with_constant_bottleneck(G, other))
    assert not torch.allclose(G(x), G(other), atol=1e-3)


def test_skip_connections_bypass_the_bottleneck_of_the_unet():
    x, other = images(3, 32, 32, seed=1), images(3, 32, 32, seed=2)
    G = UNet(3, 3, (32, 32), width=2)
    randomise(G)
    assert not torch.allclose(with_constant_bottleneck(G, x), with_constant_bottleneck(G, other), atol=1e-3)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "instance"},
        {"norm": "none"},
        {"norm": "group"},
        {"norm": "group", "bottleneck_norm": True},
        {"bias": "lua"},
        {"noise": "gaussian"},
        {"bottleneck_norm": True},
        {"upsample": "resize-conv"},
    ],
)
def test_every_parameter_gets_a_finite_gradient(network, options):
    torch.manual_seed(0)
    G = network(3, 3, (32, 64), width=4, **options)
    G(images(3, 32, 64)).square().mean().backward()
    for name, parameter in G.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("weight"):  # a bias before a norm rightly has none
            assert parameter.grad.abs().sum() > 0, name


def test_the_first_layer_the_innermost_and_the_last_have_no_norm():
    def normed(G):
        return [any(isinstance(m, nn.BatchNorm2d) for m in layer) for layer in [*G.encoder, *G.decoder]]

    without, with_ = UNet(3, 3, (32, 32), width=1), UNet(3, 3, (32, 32), width=1, bottleneck_norm=True)
    assert normed(without) == [False, True, True, True, False, True, True, True, True, False]
    assert normed(with_) == [False, True, True, True, True, True, True, True, True, False]


@BOTH
def test_bottleneck_norm_at_batch_1_gives_beta_for_any_input(network):
    torch.manual_seed(0)
    G = network(3, 3, (32, 32), width=2, bottleneck_norm=True)
    norm = G.encoder[-1][-1]
    nn.init.normal_(norm.bias)
    emitted = []
    norm.register_forward_hook(lambda module, args, output: emitted.append(output))
    G(images(3, 32, 32, batch=1)).square().mean().backward()

    assert torch.equal(emitted[0].flatten(), norm.bias)
    assert all(p.grad.isfinite().all() for p in G.parameters())
    assert norm.bias.grad.abs().sum() > 0
    assert norm.weight.grad.abs().sum() == 0
    assert G.encoder[-1][1].weight.grad.abs().sum() == 0  # skipped, as §6.3 says


def test_bottleneck_norm_of_one_value_keeps_the_running_statistics():
    norm = BottleneckBatchNorm2d(3)
    norm(torch.full((1, 3, 1, 1), 5.0))
    assert norm.running_mean.eq(0).all()
    assert norm.running_var.eq(1).all()
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(("training", "shape"), [(True, (2, 3, 1, 1)), (True, (1, 3, 1, 2)), (False, (1, 3, 1, 1))])
def test_bottleneck_norm_is_batch_norm_otherwise(training, shape):
    plain, ours = nn.BatchNorm2d(3), BottleneckBatchNorm2d(3)
    randomise(plain)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.train(training)(x), plain.train(training)(x))
    torch.testing.assert_close(ours.running_var, plain.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_bottleneck_instance_norm_gives_zeros_at_1_by_1(training):
    G = UNet(3, 3, (32, 32), width=2, norm="instance", bottleneck_norm=True).train(training)
    emitted = []
    G.encoder[-1].register_forward_hook(lambda module, args, output: emitted.append(output))
    G(images(3, 32, 32))
    G(images(3, 32, 64))
    assert emitted[0].eq(0).all()
    assert emitted[1].abs().sum() > 0


def sides_at_dropout(G, side):
    """The sides of the maps with dropout, from the bottleneck on."""
    sides = []
    for module in G.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(lambda module, args, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        G(images(3, side, side, batch=1))
    return sides


@BOTH
@pytest.mark.parametrize(
    ("options", "side", "sides"),
    [
        ({}, 256, [2, 4, 8]),
        ({"dropout": "paper"}, 256, [2, 4, 8]),
        ({"dropout": "pytorch"}, 256, [4, 8, 16]),
        ({"dropout": "pytorch"}, 128, [4, 8]),
        ({"dropout": "pytorch"}, 64, [4]),
        ({"depth": 2}, 64, [32]),
        ({"noise": "none"}, 64, []),
        ({"noise": "gaussian"}, 64, []),
    ],
)
def test_dropout_is_on_the_same_layers_as_in_each_source(network, options, side, sides):
    G = network(3, 3, (side, side), width=1, **options)
    assert sides_at_dropout(G, side) == sides


def test_dropout_acts_only_on_the_decoder_half_of_a_concatenation():
    G = UNet(3, 3, (32, 32), width=8)
    inputs = []
    G.decoder[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    G(images(3, 32, 32))
    decoder_half, encoder_half = inputs[0].chunk(2, dim=1)
    assert 0.3 < decoder_half.eq(0).float().mean() < 0.7
    assert not encoder_half.eq(0).any()


def outputs_of_two_passes(G, x):
    torch.manual_seed(0)
    with torch.no_grad():
        return G(x), G(x)


@pytest.mark.parametrize("noise", ["dropout", "gaussian"])
def test_noise_follows_the_seed_in_training_and_is_off_in_eval_mode(noise):
    G = UNet(3, 3, (32, 32), width=4, noise=noise)
    randomise(G)
    x = images(3, 32, 32)
    first, second = outputs_of_two_passes(G, x)
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(first, outputs_of_two_passes(G, x)[0])
    first, second = outputs_of_two_passes(G.eval(), x)
    assert torch.equal(first, second)


def test_without_noise_training_mode_is_deterministic():
    G = UNet(3, 3, (32, 32), width=4, noise="none")
    randomise(G)
    first, second = outputs_of_two_passes(G, images(3, 32, 32))
    assert torch.equal(first, second)


def test_gaussian_noise_is_one_more_channel_and_zero_in_eval_mode():
    G = UNet(3, 3, (64, 64), width=1, noise="gaussian")
    entered = []
    G.encoder[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    x = images(3, 64, 64, batch=4)
    torch.manual_seed(0)
    G(x)
    G.eval()(x)
    assert all(torch.equal(image[:, :3], x) for image in entered)
    z = entered[0][:, 3:]
    assert z.shape == (4, 1, 64, 64)
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.05
    assert entered[1][:, 3:].eq(0).all()


@BOTH
def test_resize_conv_replaces_only_the_transposed_convolutions(network):
    transposed = network(3, 2, (64, 64), width=2)
    resized = network(3, 2, (64, 64), width=2, upsample="resize-conv")
    ups = [layer[1] for layer in transposed.decoder]
    assert all(isinstance(up, nn.ConvTranspose2d) for up in ups)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in resized.modules())
    for up, layer in zip(ups, resized.decoder, strict=True):
        nearest, conv = layer[1]
        assert (nearest.mode, nearest.scale_factor) == ("nearest", 2)
        assert conv.weight.shape == (up.out_channels, up.in_channels, 3, 3)
        assert (conv.bias is None) == (up.bias is None)
    others = {name: p.shape for name, p in transposed.state_dict().items() if ".1." not in name or "encoder" in name}
    assert others.items() <= {name: p.shape for name, p in resized.state_dict().items()}.items()
    assert resized(images(3, 64, 64)).shape == (2, 2, 64, 64)


def test_resize_conv_gives_no_checkerboard_pattern():
    def differences(up):
        """Differences of neighbouring output pixels for a constant image and random weights, away from the border."""
        torch.manual_seed(0)
        G = UNet(1, 1, (32, 32), width=1, depth=2, norm="none", noise="none", upsample=up)
        last = G.decoder[-1][1]
        flat = last(torch.ones(1, 2, 16, 16))[..., 4:-4, 4:-4]
        return (flat[..., 1:] - flat[..., :-1]).abs().max()

    assert differences("resize-conv") < 1e-6
    assert differences("transpose") > 1e-2


@BOTH
def test_upsample_is_in_the_run_id_unless_it_is_the_default(network):
    values = schema.check_params(network, {})
    assert values["upsample"] == "transpose"
    assert "upsample" not in schema.omit_added_later(network, values)
    assert schema.omit_added_later(network, {**values, "upsample": "resize-conv"})["upsample"] == "resize-conv"


def test_an_unknown_upsample_is_an_error():
    with pytest.raises(ValueError, match="upsample must be 'transpose' or 'resize-conv', not 'bilinear'"):
        UNet(3, 3, (32, 32), width=1, upsample="bilinear")


def test_group_norm_keeps_a_constant_plane_of_the_input_and_treats_images_alone():
    """As a process needs it: the plane holds the time. Batch norm and instance norm compare it with itself."""
    torch.manual_seed(0)
    G = UNet(3, 3, (32, 32), width=8, norm="group", noise="none")
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    early, late = (torch.cat([x[:, :2], torch.full((2, 1, 32, 32), t)], 1) for t in (0.1, 0.9))
    assert (G(early) - G(late)).abs().max() > 1e-2
    torch.testing.assert_close(G(early)[:1], G(early[:1]))
