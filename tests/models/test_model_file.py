"""Model files: their header is parsed once, and they suffice to build the network."""

import json
import time
from pathlib import Path

import numpy as np
import p2pzoo_earth
import pytest
import torch
from PIL import Image
from torch import nn

import p2pzoo
from p2pzoo import config
from p2pzoo.images.io import write_png
from p2pzoo.images.label_maps import Classes, Labels
from p2pzoo.models.initialization import make_generator
from p2pzoo.models.load import load_model
from p2pzoo.models.model_file import ModelHeader, build_header, load_network, restore_network
from p2pzoo.models.safetensors_io import load_tensors, save_model, save_tensors
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin import loader
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import DamagedFile, UserError

LABELS = {
    "classes": [
        {"name": "sky", "colour": [0, 0, 255], "value": 0},
        {"name": "road", "colour": [90, 90, 90], "value": 7},
    ],
    "ignore": [255],
    "encoding": "one-hot",
}
HEADER = {
    "run": "r-1", "generator": {"use": "pix2pix:unet", "params": {"width": 4, "depth": None}}, "in_channels": 3,
    "out_channels": 3, "size": [64, 32], "size_divisor": 64, "test_mode": "eval", "format": 1,
}  # fmt: skip
FILE = Path("model.safetensors")


def load_experiment(*overrides):
    return config.load("zoo:base.toml", "smoke", overrides)


def save_generator(path, G, recipe, channels=(3, 3), size=(64, 64)):
    save_model(path, G, build_header(recipe, G, recipe.dataset.build(split="val"), channels, size))


# --- the header ------------------------------------------------------------------------------------------------------


def test_a_header_has_the_files_values_and_defaults_for_old_files():
    header = ModelHeader.parse(HEADER, FILE)
    assert (header.kind, header.use, header.params) == ("generator", "pix2pix:unet", {"width": 4, "depth": None})
    assert (header.in_channels, header.out_channels, header.size, header.size_divisor) == (3, 3, (64, 32), 64)
    assert (header.run, header.test_mode) == ("r-1", "eval")
    assert (header.x_range, header.y_range, header.x_dtype, header.y_dtype) == ((0, 255), (0, 255), "uint8", "uint8")
    assert header.x_labels is header.y_labels is header.encodings.x is header.encodings.y is None
    assert header.as_json == HEADER


def test_a_header_has_ranges_dtypes_encodings_and_classes():
    added = {
        "x_range": [0, 1], "x_dtype": "float32", "y_range": [0, 65535], "y_dtype": "uint16", "x_labels": LABELS,
        "x_encoding": "one-hot", "in_channels": 2,
    }  # fmt: skip
    header = ModelHeader.parse({**HEADER, **added}, FILE)
    assert (header.x_range, header.y_range, header.x_dtype, header.y_dtype) == ((0, 1), (0, 65535), "float32", "uint16")
    classes = Classes(("sky", "road"), ((0, 0, 255), (90, 90, 90)), (0, 7), (255,))
    assert header.x_labels == Labels(classes, "one-hot")
    assert (header.encodings.x, header.encodings.palettes) == ("one-hot", (classes.colours, None))


def test_a_header_may_lack_run_test_mode_and_size_divisor():
    minimal = {key: HEADER[key] for key in ("generator", "in_channels", "out_channels", "size")}
    header = ModelHeader.parse(minimal, FILE)
    assert header.run is header.test_mode is header.size_divisor is None


def test_a_header_is_parsed_for_the_kind_of_network_that_is_asked_for():
    both = {**HEADER, "discriminator": {"use": "pix2pix:patch70", "params": {}}}
    header = ModelHeader.parse(both, FILE, "discriminator")
    assert (header.kind, header.use) == ("discriminator", "pix2pix:patch70")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": None}, "holds no generator; give a run's model.safetensors"),
        ({"generator": {"params": {}}}, "its header is damaged: network.use: field required"),
        ({"in_channels": 0}, "its header is damaged: in_channels: .*greater than or equal to 1"),
        ({"in_channels": "3"}, "its header is damaged: in_channels: .*valid integer"),
        ({"size": [64]}, "its header is damaged: size.1: field required"),
        ({"size": [64, 1 << 17]}, "its header is damaged: size.1: .*less than or equal to 65536"),
        ({"test_mode": "train"}, "its header is damaged: test_mode: .*'paper' or 'eval'"),
        ({"y_dtype": "int64"}, "its header is damaged: y_dtype: .*'uint8', 'uint16' or 'float32'"),
        ({"x_range": [0, 0]}, "its header is damaged: x_range: .*first number must be the lower one"),
        ({"y_range": [1, -1]}, "its header is damaged: y_range: .*first number must be the lower one"),
        ({"x_range": [0, float("inf")]}, "its header is damaged: x_range.1: .*finite number"),
        ({"x_encoding": "Lab"}, "its header is damaged: .*Lab"),
        ({"x_encoding": "L", "y_encoding": "ab"}, "its header is damaged: x has 3 channels, and its encoding 1"),
        ({"y_labels": LABELS}, "its header is damaged: y has 3 channels, and its classes 2"),
        ({"y_labels": {**LABELS, "encoding": "words"}}, "its header is damaged: its classes are damaged"),
    ],
)
def test_a_damaged_header_is_refused_in_one_line_that_names_the_file_and_the_key(change, message):
    with pytest.raises(DamagedFile, match=f"^model.safetensors: {message}") as caught:
        ModelHeader.parse({**HEADER, **change}, FILE)
    assert "\n" not in str(caught.value)


