"""safetensors files with a header and a digest: damage is detected, equal contents are equal bytes."""

import contextlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from p2pzoo.models.safetensors_io import (
    load_into,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
)
from p2pzoo.utils.errors import DamagedFile, UserError

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "count": torch.tensor(3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
}
HEADER = {"images": 7, "window": [{"G.l1": 0.1}], "name": "ŷ"}


def test_tensors_and_header_are_loaded_as_saved_into_fresh_memory(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, HEADER)
    tensors, header = load_tensors(path)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].data_ptr() % 16 == 0 or not tensors[name].numel(), "aligned, like fresh tensors"
    path.unlink()
    assert float(tensors["weight"].sum()) == 66.0, "no view of the file"


def test_equal_contents_are_equal_bytes_with_one_metadata_key(tmp_path):
    for name in "ab":
        save_tensors(tmp_path / name, TENSORS, HEADER)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert list(file.metadata()) == ["p2pzoo"]
        assert json.loads(file.metadata()["p2pzoo"])["images"] == 7


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_and_any_truncation_is_detected(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "a.safetensors"
    save_tensors(path, TENSORS, HEADER)
    contents = path.read_bytes()
    if data.draw(st.booleans(), "truncated"):
        path.write_bytes(contents[: data.draw(st.integers(0, len(contents) - 1), "length")])
    else:
        index = data.draw(st.integers(0, len(contents) - 1), "byte")
        bit = 1 << data.draw(st.integers(0, 7), "bit")
        path.write_bytes(contents[:index] + bytes([contents[index] ^ bit]) + contents[index + 1 :])
    with contextlib.suppress(DamagedFile):
        tensors, header = load_tensors(path)
        # not detected: then only bytes without meaning changed, such as white space in the header
        assert header == HEADER
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_files_that_p2pzoo_did_not_write_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    for name in ("foreign", "text"):
        with pytest.raises(DamagedFile, match=f"{name}.safetensors: not a complete p2pzoo file"):
            load_tensors(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_tensors(tmp_path / "absent.safetensors")


def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, HEADER)
    before = path.read_bytes()

    def raise_disk_full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("p2pzoo.utils.files.os.fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, TENSORS, {"images": 8})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_do_not_fit_are_named_and_none_is_loaded():
    model = nn.Conv2d(3, 8, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_into(model, {"weight": torch.zeros(8, 4, 3, 3), "extra": torch.zeros(1)}, "m.safetensors")
    assert caught.value.faults == (
        "m.safetensors: tensor 'bias' is missing",
        "m.safetensors: tensor 'extra' is not in this network",
        "m.safetensors: the shape of tensor 'weight' is [8, 4, 3, 3], the network's is [8, 3, 3, 3]",
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fused", [True, False])
def test_a_restored_optimizer_resumes_with_bit_identical_results(fused):
    def make_model():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        model = model.to(memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), fused=fused)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.rand(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()

    model, optimizer = make_model()
    for seed in range(3):
        step(model, optimizer, seed)
    resumed_model, resumed_optimizer = make_model()
    load_into(resumed_model, {name: t.clone() for name, t in model.state_dict().items()}, "here")
    saved = {name: t.contiguous().clone() for name, t in optimizer_tensors("a", optimizer).items()}
    restore_optimizer(resumed_optimizer, {name.removeprefix("a."): t for name, t in saved.items()})
    for m, o in ((model, optimizer), (resumed_model, resumed_optimizer)):
        for seed in range(3, 6):
            step(m, o, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed_model.parameters(), strict=True))
