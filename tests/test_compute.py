"""Devices and precisions: what is chosen, what is refused, what is recorded."""

import pytest
import torch

from p2pzoo.compute import Engine, pick_device
from p2pzoo.contracts import Batch
from p2pzoo.errors import UserError
from p2pzoo.settings import Compute, Optimizer


def test_the_best_device_is_picked_and_a_missing_one_refused(monkeypatch):
    for there, best in [((True, True), "cuda"), ((False, True), "mps"), ((False, False), "cpu")]:
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there[0])
        monkeypatch.setattr("torch.backends.mps.is_available", lambda there=there: there[1])
        assert pick_device("auto") == best
        assert pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r'device = "cuda": torch .* sees none here'):
        pick_device("cuda")


def test_half_precision_without_cuda_is_refused():
    with pytest.raises(UserError, match="fp16"):
        Engine(Compute(device="cpu", precision="fp16"))


def test_automatic_precision_on_a_cpu_is_full_and_recorded():
    described = Engine(Compute(device="cpu")).describe()
    assert described["precision"] == "fp32"
    assert described["device"] == "cpu"
    assert described["deterministic"] is True
    assert described["threads"] == torch.get_num_threads()


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        assert Engine(Compute(device="cpu", threads=1)).describe()["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("channels_last", "expected"), [(True, torch.channels_last), (False, torch.contiguous_format)])
def test_networks_and_batches_share_the_memory_format(channels_last, expected):
    engine = Engine(Compute(device="cpu", channels_last=channels_last))
    network = engine.place(torch.nn.Conv2d(3, 4, 3))
    batch = engine.move(Batch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), ("a", "b")))
    assert network.weight.is_contiguous(memory_format=expected)
    assert batch.x.is_contiguous(memory_format=expected)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [1.0, 1.0, 1.0, 1.0]), ("linear", [1.0, 1.0, 0.5, 0.0])]
)
def test_learning_rate_schedules(schedule, expected):
    settings = Optimizer(lr=1.0, schedule=schedule)
    assert [settings.lr_at(progress) for progress in (0.0, 0.5, 0.75, 1.0)] == expected
