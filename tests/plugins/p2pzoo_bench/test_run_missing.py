"""`run_missing` with an executor that trains nothing: failed, lost and stopped runs, counts, signals."""

import json
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from p2pzoo_bench import cluster, executors
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.executors import Ended, Job, RunningJob
from p2pzoo_bench.progress import LiveTableProgress, PlainTableProgress
from p2pzoo_bench.run_missing import ImageCount, Stopped, _catch_signals
from p2pzoo_bench.table_file import read_table
from rich.console import Console

from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import IS_WINDOWS

TABLE = """
title = "Losses"
baseline = "a"
[columns]
psnr = "PSNR"
[rows.a]
recipe = "{tiny}"
label = "a [left]"
set = ["train.images=40"]
[rows.b]
recipe = "{tiny}"
label = "b [/left]"
set = ["train.images=20"]
"""


@pytest.fixture
def table(tmp_path, tiny):
    (tmp_path / "table.toml").write_text(TABLE.format(tiny=tiny))
    return read_table(str(tmp_path / "table.toml"))


@pytest.fixture
def bench(table, tmp_path):
    return lambda *options: Bench(table, registry(), tmp_path / "runs", profile="smoke", seeds=1, options=options)


class FakeExecutor:
    """Each run ends at once. endings: a function (job) -> Ended for each run, in the order in which they start."""

    kind = "laptop"

    def __init__(self, *endings):
        self.endings, self.begun, self.finished = [*endings], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def room(self):
        return True

    def begin(self, job):
        self.begun.append(job)
        self.finished.append(self.endings.pop(0)(job))

    def running(self):
        return []

    def waiting(self):
        return len(self.finished)

    def ended(self):
        ended, self.finished = self.finished, []
        return ended

    def stop(self, signum): ...


class RecordedProgress(PlainTableProgress):
    def __init__(self):
        super().__init__()
        self.notes, self.counts = [], []

    def images(self, done, left, running):
        self.counts.append((done, left))

    def note(self, text):
        self.notes.append(text)


def refuse(job):
    raise UserError("no room")


def test_a_run_that_cannot_start_does_not_stop_the_others(bench):
    executor, progress = FakeExecutor(refuse, Ended), RecordedProgress()
    a, b = bench().cells
    assert bench().run_missing(progress, executor) == {a.experiment.id: "no room"}
    assert progress.notes == ["a [left], seed 0 failed: no room"]
    assert [job.id for job in executor.begun] == [a.experiment.id, b.experiment.id]


def test_a_run_that_has_all_its_results_did_not_fail(bench, monkeypatch):
    """One with a number that is nan exits with 1; another process may train one meanwhile."""
    finished = set()
    monkeypatch.setattr(Bench, "find_finished", lambda _, cell: finished & {cell.experiment.id} or None)
    a, b = (cell.experiment.id for cell in bench().cells)

    def end_with_nan(job):
        finished.update({a, b})
        return Ended(job, failed="psnr: not a number (nan)")

    progress = RecordedProgress()
    assert bench().run_missing(progress, FakeExecutor(refuse, end_with_nan)) == {}
    assert progress.notes == ["a [left], seed 0 failed: no room", "b [/left], seed 0: psnr: not a number (nan)"]


def test_quiet_prints_why_runs_failed(run_cli, table, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "run_missing", lambda self, *_: {self.cells[0].experiment.id: "no room"})
    runs = ("--profile", "smoke", "--runs", tmp_path / "runs", "--seeds", "1")
    result = run_cli("bench", table.folder / "table.toml", *runs, "--quiet")
    assert result.exit_code == 1
    assert "a [left], seed 0 failed: no room\n" in result.output


@pytest.mark.skipif(IS_WINDOWS, reason="no signals")
def test_a_killed_run_names_the_signal_and_what_to_do(tmp_path, monkeypatch):
    start = executors.subprocess.Popen
    command = ["sh", "-c", "echo half a line >&2; kill -9 $$"]
    monkeypatch.setattr(executors.subprocess, "Popen", lambda _, **given: start(command, **given))
    code, message = executors.Process("a", "", tmp_path, []).end()
    assert (code, message.partition(",")[0]) == (-9, "half a line; killed by signal 9 (SIGKILL)")
    assert "fewer --jobs or a smaller batch; the same command resumes" in message


def test_a_lost_run_resumes_although_it_was_started_with_fresh(bench):
    executor = FakeExecutor(lambda job: Ended(job, lost="its node died"), Ended, Ended)
    assert bench("--fresh", "--accept-stale").run_missing(RecordedProgress(), executor) == {}
    options = {job.options for job in executor.begun if job.id == executor.begun[0].id}
    assert options == {("--fresh", "--accept-stale"), ("--accept-stale",)}


