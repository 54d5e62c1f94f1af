"""timm-unet: shapes, skip connections, decoder, noise, [init], optimizer, model file, compute settings."""

import json
from functools import partial

import pytest
import timm
import torch
from p2pzoo_timm.unet import TimmUNet
from safetensors.torch import load_file, save_file
from torch import nn

from p2pzoo import config
from p2pzoo.compute.conv_as_gemm import AlgorithmChooser, convs_as_gemm
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.model_file import build_header, load_network
from p2pzoo.models.safetensors_io import load_tensors, save_model
from p2pzoo.models.test_modes import optimize_for_eval, translate
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

TINY = "test_resnet"


def build(backbone=TINY, channels=(3, 3), size=(64, 64), **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimmUNet(*channels, size, backbone=backbone, **({"width": 4} | options))


def images(channels=3, height=64, width=64, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def experiment(*overrides):
    options = ("generator.width=4", 'compute.device="cpu"', *overrides)
    return config.load("zoo:modern/timm_unet.toml", "smoke", options)


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
    @pytest.mark.parametrize(
        ("backbone", "upsample"),
        [
            (TINY, "resize-conv"),
            ("test_convnext", "transpose"),
            ("test_vit", "transpose"),
            ("test_vit", "resize-conv"),
            ("vgg11", "transpose"),
        ],
    )
    def test_the_output_has_the_size_of_the_input(self, backbone, upsample):
        G = build(backbone, channels=(2, 1), upsample=upsample, size=(64, 96), width=1).eval()
        y_hat = G(images(2, 64, 96))
        assert y_hat.shape == (2, 1, 64, 96)
        assert y_hat.abs().max() <= 1

    def test_other_sizes_are_accepted_or_an_error_with_the_nearest_sizes(self):
        G = build()
        assert G.size_divisor == 32
        assert G(images(height=32, width=96)).shape == (2, 3, 32, 96)
        with pytest.raises(ValueError, match="the nearest that fit: 32×64 or 64×64"):
            G(images(height=48))

    @pytest.mark.parametrize("backbone", [TINY, "tf_efficientnet_lite0"])
    def test_a_size_that_leaves_batch_norms_one_value_is_refused_with_the_nearest_that_fit(self, backbone):
        """Training takes one image at a time by default, and the test mode "paper" does so always."""
        with pytest.raises(
            ValueError, match=r"32×32 does not fit.* the nearest that fit: 32×64 or 64×32; square: 64×64"
        ):
            build(backbone, size=(32, 32))
        for size in ((32, 64), (64, 32), (64, 64)):
            G = build(backbone, size=size).train()
            assert G(images(height=size[0], width=size[1], batch=1)).shape == (1, 3, *size)
        with pytest.raises(ValueError, match="32×32 does not fit"):
            G(images(height=32, width=32, batch=1))
        assert G(images(height=32, width=32, batch=2)).shape == (2, 3, 32, 32)
        assert G.eval()(images(height=32, width=32, batch=1)).shape == (1, 3, 32, 32)

    @pytest.mark.parametrize(
        ("backbone", "options"),
        [(TINY, {"norm": "group"}), (TINY, {"frozen_stages": 5}), ("convnext_atto", {})],
    )
    def test_the_smallest_size_is_accepted_without_batch_norms_that_learn_there(self, backbone, options):
        G = build(backbone, size=(32, 32), **options).train()
        assert G(images(height=32, width=32, batch=1)).shape == (1, 3, 32, 32)

    def test_every_stride_of_the_backbone_has_a_skip_connection(self):
        G = build(dropout=0.0).eval()
        x = images()
        expected, y_hat = G.encoder(x), G(x)
        for cut in range(len(expected)):
            maps = [e * 0 if i == cut else e for i, e in enumerate(expected)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(G.encoder, "forward", lambda x, maps=maps: maps)
                assert not torch.allclose(G(x), y_hat, atol=1e-6), f"stride {G.encoder.strides[cut]} is not used"

    def test_the_widths_of_the_decoder_are_those_of_pix2pix(self):
        G = build(width=4)
        ups = [layer for layer in G.decoder.modules() if isinstance(layer, nn.ConvTranspose2d)]
        assert [up.out_channels for up in ups] == [4 * 8, 4 * 4, 4 * 2, 4, 3]

    @pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("instance", nn.InstanceNorm2d)])
    def test_norm_sets_the_norm_of_the_decoder(self, norm, kind):
        assert sum(isinstance(m, kind) for m in build(norm=norm).decoder.modules()) == 4
        assert not any(isinstance(m, kind) for m in build(norm="none").decoder.modules())

    @pytest.mark.parametrize("backbone", [TINY, "test_efficientnet"])
    def test_group_norm_is_everywhere_and_keeps_the_rest(self, backbone):
        batch, group = build(backbone), build(backbone, norm="group")
        norms = [[m for m in G.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))] for G in (batch, group)]
        assert all(isinstance(norm, nn.GroupNorm) for norm in norms[1])
        assert len(norms[0]) == len(norms[1])
        activations = [[type(getattr(norm, "act", None)) for norm in each] for each in norms]
        assert activations[0] == activations[1]
        weights = [{name: t.shape for name, t in G.named_parameters() if "bias" not in name} for G in (batch, group)]
        assert weights[0] == weights[1]

    def test_group_norm_treats_each_image_alone(self):
        G, x = build(norm="group", dropout=0.0), images()
        torch.testing.assert_close(G(x)[:1], G(x[:1]), atol=1e-5, rtol=0)

    def test_a_norm_that_no_group_norm_replaces_is_an_error(self):
        with pytest.raises(ValueError, match="'levit_128s': group norm cannot replace its BatchNorm1d"):
            build("levit_128s", size=(224, 224), norm="group")

    def test_weights_of_batch_norms_are_refused_with_group_norm(self, weights):
        with pytest.raises(ValueError, match="weights: the weights of 'test_resnet' belong to its batch norm"):
            build(norm="group", weights=weights)
        with pytest.raises(
            ValueError, match="pretrained = true: the weights of 'test_resnet' belong to its batch norm"
        ):
            build(norm="group", pretrained=True)
        build("test_convnext", norm="group", pretrained=True)  # it has layer norm

    def test_dropout_acts_only_in_training_mode(self):
        G = build(norm="none", dropout=0.5)
        x = images()
        G.encoder.eval()
        assert not torch.equal(G(x), G(x))
        assert torch.equal(G.eval()(x), G(x))
        without_dropout = build(norm="none", dropout=0.0)
        without_dropout.encoder.eval()
        assert torch.equal(without_dropout(x), without_dropout(x))


