"""Short runs with a tracker, and no network."""

import socket

import pytest
from tracked_runs import only

from p2pzoo.training.gan_step import Objective


@pytest.fixture(scope="session")
def run(run):
    """The tiny recipe with fewer images: it logs at image 6, after its checkpoint at image 4."""
    short = ("train.images=8", "train.log_every=2", "train.sample_every=5", "train.checkpoint_every=4")
    return lambda runs, *overrides, flags=(): run(runs, *short, *overrides, flags=flags)


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    """The folder of a run without a tracker. Tests must not change it."""
    runs = tmp_path_factory.mktemp("plain")
    assert run(runs).exit_code == 0
    return only(runs)


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(n): the training of this test is interrupted at step n, once."""

    class Gone(BaseException):
        pass

    def stop_at(number, act):
        take = Objective.step

        def step(self, batch, at):
            if at == number:
                raise Gone
            return take(self, batch, at)

        with monkeypatch.context() as patch:
            patch.setattr(Objective, "step", step)
            with pytest.raises(Gone):
                act()

    return stop_at


@pytest.fixture
def no_network(monkeypatch):
    """A connection to anywhere is an error that no library catches."""

    class Connected(BaseException):
        pass

    def refuse(self, address, *_):
        raise Connected(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
