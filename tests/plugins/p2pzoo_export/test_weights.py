"""`p2pzoo import` and `p2pzoo export` of weights: outputs are bit-identical, and weights return unchanged."""

import os
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import p2pzoo_export
import pytest
import torch
from click.testing import CliRunner
from p2pzoo_pix2pix.generators import UNet
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from p2pzoo import config
from p2pzoo.cli import main
from p2pzoo.models.initialization import make_discriminator
from p2pzoo.models.model_file import ModelHeader, load_network, restore_network
from p2pzoo.models.safetensors_io import load_tensors, save_model
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.loader import registry

# Networks of other code, reimplemented with the tensor names of that code.
# norm: batch, instance or none.


class Identity(nn.Module):
    def forward(self, x):
        return x


def make_norm(norm, channels):
    return {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d, "none": lambda _: Identity()}[norm](channels)


# --- junyanz/pytorch-CycleGAN-and-pix2pix ------------------------------------------------------------------------


class SkipBlock(nn.Module):
    def __init__(self, outer, inner, *, in_channels=None, submodule=None, place="middle", norm="batch", dropout=False):
        super().__init__()
        self.outermost = place == "outermost"
        bias = norm == "instance"
        down = nn.Conv2d(in_channels or outer, inner, 4, 2, 1, bias=bias)
        up_in_channels = inner if place == "innermost" else 2 * inner
        up = nn.ConvTranspose2d(up_in_channels, outer, 4, 2, 1, bias=bias or self.outermost)
        match place:
            case "outermost":
                layers = [down, submodule, nn.ReLU(True), up, nn.Tanh()]
            case "innermost":
                layers = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), up, make_norm(norm, outer)]
            case "middle":
                layers = [nn.LeakyReLU(0.2, True), down, make_norm(norm, inner), submodule]
                layers += [nn.ReLU(True), up, make_norm(norm, outer), *([nn.Dropout(0.5)] if dropout else [])]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    def __init__(self, in_channels, out_channels, downs, width, norm="batch", dropout=False, block=SkipBlock):
        super().__init__()
        inside = block(8 * width, 8 * width, place="innermost", norm=norm)
        for _ in range(downs - 5):
            inside = block(8 * width, 8 * width, submodule=inside, norm=norm, dropout=dropout)
        for k in (4, 2, 1):
            inside = block(k * width, 2 * k * width, submodule=inside, norm=norm)
        self.model = block(out_channels, width, in_channels=in_channels, submodule=inside, place="outermost", norm=norm)

    def forward(self, x):
        return self.model(x)


class ResnetBlock(nn.Module):
    def __init__(self, channels, norm, dropout, bias):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(norm, channels),
            nn.ReLU(True),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(norm, channels),
        )

    def forward(self, x):
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Also pix2pixHD's global generator, with `downs` = 4 and norm = "instance"."""

    def __init__(self, in_channels, out_channels, blocks, width, norm="instance", dropout=False, downs=2):
        super().__init__()
        bias = norm == "instance"
        layers = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, width, 7, bias=bias),
            make_norm(norm, width),
            nn.ReLU(True),
        ]
        for k in (width * 2**i for i in range(downs)):
            layers += [nn.Conv2d(k, 2 * k, 3, 2, 1, bias=bias), make_norm(norm, 2 * k), nn.ReLU(True)]
        layers += [ResnetBlock(width * 2**downs, norm, dropout, bias) for _ in range(blocks)]
        for k in (width * 2**i for i in reversed(range(downs))):
            up = nn.ConvTranspose2d(2 * k, k, 3, 2, 1, output_padding=1, bias=bias)
            layers += [up, make_norm(norm, k), nn.ReLU(True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class NLayerDiscriminator(nn.Module):
    """biased: bias under batch norm, as that code had it for a while in 2018."""

    def __init__(self, in_channels, width, strided=3, norm="batch", biased=None):
        super().__init__()
        bias = norm == "instance" if biased is None else biased
        layers = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        before = width
        for i in range(1, strided + 1):
            k = width * min(2**i, 8)
            conv = nn.Conv2d(before, k, 4, 2 if i < strided else 1, 1, bias=bias)
            layers += [conv, make_norm(norm, k), nn.LeakyReLU(0.2, True)]
            before = k
        self.model = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 1))

    def forward(self, x):
        return self.model(x)