class TestInARecipe:
    def test_init_initialises_the_decoder_and_keeps_pretrained_weights(self, pretrained, weights):
        G = make_generator(pretrained, (3, 3), (64, 64))
        loaded = load_file(weights)
        for name, tensor in G.encoder.net.state_dict().items():
            assert torch.equal(tensor, loaded[name]), name
        assert G.decoder["16"][1].weight.std().item() == pytest.approx(0.02, rel=0.1)

    def test_initial_weights_follow_the_seed(self):
        one, again, other = (
            make_generator(experiment(f'generator.backbone="{TINY}"', f"seed={seed}"), (3, 3), (64, 64))
            for seed in (0, 0, 1)
        )
        first = "encoder.net.conv1.0.weight"
        assert torch.equal(one.state_dict()[first], again.state_dict()[first])
        assert not torch.equal(one.state_dict()[first], other.state_dict()[first])

    def test_with_group_norm_it_starts_from_timms_own_weights_and_loads(self, tmp_path):
        made = experiment(f'generator.backbone="{TINY}"', "generator.norm=group")
        G = make_generator(made, (3, 3), (64, 64))
        lasts = [m.bn3.weight for m in G.encoder.net.modules() if hasattr(m, "bn3")]
        assert lasts
        assert not any(weight.any() for weight in lasts)  # timm's blocks begin as their skips
        dataset = made.dataset.build(split="train")
        save_model(tmp_path / "model.safetensors", G, build_header(made, G, dataset, (3, 3), (64, 64)))
        loaded, _ = load_network(tmp_path / "model.safetensors", registry())
        assert torch.equal(loaded.eval()(images()), G.eval()(images()))

    def test_frozen_stages_have_no_optimizer_state_and_do_not_change(self, pretrained, weights, tmp_path, run_cli):
        tiny = [f'generator.backbone="{TINY}"', f'generator.weights="{weights}"', "generator.frozen_stages=2"]
        tiny += [
            "dataset.size=64",
            "dataset.stride=256",
            "train.images=4",
            "discriminator.width=2",
            "compute.threads=1",
        ]
        options = [part for override in [*tiny, 'drop=["metrics.ssim"]'] for part in ("-s", override)]
        result = run_cli("run", "zoo:modern/timm_unet.toml", "--profile", "smoke", "--runs", tmp_path, *options)
        assert result.exit_code == 0, result.output
        [file] = tmp_path.rglob("model.safetensors")
        loaded = load_file(weights)
        trained, header = load_tensors(file)
        moved = {n for n, tensor in loaded.items() if not torch.equal(trained.get(f"encoder.net.{n}", tensor), tensor)}
        assert {name.partition(".")[0] for name in moved} == {"layer2", "layer3", "layer4"}
        [checkpoint] = tmp_path.rglob("images-*.safetensors")
        state, _ = load_tensors(checkpoint)
        moments = {key.split(".")[1] for key in state if key.startswith("G_adam.")}
        G, _ = load_network(file, registry())
        assert moments == {str(i) for i, p in enumerate(G.parameters()) if p.requires_grad}
        assert str(weights) not in json.dumps(header), "a model file holds no path"

    def test_a_model_file_loads_without_the_file_of_weights(self, weights, tmp_path):
        file = tmp_path / "weights.safetensors"
        file.write_bytes(weights.read_bytes())
        recipe = experiment(f'generator.backbone="{TINY}"', f'generator.weights="{file}"', "generator.pretrained=true")
        G = make_generator(recipe, (3, 3), (64, 64))
        dataset = recipe.dataset.build(split="test")
        save_model(tmp_path / "model.safetensors", G, build_header(recipe, G, dataset, (3, 3), (64, 64)))
        file.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("timm.models._builder.load_pretrained", _fail)
            loaded, _ = load_network(tmp_path / "model.safetensors", registry())
        x = images(batch=1)
        assert torch.equal(translate(loaded, x, "eval"), translate(G, x, "eval"))

    def test_a_model_file_loads_if_the_backbone_computes_tensors_itself(self, tmp_path, monkeypatch):
        small = {"embed_dim": 12, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 1, 1)}  # 28 million weights otherwise
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **small))
        recipe = experiment('generator.backbone="swin_tiny_patch4_window7_224"')
        G = make_generator(recipe, (3, 3), (64, 64))
        assert {n for n, _ in G.named_buffers()} - G.state_dict().keys()
        dataset = recipe.dataset.build(split="test")
        save_model(tmp_path / "model.safetensors", G, build_header(recipe, G, dataset, (3, 3), (64, 64)))
        loaded, _ = load_network(tmp_path / "model.safetensors", registry())
        x = images(batch=1)
        assert torch.equal(translate(loaded, x, "eval"), translate(G, x, "eval"))

    def test_the_error_for_missing_weights_names_the_line_of_the_recipe(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('extends = "zoo:modern/timm_unet.toml"\n[generator]\nweights = "nowhere.pth"\n')
        recipe = config.load(str(file), "smoke")
        with pytest.raises(UserError, match=r"mine\.toml:\d+  weights = .*nowhere\.pth.*no such file"):
            make_generator(recipe, (3, 3), (64, 64))

    def test_the_run_id_depends_on_the_content_of_the_weights_and_not_on_their_path(self, weights, tmp_path):
        def run_id(content):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
            path.write_bytes(content)
            return experiment(f'generator.weights="{path}"').id

        content = weights.read_bytes()
        assert run_id(content) == run_id(content) != run_id(content + b"x")

    @pytest.mark.parametrize("backbone", [TINY, "test_efficientnet", "test_convnext", "test_vit"])
    def test_other_convolution_algorithms_change_only_the_rounding(self, backbone):
        G = build(backbone, dropout=0.0).train()
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
    def test_a_network_optimised_for_eval_gives_the_same_image(self, backbone):
        G = build(backbone).eval()
        x = images(batch=1)
        fast = optimize_for_eval(G, x)
        assert fast is not G
        torch.testing.assert_close(fast(x), translate(G, x, "eval"), atol=1e-4, rtol=1e-3)


class Columns(AlgorithmChooser):
    """Compute all convolutions as matrix products."""

    def _form(self, shape):
        return "columns"


def _fail(*args, **options):
    raise AssertionError("the weights were read")
