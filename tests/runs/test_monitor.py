"""The training monitor: a run provokes each problem, which is reported once and shown in the report."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from fault_injection import only

from p2pzoo.compute.prefetch import TimedBatches
from p2pzoo.runs import monitor
from p2pzoo.runs.monitor import (
    MIN_GROWTH_MEGABYTES,
    MIN_MEMORY_LINES,
    SATURATED_WINDOWS,
    STARVED_WINDOWS,
    TRAINING_PROBLEMS,
)
from p2pzoo.runs.run_folder import Run
from p2pzoo.training import checkpoint

pytestmark = pytest.mark.usefixtures("with_reports")

PLUGIN = """
import time
import torch
import p2pzoo
from p2pzoo_earth.dataset import Earth

@p2pzoo.hookimpl
def register_losses(register):
    register("keeper", Keeper, summary="Zero; keeps a megabyte of each batch")
    register("odd", Odd, summary="Zero, but NaN from call `at` on")

@p2pzoo.hookimpl
def register_datasets(register):
    register("slow", Slow, summary="Earth with slow reads")

@p2pzoo.hookimpl
def register_generators(register):
    register("gated", Gated, summary="Most weights are behind gates that start at 0, as in NAFNet")

class Gated(torch.nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.first = torch.nn.Conv2d(in_channels, 8, 3, padding=1)
        self.blocks = torch.nn.ModuleList(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.gates = torch.nn.Parameter(torch.zeros(4, 8, 1, 1))
        self.last = torch.nn.Conv2d(8, out_channels, 3, padding=1)

    def forward(self, x):
        h = self.first(x)
        for block, gate in zip(self.blocks, self.gates):
            h = h + gate * torch.relu(block(h))
        return torch.tanh(self.last(h))

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
    "saturated": (
        "optimizer.lr=1e-6", "optimizer.lr_discriminator=3e-3", "train.images=400", "discriminator.receptive_field=70",
        "train.log_every=8",  # the mean of few images is above the limit now and then
    ),
    "vanished": ("gan_loss.weight=1e-9", "losses.l1.weight=1e-9"),
    "constant": (
        "generator.use=encoder-decoder", "generator.width=8", "generator.bottleneck_norm=true", ALONE,
        "train.sample_every=5",
    ),
    "memory": ("losses.kept.use=keeper", "losses.kept.megabytes=4", "train.images=80", "train.log_every=2"),
    "starved": ("dataset.use=slow", "compute.store=stream", "compute.readers=0", "train.images=24"),
    "diverged": ("losses.odd.use=odd", "losses.odd.at=17"),
}  # fmt: skip


SLOW = ("saturated", "memory", "starved")  # tens of seconds


@pytest.fixture
def plugin(install):
    install("ailing", PLUGIN)


@pytest.fixture
def run_in_process(start, tmp_path, monkeypatch):
    """run_in_process("run", …): (output, exit code) of a new process; free memory of this one could hide a leak."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    def run_in_process(*command):
        process = start("-m", "p2pzoo", *command)
        output, _ = process.communicate(timeout=600)
        return output, process.returncode

    return run_in_process


def findings(runs):
    return [json.loads(line) for line in (only(runs) / monitor.FINDINGS_FILE).read_text().splitlines()]


def test_each_problem_has_a_run_that_provokes_it():
    assert set(PROVOKED) == set(TRAINING_PROBLEMS)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in PROVOKED]
)
def test_a_problem_is_reported_once_and_shown_in_the_report(kind, arguments, run_cli, run_in_process, tmp_path):
    command = arguments(tmp_path, *PROVOKED[kind])
    if kind == "memory":
        output, code = run_in_process(*command)
    else:
        result = run_cli(*command)
        output, code = result.output, result.exit_code
    assert code == (2 if kind == "diverged" else 0), output
    warnings = [
        line for line in output.splitlines() if TRAINING_PROBLEMS[kind].do.partition(",")[0].lower() in line.lower()
    ]
    assert len(warnings) == 1, output
    [found] = [finding for finding in findings(tmp_path) if finding["kind"] == kind]
    assert found["message"] in warnings[0] or kind == "diverged"
    page = (only(tmp_path) / "report.html").read_text("utf-8")
    assert "Problems found during training" in page
    assert TRAINING_PROBLEMS[kind].what.replace("'", "&#39;") in page


def test_a_run_without_problems_has_no_warning(run, tmp_path):
    result = run(tmp_path, "train.images=40", "train.sample_every=8")
    assert result.exit_code == 0
    assert "warning" not in result.output
    assert not (only(tmp_path) / monitor.FINDINGS_FILE).exists()
    assert "Problems found" not in (only(tmp_path) / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("plugin")
def test_a_resumed_run_does_not_report_a_problem_again(run, tmp_path):
    overrides = (*PROVOKED["vanished"], "losses.odd.use=odd", "losses.odd.at=13")
    assert TRAINING_PROBLEMS["vanished"].what in run(tmp_path, *overrides).output
    result = run(tmp_path, *overrides)  # resumes, and the loss counts from 0 again
    assert result.exit_code == 0
    assert TRAINING_PROBLEMS["vanished"].what not in result.output
    assert [finding["kind"] for finding in findings(tmp_path)] == ["vanished", "diverged"]


@pytest.mark.usefixtures("plugin")
def test_a_run_that_diverges_again_is_recorded_once(run, tmp_path):
    for _ in range(2):
        assert run(tmp_path, "losses.odd.use=odd", "losses.odd.at=5").exit_code == 2
    assert [finding["kind"] for finding in findings(tmp_path)] == ["diverged"]


def test_a_run_that_starts_over_reports_its_problems_again(run, tmp_path):
    run(tmp_path, *PROVOKED["vanished"])
    before = findings(tmp_path)
    result = run(tmp_path, *PROVOKED["vanished"], flags=("--fresh",))
    assert TRAINING_PROBLEMS["vanished"].what in result.output
    assert findings(tmp_path) == before


@pytest.mark.usefixtures("plugin")
def test_gates_that_start_at_0_are_no_vanished_gradient(tiny, run_cli, tmp_path):
    overrides = ("generator.use=gated", "train.images=20", "train.checkpoint_every=5", "losses.l1.weight=0.01",
                 "gan_loss.weight=1e-3")  # fmt: skip
    options = [part for override in overrides for part in ("-s", override)]
    result = run_cli("run", tiny, "--profile", "smoke", "--runs", tmp_path, *options)
    assert result.exit_code == 0, result.output
    assert TRAINING_PROBLEMS["vanished"].what not in result.output


def test_damaged_log_lines_are_skipped(halfway):
    folder = only(halfway)
    for name, line in (
        ("metrics.jsonl", '{"images": 4, "D.gan": 0.1, "D.fale": 1}'),
        (monitor.FINDINGS_FILE, '{"images": 4}'),
    ):
        with (folder / name).open("a") as log:
            log.write(f'{line}\n{{"images": 4, "kind": ["starved"], "message": 3, "D.gan": "x"}}\n')
    training_monitor = monitor.TrainingMonitor(Run(folder), None)
    for line in log_of(monitor.SATURATED_WINDOWS - 1):
        training_monitor.logged(line, {"images": line["images"], "seconds": 1.0})
    assert monitor.read_findings(Run(folder)) == []


# --- the rules ---


def log_of(count, **changes):
    return [{"images": 4 * i, "D.gan": 0.001, "D.real": 6.0, "D.fake": -6.0, **changes} for i in range(count)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (log_of(SATURATED_WINDOWS), True),
        (log_of(SATURATED_WINDOWS - 1), False),
        ([*log_of(1, **{"D.gan": 0.3}), *log_of(SATURATED_WINDOWS)], True),
        ([*log_of(SATURATED_WINDOWS), *log_of(1, **{"D.gan": 0.3})], False),
        (log_of(SATURATED_WINDOWS, **{"D.gan": -40.0, "D.real": 20.0, "D.fake": -20.0}), False),
        (log_of(SATURATED_WINDOWS, **{"D.real": 0.01, "D.fake": 0.0}), False),
        ([{"images": i, "G.l1": 0.2} for i in range(SATURATED_WINDOWS)], False),
    ],
    ids=["D has won", "too early", "D has won by now", "not any more", "a critic", "a critic at its start", "no D"],
)
def test_D_is_saturated_if_it_has_won_for_many_windows(lines, expected):
    assert bool(monitor.detect_saturation(lines)) == expected


def timing(waited, read=0.0):
    return {"seconds": 10.0, "waited": waited, "read": read}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([timing(5.0)] * STARVED_WINDOWS, True),
        ([timing(5.0)] * (STARVED_WINDOWS - 1), False),
        ([*[timing(5.0)] * STARVED_WINDOWS, timing(1.0)], False),
        ([timing(5.0, read=4.0)] * STARVED_WINDOWS, False),
        ([{"seconds": 10.0}] * STARVED_WINDOWS, False),
    ],
    ids=["starved", "too early", "not any more", "the device is busy", "a log of earlier versions"],
)
def test_a_starved_run_waits_for_images_and_not_for_its_device(lines, expected):
    assert bool(monitor.detect_starvation(lines)) == expected


def memory(values):
    return [{"images": i, "seconds": 1.0, "megabytes": float(value)} for i, value in enumerate(values)]


N = 2 * MIN_MEMORY_LINES


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([500 + 10 * i for i in range(N)], True),
        ([500 + 10 * i for i in range(MIN_MEMORY_LINES - 1)], False),
        ([500 + 0.9 * MIN_GROWTH_MEGABYTES * i / N for i in range(N)], False),
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
def test_a_leak_differs_from_a_cache_that_fills(held, expected):
    assert bool(monitor.detect_memory_growth(memory(held))) == expected
    gpu = [{"gpu_megabytes": line["megabytes"], "megabytes": 100.0} for line in memory(held)]
    assert ("the GPU" in (monitor.detect_memory_growth(gpu) or "")) == expected


def test_memory_may_grow_until_each_pair_has_been_seen(complete):
    folder, notes_written = only(complete), []
    for filled, expected in ((2 * N, False), (N // 3, True)):
        notes = SimpleNamespace(note=notes_written.append)
        training_monitor = monitor.TrainingMonitor(Run(folder), notes, filled)
        for line in memory([500 + 10 * i for i in range(N)]):
            training_monitor.logged({"images": line["images"]}, line)
        assert bool(notes_written) == expected
    assert TRAINING_PROBLEMS["memory"].what in notes_written[0]


def test_a_leak_is_found_however_long_the_run(complete):
    folder, notes, notes_written = only(complete), SimpleNamespace(), []
    notes.note = notes_written.append
    training_monitor = monitor.TrainingMonitor(Run(folder), notes)
    for line in memory([500.0] * 3000):
        training_monitor.logged({"images": line["images"]}, line)
    for line in memory([500 + 0.1 * i for i in range(60_000)]):
        training_monitor.logged({"images": line["images"]}, line)
    assert len(training_monitor._memory_lines) <= monitor.MAX_MEMORY_LINES
    assert TRAINING_PROBLEMS["memory"].what in notes_written[0]


@pytest.mark.slow
@pytest.mark.usefixtures("plugin")
def test_growth_in_the_first_epoch_is_no_leak(arguments, run_in_process, tmp_path):
    output, code = run_in_process(*arguments(tmp_path, *PROVOKED["memory"], "dataset.stride=32"))
    assert code == 0, output
    lines = [json.loads(line) for line in (only(tmp_path) / "timings.jsonl").read_text().splitlines()]
    assert monitor.detect_memory_growth(lines), "without the limit of the first epoch"
    assert not (only(tmp_path) / monitor.FINDINGS_FILE).exists()


def test_a_constant_generator_gives_one_colour_or_one_image():
    torch.manual_seed(0)
    y = [torch.rand(1, 3, 8, 8) * 2 - 1 for _ in range(3)]
    grey = [torch.full((1, 3, 8, 8), value) for value in (0.1, 0.2, 0.3)]
    assert "colour" in monitor.detect_constant_output(grey, y)
    assert "same picture" in monitor.detect_constant_output([y[0]] * 3, y)
    assert monitor.detect_constant_output([y[0]], y[:1]) is None  # one image is not enough
    assert monitor.detect_constant_output(y, y) is None
    assert monitor.detect_constant_output(grey, grey) is None  # y is flat too
    assert monitor.detect_constant_output([y[0]] * 3, [y[1]] * 3) is None


def test_a_gradient_has_vanished_if_adams_eps_is_larger():
    weight = torch.nn.Parameter(torch.ones(100))
    for factor, expected in ((1.0, False), (1e-6, False), (1e-12, True)):
        adam = torch.optim.Adam([weight], lr=0.0)
        for _ in range(3):
            weight.grad = factor * torch.ones(100)
            adam.step()
        assert bool(monitor.detect_vanished_gradients(adam)) == expected
    weight.grad[:49] = 1.0
    adam = torch.optim.Adam([weight], lr=0.0)
    adam.step()
    assert monitor.detect_vanished_gradients(adam) == "51% of them"
    assert monitor.detect_vanished_gradients(torch.optim.SGD([weight], lr=0.1)) is None


def test_waiting_for_batches_is_measured():
    class Slow:
        def __getitem__(self, step):
            time.sleep(0.02)
            return step

    batches, start = TimedBatches(Slow()), time.perf_counter()
    assert [batches[3], batches[4]] == [3, 4]
    assert 0.04 <= batches.pop_seconds() <= time.perf_counter() - start
    assert batches.pop_seconds() == 0.0


def test_waiting_for_the_device_is_logged(run, tmp_path, monkeypatch):
    def read_slowly(self, read=checkpoint.LossLogger.read):
        time.sleep(0.05)
        return read(self)

    monkeypatch.setattr(checkpoint.LossLogger, "read", read_slowly)
    assert run(tmp_path, "train.images=8", "train.log_every=4", "train.sample_every=8").exit_code == 0
    lines = [json.loads(line) for line in (only(tmp_path) / "timings.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(0.05 <= line["read"] < line["seconds"] for line in lines)
