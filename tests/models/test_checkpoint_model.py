"""The newest checkpoint of an unfinished run is a model: it loads, translates, exports and has a card."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from fault_injection import STEP, after, only
from PIL import Image

import p2pzoo
from p2pzoo.models.model_file import load_network
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("with_reports")

AT_15 = "not finished: this is a checkpoint at 15 of 20 images"


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(file)
    return file


def checkpoint_of(runs, images):
    return only(runs) / "checkpoints" / f"images-{images:010d}.safetensors"


@pytest.mark.parametrize("overrides", [(), ("train.ema=0.9", "train.spectral_norm=both", "train.images=6")])
def test_the_last_checkpoint_holds_the_finished_model(overrides, run, shared_complete, tmp_path):
    runs = tmp_path if overrides else shared_complete
    if overrides:
        assert run(runs, *overrides).exit_code == 0
    [checkpoint] = only(runs).glob("checkpoints/*.safetensors")
    finished, header = load_network(only(runs) / "model.safetensors", registry())
    G, at = load_network(checkpoint, registry())
    assert G.state_dict().keys() == finished.state_dict().keys()
    for name, tensor in finished.state_dict().items():
        assert torch.equal(G.state_dict()[name], tensor), name
    assert header.checkpoint is None
    assert at.checkpoint == ((6, 6) if overrides else (20, 20))
    assert (at.use, at.run, at.file_layout) == (header.use, header.run, header.file_layout)


def test_an_unfinished_run_loads_and_says_at_how_many_images(shared_halfway, photo):
    with pytest.warns(UserWarning, match=AT_15):
        model = p2pzoo.load(only(shared_halfway), device="cpu")
    assert model.checkpoint == (15, 20)
    assert "checkpoint at 15 of 20 images" in repr(model)
    assert model.translate(np.asarray(Image.open(photo))).shape == (64, 64, 3)


def test_translate_says_it_in_the_terminal_and_in_the_png(shared_halfway, run_cli, photo, tmp_path):
    result = run_cli("translate", only(shared_halfway), photo, "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    assert result.output.count("a checkpoint at 15 of 20 images") == 1
    stored = json.loads(Image.open(tmp_path / "out.png").text["p2pzoo"])
    assert stored["checkpoint"] == {"images": 15, "of": 20}


def test_a_checkpoint_file_is_a_model_too(shared_halfway, run_cli, photo, tmp_path):
    result = run_cli("translate", checkpoint_of(shared_halfway, 10), photo, "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    assert json.loads(Image.open(tmp_path / "out.png").text["p2pzoo"])["checkpoint"] == {"images": 10, "of": 20}


def test_a_damaged_checkpoint_is_passed_over(halfway, run_cli, photo, tmp_path):
    newest = checkpoint_of(halfway, 15)
    newest.write_bytes(newest.read_bytes()[:-100])
    result = run_cli("translate", only(halfway), photo, "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    assert f"{newest.name}: not a complete p2pzoo file" in result.output
    assert "a checkpoint at 10 of 20 images" in result.output
    for file in newest.parent.iterdir():
        file.write_bytes(b"nothing")
    result = run_cli("translate", only(halfway), photo, "-o", tmp_path / "out2.png")
    assert result.exit_code == 2
    assert "none of its checkpoints is intact" in result.output.splitlines()[-1]


def test_a_run_without_checkpoints_says_so(halfway):
    shutil.rmtree(only(halfway) / "checkpoints")
    with pytest.raises(UserError, match="has not saved a checkpoint yet"):
        p2pzoo.load(only(halfway))


def test_a_checkpoint_of_an_older_version_is_refused_in_words(halfway):
    for file in (only(halfway) / "checkpoints").iterdir():
        tensors, header = load_tensors(file)
        save_tensors(file, tensors, {name: value for name, value in header.items() if name != "model"})
    with pytest.raises(UserError, match=r"does not describe its generator.*resume the run"):
        p2pzoo.load(only(halfway))


def test_optimizers_are_not_kept_in_memory(shared_halfway):
    """The digest covers them, so that they are read; but only G is copied."""
    from p2pzoo.models.checkpoint_model import load_model_tensors

    tensors, header = load_model_tensors(checkpoint_of(shared_halfway, 15))
    G, _ = load_network(checkpoint_of(shared_halfway, 15), registry())
    assert tensors.keys() == G.state_dict().keys()
    assert header["checkpoint"] == {"images": 15, "of": 20}


def test_the_report_of_a_killed_run_shows_its_samples(shared_halfway):
    page = (only(shared_halfway) / "report.html").read_text()
    assert "training, " in page
    assert 'id="samples"' in page


def test_a_run_that_is_stopped_before_its_first_sample_has_a_report(run, tmp_path):
    with after(STEP, lambda: signal.raise_signal(signal.SIGTERM), call=3):
        assert run(tmp_path).exit_code == 128 + signal.SIGTERM
    assert "interrupted, 3 of 20 images" in (only(tmp_path) / "report.html").read_text()


def test_export_and_card_of_an_unfinished_run(shared_halfway, run_cli, tmp_path):
    result = run_cli("export", only(shared_halfway), "--to", "junyanz", "-o", tmp_path / "G.pth")
    assert result.exit_code == 0, result.output
    assert "a checkpoint at 15 of 20 images" in result.output
    result = run_cli("card", only(shared_halfway), "-o", tmp_path / "card")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "card" / "README.md").read_text()
    assert "**Unfinished:** this is a checkpoint at 15 of 20 images" in card
    assert "samples.png" in card
    assert p2pzoo.load(tmp_path / "card" / "model.safetensors", device="cpu").checkpoint == (15, 20)
