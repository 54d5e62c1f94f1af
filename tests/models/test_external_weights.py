"""Weights from elsewhere that never learn: LoRA on a frozen encoder of timm (arXiv:2106.09685).

Random weights of a fixed seed stand in for pretrained ones.
"""

import json

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, only, outcome, simulate_kill
from torch import nn

import p2pzoo
from p2pzoo.compute.engine import Engine
from p2pzoo.config.settings import Compute, Init, Optimizer
from p2pzoo.models.external_weights import check_digest, digest_external
from p2pzoo.models.initialization import initialize_weights
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.training.kept_average import KeptAverage
from p2pzoo.training.weight_average import WeightAverage
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.external_weights import external_names, own_parameters, share_external

PLUGIN = '''
import os
from pathlib import Path
import timm
import torch
from torch import nn
import p2pzoo


class LowRank(nn.Module):
    """A 1×1 convolution whose weights are W + B A: W is external, A and B are of rank `rank` (arXiv:2106.09685)."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, rank, 1, bias=False)
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        self.init_own_weights()

    def init_own_weights(self):
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Lora(nn.Module):
    """An encoder of timm with low-rank matrices, and a decoder."""

    size_divisor = 32

    def __init__(self, in_channels, out_channels, *, rank: int = 2, weights: Path | None = None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(os.environ.get("PRETRAINED", 7)))  # in place of a download
            self.encoder = timm.create_model("mobilenetv3_small_050", features_only=True, in_chans=in_channels)
        self.external_weights = tuple(f"encoder.{name}" for name in self.encoder.state_dict())
        self.replace(self.encoder, rank)
        names = [name for name in self.encoder.state_dict() if ".down." not in name and ".up." not in name]
        self.external_weights = tuple(f"encoder.{name}" for name in names)
        channels = self.encoder.feature_info.channels()
        self.decoder = nn.Sequential(
            nn.Conv2d(channels[0], 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(8, out_channels, 3, padding=1), nn.Tanh(),
        )
        self.deep = nn.Conv2d(channels[-1], channels[0], 1)

    def replace(self, module, rank):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and child.groups == 1:
                setattr(module, name, LowRank(child, rank))
            else:
                self.replace(child, rank)

    def train(self, mode=True):
        super().train(mode)
        self.encoder.eval()  # its norms keep their statistics
        return self

    def forward(self, x):
        features = self.encoder(x)
        deep = nn.functional.interpolate(self.deep(features[-1]), features[0].shape[2:])
        return self.decoder(features[0] + deep)


class FrozenD(nn.Module):
    """A discriminator on a frozen convolution, which its `init_own_weights` puts in place."""

    external_weights = ("first",)

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.first = nn.Conv2d(in_channels + out_channels, 8, 4, stride=4)
        self.last = nn.Conv2d(8, 1, 1)

    def init_own_weights(self):
        generator = torch.Generator().manual_seed(int(os.environ.get("PRETRAINED", 7)))
        with torch.no_grad():
            self.first.weight.copy_(torch.randn(self.first.weight.shape, generator=generator) / 10)
            self.first.bias.zero_()

    def forward(self, x, y):
        return [self.last(h) for [h] in self.features(x, y)]

    def features(self, x, y):
        return [[self.first(torch.cat([x, y], 1)).relu()]]


class Drifting(Lora):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class Misspelt(Lora):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.external_weights = ("encode",)


@p2pzoo.hookimpl
def register_generators(register):
    register("lora", Lora)
    register("misspelt", Misspelt)
    register("drifting", Drifting)


@p2pzoo.hookimpl
def register_discriminators(register):
    register("frozen", FrozenD)
'''
LORA = ('generator={use="lora"}', 'discriminator={use="frozen"}')
OWN = ("down.weight", "up.weight")


