"""unet-d and oasis: outputs of a transcription in plain functions, widths, sizes, and what the two outputs mean."""

import pytest
import torch
from p2pzoo_losses.penalties import R1
from p2pzoo_unet_d.discriminators import OasisDiscriminator, UNetDiscriminator
from torch.nn import functional as F

from p2pzoo import config
from p2pzoo.models.initialization import make_discriminator
from p2pzoo.plugin import Batch, StepOutputs

SIDE, NUM_CLASSES = 16, 4


def unet_d(**options):
    torch.manual_seed(0)
    return UNetDiscriminator(3, 3, (SIDE, SIDE), **({"width": 4, "levels": 3} | options))


def oasis_d(**options):
    torch.manual_seed(0)
    defaults = {"width": 4, "levels": 3, "num_classes": NUM_CLASSES}
    return OasisDiscriminator(3, 3, (SIDE, SIDE), **(defaults | options))


def inputs(count=2, height=SIDE, width=SIDE):
    draw = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, count, 3, height, width, generator=draw) * 2 - 1
    labels = torch.randint(NUM_CLASSES, (count, height, width), generator=draw)
    labels[0, :2] = 255
    return x, y, labels


def conv(weights, name, h):
    weight = weights[f"{name}.weight"]
    return F.conv2d(h, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)


def body(weights, h, levels, activation):
    """The U-Net as BigGAN's blocks of U-Net GAN and the ResBlocks of OASIS compute it, with each 1×1 convolution of the
    shortcut at the full size."""
    encoder = []
    for i in range(levels):
        name = f"body.encoder.{i}"
        inner = conv(weights, f"{name}.second", activation(conv(weights, f"{name}.first", activation(h) if i else h)))
        short = conv(weights, f"{name}.shortcut", h) if f"{name}.shortcut.weight" in weights else h
        h = F.avg_pool2d(inner, 2) + F.avg_pool2d(short, 2)
        encoder.append(h)
    for i in range(levels):
        name = f"body.decoder.{i}"
        if i:
            h = torch.cat([encoder[-1 - i], h], 1)
        inner = activation(h).repeat_interleave(2, 2).repeat_interleave(2, 3)
        inner = conv(weights, f"{name}.second", activation(conv(weights, f"{name}.first", inner)))
        short = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = inner + (conv(weights, f"{name}.shortcut", short) if f"{name}.shortcut.weight" in weights else short)
    return encoder, h


class TestUNetD:
    def test_it_equals_a_transcription_of_the_paper(self):
        D, (x, y, _) = unet_d(), inputs()
        weights = D.state_dict()
        encoder, h = body(weights, torch.cat([x, y], 1), 3, F.relu)
        image = F.relu(encoder[-1]).sum((2, 3)) @ weights["to_image_logit.weight"].T + weights["to_image_logit.bias"]
        logits = D(x, y)
        torch.testing.assert_close(logits[0][:, :, 0, 0], image)
        torch.testing.assert_close(logits[1], conv(weights, "to_pixel_logits", h))

    def test_the_default_widths_are_those_of_the_paper_at_128_px(self):
        with torch.device("meta"):
            D = UNetDiscriminator(3, 3, (128, 128))
            features = D.features(*torch.zeros(2, 1, 3, 128, 128))
        assert [h.shape[1] for h in features[0]] == [64, 128, 256, 512, 1024]
        assert [h.shape[1] for h in features[1]] == [512, 256, 128, 64, 64]
        assert features[0][-1].shape[2:] == (4, 4)

    @pytest.mark.parametrize(("height", "width"), [(16, 32), (48, 8)])
    def test_one_logit_per_image_and_one_per_pixel(self, height, width):
        x, y, _ = inputs(height=height, width=width)
        assert [tuple(m.shape) for m in unet_d()(x, y)] == [(2, 1, 1, 1), (2, 1, height, width)]

    def test_only_a_conditional_one_sees_x(self):
        x, y, _ = inputs()
        for conditional in (True, False):
            D = unet_d(conditional=conditional)
            assert all(torch.equal(a, b) != conditional for a, b in zip(D(x, y), D(-x, y), strict=True))

    def test_a_pixels_logit_depends_on_the_whole_image(self):
        """Through the bottleneck: a change in one corner reaches the opposite one."""
        D, (x, y, _) = unet_d(), inputs(1)
        y.requires_grad_()
        D(x, y)[1][0, 0, 0, 0].backward()
        assert y.grad[0, :, -1, -1].abs().sum() > 0

    def test_sizes_that_cannot_be_halved_are_refused(self):
        message = "a U-Net discriminator of 3 levels needs sides that are multiples of 8, not 16×12"
        with pytest.raises(ValueError, match=message):
            UNetDiscriminator(3, 3, (16, 12), levels=3)
        with pytest.raises(ValueError, match="of 1 level needs sides that are multiples of 2"):
            UNetDiscriminator(3, 3, (16, 11), levels=1)
        x, y, _ = inputs(width=12)
        with pytest.raises(ValueError, match=message):
            unet_d()(x, y)


