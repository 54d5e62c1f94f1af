"""PixelGAN, PatchGAN and ImageGAN: sizes, receptive fields, the published structure."""

import importlib
import re
from functools import partial

import p2pzoo_pix2pix
import pytest
import torch
from p2pzoo_pix2pix.discriminators import ImageDiscriminator, PatchDiscriminator, PixelDiscriminator
from torch import nn

KINDS = {
    1: PixelDiscriminator,
    16: partial(PatchDiscriminator, receptive_field=16),
    34: partial(PatchDiscriminator, receptive_field=34),
    70: partial(PatchDiscriminator, receptive_field=70),
    142: partial(PatchDiscriminator, receptive_field=142),
    286: ImageDiscriminator,
}
EACH = pytest.mark.parametrize("field", KINDS)

# receptive field: side of the map at 256 px, at 512 px, parameters with `bias = "pytorch"`, with "lua", for 3 + 3
# channels; a D of y alone has 3 input channels less
PUBLISHED = {
    1: (256, 512, 9_024, 9_153),
    16: (126, 254, 139_585, 139_713),
    34: (62, 126, 666_433, 666_817),
    70: (30, 62, 2_768_705, 2_769_601),
    142: (14, 30, 6_964_033, 6_965_441),
    286: (6, 14, 11_159_361, 11_161_281),
}
UNCONDITIONAL = {
    1: (8_832, 8_961),
    16: (136_513, 136_641),
    34: (663_361, 663_745),
    70: (2_765_633, 2_766_529),
    142: (6_960_961, 6_962_369),
    286: (11_156_289, 11_158_209),
}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def images(channels, height, width, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1


def test_every_registered_discriminator_can_be_imported():
    registered = {}
    p2pzoo_pix2pix.register_discriminators(lambda name, factory, **about: registered.update({name: factory}))
    assert set(registered) == {"pixel", "patch", "image"}
    for factory in registered.values():
        module, attribute = factory.split(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), nn.Module)


@EACH
def test_parameter_counts_and_logit_maps_match_the_public_codes(field):
    at_256, at_512, pytorch, lua = PUBLISHED[field]
    with torch.device("meta"):
        D = KINDS[field](3, 3, (256, 256))
        for side, expected in ((256, at_256), (512, at_512)):
            (logits,) = D(torch.empty(2, 3, side, side), torch.empty(2, 3, side, side))
            assert logits.shape == (2, 1, expected, expected)
        assert parameters(D) == pytorch
        assert parameters(KINDS[field](3, 3, (256, 256), bias="lua")) == lua
        unconditional = [
            parameters(KINDS[field](3, 3, (256, 256), conditional=False, bias=b)) for b in ("pytorch", "lua")
        ]
        assert tuple(unconditional) == UNCONDITIONAL[field]


def test_the_default_receptive_field_is_70_px():
    assert PatchDiscriminator(3, 3, (64, 64), width=1).receptive_field == 70


@EACH
def test_one_logit_depends_on_a_square_of_the_receptive_field(field):
    torch.manual_seed(0)
    side = max(3 * field, 8)
    D = KINDS[field](1, 1, (side, side), width=2, norm="none").double()
    x, y = (images(1, side, side, batch=1, seed=s).double().requires_grad_() for s in (0, 1))
    (logits,) = D(x, y)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    for gradient in (x.grad[0, 0] != 0, y.grad[0, 0] != 0):
        rows, columns = (gradient.any(dim=d).nonzero().flatten() for d in (1, 0))
        square = gradient[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert square.shape == (field, field)
        assert square.all()
    assert D.receptive_field == field


@EACH
def test_smaller_images_than_the_smallest_side_are_errors(field):
    make = partial(KINDS[field], 3, 3, width=1)
    with pytest.raises(ValueError, match=r"of at least \d+ px, not 1×300$") as refusal:
        make((1, 300))
    smallest = int(re.search(r"at least (\d+) px", str(refusal.value)).group(1))
    D = make((smallest, smallest))
    (logits,) = D(images(3, smallest, smallest, batch=1), images(3, smallest, smallest, batch=1))
    assert logits.isfinite().all()
    with pytest.raises(ValueError, match=f"of at least {smallest} px"):
        make((300, smallest - 1))
    with pytest.raises(ValueError, match=f"of at least {smallest} px"):
        D(images(3, smallest - 1, 300), images(3, smallest - 1, 300))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"receptive_field": 50}, "receptive_field must be 16, 34, 70 or 142, not 50"),
        ({"norm": "layer"}, "norm must be 'batch', 'instance', 'group' or 'none', not 'layer'"),
        ({"bias": "none"}, "bias must be 'pytorch' or 'lua', not 'none'"),
    ],
)
def test_invalid_parameters_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(3, 3, (64, 64), **options)


