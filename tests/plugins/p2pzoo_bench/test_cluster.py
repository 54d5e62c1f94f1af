"""`p2pzoo bench --on ray`, on a real cluster of two nodes on loopback: what is lost with a node goes on elsewhere."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import filelock
import psutil
import pytest
from p2pzoo_bench import cluster

from p2pzoo import __version__
from p2pzoo.utils.errors import UserError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

TABLE = """
title = "Losses"
baseline = "both"
[columns]
psnr = "PSNR"
l1 = "L1"
[rows.l1]
recipe = "l1.toml"
label = "L1 alone"
[rows.both]
recipe = "both.toml"
label = "L1 + cGAN"
[rows.photos]
target = true
label = "ground truth"
"""
UNSEEN = """
from p2pzoo.cli import main
from p2pzoo_bench.cluster import Cluster
Cluster._shared = lambda self: False
main()
"""


@pytest.fixture
def files(tmp_path, tiny):
    (tmp_path / "both.toml").write_text(f'extends = "{tiny}"\n[train]\nimages = 600\ncheckpoint_every = 20\n')
    (tmp_path / "l1.toml").write_text('extends = "both.toml"\ndrop = ["discriminator", "gan_loss"]\n')
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path


class Node:
    """A node of a Ray cluster with one CPU: `ray start`, in processes of its own."""

    def __init__(self, folder, address, *options):
        self.log = folder / f"{address}.log"
        share = ("--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", "100000000")
        command = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--node-ip-address", address, *share, *options],
                env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        until = time.monotonic() + 120
        while "Ray runtime started" not in self.log.read_text():
            assert time.monotonic() < until, self.log.read_text()
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def processes(self):
        try:
            own = psutil.Process(self._process.pid)
            return [*own.children(recursive=True), own]
        except psutil.NoSuchProcess:
            return []

    def lose_its_daemon(self):
        """Its workers notice, and what they work on hears of it."""
        [raylet] = [process for process in self.processes() if process.name() == "raylet"]
        raylet.kill()

    def lose_power(self):
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


class Head(NamedTuple):
    address: str
    port_for_clients: str
    folder: Path


def free_ports(count):
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.2", 0))
        return [str(each.getsockname()[1]) for each in found]


@pytest.fixture(scope="module")
def head():
    """A cluster of one node, on loopback. (Ray takes no 127.0.0.1 as a node's address, but its neighbours.)"""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets bear no long path
    port, for_clients = free_ports(2)
    node = Node(
        folder, "127.0.0.2", "--head", "--port", port, "--ray-client-server-port", for_clients,
        "--include-dashboard", "false", "--temp-dir", str(folder),
    )  # fmt: skip
    yield Head(f"127.0.0.2:{port}", for_clients, folder)
    node.lose_power()
    shutil.rmtree(folder)


@pytest.fixture
def second(head, monkeypatch):
    """The cluster's second node. RAY_ADDRESS is that of the head."""
    node = Node(head.folder, "127.0.0.3", "--address", head.address)
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    yield node
    node.lose_power()


@pytest.fixture
def begin(files, start):
    """begin(*options): `p2pzoo bench` of the table on the cluster, in a process of its own."""

    def begin(*options, code=None):
        program = ("-c", code) if code else ("-m", "p2pzoo")
        asked = ("--profile", "smoke", "--seeds", "1", "--runs", files / "runs", "-o", files / "far.json")
        return start(*program, "bench", files / "table.toml", *asked, "--on", "ray", *options)

    return begin


@pytest.fixture
def end(files):
    """end(process): its output, and the table that it made."""

    def end(process):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output, json.loads((files / "far.json").read_text())

    return end


def saved(runs):
    """The rows that have a checkpoint of the middle of their training."""
    found = [file for file in runs.glob("*/*/checkpoints/*.safetensors") if int(file.stem.split("-")[1]) < 600]
    return {file.parts[-4] for file in found}


def models(runs):
    return {file.parent.name: file.read_bytes() for file in runs.glob("*/*/model.safetensors")}


@pytest.mark.parametrize(
    ("named", "options"),
    [("", ()), ("127.0.0.2:1", ()), ("", ("--on", "ray://127.0.0.2:1")), ("", ("--on", "ray://nowhere.invalid:1"))],
    ids=["none", "none where RAY_ADDRESS says", "none where --on says", "no such machine"],
)
def test_where_no_cluster_is_one_line_says_how_to_start_one(named, options, begin, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", named)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    process = begin(*options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "no Ray cluster there" in output.splitlines()[-1]
    assert "ray start --head" in output.splitlines()[-1]


@pytest.mark.parametrize("seen", [True, False], ids=["one folder for all", "each node its own disk"])
def test_a_cluster_that_loses_a_node_makes_the_table_of_one_machine(files, second, begin, end, wait_for, zoo, seen):
    process = begin(code=None if seen else UNSEEN)
    wait_for(lambda: saved(files / "runs") == {"both", "l1"}, process)
    if seen:
        second.lose_its_daemon()
    else:
        second.lose_power()
    told, far = end(process)
    assert told.count("was lost (") == 1
    assert "goes on from 0 images" not in told
    lost = models(files / "runs")
    assert len(lost) == 2
    logs = [file.read_bytes() for file in sorted(files.glob("runs/*/*/metrics.jsonl"))]

    asked = ("--profile", "smoke", "--seeds", "1", "--runs", files / "here", "-o", files / "near.json")
    answer = zoo("bench", files / "table.toml", *asked)
    assert answer.exit_code == 0, answer.output
    assert models(files / "here") == lost
    assert [file.read_bytes() for file in sorted(files.glob("here/*/*/metrics.jsonl"))] == logs
    near = json.loads((files / "near.json").read_text())
    assert [row["cells"] for row in near["rows"]] == [row["cells"] for row in far["rows"]]


def test_a_table_that_is_stopped_goes_on_from_where_it_was(files, second, begin, end, wait_for):
    process = begin()
    wait_for(lambda: saved(files / "runs") == {"both", "l1"}, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "stopped; the same command goes on from there" in output
    states = [json.loads(file.read_text()) for file in files.glob("runs/*/*/status.json")]
    assert [state["state"] for state in states] == ["interrupted", "interrupted"]
    assert all(0 < state["images"] < 600 for state in states)
    end(begin())
    assert len(models(files / "runs")) == 2


def test_runs_end_with_the_table_that_is_killed(files, second, begin, end, wait_for):
    process = begin()
    wait_for(lambda: saved(files / "runs") == {"both", "l1"}, process)
    process.kill()
    process.wait()
    for lock in files.glob("runs/*/*/.lock"):
        filelock.FileLock(lock).acquire(timeout=60).lock.release()
    assert models(files / "runs") == {}
    end(begin())
    assert len(models(files / "runs")) == 2


def test_a_run_that_fails_is_told_and_leaves_the_others(files, second, begin):
    (files / "here.safetensors").write_bytes(b"no model")
    with (files / "l1.toml").open("a") as recipe:
        recipe.write(f'[init]\ngenerator = "{files}/here.safetensors"\n')
    process = begin("-s", "train.images=20")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    [told] = [line for line in output.splitlines() if line.startswith("L1 alone, seed 0 failed: ")]
    assert "here.safetensors" in told
    assert "Traceback" not in output
    assert len(models(files / "runs")) == 1


def test_what_no_node_has_is_told_at_once(second, begin):
    for options in (("--cpus-per-run", "2"), ("--gpus-per-run", "0.5")):
        process = begin(*options)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert "no node has the" in output.splitlines()[-1]


def test_a_run_with_more_threads_than_any_node_has_is_told_and_not_waited_for(files, second, begin):
    with (files / "l1.toml").open("a") as recipe:
        recipe.write("[compute]\nthreads = 2\n")
    process = begin("-s", "train.images=20")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    [told] = [line for line in output.splitlines() if line.startswith("L1 alone, seed 0 failed: ")]
    assert "no node has the 2 CPUs" in told
    assert len(models(files / "runs")) == 1


def test_a_node_with_another_version_is_told(second, tmp_path, monkeypatch):
    made = cluster.Cluster("ray", tmp_path / "runs")
    try:
        monkeypatch.setattr(cluster, "__version__", "0.0.1")
        with pytest.raises(UserError, match=f"has p2pzoo {__version__}, this machine has 0.0.1"):
            made.__enter__()
    finally:
        made.__exit__()


def test_what_ray_prints_does_not_get_into_a_table_on_standard_output(second, tmp_path, capsys):
    with cluster.Cluster("ray", tmp_path / "runs"):
        print("a node was lost")  # as Ray does
    out, err = capsys.readouterr()
    assert out == ""
    assert "a node was lost\n" in err, "beside what Ray really has to say"


def test_a_cluster_elsewhere_is_reached_through_its_port_for_clients(files, head, second, begin, end, monkeypatch):
    """As from a machine that is no node."""
    monkeypatch.delenv("RAY_ADDRESS")
    end(begin("--on", f"ray://127.0.0.2:{head.port_for_clients}", "-s", "train.images=20"))
    assert len(models(files / "runs")) == 2


def test_without_ray_one_line_says_how_to_get_it(begin):
    process = begin(code="import sys; sys.modules['ray'] = None; from p2pzoo.cli import main; main()")
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, "needs Ray: pip install 'p2pzoo[ray]'" in output) == (2, True)
    assert sys.modules["ray"] is ray
