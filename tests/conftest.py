"""Fixtures of several test modules: a tiny recipe, the command line in this process or another one, test plugins."""

import contextlib
import gc
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it: tables in a pipe are then folded
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests share the cores as processes

import torch
from click.testing import CliRunner
from fault_injection import STEP, SimulatedKill, after, simulate_kill
from fork_server import ForkServer
from hypothesis import HealthCheck, settings

from p2pzoo.cli import main
from p2pzoo.plugin import loader
from p2pzoo.runs.report import write_report
from p2pzoo.training import loop

# a loaded machine must fail no test
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

MINUTES = (
    "test_cluster.py", "test_gpu_window.py", "test_packaging.py", "test_kills.py", "test_bench.py",
    "test_distributed.py", "test_large_images.py",
)  # fmt: skip

FOLDER_NUMBERS = itertools.count()  # of the folders `tmp_path` of this process

TINY = """
extends = "zoo:base.toml"
title = "tiny"
drop = ["metrics.ssim"]
[generator]
width = 8
depth = 3
[discriminator]
width = 8
receptive_field = 16
[dataset]
size = 64
stride = 256
[train]
images = 20
log_every = 2
sample_every = 13
checkpoint_every = 5
[evaluate]
samples = 2
[compute]
device = "cpu"
threads = 1
"""


def pytest_addoption(parser):
    campaigns = parser.getgroup("campaigns", "tests/bad_input and tests/faults; their long runs are in benchmarks/")
    campaigns.addoption("--cases", type=int, default=10, help="inputs that each test of bad input tries")
    campaigns.addoption(
        "--times", type=int, default=1, help="how often each fault is injected, each time at another place"
    )
    campaigns.addoption("--kills", type=int, default=20, help="how many processes are killed at random moments")
    campaigns.addoption("--seed", type=int, default=0, help="seed of the random faults and inputs")


