"""Exported graphs give the outputs of torch, also at sizes that the export did not check; wrong graphs are refused."""

import errno
import importlib
import json
import math
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from p2pzoo_export import graph_check, graphs, onnx_file
from p2pzoo_pix2pix.generators import UNet

import p2pzoo
from p2pzoo.models.safetensors_io import load_tensors, save_model, save_tensors
from p2pzoo.utils.errors import UserError


@pytest.fixture(scope="module")
def exported(trained, run_cli, tmp_path_factory):
    """exported("--fp16"): the file that `p2pzoo export` wrote, and its output."""
    cache = {}

    def exported(*options, to="onnx"):
        if (options, to) not in cache:
            path = tmp_path_factory.mktemp("exported") / "model"
            result = run_cli("export", trained, "--to", to, "-o", path, *options)
            assert result.exit_code == 0, result.output
            cache[options, to] = path, result.output
        return cache[options, to]

    return exported


def images(batch, height, width):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width)) * 2 - 1


def run_onnx(path, x):
    [y_hat] = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    return torch.from_numpy(y_hat)


def load_unet(trained):
    tensors, _ = load_tensors(trained / "model.safetensors")
    G = UNet(3, 3, (64, 64), width=8, depth=3, noise="none")
    G.load_state_dict(tensors)
    return G


def psnr(a, b):
    return 10 * math.log10(4 / (a - b).double().square().mean().item())


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (3, 24, 40), (2, 128, 8)])
def test_a_graph_in_eval_mode_equals_torch_for_any_batch_and_sides(trained, exported, batch, height, width):
    path, output = exported("--test-mode", "eval")
    x = images(batch, height, width)
    with torch.no_grad():
        assert (run_onnx(path, x) - load_unet(trained).eval()(x)).abs().max() < 1e-4
    assert "any sides that are multiples of 8, any batch, 3 channels" in output
    assert (
        "checked  on 6 images of the test split, 64×64, 64×128, 72×64, 32×32, 3 of 64×64: differs from torch by at most"
        in output
    )


def test_a_graph_in_paper_mode_uses_the_statistics_of_the_image_itself(trained, exported):
    path, output = exported()  # the test mode of the recipe
    x = images(1, 64, 72)
    with torch.no_grad():
        own, running = load_unet(trained).train()(x), load_unet(trained).eval()(x)
    assert (run_onnx(path, x) - own).abs().max() < 1e-4
    assert (own - running).abs().max() > 1e-2
    assert "one image at a time" in output
    assert "dropout" not in output


def test_the_file_contains_its_description(trained, exported):
    path, _ = exported("--test-mode", "eval")
    [description] = [json.loads(prop.value) for prop in onnx.load(path).metadata_props if prop.key == "p2pzoo"]
    _, header = load_tensors(trained / "model.safetensors")
    ends = {
        "input": {"name": "x", "layout": "NCHW", "channels": 3, "range": [-1, 1]},
        "output": {"name": "y_hat", "layout": "NCHW", "channels": 3, "range": [-1, 1]},
    }
    assert description == header | ends | {"test_mode": "eval", "precision": "fp32", "p2pzoo": p2pzoo.__version__}
    assert header["test_mode"] == "paper"


def test_free_dimensions_have_names(exported):
    for options, batch in ((("--test-mode", "eval"), "batch"), ((), 1)):
        session = onnxruntime.InferenceSession(str(exported(*options)[0]))
        for [end] in (session.get_inputs(), session.get_outputs()):
            assert end.shape == [batch, 3, "height", "width"]
            assert end.type == "tensor(float)"


@pytest.mark.parametrize("to", ["onnx", "torch-export"], ids=["ONNX", "torch"])
def test_a_file_holds_no_path_of_the_machine_that_wrote_it(to, exported):
    path, _ = exported("--test-mode", "eval", to=to)
    content = path.read_bytes()
    if to == "torch-export":
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    for file in (torch.__file__, UNet.__module__.replace(".", "/"), p2pzoo.__file__):
        assert str(Path(file).parent.parent if Path(file).is_absolute() else file).encode() not in content


