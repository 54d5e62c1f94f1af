"""Graphs for other runtimes give what torch gives, also where they were not checked, or are not kept."""

import errno
import json
import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from p2pzoo_export import graphs as exporting
from p2pzoo_pix2pix.generators import UNet

import p2pzoo
from p2pzoo.models.safetensors_io import load_tensors, save_model, save_tensors
from p2pzoo.utils.errors import UserError

DEPTH_3 = ("generator.depth=3", "generator.noise=none")


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A run whose network halves images three times and has no dropout."""
    runs = tmp_path_factory.mktemp("runs")
    assert run(runs, *DEPTH_3).exit_code == 0
    return next(runs.glob("tiny/*"))


@pytest.fixture(scope="module")
def exported(trained, zoo, tmp_path_factory):
    """exported("--fp16"): what `p2pzoo export` wrote and said."""
    made = {}

    def exported(*options, to="onnx"):
        if (options, to) not in made:
            path = tmp_path_factory.mktemp("exported") / "model"
            told = zoo("export", trained, "--to", to, "-o", path, *options)
            assert told.exit_code == 0, told.output
            made[options, to] = path, told.output
        return made[options, to]

    return exported


def images(batch, height, width):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width)) * 2 - 1


def answered(path, x):
    [y_hat] = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    return torch.from_numpy(y_hat)


def network(trained):
    tensors, _ = load_tensors(trained / "model.safetensors")
    G = UNet(3, 3, (64, 64), width=8, depth=3, noise="none")
    G.load_state_dict(tensors)
    return G


def decibels(some, others):
    return 10 * math.log10(4 / (some - others).double().square().mean().item())


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (3, 24, 40), (2, 128, 8)])
def test_a_graph_of_eval_mode_gives_what_torch_gives_for_any_batch_and_sides(trained, exported, batch, height, width):
    path, told = exported("--test-mode", "eval")
    x = images(batch, height, width)
    with torch.no_grad():
        assert (answered(path, x) - network(trained).eval()(x)).abs().max() < 1e-4
    assert "any sides that are multiples of 8, any batch, 3 channels" in told
    assert "checked  on 6 images of the test split, 64×64, 64×128, 72×64, 32×32, 3 of 64×64: differs by at most" in told


def test_a_graph_of_paper_mode_takes_the_statistics_of_the_image_itself(trained, exported):
    path, told = exported()  # the mode of the recipe
    x = images(1, 64, 72)
    with torch.no_grad():
        own, running = network(trained).train()(x), network(trained).eval()(x)
    assert (answered(path, x) - own).abs().max() < 1e-4
    assert (own - running).abs().max() > 1e-2
    assert "one image at a time" in told
    assert "dropout" not in told


def test_it_says_that_dropout_is_off(run, zoo, tmp_path):
    run(tmp_path / "runs")
    [trained] = tmp_path.glob("runs/tiny/*")
    told = zoo("export", trained, "--to", "torch-export", "-o", tmp_path / "model.pt2")
    assert "note     dropout is off in the file" in told.output


def test_the_file_says_what_it_is(trained, exported):
    path, _ = exported("--test-mode", "eval")
    [told] = [json.loads(prop.value) for prop in onnx.load(path).metadata_props if prop.key == "p2pzoo"]
    _, header = load_tensors(trained / "model.safetensors")
    ends = {
        "input": {"name": "x", "layout": "NCHW", "channels": 3, "range": [-1, 1]},
        "output": {"name": "y_hat", "layout": "NCHW", "channels": 3, "range": [-1, 1]},
    }
    assert told == header | ends | {"test_mode": "eval", "precision": "fp32", "p2pzoo": p2pzoo.__version__}
    assert header["test_mode"] == "paper"


def test_what_is_free_in_a_graph_has_a_name(exported):
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
def test_smaller_files_tell_what_they_lose_and_that_is_little(trained, exported, option, share, least):
    path, told = exported("--test-mode", "eval", option)
    whole, _ = exported("--test-mode", "eval")
    weights = (trained / "model.safetensors").stat().st_size
    assert path.stat().st_size - weights * share < 0.6 * whole.stat().st_size - 0.6 * weights + 60_000
    assert path.stat().st_size < whole.stat().st_size
    data, _ = exporting.data_of(trained, p2pzoo.load(trained))
    G = network(trained).eval()
    shown = data.batches()
    with torch.no_grad():
        ours = torch.cat([G(batch.x) for batch in shown])
    theirs = torch.cat([answered(path, batch.x) for batch in shown])
    assert f", {decibels(theirs, ours):.0f} dB" in told
    assert decibels(theirs, ours) > least
    y = torch.cat([batch.y for batch in shown])
    assert f"costs    {decibels(ours, y) - decibels(theirs, y):.3f} dB" in told


def test_8_bits_are_of_weights_and_each_channel_has_steps_of_its_own_size(trained, exported):
    file = onnx.load(exported("--test-mode", "eval", "--int8")[0])
    kept = {part.name: onnx.numpy_helper.to_array(part) for part in file.graph.initializer}
    made = {node.output[0]: node for node in file.graph.node}
    convolutions = [node for node in file.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) == 6
    for node in convolutions:
        steps, step = (kept[name] for name in made[node.input[1]].input)
        by_channel = np.moveaxis(steps, 0 if node.op_type == "Conv" else 1, 0)
        assert steps.dtype == np.int8
        assert step.shape == by_channel.shape[:1]
        assert (np.abs(by_channel.astype(int)).reshape(len(step), -1).max(1) == 127).all()


ELSEWHERE = """
import sys, numpy, torch
facts = {"p2pzoo.json": ""}
G = torch.export.load(sys.argv[1], extra_files=facts).module()
numpy.save("y.npy", G(torch.from_numpy(numpy.load("x.npy"))).detach())
assert "p2pzoo" not in sys.modules
assert '"test_mode": "eval"' in facts["p2pzoo.json"]
"""


def test_an_archive_of_torch_export_runs_where_p2pzoo_is_not(trained, exported, tmp_path):
    path, _ = exported("--test-mode", "eval", to="torch-export")
    x = images(2, 64, 64)
    np.save(tmp_path / "x.npy", x.numpy())
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    subprocess.run([sys.executable, "elsewhere.py", path], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert np.abs(np.load(tmp_path / "y.npy") - network(trained).eval()(x).numpy()).max() < 1e-5


FIXED = """
import p2pzoo
from torch import nn