class TestOasisD:
    def test_its_class_logits_equal_a_transcription_of_the_paper(self):
        D, (x, y, labels) = oasis_d(), inputs()
        weights = D.state_dict()
        _, h = body(weights, y, 3, lambda h: F.leaky_relu(h, 0.2))
        of_own, of_real = D.features(x, y, labels)
        assert of_own[-1].shape == (2, NUM_CLASSES + 1, SIDE, SIDE)
        torch.testing.assert_close(of_own[-1], conv(weights, "to_classes", h))
        assert len(of_own) == 3 + 3 + 1
        assert torch.equal(of_real[0], of_own[-1])

    def test_the_default_widths_are_those_of_the_paper(self):
        with torch.device("meta"):
            D = OasisDiscriminator(3, 3, (256, 256), num_classes=34)
            x, y = torch.zeros(2, 1, 3, 256, 256)
            features = D.features(x, y, torch.zeros(1, 256, 256))[0]
        assert [h.shape[1] for h in features[:6]] == [128, 128, 256, 256, 512, 512]
        assert [h.shape[1] for h in features[6:]] == [512, 256, 256, 128, 128, 64, 35]

    def test_its_two_outputs_are_the_log_odds_of_the_own_class_and_of_real(self):
        D, (x, y, labels) = oasis_d(), inputs()
        with torch.no_grad():
            D.to_classes.weight.mul_(5)
        p = D.features(x, y, labels)[0][-1].softmax(1)
        own, real = (m.sigmoid()[:, 0] for m in D(x, y, labels))
        torch.testing.assert_close(real, 1 - p[:, -1])
        is_labelled = labels != 255
        p_own = p.gather(1, labels.where(is_labelled, 0)[:, None])[:, 0]
        torch.testing.assert_close(own[is_labelled], p_own[is_labelled])
        torch.testing.assert_close(own[~is_labelled], real[~is_labelled])

    def test_large_logits_give_finite_gradients(self):
        D, (x, y, labels) = oasis_d(), inputs()
        with torch.no_grad():
            D.to_classes.weight.mul_(1e4)
        sum(F.softplus(-m).mean() for m in D(x, y, labels)).backward()
        assert all(p.grad.isfinite().all() for p in D.parameters())

    def test_the_gradient_penalty_has_finite_gradients(self):
        D, (x, y, labels) = oasis_d(), inputs()
        out = StepOutputs(Batch(x, y, ("a", "b"), labels=labels), y, D, labels_for_D=True)
        value = R1()(out)
        value.backward()
        assert value > 0
        assert D.body.encoder[0].first.weight.grad.isfinite().all()


@pytest.mark.parametrize("recipe", ["unet_d", "oasis"])
def test_spectral_norm_of_the_recipe_holds_for_all_layers(recipe):
    D = make_discriminator(config.load(f"zoo:modern/{recipe}.toml", "smoke"), (3, 3), (64, 64)).train()
    x, y, labels = inputs(height=64, width=64)
    for _ in range(30):  # the power iteration converges
        D(x, y, labels) if recipe == "oasis" else D(x, y)
    layers = [part for part in D.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) > 20
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu", "paper"])
def test_the_recipes_classes_are_those_of_its_dataset(profile):
    from p2pzoo_datasets.cityscapes_classes import CLASSES as CITYSCAPES
    from p2pzoo_earth.classes import CLASSES as EARTH

    experiment = config.load("zoo:modern/oasis.toml", profile)
    expected = {"earth": EARTH, "cityscapes": CITYSCAPES}[experiment.dataset.entry.name]
    assert experiment.discriminator.values["num_classes"] == len(expected)
