"""Two trained models, and clients of services of them."""

import shutil

import pytest
import torch
from p2pzoo_serve.app import make_app
from p2pzoo_serve.guard import Access
from p2pzoo_serve.interface import Limits
from p2pzoo_serve.service import Service
from served_images import make_image
from starlette.testclient import TestClient

import p2pzoo
from p2pzoo.models.load import load_model
from p2pzoo.models.safetensors_io import save_model_tensors

HOST = "127.0.0.1:8000"
NETWORK = {"width": 4, "depth": 3}
CALIBRATION = {
    "level": 0.8, "factor": 1.5, "samples": 1, "test_mode": "eval", "blocks": 4, "images": [], "data": {}, "metric": "",
}  # fmt: skip
RECIPE = """
extends = "zoo:base.toml"
title = "Photos </script><b>of & earth"
"""


def write_model(folder, use, params, header):
    """A model file with random weights, and a recipe beside it."""
    torch.manual_seed(0)
    G = p2pzoo.create("generator", use, in_channels=3, out_channels=3, size=(64, 64), **params)
    for parameter in G.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # with biases: dropout of zeros would change nothing
    values = {
        "generator": {"use": use, "params": params}, "in_channels": 3, "out_channels": 3, "size": [64, 64],
        "size_divisor": 8, "run": "0123456789",
    }  # fmt: skip
    save_model_tensors(folder / "model.safetensors", G.state_dict(), {**values, **header})
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="session")
def with_dropout(tmp_path_factory):
    """The folder of a pix2pix model, whose test mode is paper."""
    return write_model(tmp_path_factory.mktemp("random"), "pix2pix:unet", NETWORK, {"test_mode": "paper"})


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory):
    """The folder of a model in test mode eval, with intervals at level 0.8."""
    params = {"of": {"use": "unet", **NETWORK}}
    header = {"test_mode": "eval", "calibration": CALIBRATION}
    return write_model(tmp_path_factory.mktemp("calibrated"), "intervals:quantile-head", params, header)


@pytest.fixture(scope="session")
def models(with_dropout, calibrated):
    """{"random" or "calibrated": (folder, model)}."""
    folders = {"random": with_dropout, "calibrated": calibrated}
    return {name: (folder, load_model(folder, device="cpu")) for name, folder in folders.items()}


@pytest.fixture
def serve(models):
    """serve("random", Access(…), megabytes=1): a client of a new service. `client.service` is the service."""
    open_services = []

    def serve(name="random", access=None, *, queue=16, tile=None, **limits):
        service = Service(*models[name], Limits(**limits), queue=queue, tile=tile)
        open_services.append(service)
        app = make_app(service, access or Access(frozenset({HOST})))
        client = TestClient(app, base_url=f"http://{HOST}", raise_server_exceptions=False)
        client.service = service
        return client

    yield serve
    for service in open_services:
        service.__exit__()
        assert not service.folder.exists()


@pytest.fixture
def translated(run_cli, tmp_path):
    """translated(folder, content, *options) -> {name: bytes} of the files that `p2pzoo translate` writes."""

    def translated(folder, content, *options):
        (tmp_path / "photo.png").write_bytes(content)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        result = run_cli(
            "translate", folder, tmp_path / "photo.png", "-o", tmp_path / "out", "--device", "cpu", *options
        )
        assert result.exit_code == 0, result.output
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    return translated


@pytest.fixture(scope="session")
def image():
    """image(height, width, seed): the bytes of a PNG of random colours."""
    return make_image


@pytest.fixture
def image_tensor():
    """x (1, 3, 64, 64)."""
    return torch.zeros(1, 3, 64, 64)