def write_log(job, images):
    """Write the run's log as if it had seen this many images."""
    job.run.folder.mkdir(parents=True, exist_ok=True)
    (job.run.folder / "timings.jsonl").write_text(json.dumps({"images": images}) + "\n")


def test_images_before_the_table_started_do_not_count(bench):
    a, b = (Job("", cell.experiment, bench().runs) for cell in bench().cells)
    assert (a.images, b.images) == (40, 20)
    write_log(a, 30)
    count = ImageCount([a, b])
    assert count([]) == (0, 30)
    write_log(a, 20)  # its last checkpoint
    assert count([RunningJob(a)]) == (0, 30)
    write_log(a, 34)
    assert count([RunningJob(a)]) == (4, 26)
    count.end(b)  # failed
    assert count([RunningJob(a)]) == (4, 6)
    count.end(a, complete=True)
    assert count([]) == (10, 0)


def test_fresh_runs_count_from_the_first_image(bench):
    a = Job("", bench().cells[0].experiment, bench().runs, ("--fresh",))
    write_log(a, 30)
    assert ImageCount([a])([]) == (0, 40)


def test_no_images_are_left_at_the_end(bench):
    progress = RecordedProgress()
    bench().run_missing(progress, FakeExecutor(Ended, lambda job: Ended(job, failed="odd")))
    assert progress.counts[-1] == (40, 0)


def test_labels_are_not_read_as_markup(bench):
    console = Console(force_terminal=True, width=120, record=True)
    jobs = [Job(f"{cell.row.label}, seed 0", cell.experiment, bench().runs) for cell in bench().cells]
    with LiveTableProgress(console) as progress:
        progress.images(1, 2, [RunningJob(job) for job in jobs])
    text = console.export_text()
    assert "a [left], seed 0" in text
    assert "b [/left], seed 0" in text


def test_nohup_ignores_a_closed_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _catch_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_stops_the_table(bench):
    def close_terminal(job):
        os.kill(os.getpid(), signal.SIGHUP)
        return Ended(job, stopped=True)

    with pytest.raises(Stopped):
        bench().run_missing(RecordedProgress(), FakeExecutor(close_terminal, close_terminal))


@pytest.mark.parametrize(("threads", "message"), [(1, None), (4, "no node has 4 CPUs")])
def test_a_cluster_waits_for_a_replacement_of_a_dead_node_but_not_for_a_larger_one(
    bench, monkeypatch, tmp_path, threads, message
):
    nodes = [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}}]
    ray = MagicMock(nodes=lambda: nodes)
    monkeypatch.setattr(cluster, "_connect", lambda _: ray)
    monkeypatch.setattr(cluster.Cluster, "_shared", lambda _: True)
    experiment = bench().cells[0].experiment
    experiment = replace(experiment, compute=replace(experiment.compute, threads=threads))
    with cluster.Cluster("ray", tmp_path / "runs") as executor:
        nodes.clear()  # it was preempted
        with pytest.raises(UserError, match=message) if message else nullcontext():
            executor.begin(Job("", experiment, tmp_path / "runs"))
        assert executor.waiting() == (message is None)


@pytest.mark.parametrize(
    ("message", "attempts"),
    [("Starting Ray client server failed. See its log", cluster.CONNECT_ATTEMPTS), ("another version of Ray", 1)],
)
@pytest.mark.parametrize("kind", [RuntimeError, ConnectionAbortedError])  # by a node, by Ray's client
def test_a_connection_that_a_busy_head_refuses_is_tried_again(monkeypatch, kind, message, attempts):
    ray = MagicMock()
    ray.init.side_effect = kind(message)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "_check_address", lambda _: None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(UserError, match=message):
        cluster._connect("ray://head:10001")
    assert ray.init.call_count == attempts


@pytest.mark.parametrize(
    ("options", "command"), [((), "the same command"), (("--fresh",), "the same command without --fresh")]
)
def test_a_stopped_table_prints_how_to_resume(run_cli, table, tmp_path, monkeypatch, options, command):
    def stop(*_):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(Bench, "run_missing", stop)
    runs = ("--profile", "smoke", "--runs", tmp_path / "runs")
    result = run_cli("bench", table.folder / "table.toml", *runs, *options)
    assert result.exit_code == 128 + signal.SIGTERM
    assert f"stopped; {command} resumes from there" in result.output


@pytest.mark.parametrize(("options", "profile"), [((), "gpu"), (("-s", "compute.device=cpu"), "laptop")])
def test_the_profile_fits_the_hardware_of_the_runs(run_cli, table, monkeypatch, options, profile):
    picked = []
    monkeypatch.setattr("p2pzoo_bench.executors.LocalExecutor.kind", "gpu")
    monkeypatch.setattr("p2pzoo_bench.bench.Bench", lambda *_, pick, **__: picked.append(pick()) or 1 / 0)
    run_cli("bench", table.folder / "table.toml", *options)
    assert picked == [profile]