def test_a_header_that_is_no_table_is_refused():
    with pytest.raises(DamagedFile, match="holds no generator"):
        ModelHeader.parse(["generator"], FILE)


def test_a_shipped_file_of_release_0_1_0_has_the_header_that_it_had(tmp_path):
    file = Path(p2pzoo_earth.__file__).parent / "earth_small" / "model.safetensors"
    tensors, json_header = load_tensors(file)
    assert json_header["p2pzoo"].startswith("0.1.0")
    G, header = load_network(file, registry())
    assert header.as_json == json_header
    assert (header.use, header.run) == (json_header["generator"]["use"], json_header["run"])
    assert list(header.size) == json_header["size"]
    assert G.state_dict().keys() == tensors.keys()
    save_tensors(tmp_path / "copy.safetensors", tensors, header.as_json)
    assert (tmp_path / "copy.safetensors").read_bytes() == file.read_bytes()


def test_one_translate_command_parses_the_classes_of_each_side_at_most_once(run_cli, tmp_path, monkeypatch):
    labels = {"x_labels": {**LABELS, "encoding": "palette"}, "y_labels": {**LABELS, "encoding": "palette"}}
    recipe = load_experiment("generator.width=2")
    G = make_generator(recipe, (3, 3), (64, 64))
    header = build_header(recipe, G, recipe.dataset.build(split="val"), (3, 3), (64, 64))
    save_model(tmp_path / "model.safetensors", G, {**header, **labels})
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "map.png")

    parsed, from_header = [], Labels.from_header
    monkeypatch.setattr(Labels, "from_header", lambda json: parsed.append(json) or from_header(json))
    result = run_cli("translate", tmp_path / "model.safetensors", tmp_path / "map.png", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert parsed == [labels["x_labels"], labels["y_labels"]]


# --- from a file to a network ----------------------------------------------------------------------------------------


def test_a_model_file_suffices_to_translate(tmp_path):
    recipe = load_experiment("generator.noise=gaussian")
    G = make_generator(recipe, (1, 4), (64, 128))
    save_generator(tmp_path / "model.safetensors", G, recipe, (1, 4), (64, 128))
    loaded, header = load_network(tmp_path / "model.safetensors", registry())
    assert (header.use, header.test_mode, header.run) == ("pix2pix:unet", "paper", recipe.id)
    assert (header.in_channels, header.out_channels, header.size, header.size_divisor) == (1, 4, (64, 128), 64)
    x = torch.rand(1, 1, 64, 128) * 2 - 1
    assert torch.equal(translate(loaded, x, "paper"), translate(G, x, "paper"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": {"use": "pix2pix:vnet", "params": {}}}, "no generator 'pix2pix:vnet'"),
        ({"generator": {"use": "pix2pix:unet", "params": {"wdith": 3}}}, "did you mean 'width'"),
        (
            {"generator": {"use": "pix2pix:unet", "params": {"width": 5000}}},
            "its generator 'pix2pix:unet': parameter width is larger than any side of its tensors",
        ),
        ({"size": [50, 64]}, "size 50×64 does not fit"),
        ({"size_divisor": 3}, "its header says size_divisor 3, and its generator has 64"),
        ({"in_channels": 2}, "the shape of tensor 'encoder.0.*' is"),
    ],
)
def test_a_header_that_does_not_fit_the_tensors_is_refused_in_one_line(tmp_path, change, message):
    recipe, path = load_experiment(), tmp_path / "model.safetensors"
    save_generator(path, make_generator(recipe, (3, 3), (64, 64)), recipe)
    tensors, header = load_tensors(path)
    with pytest.raises(UserError, match=message):
        restore_network(tensors, ModelHeader.parse({**header, **change}, path), path, registry())


ENHANCER = {"use": "pix2pixhd:pix2pixhd-local", "params": {"width": 8, "downsamplings": 2}}


@pytest.mark.parametrize(
    ("params", "added", "message"),
    [
        # a tensor without values has any number of sides, and no bytes
        ({"local_blocks": 10**9}, (10**9, 0), r"parameter local_blocks is larger than any side of its tensors \(1024"),
        ({"local_blocks": 1e9}, (1, 1), r"parameter local_blocks is larger than any side of its tensors \(1024"),
        ({"local_blocks": 10**5}, (10**5, 1), r"parameter local_blocks is larger than any .* \(65536 at most"),
        ({"local_blocks": 60_000}, (60_000, 1), "cannot be built .it has more than 2,[0-9]+ "),
        ({"blocks": 1000, "local_blocks": 1000}, (1, 1), "cannot be built .it has more than 2,[0-9]+ "),
    ],
)
def test_a_small_file_cannot_ask_for_a_huge_network(params, added, message):
    header = {**HEADER, "generator": {**ENHANCER, "params": {**ENHANCER["params"], **params}}}
    start = time.process_time()
    with pytest.raises(DamagedFile, match=message):
        restore_network({"odd": torch.zeros(added)}, ModelHeader.parse(header, FILE), FILE, registry())
    assert time.process_time() - start < 10


LARGE_BUFFER = """
import torch
from torch import nn
import p2pzoo

class Encoded(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.register_buffer("positions", torch.zeros(1, 64, *size), persistent=False)

@p2pzoo.hookimpl
def register_generators(register):
    register("encoded", Encoded)
"""


def test_a_small_file_cannot_ask_for_huge_computed_buffers(install):
    install("encoding", LARGE_BUFFER)
    header = {**HEADER, "generator": {"use": "encoding:encoded", "params": {}}, "size": [4096, 4096]}
    tensors = dict(nn.Conv2d(3, 3, 1, bias=True).named_parameters("conv"))
    with pytest.raises(DamagedFile, match="computes buffers of 4,294,967,296 bytes, and its tensors have 48"):
        restore_network(tensors, ModelHeader.parse({**header, "size_divisor": 1}, FILE), FILE, registry())


def test_equal_networks_are_saved_as_equal_bytes_without_time_or_path(tmp_path):
    recipe = load_experiment()
    G = make_generator(recipe, (3, 3), (64, 64))
    save_generator(tmp_path / "a.safetensors", G, recipe)
    _, header = load_tensors(tmp_path / "a.safetensors")
    assert str(tmp_path) not in json.dumps(header)
    save_generator(tmp_path / "b.safetensors", G, recipe)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_paths_are_not_saved_and_buffers_without_a_tensor_are_computed(own_weights, tmp_path):
    recipe = own_weights('generator.gains="/somewhere/gains.bin"')
    G = make_generator(recipe, (3, 3), (64, 64))
    header = build_header(recipe, G, recipe.dataset.build(split="test"), (3, 3), (64, 64))
    assert "somewhere" not in json.dumps(header)
    save_tensors(tmp_path / "G.safetensors", G.state_dict(), header)
    random_state = torch.get_rng_state()
    loaded, _ = load_network(tmp_path / "G.safetensors", registry())
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.equal(loaded.fixed.computed, torch.arange(3.0))
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(x), G(x))