@pytest.mark.parametrize(("option", "share", "least"), [("--fp16", 0.5, 60), ("--int8", 0.25, 40)])
def test_the_loss_of_smaller_files_is_reported_and_small(trained, exported, option, share, least):
    path, output = exported("--test-mode", "eval", option)
    fp32_file, _ = exported("--test-mode", "eval")
    weights = (trained / "model.safetensors").stat().st_size
    assert path.stat().st_size - weights * share < 0.6 * fp32_file.stat().st_size - 0.6 * weights + 60_000
    assert path.stat().st_size < fp32_file.stat().st_size
    data, _ = graph_check.load_run_data(trained, p2pzoo.load(trained))
    G = load_unet(trained).eval()
    batches = data.batches()
    with torch.no_grad():
        from_torch = torch.cat([G(batch.x) for batch in batches])
    from_file = torch.cat([run_onnx(path, batch.x) for batch in batches])
    assert f", PSNR {psnr(from_file, from_torch):.0f} dB" in output
    assert psnr(from_file, from_torch) > least
    y = torch.cat([batch.y for batch in batches])
    assert f"costs    {psnr(from_torch, y) - psnr(from_file, y):.3f} dB" in output


def test_int8_weights_have_one_scale_per_output_channel(trained, exported):
    file = onnx.load(exported("--test-mode", "eval", "--int8")[0])
    initializers = {part.name: onnx.numpy_helper.to_array(part) for part in file.graph.initializer}
    producers = {node.output[0]: node for node in file.graph.node}
    convolutions = [node for node in file.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) == 6
    for node in convolutions:
        steps, step = (initializers[name] for name in producers[node.input[1]].input)
        by_channel = np.moveaxis(steps, 0 if node.op_type == "Conv" else 1, 0)
        assert steps.dtype == np.int8
        assert step.shape == by_channel.shape[:1]
        assert (np.abs(by_channel.astype(int)).reshape(len(step), -1).max(1) == 127).all()


class WithoutP2pzoo:
    """A finder that finds no module of p2pzoo."""

    @staticmethod
    def find_spec(name, *_):
        if name.startswith("p2pzoo"):
            raise ModuleNotFoundError(name)


def test_a_torch_export_archive_runs_without_p2pzoo(trained, exported, monkeypatch):
    path, _ = exported("--test-mode", "eval", to="torch-export")
    x, files = images(2, 64, 64), {"p2pzoo.json": ""}
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("p2pzoo")]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "meta_path", [WithoutP2pzoo, *sys.meta_path])
        y_hat = torch.export.load(path, extra_files=files).module()(x)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("p2pzoo")
    assert json.loads(files["p2pzoo.json"])["test_mode"] == "eval"
    with torch.no_grad():
        assert (y_hat - load_unet(trained).eval()(x)).abs().max() < 1e-5


STRANGE_PLUGIN = """
import p2pzoo
from torch import nn

@p2pzoo.hookimpl
def register_generators(register):
    register("fixed", Fixed, summary="One size only", paper="none")
    register("noisy", Noisy, summary="Draws random numbers in forward", paper="none")
    register("alternating", Alternating, summary="Negates every other image", paper="none")
    register("branching", Branching, summary="Negates large images", paper="none")
    register("normed", Normed, summary="Its weights change in training mode", paper="none")
    register("plain", Plain, summary="One convolution", paper="none")
    register("dropping", Dropping, summary="With dropout", paper="none")
    register("refusing", Refusing, summary="Refuses sides that are free in a graph", paper="none")

class Fixed(nn.Module):
    def __init__(self, in_channels, out_channels, size):
        super().__init__()
        self.sides = size
        self.mix = nn.Linear(in_channels * size[0] * size[1], out_channels * size[0] * size[1])

    def forward(self, x):
        return self.mix(x.flatten(1)).reshape(x.shape[0], -1, *self.sides).tanh()

class Noisy(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.mix = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x):
        import torch
        return (self.mix(x) + torch.randn_like(x)).tanh()

class Alternating(Noisy):
    sign = 1

    def forward(self, x):
        self.sign = -self.sign
        return self.sign * self.mix(x).tanh()

class Branching(Noisy):
    def forward(self, x):
        y = self.mix(x).tanh()
        return y if x.shape[2] * x.shape[3] < 100 else -y

class Plain(Noisy):
    def forward(self, x):
        return self.mix(x).tanh()

class Refusing(Noisy):
    def forward(self, x):
        if not all(type(side) is int for side in x.shape[2:]):
            raise ValueError("free sides")
        return self.mix(x).tanh()

class Dropping(Noisy):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.mix(x)).tanh()

class Normed(Plain):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        nn.utils.parametrizations.spectral_norm(self.mix)
        self.mix.parametrizations.weight[0]._u.copy_(nn.functional.normalize(self.mix.bias.detach().flip(0), dim=0))
"""


