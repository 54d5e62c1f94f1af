"""The thread that runs the network: its order, its bounded queue, and jobs that nobody waits for."""

import threading

import pytest
from p2pzoo_serve.interface import Refusal
from p2pzoo_serve.worker import Stopped, Worker


class Gate:
    """Work that waits until it may end."""

    def __init__(self):
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self):
        self.has_begun.set()
        assert self.may_end.wait(60)
        return "done"


@pytest.fixture
def worker():
    worker = Worker(places=2)
    yield worker
    worker.stop()
    assert worker.join(60)


@pytest.fixture
def gate(worker):
    """The running job; it ends at the end of the test."""
    gate = Gate()
    gate.job = worker.submit(gate)
    assert gate.has_begun.wait(60)
    yield gate
    gate.may_end.set()


def test_jobs_run_one_after_the_other_in_their_order(worker, gate):
    order = []
    jobs = [worker.submit(lambda each=each: order.append((each, threading.current_thread().name))) for each in "ab"]
    assert order == []
    gate.may_end.set()
    for job in jobs:
        job.future.result(60)
    assert order == [("a", "network"), ("b", "network")]


def test_a_full_queue_refuses_and_says_when_to_come_again(worker, gate):
    for _ in range(2):
        worker.submit(int)
    with pytest.raises(Refusal, match="busy: 2 requests in the queue already") as refusal:
        worker.submit(int)
    assert (refusal.value.status, refusal.value.headers) == (503, {"Retry-After": "5"})


def test_a_cancelled_job_frees_its_place_and_never_runs(worker, gate):
    ran = []
    jobs = [worker.submit(lambda: ran.append(1)) for _ in range(2)]
    worker.cancel(jobs[0])
    other = worker.submit(lambda: "other")
    with pytest.raises(Stopped):
        jobs[0].future.result(60)
    gate.may_end.set()
    assert other.future.result(60) == "other"
    assert ran == [1]


def test_a_cancelled_job_that_runs_ends_where_it_asks(worker):
    gate = Gate()

    def work():
        gate()
        worker.raise_if_stopped()

    job = worker.submit(work)
    assert gate.has_begun.wait(60)
    worker.cancel(job)
    worker.raise_if_stopped()  # does nothing in this thread
    gate.may_end.set()
    with pytest.raises(Stopped):
        job.future.result(60)
    assert worker.submit(lambda: "next").future.result(60) == "next"


def test_an_error_is_that_of_its_job_alone(worker):
    def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError):
        worker.submit(fail).future.result(60)
    assert worker.submit(lambda: 1).future.result(60) == 1


def test_after_stop_jobs_end_and_no_others_are_taken(worker, gate):
    waiting = worker.submit(int)
    worker.stop()
    with pytest.raises(Stopped):
        waiting.future.result(60)
    with pytest.raises(Stopped):
        gate.job.future.result(60)  # although its thread is still in it
    with pytest.raises(Refusal, match="the server stops"):
        worker.submit(int)
    gate.may_end.set()
    assert worker.join(60)
    assert not worker.is_alive


def test_a_stopped_network_ends_before_its_next_layer(serve, image_tensor):
    """The hook of the service: a client that is gone does not keep the network busy."""
    service = serve("calibrated").service
    job = service.worker.submit(lambda: (service.worker.cancel(job), service.model.G(image_tensor)))
    with pytest.raises(Stopped):
        job.future.result(60)
    assert service.model.G(image_tensor).shape == image_tensor.shape
