"""`export --to bioimageio`: the package has the model's own scaling, and bioimageio.core runs it."""

import json
import zipfile
from importlib.metadata import version

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from p2pzoo_export import bioimageio_package, commands
from p2pzoo_export.bioimageio_package import export_bioimageio
from torch import nn

from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.plugin import FileLayout
from p2pzoo.utils.errors import UserError

FILES = ["README.md", "model.onnx", "rdf.yaml", "test_input.npy", "test_output.npy"]
STACK = {
    "x": {"names": ["BF", "BF", "405 nm"], "scales": [[0, 4000], [0, 4000], [100, 900]], "dtype": "uint16"},
    "y": {"names": ["DAPI"], "scales": [[-1, 3]], "dtype": "float32"},
    "pixel": {"X": 0.325, "Y": 0.5},
}
ABOUT = {"title": "Nuclei: from BF", "licence": "CC-BY-4.0", "authors": ["Ada Lovelace, Somewhere", "Bob"]}
PYDANTIC = tuple(map(int, version("pydantic").split(".")[:2]))
IS_BROKEN = PYDANTIC >= (2, 14) and version("bioimageio.spec") == "0.5.12.0"
needs_spec = pytest.mark.skipif(IS_BROKEN, reason="bioimageio.spec 0.5.12 does not work with pydantic 2.14")


