"""Graphs for other runtimes give what torch gives, also where they were not checked, or are not kept."""

import json
import math
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from p2pzoo_pix2pix.generators import UNet

import p2pzoo
from p2pzoo import export as exporting
from p2pzoo.checkpoint import load_tensors, save_model
from p2pzoo.errors import UserError

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
    assert "checked  on 6 images of the test split" in told


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
    assert told == header | {"test_mode": "eval", "precision": "fp32", "p2pzoo": p2pzoo.__version__}
    assert header["test_mode"] == "paper"


@pytest.mark.parametrize(("option", "share"), [("--fp16", 0.5), ("--int8", 0.25)])
def test_smaller_files_tell_what_they_lose(trained, exported, option, share):
    path, told = exported("--test-mode", "eval", option)
    whole, _ = exported("--test-mode", "eval")
    weights = (trained / "model.safetensors").stat().st_size
    assert path.stat().st_size - weights * share < 0.6 * whole.stat().st_size - 0.6 * weights + 60_000
    assert path.stat().st_size < whole.stat().st_size
    data, _ = exporting.data_of(trained)
    G = network(trained).eval()
    shown = data.batches()
    with torch.no_grad():
        ours = torch.cat([G(batch.x) for batch in shown])
    theirs = torch.cat([answered(path, batch.x) for batch in shown])
    assert f", {decibels(theirs, ours):.0f} dB" in told
    y = torch.cat([batch.y for batch in shown])
    assert f"costs    {decibels(ours, y) - decibels(theirs, y):.3f} dB" in told


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
"""


def carried(name, path, **given):
    G = p2pzoo.create("generator", name, in_channels=3, out_channels=3, size=(8, 8)) if name == "fixed" else (
        p2pzoo.create("generator", name, in_channels=3, out_channels=3))  # fmt: skip
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
def test_a_file_that_gives_something_else_is_not_kept(to, install, zoo, tmp_path):
    install("strange", FIXED)
    carried("noisy", tmp_path / "model.safetensors")
    told = zoo("export", tmp_path / "model.safetensors", "--to", to, "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert "the file gives something else than torch: by up to" in told.output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.safetensors"]


def test_an_integer_graph_that_is_no_use_is_not_kept(trained, zoo, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.LEAST_PSNR, "int8", 90.0)
    told = zoo("export", trained, "--to", "onnx", "-o", tmp_path / "out", "--int8", "--test-mode", "eval")
    assert told.exit_code == 2
    assert "90 dB is the least: leave --int8 out" in told.output
    assert not [*tmp_path.iterdir()]


BAD = {
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


def test_another_precision_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="no precision 'fp8'"):
        exporting.export(p2pzoo.load(trained), tmp_path / "out", "onnx", precision="fp8")
