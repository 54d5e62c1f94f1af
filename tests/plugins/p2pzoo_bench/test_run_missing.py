"""How `Bench.call_factory` deals with what a place says of its runs, shown by a place that makes none."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from p2pzoo_bench import cluster
from p2pzoo_bench.bench import Bench, Count, Stopped, _catch_signals
from p2pzoo_bench.executors import Ended, Job, RunningJob
from p2pzoo_bench.progress import LiveTableProgress, PlainTableProgress
from p2pzoo_bench.table_file import read_table
from rich.console import Console

from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError

TABLE = """
title = "Losses"
baseline = "a"
[columns]
psnr = "PSNR"
[rows.a]
recipe = "{tiny}"
label = "a [left]"
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


class Nowhere:
    """Each run ends at once, as `endings` say of it: (job) -> Ended."""

    kind = "laptop"

    def __init__(self, *endings):
        self.endings, self.begun, self.over = [*endings], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def room(self):
        return True

    def begin(self, job):
        self.begun.append(job)
        self.over.append(self.endings.pop(0)(job))

    def doing(self):
        return []

    def waiting(self):
        return len(self.over)

    def ended(self):
        ended, self.over = self.over, []
        return ended

    def stop(self, signum): ...


class Noted(PlainTableProgress):
    def __init__(self):
        super().__init__()
        self.notes, self.counts = [], []

    def images(self, made, left, doing):
        self.counts.append((made, left))

    def note(self, text):
        self.notes.append(text)


def refused(job):
    raise UserError("no room")


def test_a_run_that_cannot_be_begun_leaves_the_others(bench):
    place, noted = Nowhere(refused, Ended), Noted()
    a, b = bench().cells
    assert bench().run_missing(noted, place) == {a.experiment.id: "no room"}
    assert noted.notes == ["a [left], seed 0 failed: no room"]
    assert [job.id for job in place.begun] == [a.experiment.id, b.experiment.id]


def test_a_lost_run_goes_on_though_it_was_begun_afresh(bench):
    place = Nowhere(lambda job: Ended(job, lost="its node died"), Ended, Ended)
    assert bench("--fresh", "--accept-stale").run_missing(Noted(), place) == {}
    options = {job.options for job in place.begun if job.id == place.begun[0].id}
    assert options == {("--fresh", "--accept-stale"), ("--accept-stale",)}


def log(job, images):
    """The run's log as if it had seen so many images."""
    job.run.folder.mkdir(parents=True, exist_ok=True)
    (job.run.folder / "timings.jsonl").write_text(json.dumps({"images": images}) + "\n")


def test_only_what_was_made_since_the_table_began_counts_for_its_speed(bench):
    a, b = (Job("", cell.experiment, bench().runs) for cell in bench().cells)
    assert (a.images, b.images) == (40, 20)
    log(a, 30)
    count = Count([a, b])
    assert count([]) == (0, 30)
    log(a, 20)  # its last checkpoint
    assert count([RunningJob(a)]) == (0, 30)
    log(a, 34)
    assert count([RunningJob(a)]) == (4, 26)
    count.end(b)  # failed
    assert count([RunningJob(a)]) == (4, 6)
    count.end(a, whole=True)
    assert count([]) == (10, 0)


def test_runs_that_begin_afresh_count_from_the_first_image(bench):
    a = Job("", bench().cells[0].experiment, bench().runs, ("--fresh",))
    log(a, 30)
    assert Count([a])([]) == (0, 40)


def test_a_table_ends_at_nothing_left(bench):
    noted = Noted()
    bench().run_missing(noted, Nowhere(Ended, lambda job: Ended(job, failed="odd")))
    assert noted.counts[-1] == (40, 0)


def test_labels_are_shown_as_they_are(bench):
    console = Console(force_terminal=True, width=120, record=True)
    jobs = [Job(f"{cell.row.label}, seed 0", cell.experiment, bench().runs) for cell in bench().cells]
    with LiveTableProgress(console) as shown:
        shown.images(1, 2, [RunningJob(job) for job in jobs])
    text = console.export_text()
    assert "a [left], seed 0" in text
    assert "b [/left], seed 0" in text


def test_a_table_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _catch_signals() as came:
            os.kill(os.getpid(), signal.SIGHUP)
        assert came == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_table_hears_that_its_terminal_was_closed(bench):
    def closed(job):
        os.kill(os.getpid(), signal.SIGHUP)
        return Ended(job, stopped=True)

    with pytest.raises(Stopped):
        bench().run_missing(Noted(), Nowhere(closed, closed))


@pytest.mark.parametrize(("threads", "told"), [(1, []), (4, ["no node has the 4 CPUs"])])
def test_a_cluster_waits_for_a_node_like_one_that_died_and_for_none_that_never_was(
    bench, monkeypatch, tmp_path, threads, told
):
    nodes = [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}}]
    ray = MagicMock(nodes=lambda: nodes)
    monkeypatch.setattr(cluster, "_connected", lambda _: ray)
    monkeypatch.setattr(cluster.Cluster, "_shared", lambda _: True)
    experiment = bench().cells[0].experiment
    experiment = replace(experiment, compute=replace(experiment.compute, threads=threads))
    with cluster.Cluster("ray", tmp_path / "runs") as made:
        nodes.clear()  # it was preempted
        with pytest.raises(UserError, match=told[0]) if told else nullcontext():
            made.begin(Job("", experiment, tmp_path / "runs"))
        assert made.waiting() == (not told)


@pytest.mark.parametrize(("options", "again"), [((), "the same command"), (("--fresh",), "the same command without")])
def test_a_stopped_table_says_what_goes_on(zoo, table, tmp_path, monkeypatch, options, again):
    def stopped(*_):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(Bench, "run_missing", stopped)
    runs = ("--profile", "smoke", "--runs", tmp_path / "runs")
    answer = zoo("bench", table.folder / "table.toml", *runs, *options)
    assert answer.exit_code == 128 + signal.SIGTERM
    assert f"stopped; {again}{' --fresh' * bool(options)} goes on from there" in answer.output


@pytest.mark.parametrize(("options", "profile"), [((), "gpu"), (("-s", "compute.device=cpu"), "laptop")])
def test_a_table_takes_the_profile_of_what_its_runs_are_computed_on(zoo, table, monkeypatch, options, profile):
    picked = []
    monkeypatch.setattr("p2pzoo_bench.executors.Machine.kind", "gpu")
    monkeypatch.setattr("p2pzoo_bench.bench.Bench", lambda *_, pick, **__: picked.append(pick()) or 1 / 0)
    zoo("bench", table.folder / "table.toml", *options)
    assert picked == [profile]
