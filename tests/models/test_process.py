"""Models with a process: their files, translations, samples, tiles and exports."""

import shutil

import numpy as np
import pytest
import torch
from p2pzoo_export.graphs import export_graph
from p2pzoo_export.weights import export_weights

import p2pzoo
from p2pzoo.models.model_file import load_network
from p2pzoo.models.safetensors_io import load_tensors, save_model_tensors
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import DamagedFile, UserError

OVERRIDES = ("generator.norm=group", "generator.noise=none", "train.images=2", 'drop=["discriminator", "gan_loss"]')
PROCESSES = {
    "a bridge of one step": ("process.use=bridge", "process.steps=1"),
    "a bridge": ("process.use=bridge", "process.steps=3"),
    "a flow": ("process.use=flow", "process.steps=2", "process.eta=0.5"),
    "diffusion": ("process.use=diffusion", "process.steps=2", "process.eta=1"),
}
IMAGE = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
pytestmark = pytest.mark.usefixtures("no_reports")


@pytest.fixture(scope="module")
def folders(run, tmp_path_factory, no_reports):
    """{name: the folder of a run with this process}"""
    found = {}
    for name, overrides in PROCESSES.items():
        runs = tmp_path_factory.mktemp("runs")
        result = run(runs, *OVERRIDES, *overrides)
        assert result.exit_code == 0, result.output
        [found[name]] = runs.glob("*/*")
    return found


@pytest.fixture(params=PROCESSES)
def model(request, folders):
    return p2pzoo.load(folders[request.param], device="cpu")