@EACH
@pytest.mark.parametrize("channels", [(1, 3), (4, 1)])
def test_channels_and_non_square_images(field, channels):
    D = KINDS[field](*channels, (96, 160), width=1)
    (logits,) = D(images(channels[0], 96, 160), images(channels[1], 96, 160))
    strided = PUBLISHED[field][0]
    expected = (96, 160) if field == 1 else tuple(side * (strided + 2) // 256 - 2 for side in (96, 160))
    assert logits.shape == (2, 1, *expected)


@EACH
def test_only_a_conditional_discriminator_uses_x(field):
    x, other, y = (images(3, 96, 96, seed=s) for s in range(3))
    torch.manual_seed(0)
    conditional = KINDS[field](3, 3, (96, 96), width=2).eval()
    unconditional = KINDS[field](3, 3, (96, 96), width=2, conditional=False).eval()
    assert not torch.allclose(conditional(x, y)[0], conditional(other, y)[0])
    assert torch.equal(unconditional(x, y)[0], unconditional(other, y)[0])


@EACH
def test_the_last_features_give_the_logits(field):
    D = KINDS[field](3, 3, (96, 96), width=2).eval()
    x, y = images(3, 96, 96, seed=0), images(3, 96, 96, seed=1)
    (features,) = D.features(x, y)
    first = D.blocks[0][0](torch.cat([x, y], dim=1))
    torch.testing.assert_close(features[0], nn.functional.leaky_relu(first, 0.2))
    assert len(features) == len(D.blocks)
    assert torch.equal(D.to_logit(features[-1]), D(x, y)[0])


@EACH
@pytest.mark.parametrize(
    "options", [{}, {"norm": "instance"}, {"norm": "none"}, {"bias": "lua"}, {"conditional": False}]
)
def test_every_parameter_gets_a_finite_gradient(field, options):
    torch.manual_seed(0)
    D = KINDS[field](3, 3, (96, 96), width=2, **options)
    (logits,) = D(images(3, 96, 96, seed=0), images(3, 96, 96, seed=1))
    logits.square().mean().backward()
    for name, parameter in D.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("weight"):  # a bias before a norm rightly has none
            assert parameter.grad.abs().sum() > 0, name


@EACH
def test_second_derivatives_exist(field):
    """A gradient penalty needs them."""
    torch.manual_seed(0)
    D = KINDS[field](3, 3, (96, 96), width=2)
    x, y = images(3, 96, 96, seed=0), images(3, 96, 96, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(D(x, y)[0].sum(), y, create_graph=True)
    slope.square().sum().backward()
    assert all(block[0].weight.grad.isfinite().all() for block in D.blocks)
    assert D.blocks[0][0].weight.grad.abs().sum() > 0


def reference_patch(input_nc, ndf, n_layers):
    """NLayerDiscriminator of junyanz/pytorch-CycleGAN-and-pix2pix `networks.py`, with batch norm."""
    sequence = [nn.Conv2d(input_nc, ndf, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
    nf_mult = 1
    for n in range(1, n_layers):
        nf_mult_prev, nf_mult = nf_mult, min(2**n, 8)
        sequence += [
            nn.Conv2d(ndf * nf_mult_prev, ndf * nf_mult, kernel_size=4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(ndf * nf_mult),
            nn.LeakyReLU(0.2, True),
        ]
    nf_mult_prev, nf_mult = nf_mult, min(2**n_layers, 8)
    sequence += [
        nn.Conv2d(ndf * nf_mult_prev, ndf * nf_mult, kernel_size=4, stride=1, padding=1, bias=False),
        nn.BatchNorm2d(ndf * nf_mult),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(ndf * nf_mult, 1, kernel_size=4, stride=1, padding=1),
    ]
    return nn.Sequential(*sequence)


def reference_pixel(input_nc, ndf):
    """PixelDiscriminator of the same file, with batch norm."""
    return nn.Sequential(
        nn.Conv2d(input_nc, ndf, kernel_size=1, stride=1, padding=0),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(ndf, ndf * 2, kernel_size=1, stride=1, padding=0, bias=False),
        nn.BatchNorm2d(ndf * 2),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(ndf * 2, 1, kernel_size=1, stride=1, padding=0, bias=False),
    )


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_it_equals_the_discriminator_of_the_pytorch_code(field, training):
    torch.manual_seed(0)
    n = list(KINDS).index(field)  # n_layers of that code
    reference = reference_pixel(6, 4) if n == 0 else reference_patch(6, 4, n)
    ours = KINDS[field](3, 3, (96, 96), width=4)
    for m in reference.modules():
        if isinstance(m, nn.BatchNorm2d):
            for values in (m.weight, m.bias, m.running_mean, m.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    layers = zip(reference.state_dict().values(), ours.state_dict().values(), strict=True)
    for theirs, own_tensor in layers:
        own_tensor.copy_(theirs)
    x, y = images(3, 96, 96, seed=0), images(3, 96, 96, seed=1)
    expected = reference.train(training)(torch.cat([x, y], 1))
    torch.testing.assert_close(ours.train(training)(x, y)[0], expected, atol=1e-6, rtol=1e-5)