def save_strange_model(name, path, **fields):
    size = {"size": (8, 8)} if name == "fixed" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G = p2pzoo.create("generator", name, in_channels=3, out_channels=3, **size)
    header = {
        "run": "none", "generator": {"use": f"strange:{name}", "params": {}}, "in_channels": 3, "out_channels": 3,
        "size": [8, 8], "size_divisor": 1, "test_mode": "eval", "x_range": [0, 255], "y_range": [0, 255],
    }  # fmt: skip
    save_model(path, G, header | fields)
    return G.eval()


def test_a_network_with_a_fixed_size_gives_a_graph_with_a_fixed_size(install, run_cli, tmp_path):
    install("strange", STRANGE_PLUGIN)
    G = save_strange_model("fixed", tmp_path / "model.safetensors")
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "onnx", "-o", tmp_path / "model.onnx")
    assert result.exit_code == 0, result.output
    assert "input    x in [-1, 1]: 8×8, any batch" in result.output
    assert "checked  on smooth noise" in result.output
    assert "note     no real images to check it on: the model's folder has no recipe.toml" in result.output
    with torch.no_grad():
        assert (run_onnx(tmp_path / "model.onnx", images(5, 8, 8)) - G(images(5, 8, 8))).abs().max() < 1e-5


def test_sides_are_fixed_if_the_network_behaves_differently_at_other_sides(install, run_cli, tmp_path):
    install("strange", STRANGE_PLUGIN)
    save_strange_model("branching", tmp_path / "model.safetensors")
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "torch-export", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "input    x in [-1, 1]: 8×8, any batch" in result.output


def test_a_network_that_refuses_free_sides_gives_a_graph_with_a_fixed_size(install, run_cli, tmp_path):
    """In test mode paper, where the image of the first attempt is that of the second too."""
    install("strange", STRANGE_PLUGIN)
    save_strange_model("refusing", tmp_path / "model.safetensors", test_mode="paper")
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "torch-export", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "input    x in [-1, 1]: 8×8, one image at a time" in result.output


def test_spectral_norm_keeps_the_weights_of_the_model_file(install, run_cli, tmp_path):
    install("strange", STRANGE_PLUGIN)
    G = save_strange_model("normed", tmp_path / "model.safetensors", test_mode="paper")
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "torch-export", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with torch.no_grad():
        expected = G(images(1, 8, 8))
        assert (torch.export.load(tmp_path / "out").module()(images(1, 8, 8)) - expected).abs().max() < 1e-5
        G.train()(images(1, 8, 8))
        assert (G.eval()(images(1, 8, 8)) - expected).abs().max() > 1e-4


def test_a_recipe_with_images_of_another_shape_is_not_used(install, trained, run_cli, tmp_path):
    install("strange", STRANGE_PLUGIN)
    shutil.copy(trained / "recipe.toml", tmp_path)
    save_strange_model("noisy", tmp_path / "model.safetensors")
    data, why = graph_check.load_run_data(tmp_path, p2pzoo.load(tmp_path / "model.safetensors"))
    assert (data, why) == (None, "recipe.toml next to the model has images of another shape")


def test_a_note_says_that_dropout_is_off(install, run_cli, tmp_path):
    install("strange", STRANGE_PLUGIN)
    save_strange_model("dropping", tmp_path / "model.safetensors", test_mode="paper")
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "torch-export", "-o", tmp_path / "out")
    assert "note     dropout is off in the file" in result.output


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ("alternating", "the file's output differs from torch's by up to"),
        ("noisy", "the generator draws its own noise, which a graph cannot repeat"),
    ],
)
def test_a_file_that_differs_from_torch_is_not_kept(install, run_cli, tmp_path, generator, message):
    install("strange", STRANGE_PLUGIN)
    save_strange_model(generator, tmp_path / "model.safetensors")
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "torch-export", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.safetensors"]


@pytest.mark.parametrize("wrong", [0.002, float("nan")])
def test_one_wrong_value_in_one_image_is_refused(wrong, trained, exported):
    model = p2pzoo.load(trained)
    data, _ = graph_check.load_run_data(trained, model)
    run, inputs = onnx_file.open_session(exported("--test-mode", "eval")[0]), graph_check.make_examples(model, data)

    def run_wrong(x):
        y_hat = run(x)
        if torch.equal(x, inputs[-1]):
            y_hat[0, 1, 5, 5] += wrong
        return y_hat

    def compare(run):
        G = load_unet(trained).eval()
        return graph_check.compare_with_torch(model, G, "eval", run, "", inputs, data, "fp32", [])

    assert compare(run).difference < 1e-4
    with pytest.raises(UserError, match=f"differs from torch's by up to {wrong:g}, the limit is 0.001"):
        compare(run_wrong)


