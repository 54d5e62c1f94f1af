"""The doctor while training: each thing that it knows is provoked by a run, told once, and shown in the report."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from disturbed import only

from p2pzoo.compute.prefetch import Clocked
from p2pzoo.runs import monitor
from p2pzoo.runs.monitor import KINDS, MEGABYTES, WINDOWS_GROWN, WINDOWS_STARVED, WINDOWS_WON
from p2pzoo.runs.run_folder import Run
from p2pzoo.training import checkpoint

PLUGIN = """
import time
import torch
import p2pzoo
from p2pzoo_earth.dataset import Earth

@p2pzoo.hookimpl
def register_losses(register):
    register("keeper", Keeper, summary="Zero; keeps a megabyte of each batch")
    register("odd", Odd, summary="Zero, but no number from call `at` on")

@p2pzoo.hookimpl
def register_datasets(register):
    register("slow", Slow, summary="The earth, read slowly")

class Keeper:
    side = "generator"
    needs = ()

    def __init__(self, *, megabytes: int = 1):
        self.kept, self.megabytes = [], megabytes

    def __call__(self, out):
        self.kept.append(torch.ones(self.megabytes * 250_000))
        return 0 * out.y_hat.mean()

class Odd:
    side = "generator"
    needs = ()

    def __init__(self, *, at: int):
        self.left = at

    def __call__(self, out):
        self.left -= 1
        return out.y_hat.mean() * (float("nan") if self.left <= 0 else 0)

class Slow(Earth):
    def __init__(self, split, *, size: int = 64, stride: int = 256):
        super().__init__(split, size=size, stride=stride)
        self.seconds = 0.3 if split == "train" else 0

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return super().__getitem__(index)
"""
ALONE = "generator.noise=none"
PROVOKED = {
    "saturated": ("optimizer.lr=1e-6", "optimizer.lr_discriminator=3e-3", "train.images=260"),
    "vanished": ("gan_loss.weight=1e-9", "losses.l1.weight=1e-9"),
    "constant": (
        "generator.use=encoder-decoder", "generator.bottleneck_norm=true", ALONE, "train.sample_every=10",
    ),
    "memory": ("losses.kept.use=keeper", "losses.kept.megabytes=4", "train.images=80", "train.log_every=2"),
    "starved": ("dataset.use=slow", "compute.store=stream", "compute.readers=0", "train.images=24"),
    "diverged": ("losses.odd.use=odd", "losses.odd.at=17"),
}  # fmt: skip


LONG = ("saturated", "memory", "starved")  # tens of seconds


@pytest.fixture
def plugin(install):
    install("ailing", PLUGIN)


@pytest.fixture
def elsewhere(start, tmp_path, monkeypatch):
    """elsewhere("run", …): output and exit code of another process; this one may have room that a leak fills first."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    def elsewhere(*command):
        process = start("-m", "p2pzoo", *command)
        output, _ = process.communicate(timeout=120)
        return output, process.returncode

    return elsewhere


def findings(runs):
    return [json.loads(line) for line in (only(runs) / monitor.LOG).read_text().splitlines()]


def test_each_kind_has_a_run_that_provokes_it():
    assert set(PROVOKED) == set(KINDS)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in LONG else kind for kind in PROVOKED]
)
def test_a_run_that_ails_is_told_of_it_once_and_its_report_shows_it(kind, arguments, zoo, elsewhere, tmp_path):
    command = arguments(tmp_path, *PROVOKED[kind])
    if kind == "memory":
        output, code = elsewhere(*command)
    else:
        answer = zoo(*command)
        output, code = answer.output, answer.exit_code
    assert code == (2 if kind == "diverged" else 0), output
    told = [line for line in output.splitlines() if KINDS[kind].do.partition(",")[0].lower() in line.lower()]
    assert len(told) == 1, output
    [found] = [finding for finding in findings(tmp_path) if finding["kind"] == kind]
    assert found["told"] in told[0] or kind == "diverged"
    page = (only(tmp_path) / "report.html").read_text("utf-8")
    assert "Noticed while training" in page
    assert KINDS[kind].what.replace("'", "&#39;") in page


