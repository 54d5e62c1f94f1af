"""Every registered generator can be exported to ONNX, and the file gives the same images."""

import pytest
from p2pzoo_export import graphs, onnx_file
from small_networks import SMALL_NETWORKS

from p2pzoo.models.load import load_model
from p2pzoo.models.safetensors_io import save_model
from p2pzoo.plugin.loader import plugins
from p2pzoo.testing.component_case import ComponentCase
from p2pzoo.testing.networks import build_trained_network, network_header

GENERATORS = [
    entry
    for plugin in plugins()
    if plugin.distribution.startswith("p2pzoo ")
    for entry in plugin.entries
    if entry.kind == "generator" and entry.name != "resnet6"  # resnet9 with fewer blocks
]


def test_the_packages_for_onnx_are_installed():
    """Otherwise the other tests of this file would fail for another reason than a generator."""
    assert not onnx_file.find_missing_packages()


def test_there_are_generators_to_test():
    assert {"unet", "resnet9", "pix2pixhd-global", "spade", "timm-unet"} <= {entry.name for entry in GENERATORS}


@pytest.mark.slow
@pytest.mark.parametrize("entry", GENERATORS, ids=lambda entry: entry.full_name)
def test_a_generator_gives_the_same_images_as_its_onnx_file(entry, tmp_path):
    """`export` compares the file with torch, also for other sizes and batches if these are free in the graph."""
    case = ComponentCase.from_entry(entry, SMALL_NETWORKS.get(entry.plugin, {}).get(entry.name))
    network = build_trained_network(case).eval()
    header = network_header(case, network) | {"run": "none", "test_mode": "eval"}
    save_model(tmp_path / "model.safetensors", network, header)
    model = load_model(tmp_path / "model.safetensors", device="cpu")
    result = graphs.export_graph(model, tmp_path / "model.onnx", "onnx")
    assert result.difference <= 1e-3  # of values in [-1, 1]: 1/8 of a level of an 8-bit image
    assert (tmp_path / "model.onnx").stat().st_size
