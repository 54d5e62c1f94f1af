"""timm-unet: shapes, joins, decoder and noise; what the zoo makes of it: [init], optimizer, model file, rewrites."""

import json

import pytest
import timm
import torch
from p2pzoo_timm.unet import TimmUNet
from safetensors.torch import load_file, save_file
from torch import nn

from p2pzoo import config
from p2pzoo.compute.conv_as_gemm import Chooser, convs_as_gemm
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.model_file import load_model, model_header
from p2pzoo.models.safetensors_io import load_tensors, save_model
from p2pzoo.models.test_modes import prepared, translate
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

TINY = "test_resnet"


def made(backbone=TINY, channels=(3, 3), size=(64, 64), **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimmUNet(*channels, size, backbone=backbone, **({"width": 4} | options))


def images(channels=3, height=64, width=64, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def experiment(*overrides):
    given = ("generator.width=4", 'compute.device="cpu"', *overrides)
    return config.load("zoo:modern/timm_unet.toml", "smoke", given)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = timm.create_model(TINY)
        net.train()(torch.randn(4, 3, 64, 64))
    save_file(net.state_dict(), path)
    return path


@pytest.fixture
def pretrained(weights):
    return experiment(f'generator.backbone="{TINY}"', f'generator.weights="{weights}"', "generator.frozen_stages=2")


class TestNetwork:
    @pytest.mark.parametrize("backbone", [TINY, "test_convnext", "test_vit", "vgg11"])
    @pytest.mark.parametrize("upsample", ["transpose", "resize-conv"])
    def test_any_size_that_the_backbone_can_halve_gives_images_of_that_size(self, backbone, upsample):
        G = made(backbone, channels=(2, 1), upsample=upsample, size=(64, 96), width=1).eval()
        y_hat = G(images(2, 64, 96))
        assert y_hat.shape == (2, 1, 64, 96)
        assert y_hat.abs().max() <= 1

    def test_it_takes_other_sizes_than_it_was_made_for_and_names_those_that_fit(self):
        G = made()
        assert G.size_divisor == 32
        assert G(images(height=32, width=96)).shape == (2, 3, 32, 96)
        with pytest.raises(ValueError, match="the nearest that fit: 32×64 or 64×64"):
            G(images(height=48))

    def test_every_stride_of_the_backbone_is_joined(self):
        G = made(dropout=0.0).eval()
        x = images()
        expected, whole = G.encoder(x), G(x)
        for cut in range(len(expected)):
            maps = [e * 0 if i == cut else e for i, e in enumerate(expected)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(G.encoder, "forward", lambda x, maps=maps: maps)
                assert not torch.allclose(G(x), whole, atol=1e-6), f"stride {G.encoder.strides[cut]} has no part in it"

    def test_the_decoders_widths_are_those_of_pix2pix(self):
        G = made(width=4)
        ups = [layer for layer in G.decoder.modules() if isinstance(layer, nn.ConvTranspose2d)]
        assert [up.out_channels for up in ups] == [4 * 8, 4 * 4, 4 * 2, 4, 3]

    @pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("instance", nn.InstanceNorm2d)])
    def test_the_decoders_norm_is_the_one_asked_for(self, norm, kind):
        assert sum(isinstance(m, kind) for m in made(norm=norm).decoder.modules()) == 4
        assert not any(isinstance(m, kind) for m in made(norm="none").decoder.modules())

    def test_dropout_is_the_noise_and_only_while_training(self):
        G = made(norm="none", dropout=0.5)
        x = images()
        G.encoder.eval()
        assert not torch.equal(G(x), G(x))
        assert torch.equal(G.eval()(x), G(x))
        still = made(norm="none", dropout=0.0)
        still.encoder.eval()
        assert torch.equal(still(x), still(x))


class TestInTheZoo:
    def test_pretrained_weights_come_through_init_bit_for_bit_and_the_decoders_are_inits(self, pretrained, weights):
        G = make_generator(pretrained, (3, 3), (64, 64))
        given = load_file(weights)
        for name, tensor in G.encoder.net.state_dict().items():
            assert torch.equal(tensor, given[name]), name
        assert G.decoder["16"][1].weight.std().item() == pytest.approx(0.02, rel=0.1)

    def test_a_seed_gives_the_same_weights_every_time_and_another_gives_others(self):
        one, again, other = (
            make_generator(experiment(f'generator.backbone="{TINY}"', f"seed={seed}"), (3, 3), (64, 64))
            for seed in (0, 0, 1)
        )
        first = "encoder.net.conv1.0.weight"
        assert torch.equal(one.state_dict()[first], again.state_dict()[first])
        assert not torch.equal(one.state_dict()[first], other.state_dict()[first])

    def test_frozen_stages_get_no_moments_and_do_not_move_in_a_run(self, pretrained, weights, tmp_path, zoo):
        tiny = [f'generator.backbone="{TINY}"', f'generator.weights="{weights}"', "generator.frozen_stages=2"]
        tiny += [
            "dataset.size=64",
            "dataset.stride=256",
            "train.images=4",
            "discriminator.width=2",
            "compute.threads=1",
        ]
        options = [part for override in [*tiny, 'drop=["metrics.ssim"]'] for part in ("-s", override)]
        told = zoo("run", "zoo:modern/timm_unet.toml", "--profile", "smoke", "--runs", tmp_path, *options)
        assert told.exit_code == 0, told.output
        [file] = tmp_path.rglob("model.safetensors")
        given = load_file(weights)
        trained, header = load_tensors(file)
        moved = {n for n, tensor in given.items() if not torch.equal(trained.get(f"encoder.net.{n}", tensor), tensor)}
        assert {name.partition(".")[0] for name in moved} == {"layer2", "layer3", "layer4"}
        [checkpoint] = tmp_path.rglob("images-*.safetensors")
        state, _ = load_tensors(checkpoint)
        moments = {key.split(".")[1] for key in state if key.startswith("G_adam.")}
        G, _ = load_model(file, registry())
        assert moments == {str(i) for i, p in enumerate(G.parameters()) if p.requires_grad}
        assert str(weights) not in json.dumps(header), "a model file holds no path"

    def test_a_model_file_loads_alone(self, weights, tmp_path):
        given = tmp_path / "given.safetensors"
        given.write_bytes(weights.read_bytes())
        recipe = experiment(f'generator.backbone="{TINY}"', f'generator.weights="{given}"', "generator.pretrained=true")
        G = make_generator(recipe, (3, 3), (64, 64))
        dataset = recipe.dataset.build(split="test")
        save_model(tmp_path / "model.safetensors", G, model_header(recipe, G, dataset, (3, 3), (64, 64)))
        given.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("timm.models._builder.load_pretrained", _fail)
            loaded, _ = load_model(tmp_path / "model.safetensors", registry())
        x = images(batch=1)
        assert torch.equal(translate(loaded, x, "eval"), translate(G, x, "eval"))

    def test_so_does_one_whose_backbone_computes_tensors_that_no_file_holds(self, tmp_path):
        name = "swin_tiny_patch4_window7_224"
        recipe = experiment(f'generator.backbone="{name}"')
        G = make_generator(recipe, (3, 3), (64, 64))
        assert {n for n, _ in G.named_buffers()} - G.state_dict().keys()
        dataset = recipe.dataset.build(split="test")
        save_model(tmp_path / "model.safetensors", G, model_header(recipe, G, dataset, (3, 3), (64, 64)))
        loaded, _ = load_model(tmp_path / "model.safetensors", registry())
        x = images(batch=1)
        assert torch.equal(translate(loaded, x, "eval"), translate(G, x, "eval"))

    def test_weights_that_are_not_there_are_told_with_the_place_in_the_recipe(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('extends = "zoo:modern/timm_unet.toml"\n[generator]\nweights = "nowhere.pth"\n')
        recipe = config.load(str(file), "smoke")
        with pytest.raises(UserError, match=r"mine\.toml:\d+  weights = .*nowhere\.pth.*no such file"):
            make_generator(recipe, (3, 3), (64, 64))

    def test_the_content_of_the_weights_is_part_of_a_runs_identity_and_their_place_is_not(self, weights, tmp_path):
        def run_id(content):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
            path.write_bytes(content)
            return experiment(f'generator.weights="{path}"').id

        content = weights.read_bytes()
        assert run_id(content) == run_id(content) != run_id(content + b"x")

    @pytest.mark.parametrize("backbone", [TINY, "test_efficientnet", "test_convnext", "test_vit"])
    def test_computing_its_convolutions_otherwise_changes_nothing_but_rounding(self, backbone):
        G = made(backbone, dropout=0.0).train()
        fast = convs_as_gemm(G, Columns())
        assert fast is not G
        x = images()
        state = {name: tensor.clone() for name, tensor in G.state_dict().items()}
        expected = G(x)
        expected.square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in G.named_parameters() if p.grad is not None}
        G.zero_grad()
        G.load_state_dict(state)
        y_hat = fast(x)
        torch.testing.assert_close(y_hat, expected, atol=1e-4, rtol=1e-3)
        y_hat.square().mean().backward()
        assert gradients.keys() == {name for name, p in G.named_parameters() if p.grad is not None}
        for name, p in G.named_parameters():
            if name in gradients:
                scale = gradients[name].abs().max()
                torch.testing.assert_close(p.grad, gradients[name], atol=2e-3 * scale.item() + 1e-7, rtol=0)

    @pytest.mark.parametrize("backbone", [TINY, "test_efficientnet"])
    def test_the_copy_that_translates_says_the_same(self, backbone):
        G = made(backbone).eval()
        x = images(batch=1)
        fast = prepared(G, x)
        assert fast is not G
        torch.testing.assert_close(fast(x), translate(G, x, "eval"), atol=1e-4, rtol=1e-3)


class Columns(Chooser):
    """Every convolution as a matrix product."""

    def _form(self, shape):
        return "columns"


def _fail(*args, **options):
    raise AssertionError("weights were asked for")