def test_a_run_that_is_well_hears_nothing(run, tmp_path):
    answer = run(tmp_path, "train.images=120", "train.sample_every=20")
    assert answer.exit_code == 0
    assert "warning" not in answer.output
    assert not (only(tmp_path) / monitor.LOG).exists()
    assert "Noticed" not in (only(tmp_path) / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("plugin")
def test_what_was_told_before_a_run_was_stopped_is_not_told_again(run, tmp_path):
    overrides = (*PROVOKED["vanished"], "losses.odd.use=odd", "losses.odd.at=25")
    assert KINDS["vanished"].what in run(tmp_path, *overrides).output
    answer = run(tmp_path, *overrides)  # goes on from its checkpoint, and the loss counts anew
    assert answer.exit_code == 0
    assert KINDS["vanished"].what not in answer.output
    assert [finding["kind"] for finding in findings(tmp_path)] == ["vanished", "diverged"]


@pytest.mark.usefixtures("plugin")
def test_a_run_that_diverges_again_is_noted_once(run, tmp_path):
    for _ in range(2):
        assert run(tmp_path, "losses.odd.use=odd", "losses.odd.at=5").exit_code == 2
    assert [finding["kind"] for finding in findings(tmp_path)] == ["diverged"]


def test_a_run_that_starts_over_forgets_what_was_noticed(run, tmp_path):
    run(tmp_path, *PROVOKED["vanished"])
    before = findings(tmp_path)
    answer = run(tmp_path, *PROVOKED["vanished"], flags=("--fresh",))
    assert KINDS["vanished"].what in answer.output
    assert findings(tmp_path) == before


def test_damaged_logs_are_read_past(halfway):
    folder = only(halfway)
    for name, line in (("metrics.jsonl", '{"images": 4, "D.gan": 0.1, "D.fale": 1}'), (monitor.LOG, '{"images": 4}')):
        with (folder / name).open("a") as log:
            log.write(f'{line}\n{{"images": 4, "kind": ["starved"], "told": 3, "D.gan": "x"}}\n')
    doctor = monitor.TrainingMonitor(Run(folder), None)
    for line in log_of(monitor.WINDOWS_WON - 1):
        doctor.logged(line, {"images": line["images"], "seconds": 1.0})
    assert monitor.read_findings(Run(folder)) == []


# --- the rules themselves ---


def log_of(count, **changes):
    return [{"images": 4 * i, "D.gan": 0.001, "D.real": 6.0, "D.fake": -6.0, **changes} for i in range(count)]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (log_of(WINDOWS_WON), True),
        (log_of(WINDOWS_WON - 1), False),
        ([*log_of(1, **{"D.gan": 0.3}), *log_of(WINDOWS_WON)], True),
        ([*log_of(WINDOWS_WON), *log_of(1, **{"D.gan": 0.3})], False),
        (log_of(WINDOWS_WON, **{"D.gan": -40.0, "D.real": 20.0, "D.fake": -20.0}), False),
        (log_of(WINDOWS_WON, **{"D.real": 0.01, "D.fake": 0.0}), False),
        ([{"images": i, "G.l1": 0.2} for i in range(WINDOWS_WON)], False),
    ],
    ids=["won", "too early", "won by now", "not any more", "a critic", "a critic at its start", "no D"],
)
def test_a_saturated_D_is_one_that_has_won_for_long(lines, told):
    assert bool(monitor.saturated(lines)) == told


def timing(waited, read=0.0):
    return {"seconds": 10.0, "waited": waited, "read": read}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([timing(5.0)] * WINDOWS_STARVED, True),
        ([timing(5.0)] * (WINDOWS_STARVED - 1), False),
        ([*[timing(5.0)] * WINDOWS_STARVED, timing(1.0)], False),
        ([timing(5.0, read=4.0)] * WINDOWS_STARVED, False),
        ([{"seconds": 10.0}] * WINDOWS_STARVED, False),
    ],
    ids=["starved", "too early", "not any more", "the device is busy", "a log of earlier versions"],
)
def test_a_starved_run_waits_for_images_and_not_for_its_device(lines, told):
    assert bool(monitor.starved(lines)) == told


def memory(values):
    return [{"images": i, "seconds": 1.0, "megabytes": float(value)} for i, value in enumerate(values)]