@p2pzoo.hookimpl
def register_generators(register):
    register("fixed", Fixed, summary="One size only", paper="none")
    register("noisy", Noisy, summary="Draws in its forward", paper="none")
    register("branching", Branching, summary="Does something else with large images", paper="none")
    register("normed", Normed, summary="Its weight moves in training", paper="none")

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

class Branching(Noisy):
    def forward(self, x):
        y = self.mix(x).tanh()
        return y if x.shape[2] * x.shape[3] < 100 else -y

class Normed(Noisy):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        nn.utils.parametrizations.spectral_norm(self.mix)
        self.mix.parametrizations.weight[0]._u.copy_(nn.functional.normalize(self.mix.bias.detach().flip(0), dim=0))

    def forward(self, x):
        return self.mix(x).tanh()
"""


def carried(name, path, **given):
    size = {"size": (8, 8)} if name == "fixed" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G = p2pzoo.create("generator", name, in_channels=3, out_channels=3, **size)
    header = {
        "run": "none", "generator": {"use": f"strange:{name}", "params": {}}, "in_channels": 3, "out_channels": 3,
        "size": [8, 8], "size_divisor": 1, "test_mode": "eval", "x_range": [0, 255], "y_range": [0, 255],
    }  # fmt: skip
    save_model(path, G, header | given)
    return G.eval()


def test_a_network_of_one_size_gives_a_graph_of_one_size(install, zoo, tmp_path):
    install("strange", FIXED)
    G = carried("fixed", tmp_path / "model.safetensors")
    told = zoo("export", tmp_path / "model.safetensors", "--to", "onnx", "-o", tmp_path / "model.onnx")
    assert told.exit_code == 0, told.output
    assert "takes    x in [-1, 1]: 8×8, any batch" in told.output
    assert "checked  on smooth noise" in told.output
    assert "note     no real images to check it on: there is no recipe beside the model" in told.output
    with torch.no_grad():
        assert (answered(tmp_path / "model.onnx", images(5, 8, 8)) - G(images(5, 8, 8))).abs().max() < 1e-5


@pytest.mark.parametrize("to", ["onnx", "torch-export"], ids=["ONNX", "torch"])
def test_sides_are_not_free_where_a_network_does_something_else_at_other_sides(to, install, zoo, tmp_path):
    install("strange", FIXED)
    carried("branching", tmp_path / "model.safetensors")
    told = zoo("export", tmp_path / "model.safetensors", "--to", to, "-o", tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "takes    x in [-1, 1]: 8×8, any batch" in told.output


def test_weights_that_move_in_training_are_those_of_the_model_file(install, zoo, tmp_path):
    install("strange", FIXED)
    G = carried("normed", tmp_path / "model.safetensors", test_mode="paper")
    told = zoo("export", tmp_path / "model.safetensors", "--to", "onnx", "-o", tmp_path / "out")
    assert told.exit_code == 0, told.output
    with torch.no_grad():
        expected = G(images(1, 8, 8))
        assert (answered(tmp_path / "out", images(1, 8, 8)) - expected).abs().max() < 1e-5
        G.train()(images(1, 8, 8))
        assert (G.eval()(images(1, 8, 8)) - expected).abs().max() > 1e-4


def test_a_recipe_of_other_images_beside_the_model_is_not_taken_for_its_own(install, trained, zoo, tmp_path):
    install("strange", FIXED)
    shutil.copy(trained / "recipe.toml", tmp_path)
    carried("noisy", tmp_path / "model.safetensors")
    data, why = exporting.data_of(tmp_path, p2pzoo.load(tmp_path / "model.safetensors"))
    assert (data, why) == (None, "the recipe beside the model is of other images")


@pytest.mark.parametrize("to", ["onnx", "torch-export"], ids=["ONNX", "torch"])
def test_a_file_that_gives_something_else_is_not_kept(to, install, zoo, tmp_path):
    install("strange", FIXED)
    carried("noisy", tmp_path / "model.safetensors")
    told = zoo("export", tmp_path / "model.safetensors", "--to", to, "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert "the file gives something else than torch: by up to" in told.output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.safetensors"]


@pytest.mark.parametrize("wrong", [0.002, float("nan")])
def test_one_wrong_value_of_one_image_is_enough_to_refuse_a_file(wrong, trained, zoo, tmp_path, monkeypatch):
    data, _ = exporting.data_of(trained, p2pzoo.load(trained))
    last, session = data.batches()[-1].x, exporting._session

    def wrong_of_the_last(path):
        def run(x):
            y_hat = session(path)(x)
            if torch.equal(x, last):
                y_hat[0, 1, 5, 5] += wrong
            return y_hat

        return run

    monkeypatch.setattr(exporting, "_session", wrong_of_the_last)
    told = zoo("export", trained, "--to", "onnx", "-o", tmp_path / "out", "--test-mode", "eval")
    assert told.exit_code == 2
    assert f"something else than torch: by up to {wrong:g}" in told.output
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_is_not_taken_for_a_network_that_cannot_be_exported(trained, zoo, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "_label", full)
    told = zoo("export", trained, "--to", "onnx", "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert f"{tmp_path / 'out'}: No space left on device" in told.output
    assert not [*tmp_path.iterdir()]


def test_an_integer_graph_that_is_no_use_is_not_kept(trained, zoo, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.LEAST_PSNR, "int8", 90.0)
    told = zoo("export", trained, "--to", "onnx", "-o", tmp_path / "out", "--int8", "--test-mode", "eval")
    assert told.exit_code == 2
    assert "90 dB is the least: leave --int8 out" in told.output
    assert not [*tmp_path.iterdir()]


BAD = {
    "both precisions": (["--to", "onnx", "--fp16", "--int8"], "--fp16 and --int8: a file has one of them"),
    "--ort-dir of a graph": (["--to", "onnx", "--ort-dir", "."], "--to onnx: --ort-dir is for web alone"),
    "--fp16 of weights": (["--to", "junyanz", "--fp16"], "weights have neither --test-mode nor --fp16 or --int8"),
    "--int8 of torch": (["--to", "torch-export", "--int8"], "--int8 is for ONNX: a file of torch-export computes in"),
    "an unknown format": (["--to", "onyx"], "no format 'onyx': did you mean 'onnx'?"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_refused_in_one_line(options, words, trained, zoo, tmp_path):
    told = zoo("export", trained, "-o", tmp_path / "out", *options)
    assert told.exit_code == 2
    assert words in told.output.strip().splitlines()[-1]
    assert not [*tmp_path.iterdir()]


def test_without_the_package_it_names_the_extra(trained, zoo, tmp_path, monkeypatch):
    found = exporting.importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    told = zoo("export", trained, "--to", "onnx", "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert "ONNX needs the package onnxruntime: pip install 'p2pzoo[onnx]'" in told.output


def test_a_discriminator_is_refused(zoo, tmp_path):
    header = {"discriminator": {"use": "patch", "params": {}}, "in_channels": 3, "out_channels": 3, "size": [64, 64]}
    save_tensors(tmp_path / "D.safetensors", {}, header)
    told = zoo("export", tmp_path / "D.safetensors", "--to", "onnx", "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert "D.safetensors: holds no generator" in told.output


def test_an_older_torch_is_named(trained, zoo, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.export.Dim, "DYNAMIC")
    told = zoo("export", trained, "--to", "torch-export", "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert "graphs need torch 2.6 or newer" in told.output


def test_another_precision_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="no precision 'fp8'"):
        exporting.export(p2pzoo.load(trained), tmp_path / "out", "onnx", precision="fp8")
