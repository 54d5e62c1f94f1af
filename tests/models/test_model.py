"""`Model` from Python: the header that it needs, and the path to a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from p2pzoo.models.load import find_model_file, load_model
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.utils.errors import DamagedFile, UserError

HEADER = {
    "run": "r-1", "generator": {"use": "none", "params": {}}, "in_channels": 3, "out_channels": 3, "size": [8, 8],
    "size_divisor": 1, "test_mode": "eval",
}  # fmt: skip
FILE = Path("model.safetensors")


@pytest.mark.parametrize("key", ["run", "test_mode", "size_divisor"])
def test_a_file_without_a_key_that_translation_needs_is_damaged(key, tmp_path):
    tensors, header = load_tensors(find_model_file(Path("zoo:earth-small")))
    file = tmp_path / "model.safetensors"
    save_tensors(file, tensors, {name: value for name, value in header.items() if name != key})
    with pytest.raises(DamagedFile, match=f"{file}: its header is damaged: it has no {key}"):
        load_model(file, device="cpu")
    incomplete = ModelHeader.parse({name: value for name, value in HEADER.items() if name != key}, FILE)
    with pytest.raises(ValueError, match=key):
        Model(nn.Identity(), incomplete, torch.device("cpu"))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, not 'fp8'"):
        Model(nn.Identity(), ModelHeader.parse(HEADER, FILE), torch.device("cpu"), "fp8")


@pytest.mark.parametrize("mode", ["eval", "paper"])
def test_for_samples_of_a_deterministic_model_no_mode_is_proposed(mode):
    model = Model(nn.Conv2d(3, 3, 1), ModelHeader.parse(HEADER, FILE), torch.device("cpu"))
    with pytest.raises(ValueError, match="this generator uses no random numbers: all samples would be equal"):
        model.check_can_sample(mode)


@pytest.mark.parametrize("mode", ["eval", "paper"])
def test_a_file_that_claims_huge_training_images_does_not_take_their_memory(mode):
    header = ModelHeader.parse({**HEADER, "size": [1 << 16, 1 << 16]}, FILE)
    model = Model(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()), header, torch.device("cpu"))
    assert model.translate(np.zeros((4, 4, 3), np.uint8), test_mode=mode, scale="native").shape == (4, 4, 3)
    if mode == "paper":
        model.check_can_sample("paper")
    assert model._example.shape == (1, 3, 2048, 2048)


def test_a_pil_image_cannot_hold_every_output():
    header = ModelHeader.parse({**HEADER, "y_dtype": "uint16", "y_range": [0, 65535]}, FILE)
    model = Model(nn.Identity(), header, torch.device("cpu"))
    image = np.zeros((4, 4, 3), np.uint8)
    assert model.translate(image).dtype == np.uint16
    with pytest.raises(ValueError, match="cannot hold what this model returns, 3 channels of uint16: pass an array"):
        model.translate(Image.fromarray(image))


def test_one_sample_is_refused():
    G = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout())
    model = Model(G, ModelHeader.parse(HEADER, FILE), torch.device("cpu"))
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        model.samples(np.full((4, 4, 3), 255, np.uint8), 1)


def test_an_unfinished_run_is_not_a_model(tmp_path):
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(UserError, match="this run has not saved a checkpoint yet; give a run folder"):
        find_model_file(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    tensors, header = load_tensors(find_model_file(Path("zoo:earth-small")))
    name = max(tensors)
    tensors[name].view(-1)[0] = value
    save_tensors(tmp_path / "model.safetensors", tensors, header)
    with pytest.raises(DamagedFile, match=rf"1 of its weights hold NaN or infinite values, such as '{name}'"):
        load_model(tmp_path / "model.safetensors", device="cpu")
