"""`p2pzoo bench --on ray`, on a real cluster of two nodes on loopback: a lost run resumes on the other node."""

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
NOT_SHARED = """
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
    """A node of a Ray cluster with one CPU, started by `ray start`."""

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

    def kill_daemon(self):
        """Kill the raylet. Its workers notice and stop what they run."""
        [raylet] = [process for process in self.processes() if process.name() == "raylet"]
        raylet.kill()

    def kill_all(self):
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


class Head(NamedTuple):
    address: str
    client_port: str
    folder: Path


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.2", 0))
        return [str(free.getsockname()[1]) for free in sockets]


@pytest.fixture(scope="module")
def head():
    """A cluster of one node, on loopback. (Ray refuses 127.0.0.1 as the address of a node.)"""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the path of a socket must be short
    port, client_port = free_ports(2)
    node = Node(
        folder, "127.0.0.2", "--head", "--port", port, "--ray-client-server-port", client_port,
        "--include-dashboard", "false", "--temp-dir", str(folder),
    )  # fmt: skip
    yield Head(f"127.0.0.2:{port}", client_port, folder)
    node.kill_all()
    shutil.rmtree(folder)


@pytest.fixture
def second(head, monkeypatch):
    """The cluster's second node. RAY_ADDRESS is the head's address."""
    node = Node(head.folder, "127.0.0.3", "--address", head.address)
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    yield node
    node.kill_all()


@pytest.fixture
def begin(files, start):
    """begin(*options): `p2pzoo bench` of the table on the cluster, in another process."""

    def begin(*options, code=None):
        program = ("-c", code) if code else ("-m", "p2pzoo")
        arguments = ("--profile", "smoke", "--seeds", "1", "--runs", files / "runs", "-o", files / "far.json")
        return start(*program, "bench", files / "table.toml", *arguments, "--on", "ray", *options)

    return begin


@pytest.fixture
def end(files):
    """end(process): its output and the table as JSON."""

    def end(process):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output, json.loads((files / "far.json").read_text())

    return end


def find_saved(runs):
    """The rows that have a checkpoint from the middle of their training."""
    files = [file for file in runs.glob("*/*/checkpoints/*.safetensors") if int(file.stem.split("-")[1]) < 600]
    return {file.parts[-4] for file in files}


def read_models(runs):
    return {file.parent.name: file.read_bytes() for file in runs.glob("*/*/model.safetensors")}


@pytest.mark.parametrize(
    ("address", "options"),
    [("", ()), ("127.0.0.2:1", ()), ("", ("--on", "ray://127.0.0.2:1")), ("", ("--on", "ray://nowhere.invalid:1"))],
    ids=["none", "wrong RAY_ADDRESS", "wrong --on", "no such machine"],
)
def test_without_a_cluster_one_line_shows_how_to_start_one(address, options, begin, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    process = begin(*options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "no Ray cluster there" in output.splitlines()[-1]
    assert "ray start --head" in output.splitlines()[-1]


@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "a disk per node"])
def test_a_cluster_that_loses_a_node_gives_bit_identical_results(files, second, begin, end, wait_for, run_cli, shared):
    process = begin(code=None if shared else NOT_SHARED)
    wait_for(lambda: find_saved(files / "runs") == {"both", "l1"}, process)
    if shared:
        second.kill_daemon()
    else:
        second.kill_all()
    output, on_cluster = end(process)
    assert output.count("was lost (") == 1
    assert "resumes from 0 images" not in output
    models = read_models(files / "runs")
    assert len(models) == 2
    logs = [file.read_bytes() for file in sorted(files.glob("runs/*/*/metrics.jsonl"))]

    arguments = ("--profile", "smoke", "--seeds", "1", "--runs", files / "here", "-o", files / "near.json")
    result = run_cli("bench", files / "table.toml", *arguments)
    assert result.exit_code == 0, result.output
    assert read_models(files / "here") == models
    assert [file.read_bytes() for file in sorted(files.glob("here/*/*/metrics.jsonl"))] == logs
    on_one_machine = json.loads((files / "near.json").read_text())
    assert [row["cells"] for row in on_one_machine["rows"]] == [row["cells"] for row in on_cluster["rows"]]


def test_an_interrupted_table_resumes(files, second, begin, end, wait_for):
    process = begin()
    wait_for(lambda: find_saved(files / "runs") == {"both", "l1"}, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "stopped; the same command resumes from there" in output
    states = [json.loads(file.read_text()) for file in files.glob("runs/*/*/status.json")]
    assert [state["state"] for state in states] == ["interrupted", "interrupted"]
    assert all(0 < state["images"] < 600 for state in states)
    end(begin())
    assert len(read_models(files / "runs")) == 2


def test_runs_end_when_the_table_is_killed(files, second, begin, end, wait_for):
    process = begin()
    wait_for(lambda: find_saved(files / "runs") == {"both", "l1"}, process)
    process.kill()
    process.wait()
    for lock in files.glob("runs/*/*/.lock"):
        filelock.FileLock(lock).acquire(timeout=60).lock.release()
    assert read_models(files / "runs") == {}
    end(begin())
    assert len(read_models(files / "runs")) == 2


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(files, second, begin):
    (files / "here.safetensors").write_bytes(b"no model")
    with (files / "l1.toml").open("a") as recipe:
        recipe.write(f'[init]\ngenerator = "{files}/here.safetensors"\n')
    process = begin("-s", "train.images=20")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    [message] = [line for line in output.splitlines() if line.startswith("L1 alone, seed 0 failed: ")]
    assert "here.safetensors" in message
    assert "Traceback" not in output
    assert len(read_models(files / "runs")) == 1


def test_options_that_no_node_can_satisfy_are_refused_at_once(second, begin):
    for options in (("--cpus-per-run", "2"), ("--gpus-per-run", "0.5")):
        process = begin(*options)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert "no node has" in output.splitlines()[-1]


def test_a_run_with_more_threads_than_any_node_fails_without_waiting(files, second, begin):
    with (files / "l1.toml").open("a") as recipe:
        recipe.write("[compute]\nthreads = 2\n")
    process = begin("-s", "train.images=20")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    [message] = [line for line in output.splitlines() if line.startswith("L1 alone, seed 0 failed: ")]
    assert "no node has 2 CPUs" in message
    assert len(read_models(files / "runs")) == 1


def test_a_node_with_another_version_is_refused(second, tmp_path, monkeypatch):
    executor = cluster.Cluster("ray", tmp_path / "runs")
    try:
        monkeypatch.setattr(cluster, "__version__", "0.0.1")
        with pytest.raises(UserError, match=f"has p2pzoo {__version__}, this machine has 0.0.1"):
            executor.__enter__()
    finally:
        executor.__exit__()


def test_output_of_ray_goes_to_standard_error(second, tmp_path, capsys):
    with cluster.Cluster("ray", tmp_path / "runs"):
        print("a node was lost")  # as Ray does
    out, err = capsys.readouterr()
    assert out == ""
    assert "a node was lost\n" in err, "besides the real messages of Ray"


def test_a_remote_cluster_is_reached_through_its_client_port(files, head, second, begin, end, monkeypatch):
    """As if from a machine that is not a node."""
    monkeypatch.delenv("RAY_ADDRESS")
    end(begin("--on", f"ray://127.0.0.2:{head.client_port}", "-s", "train.images=20"))
    assert len(read_models(files / "runs")) == 2


def test_without_ray_one_line_shows_how_to_install_it(begin):
    process = begin(code="import sys; sys.modules['ray'] = None; from p2pzoo.cli import main; main()")
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, "needs Ray: pip install 'p2pzoo[ray]'" in output) == (2, True)
    assert sys.modules["ray"] is ray