N = 2 * WINDOWS_GROWN


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ([500 + 10 * i for i in range(N)], True),
        ([500 + 10 * i for i in range(WINDOWS_GROWN - 1)], False),
        ([500 + 0.9 * MEGABYTES * i / N for i in range(N)], False),
        ([500 + 400 * (1 - 0.9**i) for i in range(N)], False),
        ([500 + 300 * math.log(1 + i) for i in range(N)], False),
        ([500 + 10 * min(i, N // 2) for i in range(N)], False),
        ([500 + 300 * (i % 2) for i in range(N)], False),
        ([50_000 + 10 * i for i in range(N)], False),
    ],
    ids=[
        "a leak",
        "too early",
        "little",
        "levels off",
        "slower and slower",
        "full at half time",
        "to and fro",
        "next to nothing",
    ],
)
def test_memory_that_grows_without_end_is_told_from_memory_that_fills(held, told):
    assert bool(monitor.growing(memory(held))) == told
    gpu = [{"gpu_megabytes": line["megabytes"], "megabytes": 100.0} for line in memory(held)]
    assert ("the GPU" in (monitor.growing(gpu) or "")) == told


def test_memory_may_grow_until_each_pair_has_been_seen(complete):
    folder, said = only(complete), []
    for filled, told in ((2 * N, False), (N // 3, True)):
        notes = SimpleNamespace(note=said.append)
        doctor = monitor.TrainingMonitor(Run(folder), notes, filled)
        for line in memory([500 + 10 * i for i in range(N)]):
            doctor.logged({"images": line["images"]}, line)
        assert bool(said) == told
    assert KINDS["memory"].what in said[0]


def test_a_leak_is_found_however_long_the_run(complete):
    folder, notes, said = only(complete), SimpleNamespace(), []
    notes.note = said.append
    doctor = monitor.TrainingMonitor(Run(folder), notes)
    for line in memory([500.0] * 3000):
        doctor.logged({"images": line["images"]}, line)
    for line in memory([500 + 0.1 * i for i in range(60_000)]):
        doctor.logged({"images": line["images"]}, line)
    assert len(doctor._held) <= monitor.KEPT
    assert KINDS["memory"].what in said[0]


@pytest.mark.slow
@pytest.mark.usefixtures("plugin")
def test_what_grows_in_a_runs_first_epoch_is_not_called_a_leak(arguments, elsewhere, tmp_path):
    output, code = elsewhere(*arguments(tmp_path, *PROVOKED["memory"], "dataset.stride=32"))
    assert code == 0, output
    lines = [json.loads(line) for line in (only(tmp_path) / "timings.jsonl").read_text().splitlines()]
    assert monitor.growing(lines), "as long as it is not known why"
    assert not (only(tmp_path) / monitor.LOG).exists()


def test_a_constant_generator_is_one_colour_or_one_picture():
    torch.manual_seed(0)
    y = [torch.rand(1, 3, 8, 8) * 2 - 1 for _ in range(3)]
    grey = [torch.full((1, 3, 8, 8), value) for value in (0.1, 0.2, 0.3)]
    assert "colour" in monitor.constant(grey, y)
    assert "same picture" in monitor.constant([y[0]] * 3, y)
    assert monitor.constant([y[0]], y[:1]) is None  # of one image nobody can say
    assert monitor.constant(y, y) is None
    assert monitor.constant(grey, grey) is None  # as it ought to be
    assert monitor.constant([y[0]] * 3, [y[1]] * 3) is None


def test_a_gradient_has_vanished_where_adams_eps_outweighs_it():
    weight = torch.nn.Parameter(torch.ones(100))
    for factor, told in ((1.0, False), (1e-6, False), (1e-12, True)):
        adam = torch.optim.Adam([weight], lr=0.0)
        for _ in range(3):
            weight.grad = factor * torch.ones(100)
            adam.step()
        assert bool(monitor.vanished(adam)) == told
    weight.grad[:49] = 1.0
    adam = torch.optim.Adam([weight], lr=0.0)
    adam.step()
    assert monitor.vanished(adam) == "51% of them"
    assert monitor.vanished(torch.optim.SGD([weight], lr=0.1)) is None


def test_waiting_is_measured_where_it_happens():
    class Slow:
        def __getitem__(self, step):
            time.sleep(0.02)
            return step

    batches = Clocked(Slow())
    assert [batches[3], batches[4]] == [3, 4]
    assert 0.04 <= batches.taken() < 1.0
    assert batches.taken() == 0.0


def test_waiting_for_the_device_is_told_from_the_rest_of_the_time(run, tmp_path, monkeypatch):
    def read_slowly(self, read=checkpoint.LossLogger.read):
        time.sleep(0.05)
        return read(self)

    monkeypatch.setattr(checkpoint.LossLogger, "read", read_slowly)
    assert run(tmp_path, "train.images=8", "train.log_every=4", "train.sample_every=8").exit_code == 0
    lines = [json.loads(line) for line in (only(tmp_path) / "timings.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(0.05 <= line["read"] < line["seconds"] for line in lines)