def model_of(layout=None, **values):
    """A model of three channels to one, with another value for each channel of x."""
    G = nn.Conv2d(3, 1, 3, padding=1)
    with torch.no_grad():
        G.weight.copy_(torch.linspace(-0.1, 0.15, 27).reshape(1, 3, 3, 3))
        G.bias.fill_(0.05)
    header = ModelHeader(
        "generator", "mine", {}, 3, 1, (64, 48), run="r1", size_divisor=4, test_mode="eval",
        as_json={"file_layout": {"scale": [1, 1], **(layout or {})}}, **values,
    )  # fmt: skip
    return Model(G, header, torch.device("cpu"))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of a model that was trained on stacks."""
    folder = tmp_path_factory.mktemp("package") / "out"
    result = export_bioimageio(model_of({"stack": STACK}), folder, **ABOUT)
    return folder, result


def read(folder):
    return yaml.safe_load((folder / "rdf.yaml").read_text("utf-8"))


def process(steps, values):
    """Pre- or postprocessing, as the format defines it."""
    for step in steps:
        kwargs = step["kwargs"]
        if step["id"] == "ensure_dtype":
            values = values.astype(kwargs["dtype"])
        elif step["id"] == "clip":
            values = values.clip(kwargs["min"], kwargs["max"])
        else:
            assert (step["id"], kwargs["axis"]) == ("scale_linear", "channel")
            gain, offset = (np.array(kwargs[name]).reshape(1, -1, 1, 1) for name in ("gain", "offset"))
            values = values * gain + offset
    return values


def test_the_description_says_what_x_and_y_are(package):
    folder, _ = package
    assert sorted(path.name for path in folder.iterdir()) == FILES
    rdf = read(folder)
    [x], [y] = rdf["inputs"], rdf["outputs"]
    assert (rdf["type"], rdf["name"], rdf["license"]) == ("model", "Nuclei from BF", "CC-BY-4.0")
    assert rdf["authors"] == [{"name": "Ada Lovelace", "affiliation": "Somewhere"}, {"name": "Bob"}]
    assert rdf["cite"][0]["doi"] == "10.1109/CVPR.2017.632"
    assert "p2pzoo" in rdf["cite"][1]["text"]
    assert [axis["type"] for axis in x["axes"]] == ["batch", "channel", "space", "space"]
    assert x["axes"][1]["channel_names"] == ["BF_1", "BF_2", "channel_405_nm"]
    assert x["axes"][2] == {
        "type": "space",
        "id": "y",
        "size": {"min": 64, "step": 4},
        "unit": "micrometer",
        "scale": 0.5,
    }
    assert y["axes"][3]["size"] == {"tensor_id": "x", "axis_id": "x"}
    assert (x["axes"][3]["unit"], x["axes"][3]["scale"]) == ("nanometer", 325)
    assert (y["axes"][3]["unit"], y["axes"][3]["scale"]) == ("nanometer", 325)
    assert (x["data"]["type"], y["data"]["type"]) == ("uint16", "float32")


def test_the_package_says_at_which_scale_the_network_sees_images(tmp_path):
    """Whoever gets the package has neither the terminal of the export nor a file_layout: ilastik resizes nothing."""
    scaled = export_bioimageio(model_of(file_layout=FileLayout(scale=(0.25, 0.25))), tmp_path / "scaled", **ABOUT)
    texts = (tmp_path / "scaled/README.md").read_text("utf-8"), read(tmp_path / "scaled")["description"]
    for text in texts:
        assert "at 0.25 of their size" in " ".join(text.split())
    assert read(tmp_path / "scaled")["config"]["p2pzoo"] == {"run": "r1", "scale": [0.25, 0.25]}
    assert not any("file_layout" in text for text in (*texts, *scaled.notes))
    export_bioimageio(model_of(file_layout=FileLayout()), tmp_path / "native", **ABOUT)
    assert "of their size" not in (tmp_path / "native/README.md").read_text("utf-8")
    assert read(tmp_path / "native")["config"]["p2pzoo"] == {"run": "r1"}


def test_the_package_says_that_dropout_is_off(tmp_path):
    model = model_of()
    model.G = nn.Sequential(model.G, nn.Dropout(0.5))
    export_bioimageio(model, tmp_path / "paper", **ABOUT, test_mode="paper")
    assert "dropout is off" in (tmp_path / "paper/README.md").read_text("utf-8")
    assert "dropout is off" in read(tmp_path / "paper")["description"]


@pytest.mark.parametrize(
    ("micrometres", "unit", "scale"),
    [
        (0.325, "nanometer", 325), (0.5, "micrometer", 0.5), (2, "micrometer", 2), (0.0645, "nanometer", 64.5),
        (0.1083333, "picometer", 108333), (1e-9, "picometer", 1),
    ],
)  # fmt: skip
def test_a_pixel_has_the_size_of_the_user_and_readers_compute_sides_with_it(micrometres, unit, scale):
    model = model_of({"stack": {**STACK, "pixel": {"X": micrometres}}})
    assert bioimageio_package._pixel(model, "x") == {"unit": unit, "scale": scale}
    assert all(int(side * scale / scale) == side for side in range(1, 5000))  # as readers compute the output's side


def test_the_test_output_is_that_of_the_model_from_units_to_units(package):
    folder, result = package
    rdf = read(folder)
    x, y = np.load(folder / "test_input.npy"), np.load(folder / "test_output.npy")
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.uint16, (1, 3, 64, 48), np.float32, (1, 1, 64, 48))
    scales = np.array(STACK["x"]["scales"], float)[None, :, :, None, None]
    scaled = (x - scales[:, :, 0]) / (scales[:, :, 1] - scales[:, :, 0]) * 2 - 1
    whole = model_of().translate(torch.from_numpy(scaled.astype(np.float32)), test_mode="eval").numpy()
    assert np.abs(y - ((whole.clip(-1, 1) + 1) * 2 - 1)).max() < 1e-4
    assert y.std() > 0.01
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    seen = process(rdf["inputs"][0]["preprocessing"], x)
    assert seen.dtype == np.float32
    [y_hat] = session.run(None, {"x": seen})
    assert np.abs(process(rdf["outputs"][0]["postprocessing"], y_hat) - y).max() < 1e-5
    assert result.difference < 1e-3


def test_values_beyond_the_scale_are_clipped_as_in_training(package):
    steps = read(package[0])["inputs"][0]["preprocessing"]
    values = np.full((1, 3, 1, 1), 65535, np.uint16)
    assert (process(steps, values) == 1).all()
    assert np.allclose(process(steps, values * 0).ravel(), [-1, -1, -1])


def test_other_datasets_have_the_range_of_their_images(tmp_path):
    model = model_of(x_range=(0, 1000), y_range=(0, 255), x_dtype="uint16")
    export_bioimageio(model, tmp_path / "model.zip", **ABOUT)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert sorted(archive.namelist()) == FILES
        rdf = yaml.safe_load(archive.read("rdf.yaml"))
    assert rdf["inputs"][0]["axes"][1]["channel_names"] == ["channel_1", "channel_2", "channel_3"]
    assert np.allclose(process(rdf["inputs"][0]["preprocessing"], np.full((1, 3, 1, 1), 500, "uint16")), 0)
    assert np.allclose(process(rdf["outputs"][0]["postprocessing"], np.zeros((1, 1, 1, 1), "float32")), 127.5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


@needs_spec
def test_bioimageio_core_runs_it(package):
    core = pytest.importorskip("bioimageio.core")
    folder, result = package
    assert not any("not validated" in note for note in result.notes)
    summary = core.test_model(folder / "rdf.yaml")
    assert summary.status == "passed", summary.format()


@needs_spec
def test_a_licence_that_spdx_does_not_have_is_refused(tmp_path):
    pytest.importorskip("bioimageio.spec")
    with pytest.raises(UserError, match=r"no licence of SPDX has this name: give --licence"):
        export_bioimageio(model_of(), tmp_path / "out", **{**ABOUT, "licence": "my own"})
    assert not list(tmp_path.iterdir())


def test_models_that_the_format_cannot_describe_are_refused(tmp_path, monkeypatch):
    class Noisy(nn.Module):
        noise_shape = (1, 1)

    noisy = model_of()
    noisy.G = Noisy()
    labelled = model_of()
    labelled.x_labels = object()
    for model, message in ((noisy, "the model takes noise"), (labelled, "was trained on label maps")):
        with pytest.raises(UserError, match=message):
            export_bioimageio(model, tmp_path / "out", **ABOUT)
    monkeypatch.setattr(bioimageio_package, "find_missing_packages", lambda: ["onnx"])
    with pytest.raises(UserError, match=r"needs the package onnx: pip install 'p2pzoo\[bioimageio\]'"):
        export_bioimageio(model_of(), tmp_path / "out", **ABOUT)
    assert not list(tmp_path.iterdir())


OPTIONS = {  # what is wrong: (arguments, message)
    "no licence": ([], "a model there has a licence: choose yours with --licence, such as CC-BY-4.0"),
    "precision": (["--licence", "MIT", "--int8"], "--int8 is for onnx and web; remove it"),
    "another suffix": (["--licence", "MIT", "-o", "model.onnx"], "writes a .zip file"),
    "another format": (["--to", "onnx", "--licence", "MIT"], "--licence and --author are only for --to bioimageio"),
}


@pytest.mark.parametrize(("arguments", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_do_not_fit_are_refused_in_one_line(assert_refused, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_refused(message, "export", "zoo:earth-small", "--to", "bioimageio", "-o", "out", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_kept(run_cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    command = ("export", "zoo:earth-small", "--to", "bioimageio", "--licence", "MIT", "-o", tmp_path / "mine")
    assert "holds other files; give a new one" in run_cli(*command, "--force").output
    (tmp_path / "mine" / "rdf.yaml").write_text("older")
    assert "holds other files; --force overwrites it" in run_cli(*command).output


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("bioimageio", "input    x in the units of the training files: 64×64"),
        ("web", "input    image files: 64×64"),
        ("onnx", "input    x in [-1, 1]: 64×64"),
    ],
)
def test_the_command_says_what_each_format_takes(capsys, form, line):
    checked = {"input": "64×64", "checked_on": "noise", "difference": 0.0, "psnr": 99.0, "psnr_loss": None}
    commands._print_export({"file": "out", "format": form, "bytes": 1, "notes": [], **checked}, "fp32")
    assert capsys.readouterr().out.splitlines()[0] == line


@pytest.mark.slow
def test_the_command_writes_a_package_of_a_run(trained, run_cli, tmp_path):
    command = ("export", trained, "--to", "bioimageio", "--licence", "MIT", "--author", "Ada", "--json")
    result = run_cli(*command, "--test-mode", "eval", "-o", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["format"] == "bioimageio"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    assert read(tmp_path / "model")["name"] == "Photos script b of earth"