class PixelDiscriminator(nn.Module):
    def __init__(self, in_channels, width, norm="batch"):
        super().__init__()
        bias = norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, width, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(width, 2 * width, 1, bias=bias),
            make_norm(norm, 2 * width),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        )

    def forward(self, x):
        return self.net(x)


# --- mmagic ------------------------------------------------------------------------------------------------------


class ConvModule(nn.Module):
    """Convolution, norm and activation as one module. before: whether the activation comes first."""

    def __init__(self, conv, norm, activation, *, before):
        super().__init__()
        self.conv, self.before = conv, before
        self.activate = activation
        self.norm_name = {"batch": "bn", "instance": "in", "none": None}[norm]
        if self.norm_name:
            self.add_module(self.norm_name, make_norm(norm, conv.out_channels))

    def forward(self, x):
        if self.before and self.activate:
            x = self.activate(x)
        x = self.conv(x)
        if self.norm_name:
            x = getattr(self, self.norm_name)(x)
        return self.activate(x) if self.activate and not self.before else x


class MmagicBlock(nn.Module):
    def __init__(self, outer, inner, *, in_channels=None, submodule=None, place="middle", norm="batch", dropout=False):
        super().__init__()
        self.outermost = place == "outermost"
        bias = norm == "instance"
        down = ConvModule(
            nn.Conv2d(in_channels or outer, inner, 4, 2, 1, bias=bias),
            norm if place == "middle" else "none",
            None if self.outermost else nn.LeakyReLU(0.2, True),
            before=True,
        )
        up_in_channels = inner if place == "innermost" else 2 * inner
        up = ConvModule(
            nn.ConvTranspose2d(up_in_channels, outer, 4, 2, 1, bias=bias or self.outermost),
            "none" if self.outermost else norm,
            nn.ReLU(True),
            before=True,
        )
        last = [nn.Tanh()] if self.outermost else [nn.Dropout(0.5)] if dropout else []
        self.model = nn.Sequential(down, *([submodule] if submodule else []), up, *last)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class MmagicPatch(nn.Module):
    def __init__(self, in_channels, width, strided=3, norm="batch"):
        super().__init__()
        bias = norm == "instance"
        layers = [ConvModule(nn.Conv2d(in_channels, width, 4, 2, 1), "none", nn.LeakyReLU(0.2, True), before=False)]
        before = width
        for i in range(1, strided + 1):
            k = width * min(2**i, 8)
            conv = nn.Conv2d(before, k, 4, 2 if i < strided else 1, 1, bias=bias)
            layers.append(ConvModule(conv, norm, nn.LeakyReLU(0.2, True), before=False))
            before = k
        self.model = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 1))

    def forward(self, x):
        return self.model(x)


class Mmagic(nn.Module):
    """Both networks, as in its checkpoints."""

    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


