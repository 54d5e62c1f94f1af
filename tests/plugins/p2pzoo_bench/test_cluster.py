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

IMAGES = 24
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
SHARED = """
from p2pzoo.cli import main
main()
"""
NOT_SHARED = """
from p2pzoo.cli import main
from p2pzoo_bench.cluster import Cluster
Cluster._shared = lambda self: False
main()
"""

# A callback that stops training after the checkpoint at 4 images, until the file `go` exists or a signal arrives: the
# handler of the training loop then gives way to that for a second signal.
PAUSE = """
import os, signal, time
from pathlib import Path
import p2pzoo
from p2pzoo.plugin.protocols import Callback

@p2pzoo.hookimpl
def register_callbacks(register):
    register("pause", "pausing:Pause", summary="wait for a file")

class Pause(Callback):
    def __init__(self, *, go: str) -> None:
        self.go = Path(go)

    def log(self, images, means):
        handler = signal.getsignal(signal.SIGTERM)
        if images >= 8 and not self.go.exists():
            self.go.with_name(f"paused-{os.getpid()}").touch()
            while not self.go.exists() and signal.getsignal(signal.SIGTERM) == handler:
                time.sleep(0.01)
"""


def write_files(folder, tiny):
    """A table of two rows and the ground truth, and the recipes of its rows."""
    (folder / "both.toml").write_text(f'extends = "{tiny}"\n[train]\nimages = {IMAGES}\ncheckpoint_every = 4\n')
    (folder / "l1.toml").write_text('extends = "both.toml"\ndrop = ["discriminator", "gan_loss"]\n')
    (folder / "table.toml").write_text(TABLE)


@pytest.fixture
def files(tmp_path, tiny):
    write_files(tmp_path, tiny)
    return tmp_path


@pytest.fixture
def wait_for_pause(files, wait_for):
    """wait_for_pause(process): wait until both runs of the table are in the middle of their training, and stay there.

    They go on when the file `go` exists. Every call waits for two new processes.
    """
    with (files / "both.toml").open("a") as recipe:
        recipe.write(f'[callbacks.pause]\nuse = "pause"\ngo = "{files}/go"\n')

    def wait_for_pause(process):
        wait_for(lambda: len([*files.glob("paused-*")]) == 2 and find_saved(files / "runs") == {"both", "l1"}, process)
        for file in files.glob("paused-*"):
            file.unlink()

    return wait_for_pause


@pytest.fixture(scope="module")
def on_one_machine(run_cli, tiny, tmp_path_factory):
    """(models, logs, cells) of the same table without a cluster."""
    folder = tmp_path_factory.mktemp("here")
    write_files(folder, tiny)
    for row in ("both", "l1"):
        result = run_cli("run", folder / f"{row}.toml", "--profile", "smoke", "--runs", folder / "runs")
        assert result.exit_code == 0, result.output
    options = ("--profile", "smoke", "--seeds", "1", "--runs", folder / "runs", "-o", folder / "table.json")
    result = run_cli("bench", folder / "table.toml", *options)
    assert result.exit_code == 0, result.output
    return read_models(folder / "runs"), read_logs(folder / "runs"), read_cells(folder / "table.json")


class Node:
    """A node of a Ray cluster with one CPU, started by `ray start`."""

    def __init__(self, folder, address, *options):
        self.log = folder / f"{address}.log"
        share = ("--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", "100000000")
        command = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
        # Ray's workers give way to all other processes by default: on a busy machine they would not get anywhere
        environment = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "PYTHONPATH": search_path(folder)}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--node-ip-address", address, *share, *options],
                env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        until = time.monotonic() + 600
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

    def is_alive(self):
        return any(process.name() == "raylet" and not has_ended(process) for process in self.processes())

    def kill_daemon(self):
        """Kill the raylet, and wait until its workers have noticed and have stopped what they ran."""
        [raylet] = [process for process in self.processes() if process.name() == "raylet"]
        descendants = raylet.children(recursive=True)
        raylet.kill()
        until = time.monotonic() + 600
        while not all(map(has_ended, descendants)):
            assert time.monotonic() < until, descendants
            time.sleep(0.1)

    def kill_all(self):
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # nobody reaps it
    except psutil.NoSuchProcess:
        return True