@pytest.fixture(autouse=True)
def plugin(install):
    install("lora_plugin", PLUGIN)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The runs folder of the recipe itself, which tests only read."""
    return tmp_path_factory.mktemp("shared") / "runs"


@pytest.fixture
def trained(run, tmp_path, shared):
    """trained("train.ema=0.9", …): the folder of a complete run."""

    def trained(*overrides):
        runs = tmp_path / "runs" if overrides else shared
        if not runs.exists():
            result = run(runs, *LORA, *overrides)
            assert result.exit_code == 0, result.output
        return only(runs)

    return trained


class TestFiles:
    def test_a_model_file_holds_the_low_rank_matrices_and_the_decoder_alone(self, trained):
        folder = trained()
        for file in ("model.safetensors", "average.safetensors"):
            tensors, header = load_tensors(folder / file)
            assert all(name.endswith(OWN) or name.startswith(("decoder.", "deep.")) for name in tensors)
            assert any(name.endswith("up.weight") and tensor.any() for name, tensor in tensors.items()), "it learns"
            assert len(header["external_weights"]) == 64
        assert (folder / "model.safetensors").stat().st_size < 200_000

    def test_checkpoints_hold_no_external_weights_of_g_and_d_and_no_moments_of_them(self, trained):
        folder = trained("train.ema=0.9", "train.pool_size=2")
        tensors, header = load_tensors(max(folder.glob("checkpoints/*.safetensors")))
        assert not [name for name in tensors if ".base." in name or ".bn" in name or name.startswith("D.first")]
        assert {"G", "D"} == header["external_weights"].keys()
        own = sum(name.startswith("G.") for name in tensors)
        assert sum(name.startswith("average.") for name in tensors) == own
        assert len({name.split(".")[1] for name in tensors if name.startswith("G_adam.")}) == own
        assert len({name.split(".")[1] for name in tensors if name.startswith("D_adam.")}) == 2

    def test_a_model_is_loaded_with_them(self, trained):
        model = p2pzoo.load(trained(), device="cpu")
        base = {name: tensor for name, tensor in model.G.state_dict().items() if ".base." in name}
        expected = type(model.G)(model.in_channels, model.out_channels).state_dict()
        assert base
        assert all(torch.equal(tensor, expected[name]) for name, tensor in base.items())

    def test_another_digest_is_refused_in_one_line(self, trained, run_cli, monkeypatch):
        folder = trained()
        monkeypatch.setenv("PRETRAINED", "8")
        with pytest.raises(UserError) as raised:
            p2pzoo.load(folder, device="cpu")
        [fault] = raised.value.faults
        assert fault.startswith(f"{folder / 'model.safetensors'}: its generator 'lora_plugin:lora' had other external")
        assert fault.endswith("install the weights that it was trained with")
        result = run_cli("evaluate", folder)
        assert result.exit_code == 2
        assert "other external weights" in result.output

    def test_a_header_without_a_digest_is_refused(self, trained, tmp_path):
        file = trained() / "model.safetensors"
        tensors, header = load_tensors(file)
        del header["external_weights"]
        save_tensors(tmp_path / "model.safetensors", tensors, header)
        with pytest.raises(UserError, match=r"when it was written: none, and brings those of SHA-256 \w{12}… now"):
            p2pzoo.load(tmp_path / "model.safetensors", device="cpu")

    def test_a_model_file_starts_another_training(self, trained, run, tmp_path, monkeypatch):
        start = trained() / "model.safetensors"
        again = trained(f'init.generator="{start}"', "train.images=1", "optimizer.lr=1e-12")
        before, after_ = (load_tensors(file)[0] for file in (start, again / "model.safetensors"))
        torch.testing.assert_close(before, after_)
        monkeypatch.setenv("PRETRAINED", "8")
        result = run(tmp_path / "other", *LORA, f'init.generator="{start}"')
        assert result.exit_code == 2
        assert "had other external weights when it was written" in result.output


class TestRuns:
    @pytest.mark.parametrize(
        "overrides",
        [
            ("train.ema=0.9",),
            pytest.param(("train.accumulate=2", "train.batch_size=2"), marks=pytest.mark.slow),
            pytest.param(("train.spectral_norm=discriminator",), marks=pytest.mark.slow),
        ],
    )
    def test_a_killed_run_resumes_with_bit_identical_results(self, run, tmp_path, overrides):
        assert run(tmp_path / "whole", *LORA, *overrides).exit_code == 0
        with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
            run(tmp_path / "killed", *LORA, *overrides)
        result = run(tmp_path / "killed", *LORA, *overrides)
        assert (result.exit_code, "resuming" in result.output) == (0, True), result.output
        assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")

    def test_a_resume_with_other_weights_is_refused_in_one_line(self, run, tmp_path, monkeypatch):
        with after(STEP, simulate_kill, call=8), pytest.raises(SimulatedKill):
            run(tmp_path, *LORA)
        monkeypatch.setenv("PRETRAINED", "8")
        result = run(tmp_path, *LORA)
        assert result.exit_code == 2
        assert "its G had other external weights when it was written" in result.output.splitlines()[-1]

    def test_norms_that_drift_end_the_run_at_its_first_checkpoint(self, run, tmp_path):
        result = run(tmp_path, *LORA, 'generator={use="drifting"}')
        assert result.exit_code == 2
        assert "training has changed external weights" in result.output.splitlines()[-1]
        assert not [*only(tmp_path).glob("checkpoints/*.safetensors")]

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (('generator={use="misspelt"}',), "external_weights names 'encode', which is no parameter"),
            (('generator={use="lora", weights="file"}',), "its parameter weights is a path, which no model file has"),
        ],
    )
    def test_what_no_file_could_find_again_is_refused_before_training(self, run, tmp_path, overrides, message):
        (tmp_path / "file").touch()
        overrides = [override.replace('"file"', json.dumps(str(tmp_path / "file"))) for override in overrides]
        result = run(tmp_path / "runs", *LORA, *overrides)
        assert result.exit_code == 2
        assert message in result.output.splitlines()[-1]
        assert not (tmp_path / "runs").exists()


class Layers(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
        self.external_weights = ("0", "1.running_mean")


EXTERNAL = {"0.weight", "0.bias", "1.running_mean"}


def test_names_are_those_of_tensors_or_prefixes_of_modules_inside_too():
    assert external_names(Layers()) == EXTERNAL
    assert external_names(nn.ModuleList([nn.ReLU(), Layers()])) == {f"1.{name}" for name in EXTERNAL}
    assert external_names(nn.Conv2d(1, 1, 1)) == set()


def test_a_text_is_no_tuple_of_names():
    network = Layers()
    network.external_weights = "0"
    with pytest.raises(ValueError, match=r"external_weights is the text '0': write a tuple of names, \('0',\)"):
        external_names(network)


def test_init_leaves_them_as_they_are():
    network = Layers()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    initialize_weights(network, Init(weights="normal"), seed=1)
    kept = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    assert kept >= EXTERNAL
    assert "2.weight" not in kept


def test_no_optimizer_and_no_average_has_them():
    network, average = Layers(), Layers()
    optimizer = Engine(Compute(device="cpu", threads=1, keep_memory=False)).build_optimizer(network, Optimizer())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in network.named_parameters() if name not in EXTERNAL}
    assert KeptAverage(network, step_images=1).tensors().keys() == own_parameters(network).keys()

    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    WeightAverage(average, network, decay=0.5).update()
    changed = {name for name, tensor in average.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "2.weight" in changed
    assert not changed & EXTERNAL


def test_the_average_of_g_shares_their_memory():
    network, average = Layers(), Layers()
    share_external(average, network)
    assert average[0].weight.data_ptr() == network[0].weight.data_ptr()
    assert average[1].running_mean.data_ptr() == network[1].running_mean.data_ptr()
    assert average[2].weight.data_ptr() != network[2].weight.data_ptr()


def test_a_digest_is_of_values_and_names():
    network, other = Layers(), Layers()
    other.load_state_dict(network.state_dict())
    assert digest_external(network) == digest_external(other.to(memory_format=torch.channels_last))
    nn.init.zeros_(other[2].weight)
    assert digest_external(network) == digest_external(other)
    nn.init.zeros_(other[0].bias)
    assert digest_external(network) != digest_external(other)
    assert digest_external(nn.Conv2d(1, 1, 1)) is None
    check_digest(None, None, "G", "file")