class TestTranslate:
    @pytest.mark.parametrize("mode", ["paper", "eval"])
    def test_an_image_has_one_translation_of_its_size(self, model, mode):
        y_hat = model.translate(IMAGE, test_mode=mode, scale="native")
        assert (y_hat.shape, y_hat.dtype) == (IMAGE.shape, np.uint8)
        torch.rand(3)  # noise does not depend on what was drawn before
        assert np.array_equal(model.translate(IMAGE, test_mode=mode, scale="native"), y_hat)

    def test_both_test_modes_agree_without_dropout(self, model):
        """Group norm has no running statistics, and the noise is seeded by the image in both."""
        x = torch.rand(1, 3, 64, 64) * 2 - 1
        torch.testing.assert_close(translate(model.G, x, "eval"), translate(model.G, x, "paper"))

    def test_images_of_a_batch_are_independent(self, model):
        x = torch.rand(2, 3, 64, 64) * 2 - 1
        both = model.translate(x, test_mode="eval")
        torch.testing.assert_close(both[:1], model.translate(x[:1], test_mode="eval"), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("mode", ["paper", "eval"])
    def test_another_seed_is_another_sample_in_both_modes(self, folders, mode):
        model = p2pzoo.load(folders["a flow"], device="cpu")
        x = torch.rand(3, 64, 64) * 2 - 1
        first, second = (model.translate(x, test_mode=mode, seed=seed) for seed in (0, 1))
        assert not torch.equal(first, second)
        assert torch.equal(first, model.translate(x, test_mode=mode))

    def test_noise_needs_fp32(self, folders):
        with pytest.raises(ValueError, match="a process computes in fp32"):
            p2pzoo.load(folders["a flow"], device="cpu", precision="bf16").translate(IMAGE, test_mode="eval")
        model = p2pzoo.load(folders["a bridge of one step"], device="cpu", precision="bf16")
        assert model.translate(IMAGE, test_mode="eval", scale="native").shape == IMAGE.shape

    def test_a_process_that_draws_noise_gives_samples(self, folders):
        model = p2pzoo.load(folders["a flow"], device="cpu")
        first, second = model.samples(IMAGE, 2)
        assert not np.array_equal(first, second)
        with pytest.raises(ValueError, match="uses no random numbers"):
            p2pzoo.load(folders["a bridge of one step"], device="cpu").samples(IMAGE, 2)


class TestTiles:
    def test_with_noise_they_are_refused(self, folders):
        with pytest.raises(ValueError, match="'process:flow' draws noise, which would differ from tile to tile"):
            p2pzoo.load(folders["a flow"], device="cpu").translate(IMAGE, test_mode="eval", tile=64)

    def test_without_noise_they_are_those_of_any_model(self, folders):
        model = p2pzoo.load(folders["a bridge of one step"], device="cpu")
        with pytest.warns(UserWarning, match="GroupNorm normalises by statistics of its input"):
            assert model.translate(IMAGE, test_mode="eval", tile=32, scale="native").shape == IMAGE.shape

    def test_the_command_says_so_in_one_line(self, folders, run_cli, tmp_path):
        np.save(tmp_path / "image.npy", IMAGE)
        arguments = (tmp_path / "image.npy", "-o", tmp_path / "out", "--test-mode", "eval", "--tile", 64)
        result = run_cli("translate", folders["diffusion"], *arguments)
        assert result.exit_code == 2
        assert result.output.splitlines()[-1].startswith("the process 'process:diffusion' draws noise")


class TestFile:
    @pytest.fixture
    def changed(self, folders, tmp_path):
        """changed(use=…): the file of a flow whose header says this of its process."""

        def changed(**values):
            tensors, header = load_tensors(folders["a flow"] / "model.safetensors")
            header["process"] |= values
            file = tmp_path / "changed.safetensors"
            save_model_tensors(file, tensors, {key: value for key, value in header.items() if key != "format"})
            return file

        return changed

    def test_the_file_suffices(self, folders, tmp_path):
        file = tmp_path / "moved.safetensors"
        shutil.copy(folders["a bridge"] / "model.safetensors", file)
        sampler, header = load_network(file, registry())
        assert (header.process.use, header.process.params["steps"]) == ("process:bridge", 3)
        assert sampler(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)

    def test_a_missing_plugin_is_named(self, changed):
        with pytest.raises(UserError, match=r"no process 'odd:jump'.*with the plugin 'odd-zoo 1.0': install it"):
            load_network(changed(use="odd:jump", source="odd-zoo 1.0 0123456789ab"), registry())

    @pytest.mark.parametrize(
        ("params", "message"),
        [({"steps": 0}, "steps = 0: input should be"), ({"pace": 1}, "has no parameter 'pace'")],
    )
    def test_bad_parameters_are_errors(self, changed, params, message):
        with pytest.raises(UserError, match=message):
            load_network(changed(params=params), registry())

    def test_a_number_out_of_all_proportion_is_damage(self, changed):
        with pytest.raises(DamagedFile, match="parameter steps is larger"):
            load_network(changed(params={"steps": 10**9}), registry())

    def test_a_header_without_its_process_does_not_fit_the_weights(self, folders, tmp_path):
        tensors, header = load_tensors(folders["a flow"] / "model.safetensors")
        file = tmp_path / "changed.safetensors"
        save_model_tensors(file, tensors, {key: header[key] for key in header if key not in ("format", "process")})
        with pytest.raises(UserError, match=r"shape of tensor 'encoder.0.0.weight'"):
            load_network(file, registry())

    def test_a_changed_plugin_is_reported(self, install, run, tmp_path):
        install("own_process", OWN_PROCESS)
        result = run(tmp_path / "runs", *OVERRIDES, "process.use=own")
        assert result.exit_code == 0, result.output
        [folder] = (tmp_path / "runs").glob("*/*")
        with (tmp_path / "site" / "own_process.py").open("a") as file:
            file.write("# another version\n")
        with pytest.warns(UserWarning, match="its process 'own_process:own' was own_process 1.0"):
            load_network(folder / "model.safetensors", registry())


OWN_PROCESS = """
import torch
import p2pzoo
from torch import nn

class Own:
    def __init__(self, in_channels, out_channels):
        self.channels = in_channels + 1

    def noised(self, x, y, u, z):
        return torch.cat([x, u[:, None, None, None].expand_as(x[:, :1])], 1), u

    def sampler(self, G):
        return Ask(G)

class Ask(nn.Module):
    def __init__(self, G):
        super().__init__()
        self.G = G

    def forward(self, x):
        return self.G(torch.cat([x, torch.ones_like(x[:, :1])], 1))

@p2pzoo.hookimpl
def register_processes(register):
    register("own", Own)
"""


class TestExport:
    @pytest.mark.parametrize("name", ["a bridge", "a flow", "diffusion"])
    def test_a_graph_with_noise_is_refused_with_what_can_be_exported(self, name, folders, tmp_path):
        with pytest.raises(UserError, match="a bridge with steps = 1 or sigma = 0"):
            export_graph(p2pzoo.load(folders[name], device="cpu"), tmp_path / "model.onnx", "onnx")
        assert list(tmp_path.iterdir()) == []

    def test_a_bridge_of_one_step_is_exported(self, folders, tmp_path):
        model = p2pzoo.load(folders["a bridge of one step"], device="cpu")
        result = export_graph(model, tmp_path / "model.pt2", "torch-export", test_mode="eval")
        assert result.difference < 1e-5

    def test_weights_for_another_code_are_refused(self, folders, tmp_path):
        with pytest.raises(UserError, match="belongs to the process 'process:flow'"):
            export_weights(folders["a flow"], "junyanz", tmp_path / "model.pth", registry())


def test_p2pzoo_creates_a_process():
    process = p2pzoo.create("process", "bridge", in_channels=3, out_channels=3, sigma=0.0)
    assert isinstance(process, p2pzoo.plugin.Process)
    assert process.channels == 7
