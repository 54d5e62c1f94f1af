"""Models with a process: their files, translations, samples, tiles and exports."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from p2pzoo_export.graphs import export_graph
from p2pzoo_export.weights import export_weights
from PIL import Image
from torch import nn

import p2pzoo
from p2pzoo.images.rows import Rows
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import load_network
from p2pzoo.models.safetensors_io import load_tensors, save_model_tensors
from p2pzoo.models.test_modes import translate
from p2pzoo.models.tiling import Tiling
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


@pytest.fixture(scope="module")
def folders(run, tmp_path_factory):
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

    @pytest.mark.parametrize("name", ["a flow", "a bridge", "a bridge of one step"])
    def test_bf16_gives_the_same_image_to_a_level_or_two(self, folders, name):
        exact, fast = (p2pzoo.load(folders[name], device="cpu", precision=each) for each in ("fp32", "bf16"))
        y, y_hat = (model.translate(IMAGE, test_mode="eval", scale="native").astype(int) for model in (exact, fast))
        assert 0 < abs(y - y_hat).mean() < 1
        assert np.array_equal(y_hat, fast.translate(IMAGE, test_mode="eval", scale="native"))

    def test_eval_mode_is_as_exact_as_for_other_models(self, model):
        x = torch.rand(2, 3, 64, 64) * 2 - 1
        torch.testing.assert_close(
            model.translate(x, test_mode="eval"), translate(model.G, x, "eval"), atol=1e-5, rtol=0
        )

    def test_a_process_that_draws_noise_gives_samples(self, folders):
        model = p2pzoo.load(folders["a flow"], device="cpu")
        first, second = model.samples(IMAGE, 2)
        assert not np.array_equal(first, second)
        with pytest.raises(ValueError, match="uses no random numbers"):
            p2pzoo.load(folders["a bridge of one step"], device="cpu").samples(IMAGE, 2)


class TestParametersAtUse:
    def test_fewer_steps_are_those_of_a_model_that_was_trained_with_them(self, folders):
        model = p2pzoo.load(folders["diffusion"], device="cpu", process={"steps": 1, "eta": 0})
        assert model.header.process.params.items() >= {"steps": 1, "eta": 0.0}.items()
        assert len(model.G.plan) == 0
        assert not np.array_equal(model.translate(IMAGE), p2pzoo.load(folders["diffusion"]).translate(IMAGE))

    def test_the_command_takes_them_and_keeps_them_in_the_file(self, folders, run_cli, tmp_path):
        np.save(tmp_path / "image.npy", IMAGE)
        arguments = (tmp_path / "image.npy", "-o", tmp_path / "out.png", "--steps", 1, "-s", "process.eta=0.5")
        assert run_cli("translate", folders["a flow"], *arguments).exit_code == 0
        with Image.open(tmp_path / "out.png") as picture:
            assert json.loads(picture.text["p2pzoo"])["process"] == {"steps": 1, "eta": 0.5}

    def test_evaluate_measures_what_translate_gives(self, folders):
        one = p2pzoo.evaluate(folders["a flow"], metrics="l1", process={"steps": 1})
        same = p2pzoo.evaluate(folders["a flow"], metrics="l1", overrides=["evaluate.process.steps=1"])
        other = p2pzoo.evaluate(folders["a flow"], metrics="l1")
        assert one.metrics == same.metrics != other.metrics
        [protocol] = one.results["protocols"].values()
        assert protocol["process"] == {"steps": 1}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("-s", "process.sigma=1"), "process 'process:flow': 'sigma' cannot differ from the training: only steps"),
            (("-s", "generator.width=9"), "generator 'pix2pix:unet': 'width' cannot differ from the training"),
            (("-s", "steps=9"), "a trained model takes -s process.PARAM=VALUE and -s generator.PARAM=VALUE"),
        ],
    )
    def test_other_parameters_are_refused_in_one_line(self, folders, run_cli, tmp_path, given, message):
        np.save(tmp_path / "image.npy", IMAGE)
        result = run_cli("translate", folders["a flow"], tmp_path / "image.npy", "-o", tmp_path / "o.png", *given)
        assert result.exit_code == 2
        assert message in result.output.splitlines()[-1]

    def test_a_model_without_a_process_says_so(self):
        with pytest.raises(UserError, match="this model has no process that could take steps"):
            p2pzoo.load("zoo:earth-small", device="cpu", process={"steps": 2})

    def test_evaluate_names_the_place_of_a_parameter_at_use(self, folders):
        with pytest.raises(UserError, match=r"write -s evaluate.process.steps=2 for a parameter that may differ"):
            p2pzoo.evaluate(folders["a flow"], overrides=["process.steps=2"])


class TestTiles:
    @pytest.fixture
    def local(self, folders):
        """A flow whose G looks at single pixels: what tiles differ in could only be their noise."""
        torch.manual_seed(0)
        process = p2pzoo.create("process", "flow", in_channels=3, out_channels=3, steps=3, eta=1.0)
        G = nn.Sequential(nn.Conv2d(process.channels, 3, 1), nn.Tanh())
        header = p2pzoo.load(folders["a flow"], device="cpu").header
        return Model(process.sampler(G), replace(header, size_divisor=1), torch.device("cpu"))

    def test_all_tiles_of_an_image_see_one_noise(self, local):
        image = np.random.default_rng(0).integers(0, 256, (300, 310, 3), dtype=np.uint8)
        small, large, other = (
            local.translate(image, test_mode="eval", tile=side, scale="native", seed=seed).astype(int)
            for side, seed in ((64, 0), (280, 0), (64, 1))
        )
        assert abs(small - large).max() <= 1
        assert abs(small - other).mean() > 5

    def test_images_have_noise_of_their_own(self, local):
        first, second = (
            local.translate(np.full((80, 80, 3), value, np.uint8), test_mode="eval", tile=64, scale="native")
            for value in (0, 1)
        )
        assert abs(first.astype(int) - second).mean() > 5

    def test_an_image_that_is_read_in_bands_has_the_same_pixels(self, local):
        image = np.random.default_rng(0).integers(0, 256, (150, 90, 3), dtype=np.uint8)
        bands = local.translate_rows(Rows.of(image), Tiling.of(64, None, 1))
        expected = local.translate(image, test_mode="eval", tile=64, scale="native")
        assert np.array_equal(np.concatenate([*bands]), expected)

    def test_a_sampler_that_takes_no_noise_is_refused(self, local):
        class Own(nn.Module):
            def forward(self, x):
                return torch.tanh(torch.randn_like(x))

        model = Model(Own(), local.header, torch.device("cpu"))
        with pytest.raises(ValueError, match="draws its own noise, which would differ from tile to tile"):
            model.translate(IMAGE, test_mode="eval", tile=32, scale="native")

    def test_without_noise_they_are_those_of_any_model(self, folders):
        model = p2pzoo.load(folders["a bridge of one step"], device="cpu")
        with pytest.warns(UserWarning, match="GroupNorm normalises by statistics of its input"):
            assert model.translate(IMAGE, test_mode="eval", tile=32, scale="native").shape == IMAGE.shape


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
    @pytest.mark.parametrize(
        ("name", "to", "mode"),  # the next test exports to onnx in eval mode
        [("a flow", "torch-export", "eval"), ("a bridge", "torch-export", "paper"), ("a flow", "onnx", "paper")],
    )
    def test_a_graph_takes_the_noise_as_an_input(self, folders, tmp_path, name, to, mode):
        model = p2pzoo.load(folders[name], device="cpu")
        result = export_graph(model, tmp_path / "model", to, test_mode=mode)
        assert result.difference < 1e-5
        assert any("a second input, noise (B, " in note for note in result.notes)

    def test_the_file_describes_the_noise_and_other_noise_gives_another_image(self, folders, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime")
        model = p2pzoo.load(folders["a flow"], device="cpu")
        result = export_graph(model, tmp_path / "model.onnx", "onnx", test_mode="eval")
        assert result.difference < 1e-5
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        described = json.loads(session.get_modelmeta().custom_metadata_map["p2pzoo"])["noise"]
        assert described == {"name": "noise", "layout": "NKCHW", "draws": 2, "channels": 3, "values": "N(0, 1)"}
        assert session.get_inputs()[1].shape == ["batch", 2, 3, "height", "width"]
        x = np.zeros((1, 3, 64, 64), np.float32)
        noise = np.random.default_rng(0).standard_normal((2, 1, 2, 3, 64, 64), np.float32)
        first, second = (session.run(None, {"x": x, "noise": each})[0] for each in noise)
        assert np.abs(first - second).max() > 0.01

    def test_a_sampler_that_takes_no_noise_is_refused(self, folders, tmp_path):
        class Own(nn.Module):
            def forward(self, x):
                return torch.tanh(torch.randn_like(x))

        model = Model(Own(), p2pzoo.load(folders["a flow"], device="cpu").header, torch.device("cpu"))
        with pytest.raises(UserError, match="it must take it as an argument"):
            export_graph(model, tmp_path / "model.onnx", "onnx")
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
