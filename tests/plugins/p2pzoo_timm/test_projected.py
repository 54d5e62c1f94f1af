"""timm-projected: maps and scales, fixed parts, gradients at ŷ, mixing, and its seed."""

import pytest
import timm
import torch
from p2pzoo_timm.projected import FullPrecisionSpectralNorm, Head, Mixing, ProjectedDiscriminator
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from p2pzoo import config
from p2pzoo.compute.batched_discriminator import is_batch_independent
from p2pzoo.compute.conv_as_gemm import convs_as_gemm
from p2pzoo.compute.engine import frozen
from p2pzoo.models.initialization import make_discriminator
from p2pzoo.testing import list_component_checks
from p2pzoo.utils.errors import UserError

TINY = "test_resnet"


def build(channels=(3, 3), size=(64, 64), **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ProjectedDiscriminator(*channels, size, **({"backbone": TINY, "width": 4} | options))


def images(channels=3, height=64, width=64, batch=2, seed=0):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def experiment(*overrides):
    given = (f'discriminator.backbone="{TINY}"', "discriminator.width=4", *overrides)
    return config.load("zoo:modern/projected.toml", "smoke", given)


class TestMaps:
    @pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64)])
    def test_the_last_four_scales_give_one_map_each_of_the_same_size(self, height, width):
        maps = build(size=(height, width))(images(3, height, width), images(3, height, width, seed=1))
        assert [tuple(logits.shape) for logits in maps] == [(2, 1, height // 64, width // 64)] * 4

    def test_coarser_scales_have_fewer_features(self):
        D = build().eval()  # in training spectral norm iterates once more at each look
        x, y = images(), images(seed=1)
        features = D.features(x, y)
        assert [len(scale) for scale in features] == [4, 3, 2, 1]
        for head, activations, logits in zip(D.heads, features, D(x, y), strict=True):
            assert torch.equal(head.to_logit(activations[-1]), logits)

    def test_a_backbone_of_one_stride_gives_one_scale(self):
        D = build(backbone="test_vit", size=(64, 64))
        assert [tuple(logits.shape) for logits in D(images(), images(seed=1))] == [(2, 1, 2, 2)]

    def test_only_a_conditional_discriminator_uses_x(self):
        y, one, other = images(), images(seed=1), images(seed=2)
        for conditional in (True, False):
            D = build(conditional=conditional).eval()
            same = [torch.equal(a, b) for a, b in zip(D(one, y), D(other, y), strict=True)]
            assert not any(same) if conditional else all(same)

    def test_x_and_y_may_have_different_channels(self):
        D = build(channels=(5, 1))
        assert len(D(images(5), images(1, seed=1))) == 4

    def test_images_too_small_for_the_coarsest_scale_are_an_error(self):
        with pytest.raises(ValueError, match="needs sides of at least 64 px, not 32×64"):
            build(size=(32, 64))
        with pytest.raises(ValueError, match="needs sides of at least 64 px, not 32×32"):
            build()(images(3, 32, 32), images(3, 32, 32))


DINO = "vit_small_patch14_reg4_dinov2"


class TestLayersOfAVisionTransformer:
    def test_evenly_spaced_blocks_are_the_scales_and_images_are_resized_to_whole_patches(self):
        """Against the blocks' outputs as timm's own function gives them, at 128 px and patches of 14 px."""
        D = build(backbone=DINO, size=(128, 128), layers=4, conditional=False)
        D.backbone.init_own_weights()
        y = images(3, 128, 128, batch=1)
        vit = timm.create_model(DINO, img_size=(126, 126))
        vit.load_state_dict({name.removeprefix("model."): e for name, e in D.backbone.net.state_dict().items()}, False)
        mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        resized = F.interpolate((y / 2 + 0.5 - mean) / std, (126, 126), mode="bilinear")
        blocks = vit.eval().forward_intermediates(resized, indices=[2, 5, 8, 11], intermediates_only=True)
        features = D.backbone(y)
        assert [tuple(e.shape) for e in features] == [(1, 384, 8, 8)] * 4
        for one, block in zip(features, blocks, strict=True):
            torch.testing.assert_close(one, F.interpolate(block, (8, 8), mode="bilinear"), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(features[0], features[1])
        assert [tuple(logits.shape) for logits in D(y, y)] == [(1, 1, 4, 4)] * 4

    def test_gradients_reach_all_pixels_of_y_hat(self):
        y_hat = images(3, 128, 128, batch=1).requires_grad_()
        sum(
            m.mean() for m in build(backbone=DINO, size=(128, 128), layers=2, conditional=False)(y_hat, y_hat)
        ).backward()
        assert (y_hat.grad[0].abs().sum(0) > 0).all()

    def test_all_scales_have_the_same_width_and_coarser_ones_are_mixed_into_finer_ones(self):
        D = build(backbone="test_vit", layers=3)
        assert [mix.out_channels for mix in D.mixing.across_channels] == [4, 4, 4]
        assert len(D.mixing.to_finer) == 2
        assert [len(scale) for scale in D.features(images(), images(seed=1))] == [1, 1, 1]

    def test_weights_of_a_file_are_those_of_its_blocks(self, tmp_path):
        torch.manual_seed(5)
        state = timm.create_model("test_vit").state_dict()  # at 160 px: timm resizes the position embedding
        save_file(state, tmp_path / "weights.safetensors")
        D = build(backbone="test_vit", layers=2, weights=tmp_path / "weights.safetensors")
        D.backbone.init_own_weights()
        loaded = {name.removeprefix("model."): e for name, e in D.backbone.net.state_dict().items()}
        blocks = [name for name in loaded if name.startswith("blocks.")]
        assert len(blocks) > 10
        for name in (*blocks, "patch_embed.proj.weight"):
            assert torch.equal(loaded[name], state[name]), name

    def test_missing_weights_are_one_line_that_says_what_to_do(self, monkeypatch):
        def offline(*args, **kwargs):
            raise OSError("no connection\nand more lines")

        D = build(backbone="test_vit", layers=2, pretrained=True)
        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(UserError) as refusal:
            D.backbone.init_own_weights()
        assert str(refusal.value) == (
            "cannot load weights of 'test_vit': no connection; to load a file instead: weights = \"FILE\""
        )

    @pytest.mark.parametrize(
        ("backbone", "layers", "message"),
        [
            (
                TINY,
                2,
                "layers = 2: 'test_resnet' already has features of the strides 2, 4, 8, 16, 32; leave layers out",
            ),
            ("test_vit", 99, "layers = 99: 'test_vit' has only 6 blocks"),
        ],
    )
    def test_layers_that_a_backbone_does_not_have_are_refused(self, backbone, layers, message):
        with pytest.raises(ValueError, match=message):
            build(backbone=backbone, layers=layers)

    def test_without_layers_the_run_id_is_the_old_one(self):
        recipes = [experiment(*more) for more in ((), ("discriminator.layers=2",))]
        assert "layers" not in str(recipes[0].discriminator.identity())
        assert recipes[0].id != recipes[1].id


ONE_SIZE = {"timm-projected.size_divisor": "timm builds a vision transformer for one size"}
KIT = list_component_checks("timm", {"timm-projected": {"backbone": "test_vit", "layers": 3}}, ONE_SIZE)


@pytest.mark.parametrize("check", [check for check in KIT if "timm-projected" in str(check)], ids=str)
def test_layers_of_a_vision_transformer_satisfy_the_interface(check):
    result = check.run()
    assert result.status != "fail", result.message


class TestFixed:
    def test_training_d_changes_only_its_heads(self):
        D = build().train()
        before = {name: tensor.clone() for name, tensor in D.state_dict().items()}
        optimizer = torch.optim.Adam(D.parameters(), lr=1e-2)
        sum(logits.square().mean() for logits in D(images(), images(seed=1))).backward()
        optimizer.step()
        changed = {name for name, tensor in D.state_dict().items() if not torch.equal(tensor, before[name])}
        assert {name.partition(".")[0] for name in changed} == {"heads"}
        assert any(name.startswith("backbone.net") and name.endswith("running_mean") for name in before)
        learning = {name for name, p in D.named_parameters() if p.requires_grad}
        assert learning == {name for name, _ in D.named_parameters() if name.startswith("heads.")}
        assert len(optimizer.state) == len(learning)

    def test_gradients_reach_y_hat_while_d_is_frozen(self):
        D = build().train()
        y_hat = images(seed=1).requires_grad_()
        with frozen(D):
            sum(logits.mean() for logits in D(images(), y_hat)).backward()
        assert y_hat.grad.abs().sum() > 0
        assert all(p.grad is None for p in D.parameters())
        assert not any(p.requires_grad for p in D.backbone.parameters())

    def test_the_backbone_stays_in_eval_mode(self):
        for D in (build(), build().eval().train()):
            assert D.heads.training
            assert not any(part.training for part in D.backbone.net.modules())

    def test_the_state_dict_contains_projections_and_backbone(self):
        D, other = build(), build()
        for weight in other.parameters():
            torch.nn.init.normal_(weight)
        other.load_state_dict(D.state_dict())
        x, y = images(), images(seed=1)
        for a, b in zip(D.eval()(x, y), other.eval()(x, y), strict=True):
            assert torch.equal(a, b)


class TestSpectralNorm:
    def test_it_is_torchs_with_the_same_tensors_and_also_under_autocast(self):
        torch.manual_seed(0)
        head = Head(16, 32, halvings=2)
        torch.manual_seed(0)
        theirs = spectral_norm(nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1))
        ours = head.blocks[0][0]
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        theirs.load_state_dict(ours.state_dict())
        for _ in range(3):
            expected = theirs.weight
            with torch.autocast("cpu", torch.bfloat16):
                weight = ours.weight
        assert torch.equal(weight, expected)

    def test_all_convolutions_of_a_head_have_it_in_full_precision(self):
        head = Head(4, 8, halvings=2)
        convolutions = [part for part in head.modules() if isinstance(part, nn.Conv2d)]
        assert len(convolutions) == 3
        assert all(type(conv.parametrizations.weight[0]) is FullPrecisionSpectralNorm for conv in convolutions)


class TestMixing:
    def test_channel_mixing_is_a_matrix_product(self):
        mixing = Mixing([3, 5], [4, 8], cross_scale=False)
        fine, coarse = images(3, 8, 8), images(5, 4, 4)
        for mix, image, out in zip(mixing.across_channels, (fine, coarse), mixing([fine, coarse]), strict=True):
            expected = torch.einsum("oi,bihw->bohw", mix.weight[:, :, 0, 0], image)
            torch.testing.assert_close(out, expected)

    def test_coarser_scales_are_added_to_finer_ones(self):
        mixing = Mixing([3, 5], [4, 8], cross_scale=True)
        fine, coarse = images(3, 8, 8), images(5, 4, 4)
        one, two = (mix(e) for mix, e in zip(mixing.across_channels, (fine, coarse), strict=True))
        up = F.interpolate(F.conv2d(two, mixing.to_finer[0].weight, padding=1), scale_factor=2, mode="bilinear")
        mixed = mixing([fine, coarse])
        torch.testing.assert_close(mixed[0], one + up)
        torch.testing.assert_close(mixed[1], two)

    def test_weights_have_kaimings_variance(self):
        mixing = Mixing([64, 64], [256, 256], cross_scale=True)
        assert mixing.across_channels[0].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
        assert mixing.to_finer[0].weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
        assert mixing.across_channels[0].weight.mean().item() == pytest.approx(0, abs=0.01)


class TestInARecipe:
    def test_projections_follow_the_seed_and_not_init(self):
        one, again, other = (make_discriminator(experiment(f"seed={seed}"), (3, 3), (64, 64)) for seed in (0, 0, 1))
        weights = [D.mixing.across_channels[-1].weight for D in (one, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert weights[0].std().item() == pytest.approx((2 / weights[0].shape[1]) ** 0.5, rel=0.1)
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name

    def test_a_resumed_run_is_bit_identical(self, tmp_path, run_cli):
        options = [f'discriminator.backbone="{TINY}"', 'generator.use="unet"', "dataset.size=64", "dataset.stride=256"]
        options += ["generator.width=2", "discriminator.width=2", "compute.threads=1", "train.checkpoint_every=2"]
        options += ['drop=["metrics.ssim"]']

        def run(runs, images):
            overrides = [part for each in [*options, f"train.images={images}"] for part in ("-s", each)]
            recipe = ("zoo:modern/projected.toml", "--profile", "smoke")
            result = run_cli("run", *recipe, "--runs", tmp_path / runs, *overrides)
            assert result.exit_code == 0, result.output
            [folder] = (tmp_path / runs).glob("*/*")
            return folder

        uninterrupted = run("uninterrupted", 4)
        cut = run("cut", 4)
        for file in ("model.safetensors", "checkpoints/images-0000000004.safetensors", "status.json", "results.json"):
            (cut / file).unlink()
        run("cut", 4)
        assert (cut / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()

    def test_other_convolution_algorithms_change_only_the_rounding(self):
        D = build().eval()
        x, y = images(), images(seed=1)
        for a, b in zip(convs_as_gemm(D)(x, y), D(x, y), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)

    def test_real_and_fake_images_are_not_batched(self):
        """Spectral norm iterates at each forward pass, and one pass for both gives other weights than two passes."""
        assert not is_batch_independent(build(), (3, 3), (64, 64), 1)