def pytest_collection_modifyitems(items):
    """Mark dozens of tests as slow: exporting a large network to ONNX takes up to a minute, compiling it seconds.

    The files whose slow tests take minutes come first: no process of pytest-xdist begins one when the others are done.
    """
    for item in items:
        if item.name.endswith(("-export]", "-compile]")):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: MINUTES.index(item.path.name) if item.path.name in MINUTES else len(MINUTES))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for no garbage while all tests are imported, and never among what they import: it stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def tmp_path(request, tmp_path_factory):
    """As pytest's, which reads the names of all folders of earlier tests for the next free number: milliseconds."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder = tmp_path_factory.getbasetemp() / f"{name}-{next(FOLDER_NUMBERS)}"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """Do not wait for the disk: what os.fsync does shows after a power failure alone, and a run calls it 50 times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A recipe that trains for half a second; every second checkpoint falls inside a window of its log."""
    file = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def arguments(tiny):
    """arguments(runs, "train.images=20", …): arguments of `p2pzoo` that train the tiny recipe in `runs`."""

    def arguments(runs, *overrides):
        return ["run", tiny, "--profile", "smoke", "--runs", runs, *(a for o in overrides for a in ("-s", o))]

    return arguments


@dataclass(frozen=True)
class CommandResult:
    """output: stdout and stderr; first_step: the number of the first training step, None if it did not train."""

    exit_code: int
    output: str
    first_step: int | None


@pytest.fixture(scope="session")
def run_cli():
    """run_cli("run", …): run the command line in this process. Returns a CommandResult."""

    def run_cli(*args):
        threads, steps, train_step = torch.get_num_threads(), [], loop.train_step

        def counting_train_step(step_function, engine, batches, step, *rest):
            steps.append(step)
            return train_step(step_function, engine, batches, step, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", counting_train_step)
            try:
                result = CliRunner().invoke(main, [*map(str, args)])
            finally:
                torch.set_num_threads(threads)
        return CommandResult(result.exit_code, result.output, next(iter(steps), None))

    return run_cli


@pytest.fixture(scope="session")
def assert_refused(run_cli):
    """assert_refused(message, "run", …): the command ends with exit code 2 and one line, which has the message."""

    def assert_refused(message, *args):
        result = run_cli(*args)
        assert (result.exit_code, message in result.output) == (2, True), result.output
        assert len(result.output.strip().splitlines()) == 1, result.output

    return assert_refused


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The user's cache, in the test's own folder; empty."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def run(run_cli, arguments):
    """run(runs, "train.ema=0.9", …): train the tiny recipe in this process, in the folder `runs`."""
    return lambda runs, *overrides, flags=(): run_cli(*arguments(runs, *overrides), *flags)


@pytest.fixture(scope="session")
def train_on(run_cli, tiny):
    """train_on(folder, tables): train the networks of the tiny recipe on 8 images of other data, in `folder`.

    The recipe is recipe.toml, with these tables; runs/ is for its run, and cache/ is the cache. Returns a CommandResult
    and the run's folder, None without one.
    """

    def train_on(folder, tables):
        (folder / "recipe.toml").write_text(f"extends = '{tiny}'\n{tables}[train]\nimages = 8\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("P2PZOO_CACHE", str(folder / "cache"))
            with _report_writer(write_report):  # pages show data of every kind
                result = run_cli("run", folder / "recipe.toml", "--profile", "smoke", "--runs", folder / "runs")
        return result, next((file.parent for file in folder.glob("runs/*/*/model.safetensors")), None)

    return train_on


@pytest.fixture(scope="session", autouse=True)
def no_reports():
    """Runs of this process write no report.html, which takes a tenth of a tiny run, except for `with_reports`."""
    with _report_writer(lambda *_: None):
        yield


@pytest.fixture(scope="module")
def with_reports(no_reports):
    """Runs of this process write report.html, until the end of the module."""
    with _report_writer(write_report):
        yield


@contextlib.contextmanager
def _report_writer(function):
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.run_writer", "training.run_experiment"):
            patch.setattr(f"p2pzoo.{module}.write_report", function)
        yield


@pytest.fixture
def start():
    """start("-m", "p2pzoo", …): start another Python process; it is killed at the end of the test."""
    processes = []

    def start(*args):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def fork_server(tiny):
    """The ForkServer of the fixture `fork`."""
    with ForkServer(tiny) as server:
        yield server


@pytest.fixture
def fork(fork_server):
    """fork("run", …): run `p2pzoo` in another process without imports, in a tenth of the time of `start`.

    Takes the arguments of `ForkServer.fork`, and returns a Forked; it is killed at the end of the test.
    """
    with contextlib.ExitStack() as processes:

        def fork(*args, **options):
            process = fork_server.fork(*args, **options)
            processes.callback(process.close)
            return process

        yield fork


@pytest.fixture(scope="session")
def wait_for():
    """wait_for(condition, process): wait until it is true. Fails if the process ends first, or after ten minutes."""

    def wait_for(condition, process):
        end = time.monotonic() + 600
        while not condition():
            assert time.monotonic() < end, "waited ten minutes"
            if process.poll() is not None:
                pytest.fail(
                    f"the process ended ({process.returncode}) before the condition was true:\n{process.stdout.read()}"
                )
            time.sleep(0.002)

    return wait_for


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install("name", source): install a plugin for one test; it is found through its entry point."""
    installed = []

    def install(name, source):
        installed.append(name)
        site = tmp_path / "site"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[p2pzoo]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, name, raising=False)
        clear_caches()

    def clear_caches():
        loader.plugins.cache_clear()
        loader.registry.cache_clear()

    yield install
    for name in installed:
        sys.modules.pop(name, None)
    clear_caches()


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here")
    switches = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=switches.split())
        yield chromium
        chromium.close()


# --- runs of the tiny recipe -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_complete(run, tmp_path_factory):
    """A runs folder with a complete run. Tests must not change it."""
    runs = tmp_path_factory.mktemp("complete") / "runs"
    with _report_writer(write_report):
        assert run(runs).exit_code == 0
    return runs


@pytest.fixture(scope="session")
def shared_halfway(run, tmp_path_factory):
    """A runs folder with a run as in the fixture `halfway`. Tests must not change it."""
    runs = tmp_path_factory.mktemp("halfway") / "runs"
    with _report_writer(write_report), after(STEP, simulate_kill, call=17), pytest.raises(SimulatedKill):
        run(runs)
    return runs


@pytest.fixture
def complete(shared_complete, tmp_path):
    """A runs folder with a complete run, for one test."""
    return Path(shutil.copytree(shared_complete, tmp_path / "complete"))


@pytest.fixture
def halfway(shared_halfway, tmp_path):
    """A runs folder with a run that was killed at image 17 of 20: checkpoints at 10 and 15, a log until 16."""
    return Path(shutil.copytree(shared_halfway, tmp_path / "halfway"))


@pytest.fixture(autouse=True)
def restore_signal_handlers():
    """Fail if a run in this process leaves a signal handler behind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts pytest in the background ignores it
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    after_test = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after_test == before
