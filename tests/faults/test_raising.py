"""Code of others that fails in the midst of a run: a loss that is no number, a component, a hook, an onlooker."""

import re

import fault_injection
import pytest
import torch

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin import hookspecs

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("register_"))

# What it registers raises, or gives what is no number, in call number `at` while the file "mended" is not there.
BROKEN = """
import os
import p2pzoo
import torch
from p2pzoo.plugin import Callback

@p2pzoo.hookimpl
def register_losses(register):
    register("raising", Raising, summary="raises in call number `at`")
    register("no-number", NaN, summary="not a number in call number `at`")

@p2pzoo.hookimpl
def register_callbacks(register):
    register("raising", Watcher, summary="raises in a moment")

@p2pzoo.hookimpl
def register_metrics(register):
    register("raising", Metric, summary="raises in a call")


def strike():
    if not os.path.exists("mended"):
        raise {exception}


class Raising:
    side = "generator"

    def __init__(self, *, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, out):
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return 0 * out.y_hat.mean() * (float("nan") if self.strikes() else 1)

    def act(self):
        strike()

    def strikes(self):
        return False


class NaN(Raising):
    def act(self):
        pass

    def strikes(self):
        return self.calls == self.at and not os.path.exists("mended")


class Watcher(Callback):
    def __init__(self, *, moment: str) -> None:
        self.moment = moment

    def start(self, *arguments):
        self.look("start")

    def log(self, *arguments):
        self.look("log")

    def samples(self, *arguments):
        self.look("samples")

    def finish(self, *arguments):
        self.look("finish")

    def look(self, moment):
        if moment == self.moment:
            strike()


class Metric:
    better = None

    def __init__(self, dataset, *, where: str) -> None:
        self.where, self.measured = where, 0

    def measure(self, batch, y_hat):
        self.measured += 1
        if self.where == "measure" and self.measured > 2:  # two images are measured before the training
            strike()
        return {"value": torch.zeros(len(y_hat))}

    def reduce(self, statistics):
        if self.where == "reduce" and len(statistics["value"]) > 2:
            strike()
        return {"value": 0.0}
"""

EXCEPTIONS = [
    'RuntimeError("boom")', 'ValueError("two\\nlines")', "KeyError(0)", 'OSError(5, "Input/output error")',
    "MemoryError()", "AssertionError()", "StopIteration()", "SystemExit(0)",
    'ConnectionError("\\x1b[2J")', "RecursionError()",
]  # fmt: skip


@pytest.fixture
def broken(install, chance, tmp_path, monkeypatch):
    install("broken", BROKEN.replace("{exception}", chance.choice(EXCEPTIONS)))
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "mended").touch


def ends_in_a_line(result):
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1].strip()


@pytest.mark.promise(
    "named in one line; weights that are no numbers are never saved; bit-identical results once it is mended"
)
def test_a_loss_that_becomes_nan(chance, broken, run, refused, goes_on, tmp_path):
    at = chance.randint(1, 20)
    overrides = ("losses.odd.use=no-number", f"losses.odd.at={at}")
    assert refused(run(tmp_path / "runs", *overrides)).startswith(f"G.odd became nan at step {at} (image {at}): ")
    for file in (tmp_path / "runs").glob("*/*/checkpoints/*"):
        tensors, header = load_tensors(file)
        assert header["images"] < at
        assert all(tensor.isfinite().all() for tensor in tensors.values() if torch.is_floating_point(tensor))
    before = fault_injection.on_disk(tmp_path / "runs")
    broken()
    assert run(tmp_path / "unharmed", *overrides).exit_code == 0
    goes_on(tmp_path / "runs", before, fault_injection.outcome(tmp_path / "unharmed"), *overrides)


@pytest.mark.promise("one line; the run resumes from its last checkpoint: bit-identical results once it is mended")
def test_a_loss_that_raises(chance, broken, run, goes_on, tmp_path):
    overrides = ("losses.odd.use=raising", f"losses.odd.at={chance.randint(1, 20)}")
    ends_in_a_line(run(tmp_path / "runs", *overrides))
    before = fault_injection.on_disk(tmp_path / "runs")
    broken()
    assert run(tmp_path / "unharmed", *overrides).exit_code == 0
    goes_on(tmp_path / "runs", before, fault_injection.outcome(tmp_path / "unharmed"), *overrides)


@pytest.mark.promise("one line; nothing is trained again: bit-identical results once it is mended")
@pytest.mark.parametrize("where", [pytest.param("measure", marks=pytest.mark.slow), "reduce"])
def test_a_metric_that_raises(where, broken, run, goes_on, tmp_path):
    overrides = ("metrics.odd.use=raising", f"metrics.odd.where={where}")
    ends_in_a_line(run(tmp_path / "runs", *overrides))
    before = fault_injection.on_disk(tmp_path / "runs")
    broken()
    assert run(tmp_path / "unharmed", *overrides).exit_code == 0
    assert (
        goes_on(tmp_path / "runs", before, fault_injection.outcome(tmp_path / "unharmed"), *overrides).first_step
        is None
    )


@pytest.mark.promise("one line that names it; the run resumes without it, or once it is mended: bit-identical results")
@pytest.mark.parametrize("moment", ["start", pytest.param("log", marks=pytest.mark.slow), "samples", "finish"])
def test_a_callback_that_raises(moment, broken, run, goes_on, unharmed, tmp_path):
    overrides = ("callbacks.odd.use=raising", f"callbacks.odd.moment={moment}")
    result = run(tmp_path / "runs", *overrides)
    ends_in_a_line(result)
    assert f"[callbacks.odd] failed at {moment}: " in result.output.splitlines()[-1]
    before = fault_injection.on_disk(tmp_path / "runs")
    goes_on(tmp_path / "runs", before, unharmed)


@pytest.mark.promise("`p2pzoo plugins` shows why, and runs that do not need it are bit-identical")
@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_that_raises_in_a_hook(hook, install, run_cli, chance, record_property):
    source = f"import p2pzoo\n@p2pzoo.hookimpl\ndef {hook}(register):\n    raise {chance.choice(EXCEPTIONS)}\n"
    before = run_cli("recipe", "zoo:ablation_patch70.toml", "--json").output
    install("odd", source)
    result = run_cli("recipe", "zoo:ablation_patch70.toml", "--json")
    assert (result.exit_code, result.output) == (0, before)
    result = run_cli("plugins")
    assert result.exit_code == 0
    assert re.search(r"^odd .*(Error|StopIteration|SystemExit)", result.output, re.MULTILINE)
    record_property("observed", "left out")
    record_property("bytes_lost", 0)