def test_a_full_disk_is_reported_as_such(install, run_cli, tmp_path, monkeypatch):
    class Program:
        @staticmethod
        def save(path):
            Path(path).write_bytes(b"half of a file")
            raise OSError(errno.ENOSPC, "No space left on device")

    install("strange", STRANGE_PLUGIN)
    save_strange_model("plain", tmp_path / "model.safetensors")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program)
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "onnx", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{tmp_path / 'out'}: No space left on device" in result.output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.safetensors"]


def test_an_int8_graph_that_is_not_usable_is_not_kept(install, run_cli, tmp_path, monkeypatch):
    install("strange", STRANGE_PLUGIN)
    save_strange_model("plain", tmp_path / "model.safetensors")
    monkeypatch.setitem(graph_check.MIN_PSNR, "int8", 90.0)
    result = run_cli("export", tmp_path / "model.safetensors", "--to", "onnx", "-o", tmp_path / "out", "--int8")
    assert result.exit_code == 2
    assert "to torch's, the minimum is 90 dB; leave --int8 out" in result.output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.safetensors"]


BAD = {
    "both precisions": (["--to", "onnx", "--fp16", "--int8"], "--fp16 and --int8: a file has one precision"),
    "--ort-dir of a graph": (["--to", "onnx", "--ort-dir", "."], "--to onnx: --ort-dir is only for --to web"),
    "--fp16 of weights": (
        ["--to", "junyanz", "--fp16"],
        "--to junyanz: --test-mode, --fp16, --int8, --steps, --eta and -s are for graphs",
    ),
    "--int8 of torch": (
        ["--to", "torch-export", "--int8"],
        "--int8 works with --to onnx only: a file of torch-export",
    ),
    "an unknown format": (["--to", "onyx"], "no format 'onyx': did you mean 'onnx'?"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_options_that_contradict_are_refused_in_one_line(options, message, trained, run_cli, tmp_path):
    result = run_cli("export", trained, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.output.strip().splitlines()[-1]
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named_with_the_extra(trained, run_cli, tmp_path, monkeypatch):
    find_spec = onnx_file.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_file.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    result = run_cli("export", trained, "--to", "onnx", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "ONNX needs the package onnxruntime: pip install 'p2pzoo[onnx]'" in result.output


def test_a_discriminator_is_refused(run_cli, tmp_path):
    header = {"discriminator": {"use": "patch", "params": {}}, "in_channels": 3, "out_channels": 3, "size": [64, 64]}
    save_tensors(tmp_path / "D.safetensors", {}, header)
    result = run_cli("export", tmp_path / "D.safetensors", "--to", "onnx", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "D.safetensors: holds no generator" in result.output


def test_an_older_torch_is_named(trained, run_cli, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.export.Dim, "DYNAMIC")
    result = run_cli("export", trained, "--to", "torch-export", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "graphs need torch 2.6 or newer, this is" in result.output


def test_an_unknown_precision_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="no precision 'fp8'"):
        graphs.export_graph(p2pzoo.load(trained), tmp_path / "out", "onnx", precision="fp8")


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("onnx", "m.txt", "--to onnx writes a .onnx file; use a name that ends in .onnx"),
        ("torch-export", "m.onnx", "--to torch-export writes a .pt2 file"),
        ("web", "m.zip", "--to web writes a .html file"),
        ("junyanz", "m.onnx", ".onnx is for --to onnx; weights have names that end in .pth"),
    ],
)
def test_a_name_of_another_format_is_refused(run_cli, tmp_path, to, name, message):
    result = run_cli("export", "zoo:earth-small", "--to", to, "-o", tmp_path / name)
    assert (result.exit_code, message in result.output) == (2, True)
    assert not any(tmp_path.iterdir())


def test_a_graph_that_fails_at_some_sizes_prints_nothing(tmp_path, capfd):
    """Exports try freer graphs first: what such a graph prints would look like a failure of the whole export."""
    image = [1, 1, "height", "width"]
    nodes = [
        onnx.helper.make_node("Reshape", ["x", "flat"], ["row"]),
        onnx.helper.make_node("Reshape", ["row", "square"], ["y_hat"]),
    ]
    shapes = [
        onnx.numpy_helper.from_array(np.array(shape), name)
        for name, shape in (("flat", [16]), ("square", [1, 1, 4, 4]))
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, image) for name in ("x", "y_hat")]
    graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:], shapes)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "graph.onnx"))
    run = onnx_file.open_session(tmp_path / "graph.onnx")
    assert run(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 4, 4)
    with pytest.raises(Exception, match="Reshape"):
        run(torch.zeros(1, 1, 8, 8))
    assert capfd.readouterr() == ("", "")
