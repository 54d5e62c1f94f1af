"""Files that describe themselves, notice damage, and are the same bytes for the same contents."""

import contextlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from p2pzoo.models.safetensors_io import (
    DamagedFile,
    load_into,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
)
from p2pzoo.utils.errors import UserError

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "count": torch.tensor(3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "turned": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
}
HEADER = {"images": 7, "window": [{"G.l1": 0.1}], "name": "ŷ"}


def test_what_is_saved_comes_back_in_memory_of_its_own(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, HEADER)
    tensors, header = load_tensors(path)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].data_ptr() % 16 == 0 or not tensors[name].numel(), "aligned, as fresh tensors are"
    path.unlink()
    assert float(tensors["weight"].sum()) == 66.0, "not a view of the file"


def test_equal_contents_are_equal_bytes_and_only_one_metadata_key_is_written(tmp_path):
    for name in "ab":
        save_tensors(tmp_path / name, TENSORS, HEADER)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert list(file.metadata()) == ["p2pzoo"]
        assert json.loads(file.metadata()["p2pzoo"])["images"] == 7


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_and_any_cut_is_noticed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "a.safetensors"
    save_tensors(path, TENSORS, HEADER)
    whole = path.read_bytes()
    if data.draw(st.booleans(), "cut"):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), "length")])
    else:
        place = data.draw(st.integers(0, len(whole) - 1), "byte")
        bit = 1 << data.draw(st.integers(0, 7), "bit")
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
    with contextlib.suppress(DamagedFile):
        tensors, header = load_tensors(path)
        # not noticed: then nothing that was said has changed, as where white space in the header did
        assert header == HEADER
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_somebody_elses_safetensors_is_told_apart(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    for name in ("foreign", "text"):
        with pytest.raises(DamagedFile, match=f"{name}.safetensors: not a whole p2pzoo file"):
            load_tensors(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_tensors(tmp_path / "absent.safetensors")


def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, HEADER)
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("p2pzoo.utils.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, TENSORS, {"images": 8})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_do_not_fit_are_named_and_nothing_is_half_loaded():
    model = nn.Conv2d(3, 8, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_into(model, {"weight": torch.zeros(8, 4, 3, 3), "extra": torch.zeros(1)}, "m.safetensors")
    assert caught.value.faults == (
        "m.safetensors: no tensor 'bias'",
        "m.safetensors: tensor 'extra' has no place in this network",
        "m.safetensors: tensor 'weight' is [8, 4, 3, 3], the network's is [8, 3, 3, 3]",
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fused", [True, False])
def test_a_restored_optimizer_goes_on_to_the_same_bits(fused):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        model = model.to(memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), fused=fused)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.rand(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()

    model, optimizer = make()
    for seed in range(3):
        step(model, optimizer, seed)
    again, other = make()
    load_into(again, {name: t.clone() for name, t in model.state_dict().items()}, "here")
    saved = {name: t.contiguous().clone() for name, t in optimizer_tensors("a", optimizer).items()}
    restore_optimizer(other, {name.removeprefix("a."): t for name, t in saved.items()})
    for m, o in ((model, optimizer), (again, other)):
        for seed in range(3, 6):
            step(m, o, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