# --- the plugin that wrote a file ---

NETWORK = """
import torch
from torch import nn
import p2pzoo

class Net(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x):
        return torch.tanh(self.conv(x))

@p2pzoo.hookimpl
def register_generators(register):
    register("net", Net)
"""


@pytest.fixture
def of_a_plugin(install, run, tmp_path):
    """The folder of a run with a generator of the plugin att_zoo 1.0."""
    install("att_zoo", NETWORK)
    assert run(tmp_path / "runs", 'generator={use="net"}', "train.images=2").exit_code == 0
    return next((tmp_path / "runs").glob("*/*"))


def test_the_plugin_is_named_in_the_file_in_env_json_and_on_the_card(of_a_plugin, run_cli, tmp_path):
    _, header = load_tensors(of_a_plugin / "model.safetensors")
    assert header["generator"]["source"].startswith("att_zoo 1.0 ")
    components = json.loads((of_a_plugin / "env.json").read_text())["components"]
    assert components["generator att_zoo:net"] == header["generator"]["source"]
    assert components["loss pix2pix:l1"].startswith(f"p2pzoo {p2pzoo.__version__} ")
    assert run_cli("card", of_a_plugin, "-o", tmp_path / "card").exit_code == 0
    assert "`att_zoo:net` (att\\_zoo 1.0)" in (tmp_path / "card" / "README.md").read_text()


def test_a_plugin_that_changed_is_reported_once(of_a_plugin, run_cli, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    command = ("translate", of_a_plugin, tmp_path / "a.png", "-o", tmp_path / "out", "--force")
    assert "warning" not in run_cli(*command).output
    plugin = tmp_path / "site" / "att_zoo.py"
    plugin.write_text(NETWORK.replace("tanh", "sigmoid"))
    result = run_cli(*command)
    assert result.exit_code == 0
    [warning] = [line for line in result.output.splitlines() if "warning" in line]
    assert "its generator 'att_zoo:net' was att_zoo 1.0 " in warning
    assert "its images may differ" in warning


def test_a_plugin_that_is_missing_is_named(of_a_plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("P2PZOO_PLUGINS", "pix2pix,earth")
    loader.plugins.cache_clear()
    loader.registry.cache_clear()
    with pytest.raises(UserError, match=r"no generator 'att_zoo:net'.*written with the plugin 'att_zoo 1\.0': install"):
        load_model(of_a_plugin, device="cpu")
