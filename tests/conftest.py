"""What several test modules share: a tiny recipe, the command line here or in its own process, throw-away plugins."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests share the cores as processes

import torch
from click.testing import CliRunner
from disturbed import STEP, CutOff, after, cut_off
from p2pzoo_earth import dataset, geometry

from p2pzoo.cli import main
from p2pzoo.plugin import loader
from p2pzoo.training import loop

TINY = """
extends = "zoo:base.toml"
title = "tiny"
drop = ["metrics.ssim"]
[generator]
width = 8
[discriminator]
width = 8
[dataset]
size = 64
stride = 256
[train]
images = 40
log_every = 4
sample_every = 25
checkpoint_every = 10
[evaluate]
samples = 2
[compute]
device = "cpu"
threads = 1
"""


def pytest_addoption(parser):
    campaigns = parser.getgroup("campaigns", "tests/bad_input and tests/faults; their long runs are in benchmarks/")
    campaigns.addoption("--cases", type=int, default=20, help="inputs that each test of bad input tries")
    campaigns.addoption("--times", type=int, default=1, help="how often each fault is inflicted, each time elsewhere")
    campaigns.addoption("--kills", type=int, default=20, help="how many processes are killed at random moments")
    campaigns.addoption("--seed", type=int, default=0, help="of what they draw")


def pytest_collection_modifyitems(items):
    """Writing an ONNX file of a large network takes up to a minute, compiling it seconds; of each there are dozens."""
    for item in items:
        if item.name.endswith(("-export]", "-compile]")):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A recipe that trains for less than a second; its checkpoints fall inside the windows of its log."""
    file = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def arguments(tiny):
    """arguments(runs, "train.images=20", …): what makes `p2pzoo` train the tiny recipe in the folder `runs`."""

    def arguments(runs, *overrides):
        return ["run", tiny, "--profile", "smoke", "--runs", runs, *(a for o in overrides for a in ("-s", o))]

    return arguments


@dataclass(frozen=True)
class Told:
    """What a command answered. `output`: both streams; `began`: the number of its first training step, None if none."""

    exit_code: int
    output: str
    began: int | None


@pytest.fixture(scope="session")
def zoo():
    """zoo("run", …) is the command line in this process."""
    found = {}

    def tiles_found_once(mask, split, size, stride):  # a third of the time that a tiny run takes
        if (split, size, stride) not in found:
            found[split, size, stride] = geometry.tiles(mask, split, size, stride)
        return found[split, size, stride]

    def zoo(*args):
        threads, taken, take = torch.get_num_threads(), [], loop.train_step

        def advance(play, engine, batches, step, *rest):
            taken.append(step)
            return take(play, engine, batches, step, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "tiles", tiles_found_once)
            patch.setattr(loop, "train_step", advance)
            try:
                answer = CliRunner().invoke(main, [*map(str, args)])
            finally:
                torch.set_num_threads(threads)
        return Told(answer.exit_code, answer.output, next(iter(taken), None))

    return zoo


@pytest.fixture(scope="session")
def run(zoo, arguments):
    """run(runs, "train.ema=0.9", …): trains the tiny recipe in this process, in the folder `runs`."""
    return lambda runs, *overrides, flags=(): zoo(*arguments(runs, *overrides), *flags)


@pytest.fixture(scope="module")
def no_reports():
    """Runs of this process write no report.html, which takes as long as the training of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.loop", "training.run_experiment"):
            patch.setattr(f"p2pzoo.{module}.write_report", lambda *_: None)
        yield


@pytest.fixture
def start():
    """start("-m", "p2pzoo", …): Python in a process of its own, killed at the test's end if it still runs."""
    started = []

    def start(*args):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def wait_for():
    """wait_for(condition, process): returns once it holds; fails if the process ends before, or after two minutes."""

    def wait_for(condition, process):
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, "waited two minutes"
            if process.poll() is not None:
                pytest.fail(f"ended with {process.returncode} before it came to that:\n{process.stdout.read()}")
            time.sleep(0.002)

    return wait_for


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install("name", source): a plugin, found as an installed distribution's is, for the length of a test."""

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
        forget()

    def forget():
        loader.plugins.cache_clear()
        loader.registry.cache_clear()

    yield install
    for name in installed:
        sys.modules.pop(name, None)
    forget()


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


# --- runs of the tiny recipe to do something to ----------------------------------------------------------------


@pytest.fixture(scope="module")
def complete_once(run, tmp_path_factory):
    """A runs folder with a complete run, which tests leave as it is."""
    runs = tmp_path_factory.mktemp("complete") / "runs"
    assert run(runs).exit_code == 0
    return runs


@pytest.fixture(scope="module")
def halfway_once(run, tmp_path_factory):
    runs = tmp_path_factory.mktemp("halfway") / "runs"
    with after(STEP, cut_off, call=33), pytest.raises(CutOff):
        run(runs)
    return runs


@pytest.fixture
def complete(complete_once, tmp_path):
    """A runs folder with a complete run."""
    return Path(shutil.copytree(complete_once, tmp_path / "complete"))


@pytest.fixture
def halfway(halfway_once, tmp_path):
    """A runs folder with a run that was cut off at image 33 of 40: checkpoints at 20 and 30, a log until 32."""
    return Path(shutil.copytree(halfway_once, tmp_path / "halfway"))


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """A run that is stopped inside this process may leave no handler of its own behind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us in the background
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    left = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert left == before