def search_path(folder):
    """PYTHONPATH with the plugin that is in this folder."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder / "site")]))


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
def ray_lock(tmp_path_factory):
    """Nodes have fixed addresses, so processes of pytest-xdist take turns."""
    return filelock.FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock")


@pytest.fixture(scope="module")
def one_cluster_at_a_time(ray_lock):
    with ray_lock:
        yield


@pytest.fixture
def no_cluster(ray_lock):
    """Ray finds every cluster of this machine, so also one that another process of pytest-xdist has started."""
    with ray_lock:
        yield


@pytest.fixture(scope="module")
def head(one_cluster_at_a_time):
    """A cluster of one node, on loopback. (Ray refuses 127.0.0.1 as the address of a node.)"""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the path of a socket must be short
    info = folder / "site" / "pausing-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "pausing.py").write_text(PAUSE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pausing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[p2pzoo]\npausing = pausing\n")
    port, client_port = free_ports(2)
    node = Node(
        folder, "127.0.0.2", "--head", "--port", port, "--ray-client-server-port", client_port,
        "--include-dashboard", "false", "--temp-dir", str(folder),
    )  # fmt: skip
    yield Head(f"127.0.0.2:{port}", client_port, folder)
    node.kill_all()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def second_nodes():
    nodes = []
    yield nodes
    for node in nodes:
        node.kill_all()


@pytest.fixture
def second(head, second_nodes, monkeypatch):
    """The cluster's second node, a new one if a test killed the last. RAY_ADDRESS is the head's address."""
    if not any(node.is_alive() for node in second_nodes):
        second_nodes.append(Node(head.folder, "127.0.0.3", "--address", head.address))
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    yield second_nodes[-1]
    ray.shutdown()  # if the test connected this process


@pytest.fixture
def arguments(files):
    """arguments(*options): arguments of `p2pzoo` that make the table on the cluster."""
    common = ("--profile", "smoke", "--seeds", "1", "--runs", files / "runs", "-o", files / "far.json", "--on", "ray")
    return lambda *options: ["bench", files / "table.toml", *common, *options]


@pytest.fixture
def begin(head, arguments, start, monkeypatch):
    """begin(program): `p2pzoo bench` of the table on the cluster, in another process."""

    def begin(program):
        monkeypatch.setenv("PYTHONPATH", search_path(head.folder))
        return start("-c", program, *arguments())

    return begin


def find_saved(runs):
    """The rows that have a checkpoint from the middle of their training."""
    files = [file for file in runs.glob("*/*/checkpoints/*.safetensors") if int(file.stem.split("-")[1]) < IMAGES]
    return {file.parts[-4] for file in files}


def read_models(runs):
    return {file.parent.name: file.read_bytes() for file in runs.glob("*/*/model.safetensors")}


def read_logs(runs):
    return {file.parent.name: file.read_bytes() for file in runs.glob("*/*/metrics.jsonl")}


def read_cells(table):
    return [row["cells"] for row in json.loads(table.read_text())["rows"]]


@pytest.mark.parametrize(
    ("address", "options"),
    [("", ()), ("127.0.0.2:1", ()), ("", ("--on", "ray://127.0.0.2:1")), ("", ("--on", "ray://nowhere.invalid:1"))],
    ids=["none", "wrong RAY_ADDRESS", "wrong --on", "no such machine"],
)
def test_without_a_cluster_one_line_shows_how_to_start_one(
    address, options, no_cluster, arguments, run_cli, monkeypatch, tmp_path
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    result = run_cli(*arguments(*options))
    assert result.exit_code == 2, result.output
    assert "no Ray cluster there" in result.output.splitlines()[-1]
    assert "ray start --head" in result.output.splitlines()[-1]


def stop_by_kill(process, runs):
    """Kill a table. Its runs end."""
    process.kill()
    process.wait()
    for lock in runs.glob("*/*/.lock"):
        filelock.FileLock(lock).acquire(timeout=600).lock.release()


def stop_by_signal(process, runs):
    """Interrupt a table, as Ctrl-C does. Its runs save and end."""
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "stopped; the same command resumes from there" in output
    states = [json.loads(file.read_text()) for file in runs.glob("*/*/status.json")]
    assert [state["state"] for state in states] == ["interrupted", "interrupted"]
    assert all(0 < state["images"] < IMAGES for state in states)


@pytest.mark.parametrize(
    ("stop", "lose", "program"),
    [(stop_by_kill, Node.kill_daemon, SHARED), (stop_by_signal, Node.kill_all, NOT_SHARED)],
    ids=["killed, shared folder", "interrupted, a disk per node"],
)
def test_a_stopped_table_resumes_and_a_lost_node_does_not_change_its_results(
    stop, lose, program, files, second, begin, wait_for_pause, on_one_machine
):
    process = begin(program)
    wait_for_pause(process)
    stop(process, files / "runs")
    assert read_models(files / "runs") == {}

    process = begin(program)
    wait_for_pause(process)
    lose(second)
    (files / "go").touch()
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert output.count("was lost (") == 1, output
    assert "resumes from 0 images" not in output
    models, logs, cells = on_one_machine
    assert len(models) == 2
    assert read_models(files / "runs") == models
    assert read_logs(files / "runs") == logs
    assert read_cells(files / "far.json") == cells


def test_a_remote_cluster_trains_what_it_can_and_reports_the_runs_that_fail(
    files, head, second, arguments, start, monkeypatch
):
    """As if from a machine that is not a node: through the client port."""
    monkeypatch.delenv("RAY_ADDRESS")
    (files / "here.safetensors").write_bytes(b"no model")
    init = f'[init]\ngenerator = "{files}/here.safetensors"\n'
    (files / "broken.toml").write_text((files / "both.toml").read_text() + init)
    (files / "wide.toml").write_text('extends = "both.toml"\n[train]\nimages = 20\n[compute]\nthreads = 2\n')
    rows = "".join(f'[rows.{name}]\nrecipe = "{name}.toml"\nlabel = "{name}"\n' for name in ("broken", "wide"))
    (files / "table.toml").write_text(TABLE.replace("[rows.l1]", f"{rows}[rows.l1]"))
    process = start("-m", "p2pzoo", *arguments("--on", f"ray://127.0.0.2:{head.client_port}"))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 1, output
    failures = [line for line in output.splitlines() if ", seed 0 failed: " in line]
    [broken] = [line for line in failures if line.startswith("broken, seed 0 failed: ")]
    [wide] = [line for line in failures if line.startswith("wide, seed 0 failed: ")]
    assert len(failures) == 2
    assert "here.safetensors" in broken
    assert "no node has 2 CPUs" in wide
    assert "Traceback" not in output
    assert len(read_models(files / "runs")) == 2


@pytest.mark.parametrize("options", [("--cpus-per-run", "2"), ("--gpus-per-run", "0.5")])
def test_options_that_no_node_can_satisfy_are_refused_at_once(options, second, arguments, run_cli):
    result = run_cli(*arguments(*options))
    assert result.exit_code == 2, result.output
    assert "no node has" in result.output.splitlines()[-1]


def test_a_node_with_another_version_is_refused(second, tmp_path, monkeypatch):
    executor = cluster.Cluster("ray", tmp_path / "runs")
    try:
        monkeypatch.setattr(cluster, "__version__", "0.0.1")
        with pytest.raises(UserError, match=f"has p2pzoo {__version__}, this machine has 0.0.1"):
            executor.__enter__()
    finally:
        executor.__exit__()


def test_output_of_ray_goes_to_standard_error(second, tmp_path, capsys):
    executor = cluster.Cluster("ray", tmp_path / "runs")
    for part in ("trials", "rows"):  # a command enters it once for each table that it trains
        with executor:
            print(f"a node of the {part} was lost")  # as Ray does
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("trials", "rows"):
        assert f"a node of the {part} was lost\n" in err, "besides the real messages of Ray"


def test_without_ray_one_line_shows_how_to_install_it(arguments, run_cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run_cli(*arguments())
    assert result.exit_code == 2
    assert "needs Ray: pip install 'p2pzoo[ray]'" in result.output.splitlines()[-1]