def randomise(network, seed=0):
    """Set random weights and running statistics, unlike those of the constructors."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=g))
            else:
                random = torch.randn(tensor.shape, generator=g)
                tensor.copy_(random / tensor[0].numel() ** 0.5 if tensor.ndim == 4 else 0.7 + 0.3 * random)
    return network


# --- import and export ---


def image(side, channels=3, batch=2):
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def run_cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def import_tensors(run_cli):
    """import_tensors(tensors, options…): (path of the model file, output of the command)."""

    def import_tensors(tensors, *options):
        torch.save(tensors, "their.pth")
        result = run_cli("import", "their.pth", "-o", "model.safetensors", "--force", *options)
        assert result.exit_code == 0, result.output
        return Path("model.safetensors"), result.output

    return import_tensors


GENERATORS = {  # name: (their network, side, options, parameters that are inferred)
    "unet_128": (lambda: UnetGenerator(3, 2, 7, 2, dropout=True), 128, (), {"use": "pix2pix:unet", "depth": 7}),
    "unet_256": (lambda: UnetGenerator(1, 3, 8, 2, dropout=True), 256, (), {"depth": 8, "dropout": "pytorch"}),
    "unet without dropout": (lambda: UnetGenerator(3, 3, 6, 2), 64, ("-s", "noise=none"), {"noise": "none"}),
    "unet of five levels": (lambda: UnetGenerator(3, 3, 5, 2, dropout=True), 32, (), {"noise": "none"}),
    "unet, instance norm": (
        lambda: UnetGenerator(3, 3, 6, 2, norm="instance", dropout=True), 64, (), {"norm": "instance"},
    ),
    "unet, no norm": (lambda: UnetGenerator(3, 3, 6, 2, norm="none", dropout=True), 64, (), {"norm": "none"}),
    "resnet_6blocks": (lambda: ResnetGenerator(3, 2, 6, 2), 32, (), {"norm": "instance", "dropout": False}),
    "resnet_9blocks": (
        lambda: ResnetGenerator(3, 3, 9, 2, norm="batch", dropout=True), 32, (), {"norm": "batch", "dropout": True},
    ),
    "resnet, batch norm": (lambda: ResnetGenerator(3, 3, 6, 3, norm="batch"), 32, (), {"dropout": False, "width": 3}),
    "resnet, dropout": (lambda: ResnetGenerator(3, 3, 6, 2, dropout=True), 32, (), {"dropout": True}),
    "resnet, no norm": (lambda: ResnetGenerator(3, 3, 6, 2, norm="none", dropout=True), 32, (), {"norm": "none"}),
    "global generator": (lambda: ResnetGenerator(5, 3, 9, 2, downs=4), 64, (), {"downsamplings": 4, "blocks": 9}),
    "small global generator": (lambda: ResnetGenerator(3, 3, 2, 2, downs=3), 64, (), {"downsamplings": 3, "blocks": 2}),
}  # fmt: skip


def assert_bit_identical(theirs, file, x):
    G, _ = load_network(file, registry())
    for mode in ("paper", "eval"):
        expected = translate(theirs, x, mode, seed=3)
        assert expected.abs().max() < 1
        assert torch.equal(translate(G, x, mode, seed=3), expected), mode


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_is_bit_identical_in_both_test_modes(name, import_tensors):
    make, side, options, expected = GENERATORS[name]
    theirs = randomise(make())
    file, output = import_tensors(theirs.state_dict(), *options)
    _, header = load_tensors(file)
    generator = header["generator"]
    assert {**generator["params"], "use": generator["use"]}.items() >= expected.items(), output
    assert_bit_identical(theirs, file, image(side, header["in_channels"]))


@pytest.mark.parametrize("name", GENERATORS)
def test_export_restores_the_imported_tensors(name, run_cli, import_tensors):
    make, _, options, _ = GENERATORS[name]
    before = randomise(make()).state_dict()
    file, _ = import_tensors(before, *options)
    to = "pix2pixhd" if "global" in name else "junyanz"
    result = run_cli("export", file, "--to", to, "-o", "back.pth")
    assert result.exit_code == 0, result.output
    after = torch.load("back.pth", weights_only=True)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)


def test_an_imported_generator_translates_like_its_code(run_cli, import_tensors):
    theirs = randomise(UnetGenerator(3, 3, 6, 2, dropout=True))
    file, _ = import_tensors(theirs.state_dict(), "--test-mode", "eval")
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(photo).save("photo.png")
    result = run_cli("translate", file, "photo.png", "-o", "out.png", "--device", "cpu")
    assert result.exit_code == 0, result.output
    x = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1
    expected = ((translate(theirs, x, "eval")[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(Image.open("out.png")) - expected).max() < 0.51


def test_the_commands_of_the_readme_work(run_cli):
    page = Path(p2pzoo_export.__file__).with_name("README.md").read_text("utf-8")
    section = page.partition("## Weights of other codes")[2].partition("\n## ")[0]
    commands = "".join(re.findall("```sh\n(.*?)```", section, re.DOTALL)).splitlines()
    assert [command.split()[1] for command in commands] == ["import", "translate", "export"]
    theirs = randomise(UnetGenerator(3, 3, 8, 4, dropout=True)).state_dict()
    torch.save(theirs, "latest_net_G.pth")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save("photo.png")
    for command in commands:
        if command.startswith("p2pzoo export"):  # export overwrites nothing
            Path("latest_net_G.pth").unlink()
        result = run_cli(*shlex.split(command, comments=True)[1:])
        assert result.exit_code == 0, result.output
    assert Image.open("out.png").size == (256, 256)
    back = torch.load("latest_net_G.pth", weights_only=True)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "num_batches" not in name},
        lambda tensors: {"epoch": 3, "state_dict": tensors},
        lambda tensors: {"params": tensors},
        lambda tensors: {"params": {name: torch.zeros_like(t) for name, t in tensors.items()}, "params_ema": tensors},
    ],
    ids=["DataParallel", "torch before 0.4.1", "nested", "BasicSR", "BasicSR, with an average"],
)
def test_wrappers_of_the_state_dict_are_removed(change, import_tensors):
    theirs = randomise(UnetGenerator(3, 3, 6, 2, dropout=True))
    file, _ = import_tensors(change(theirs.state_dict()))
    assert_bit_identical(theirs, file, image(64))


@pytest.mark.parametrize("network", [UnetGenerator(3, 3, 6, 2, norm="instance"), ResnetGenerator(3, 3, 6, 2)])
def test_running_statistics_of_old_instance_norms_are_left_out_with_a_note(network, import_tensors):
    theirs = randomise(network)
    tensors = dict(theirs.state_dict())
    for name, module in theirs.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            tensors[f"{name}.running_mean"] = torch.randn(module.num_features)
            tensors[f"{name}.running_var"] = torch.rand(module.num_features)
    options = ("-s", "noise=none") if isinstance(theirs, UnetGenerator) else ()
    file, output = import_tensors(tensors, *options)
    assert "running statistics of instance norms" in output
    assert_bit_identical(theirs, file, image(64))


def test_guesses_are_printed_with_the_option_that_sets_them(import_tensors):
    tensors = UnetGenerator(3, 3, 6, 2).state_dict()
    file, output = import_tensors(tensors)
    assert "-s noise=none" in output
    assert "64×64" in output
    assert load_tensors(file)[1]["test_mode"] == "paper"
    file, output = import_tensors(tensors, "-s", "noise=none", "--size", "128", "--test-mode", "eval")
    assert "guessed" not in output
    header = load_tensors(file)[1]
    assert (header["size"], header["test_mode"]) == ([128, 128], "eval")


@pytest.mark.parametrize(("scale", "stored"), [("0.5", 0.5), ("native", 1.0)])
def test_a_scale_is_stored_and_translate_does_not_ask_for_it(scale, stored, run_cli, import_tensors):
    tensors = UnetGenerator(3, 3, 5, 1).state_dict()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("x.png")
    file, _ = import_tensors(tensors)
    assert "give their scale" in run_cli("translate", file, "x.png", "-o", "y.png").output
    file, _ = import_tensors(tensors, "--scale", scale)
    assert load_tensors(file)[1]["file_layout"]["scale"] == [stored, stored]
    result = run_cli("translate", file, "x.png", "-o", "y.png", "--force")
    assert result.exit_code == 0
    assert "warning" not in result.output


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "65", "half"])
def test_a_scale_that_is_none_is_refused(scale, run_cli):
    torch.save(UnetGenerator(3, 3, 5, 1).state_dict(), "their.pth")
    result = run_cli("import", "their.pth", "-o", "model.safetensors", "--scale", scale)
    assert result.exit_code == 2
    assert f"--scale {scale}: give native, or a number above 0 and up to 64" in result.output


def test_a_discriminator_has_no_scale(run_cli):
    torch.save(NLayerDiscriminator(6, 2).state_dict(), "their.pth")
    result = run_cli("import", "their.pth", "-o", "model.safetensors", "--scale", "0.5")
    assert result.exit_code == 2
    assert "holds a discriminator, which translates no images: remove --scale" in result.output


def test_half_precision_weights_are_read_exactly(import_tensors):
    theirs = randomise(ResnetGenerator(3, 3, 6, 2)).half()
    file, _ = import_tensors(theirs.state_dict())
    assert_bit_identical(theirs.float(), file, image(32))


DISCRIMINATORS = {  # name: (their network, parameters that are inferred)
    "70 px": (lambda: NLayerDiscriminator(6, 2), {"use": "pix2pix:patch", "receptive_field": 70}),
    "16 px": (lambda: NLayerDiscriminator(6, 2, strided=1), {"receptive_field": 16, "conditional": True}),
    "142 px": (lambda: NLayerDiscriminator(6, 2, strided=4), {"receptive_field": 142}),
    "286 px": (lambda: NLayerDiscriminator(6, 2, strided=5), {"use": "pix2pix:image"}),
    "instance norm": (lambda: NLayerDiscriminator(6, 2, norm="instance"), {"norm": "instance"}),
    "no norm": (lambda: NLayerDiscriminator(6, 2, norm="none"), {"norm": "none"}),
    "biased batch norm": (lambda: NLayerDiscriminator(6, 2, biased=True), {"norm": "batch", "bias": "lua"}),
    "unconditional": (lambda: NLayerDiscriminator(3, 2), {"conditional": False}),
    "pixel": (lambda: PixelDiscriminator(6, 2), {"use": "pix2pix:pixel"}),
    "pixel, instance norm": (lambda: PixelDiscriminator(6, 2, norm="instance"), {"norm": "instance"}),
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_is_bit_identical_and_returns_unchanged(name, run_cli, import_tensors):
    make, expected = DISCRIMINATORS[name]
    theirs = randomise(make())
    file, output = import_tensors(theirs.state_dict())
    tensors, header = load_tensors(file)
    part = header["discriminator"]
    assert {**part["params"], "use": part["use"]}.items() >= expected.items(), output
    D = restore_network(tensors, ModelHeader.parse(header, file, "discriminator"), file, registry())
    x, y = image(128).split(1)
    pair = torch.cat([x, y], 1) if part["params"]["conditional"] else y
    for training in (False, True):
        [logits] = D.train(training)(x, y)
        assert torch.equal(logits, theirs.train(training)(pair))
    before = randomise(make()).state_dict()
    assert run_cli("export", file, "--to", "junyanz", "-o", "back.pth").exit_code == 0
    after = torch.load("back.pth", weights_only=True)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_run_starts_from_an_imported_discriminator(run_cli, import_tensors, tiny, tmp_path):
    theirs = randomise(NLayerDiscriminator(6, 8))
    file, _ = import_tensors(theirs.state_dict())

    def load_experiment(*overrides):
        return config.load(str(tiny), "smoke", ["discriminator.receptive_field=70", *overrides])

    experiment = load_experiment(f'init.discriminator="{tmp_path / file}"')
    D = make_discriminator(experiment, (3, 3), (64, 64))
    x, y = image(64).split(1)
    assert torch.equal(D.eval()(x, y)[0], theirs.eval()(torch.cat([x, y], 1)))
    assert experiment.id != load_experiment().id


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_checkpoint_of_mmagic_is_bit_identical_and_returns_unchanged(norm, run_cli, import_tensors):
    G = UnetGenerator(3, 3, 6, 2, norm=norm, dropout=True, block=MmagicBlock)
    theirs = randomise(Mmagic(G, MmagicPatch(6, 2, norm=norm)))
    checkpoint = {"meta": {"iter": 4}, "state_dict": theirs.state_dict()}

    file, _ = import_tensors(checkpoint)
    assert_bit_identical(theirs.generator, file, image(64))
    assert run_cli("export", file, "--to", "mmagic", "-o", "back.pth").exit_code == 0

    file, _ = import_tensors(checkpoint, "--part", "discriminator")
    tensors, header = load_tensors(file)
    D = restore_network(tensors, ModelHeader.parse(header, file, "discriminator"), file, registry()).eval()
    x, y = image(64).split(1)
    assert torch.equal(D(x, y)[0], theirs.eval().discriminator(torch.cat([x, y], 1)))
    assert run_cli("export", file, "--to", "mmagic", "-o", "back_D.pth").exit_code == 0

    back = {n: t for f in ("back.pth", "back_D.pth") for n, t in torch.load(f)["state_dict"].items()}
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_unet_of_p2pzoo_is_exported_with_its_skip_halves_swapped(run_cli):
    ours = randomise(UNet(3, 3, (64, 64), width=2, dropout="pytorch"))
    header = {"generator": {"use": "unet", "params": {"width": 2, "dropout": "pytorch"}}, "size": [64, 64]}
    save_model(Path("ours.safetensors"), ours, {**header, "in_channels": 3, "out_channels": 3})
    result = run_cli("export", "ours.safetensors", "--to", "junyanz", "-o", "G.pth")
    assert "outputs differ by rounding" in result.output
    theirs = UnetGenerator(3, 3, 6, 2, dropout=True)
    theirs.load_state_dict(torch.load("G.pth"))
    for mode in ("paper", "eval"):
        y_hat, expected = translate(ours, image(64), mode), translate(theirs, image(64), mode)
        assert torch.allclose(y_hat, expected, rtol=0, atol=1e-5)


# --- bad input ---------------------------------------------------------------------------------------------------


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


class Foreign(nn.Module):
    pass


def import_refused(run_cli, *options):
    result = run_cli("import", "their.pth", "-o", "model.safetensors", *options)
    assert result.exit_code == 2, result.output
    assert not os.path.exists("model.safetensors")
    assert "Traceback" not in result.output
    return result.output


def test_files_of_torch_before_1_6_are_imported(run_cli):
    theirs = randomise(ResnetGenerator(3, 3, 6, 2))
    torch.save(theirs.state_dict(), "their.pth", _use_new_zipfile_serialization=False)
    assert run_cli("import", "their.pth", "-o", "model.safetensors").exit_code == 0
    assert_bit_identical(theirs, Path("model.safetensors"), image(32))


@pytest.mark.parametrize("protocol", ["zip", "torch before 1.6", 0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_with_the_name_of_the_code(protocol, run_cli):
    if isinstance(protocol, str):
        torch.save({"weight": Hostile()}, "their.pth", _use_new_zipfile_serialization=protocol == "zip")
    else:
        with open("their.pth", "wb") as file:
            pickle.dump(Hostile(), file, protocol=protocol)
    output = import_refused(run_cli)
    assert re.search(r"refused: .*'(posix|os|nt)\.mkdir'", output), output
    assert output.count("\n") == 1
    assert not os.path.exists("harmed")


def test_a_pickled_network_is_refused_with_advice_to_save_its_weights(run_cli):
    torch.save(Foreign(), "their.pth")
    output = import_refused(run_cli)
    assert "Foreign'" in output
    assert "state_dict()" in output


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch before 1.6"])
def test_a_truncated_file_is_refused_wherever_it_ends(zipped, run_cli):
    torch.save(UnetGenerator(3, 3, 6, 1).state_dict(), "whole.pth", _use_new_zipfile_serialization=zipped)
    with open("whole.pth", "rb") as file:
        content = file.read()
    for length in (0, 1, 10, 100, len(content) // 2, len(content) - 1):
        with open("their.pth", "wb") as file:
            file.write(content[:length])
        assert "their.pth: not a complete file of torch.save; copy or download it again\n" in import_refused(run_cli)


def test_tensors_that_repeat_their_values_are_refused_before_they_are_copied(run_cli):
    state = UnetGenerator(3, 3, 6, 1).state_dict()
    state["model.model.0.weight"] = torch.zeros(1).expand(2**14, 3, 4, 2**14)
    torch.save(state, "their.pth")
    output = import_refused(run_cli)
    assert "their.pth: its tensors have 12,884," in output
    assert output.count("\n") == 1


def test_files_of_other_kinds_are_named(run_cli, import_tensors):
    assert "no such file" in import_refused(run_cli)
    os.mkdir("their.pth")
    assert "a folder" in import_refused(run_cli)
    os.rmdir("their.pth")
    save_file({"weight": torch.zeros(2)}, "their.pth")
    assert "a safetensors file" in import_refused(run_cli)
    file, _ = import_tensors(ResnetGenerator(3, 3, 6, 1).state_dict())
    os.replace(file, "their.pth")
    assert "already a model of p2pzoo" in import_refused(run_cli)
    with open("their.pth", "wb") as text:
        text.write(b"<html>404</html>" * 99)
    assert "not a complete file" in import_refused(run_cli)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not the state dict of a network"),
        ({}, "not the state dict of a network"),
        ({"epoch": 3, "lr": 0.1}, "not the state dict of a network; it has epoch, lr"),
        ({"model.0.weight": torch.zeros(2, 3, dtype=torch.float64)}, "float64"),
        (
            {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)},
            "unknown format, with tensors 'fc.weight', 'fc.bias'",
        ),
        ({"model.model.0.weight": torch.zeros(())}, "unknown format"),
        ({"model.x.conv_block.y.weight": torch.zeros(1)}, "unknown format"),
        ({"model.10.conv_block.1.weight": torch.zeros(1)}, "unknown format"),
    ],
)
def test_files_without_a_network_are_refused_in_one_or_two_lines(content, message, run_cli):
    torch.save(content, "their.pth")
    output = import_refused(run_cli)
    assert message in output
    assert output.count("\n") <= 2


def test_an_unknown_format_is_compared_with_the_nearest_known_one(run_cli):
    tensors = UnetGenerator(3, 3, 6, 2).state_dict()
    del tensors["model.model.3.bias"]
    tensors["attention.weight"] = torch.zeros(1)
    tensors["model.model.0.weight"] = torch.zeros(2, 3, 3, 3)
    torch.save(tensors, "their.pth")
    output = import_refused(run_cli)
    assert "the nearest is generator 'unet' of junyanz" in output
    assert "'model.model.3.bias' is missing" in output
    assert "'attention.weight' has no counterpart" in output
    assert "'model.model.0.weight' has shape [2, 3, 3, 3], not [2, 3, 4, 4]" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-s", "wdth=3"), "did you mean 'width'?"),
        (("-s", "noise"), "-s param=value"),
        (("-s", "width=3"), "not [3, 3, 4, 4]"),
        (("-s", "noise=gaussian"), 'has no noise = "gaussian"'),
        (("--size", "65"), "65×65 does not fit"),
        (("--part", "discriminator"), "unknown format"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, run_cli):
    torch.save(UnetGenerator(3, 3, 6, 2).state_dict(), "their.pth")
    assert message in import_refused(run_cli, *options)


def test_nothing_is_overwritten_without_force(run_cli, import_tensors):
    file, _ = import_tensors(ResnetGenerator(3, 3, 6, 1).state_dict())
    for arguments in (("import", "their.pth"), ("export", file, "--to", "junyanz")):
        result = run_cli(*arguments, "-o", "model.safetensors")
        assert result.exit_code == 2
        assert "already exists; --force overwrites it" in result.output


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("junyans", "did you mean 'junyanz'?"),
        ("pix2pixhd", "the format 'pix2pixhd' cannot hold generator 'resnet:resnet6'; junyanz can"),
    ],
)
def test_export_to_a_format_that_cannot_hold_the_network_is_refused(to, message, run_cli, import_tensors):
    file, _ = import_tensors(ResnetGenerator(3, 3, 6, 1).state_dict())
    result = run_cli("export", file, "--to", to, "-o", "back.pth")
    assert result.exit_code == 2
    assert message in result.output
    assert not os.path.exists("back.pth")
