"""Runs on a Ray cluster: each is a Ray task with its share of CPUs and GPUs.

Every node needs this version of p2pzoo, the plugins, and the data. If all nodes see the runs folder (shared storage),
runs are written there. If not, a run is written on its node and its files are copied here while it trains, so that it
can resume on another node when its own dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import filelock

from p2pzoo import __version__
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write
from p2pzoo_bench.executors import Ended, Job, Process, RunningJob, was_stopped

HEAD = {"node:__internal_head__": 0.001}  # places the board on the head node: it survives the death of any worker
ANSWER_SECONDS = 120.0  # for a node to report its version: it may have to start a worker and import torch
CONNECT_ATTEMPTS = 3
CONNECT_SECONDS = 10.0  # Ray itself would retry for minutes
POLL_SECONDS = 0.1
SEND_SECONDS = 1.0  # between two messages of a run
ORPHAN_SECONDS = 60.0  # a run ends at most this long after its worker died


@dataclass(frozen=True)
class Parcel:
    """A message from a running job. files: new or changed files of its folder; names: all its files."""

    id: str
    where: str
    files: dict[str, bytes]
    names: frozenset[str] | None = None


class Board:
    """A Ray actor: runs put parcels on it, the table takes them."""

    def __init__(self) -> None:
        self._parcels: list[Parcel] = []

    def put(self, parcel: Parcel) -> None:
        self._parcels.append(parcel)

    def take(self) -> list[Parcel]:
        taken, self._parcels = self._parcels, []
        return taken


class Cluster:
    """A Ray cluster.

    address  "ray": the cluster of RAY_ADDRESS, else of this machine; "ray://HOST:10001": a remote one
    jobs     how many runs at a time [default: as many as fit]
    cpus     CPUs and threads of each run [default: the threads of its recipe, else 1]
    gpus     GPUs of each run, possibly a fraction [default: 1 if the cluster has any]

    Leaving its context disconnects, and entering it again connects again.

    Raises UserError if there is no such cluster, or no node has that many CPUs and GPUs; `begin` checks each run.
    """

    def __init__(
        self, address: str, runs: Path, *, jobs: int | None = None, cpus: int | None = None, gpus: float | None = None
    ) -> None:
        self._address, self._runs, self._jobs, self._cpus = address, runs.absolute(), jobs, cpus
        self._ray = _connect(address)
        self._known_nodes: dict[str, dict[str, float]] = {}  # resources of all nodes since the start
        has_gpu = any("GPU" in node["Resources"] for node in self._nodes())
        self._gpus = gpus if gpus is not None else float(has_gpu)
        self._check_room(cpus or 1)
        self.shared = True
        self._tasks: dict[Any, Job] = {}
        self._where: dict[str, str] = {}
        self._stack = contextlib.ExitStack()  # holds the runs' locks if only this machine has their folder
        self._locked: set[str] = set()
        self._stopping = False

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _check_room(self, cpus: int) -> None:
        """Raises UserError if no node can ever run it. Nodes that died count: they may be replaced."""
        self._known_nodes |= {node["NodeID"]: node["Resources"] for node in self._nodes()}
        if not any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= self._gpus for has in self._known_nodes.values()):
            raise UserError(
                f"--on {self._address}: no node has {cpus} CPUs and {self._gpus:g} GPUs, which a run needs: lower "
                "--cpus-per-run (or its recipe's compute.threads) or --gpus-per-run"
            )

    def _shared(self) -> bool:
        """Whether all nodes see the runs folder. Raises UserError if one has another version of p2pzoo, or none."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._runs.mkdir(parents=True, exist_ok=True)
        marker = self._runs / f".{uuid.uuid4().hex}"
        marker.touch()
        try:
            requests = {}
            for node in self._nodes():
                on = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = self._ray.remote(describe_node).options(num_cpus=0, scheduling_strategy=on)
                requests[_name(node)] = task.remote(str(marker))
            answers = {}
            for name, answer in requests.items():
                try:
                    answers[name] = self._ray.get(answer, timeout=ANSWER_SECONDS)
                except self._ray.exceptions.RayError as error:
                    if name not in map(_name, self._nodes()):  # it died in the meantime
                        continue
                    reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
                    raise UserError(f"--on {self._address}: node {name} cannot train runs: {reason}") from None
        finally:
            marker.unlink(missing_ok=True)
        for name, (version, _) in answers.items():
            if version != __version__:
                raise UserError(
                    f"--on {self._address}: node {name} has p2pzoo {version}, this machine has {__version__}: "
                    "install the same version"
                )
        return all(sees_marker for _, sees_marker in answers.values())

    def __enter__(self) -> Self:
        if not self._ray.is_initialized():  # it was left before: a command trains several tables, one after the other
            self._ray = _connect(self._address)
        self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # Ray prints dead nodes on stdout
        self._train = self._ray.remote(train_on_node)
        self.shared = self._shared()
        self._board = self._ray.remote(Board).options(num_cpus=0, resources=HEAD).remote()
        # Until it has started: Ray lends the CPU of a run that waits for it to another run, so that a node gets both.
        self._ray.get(self._board.take.remote())
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self.stop(signal.SIGTERM)
            self._ray.wait([*self._tasks], num_returns=len(self._tasks))
            self._take()
        self._ray.shutdown()
        self._stack.close()
        self._locked.clear()

    @property
    def kind(self) -> str:
        return "gpu" if self._gpus else "laptop"

    def room(self) -> bool:
        return self._jobs is None or len(self._tasks) < self._jobs

    def begin(self, job: Job) -> None:
        threads = job.experiment.compute.threads or self._cpus or 1
        self._check_room(cpus := self._cpus or threads)
        files = None
        if not self.shared:
            if job.id not in self._locked:
                self._stack.enter_context(job.run.lock())
                self._locked.add(job.id)
            files = {name: (job.run.folder / name).read_bytes() for name in _names(job.run.folder)}
        order = Order(
            job.id, job.experiment.recipe.name, job.recipe(threads), str(job.runs.absolute()), job.options,
            str(job.run.folder.relative_to(job.runs)), os.getcwd(), files, bool(self._gpus),
        )  # fmt: skip
        share = {"num_cpus": cpus, "num_gpus": self._gpus, "max_retries": 0}
        self._tasks[self._train.options(name=job.name, **share).remote(order, self._board)] = job

    def running(self) -> list[RunningJob]:
        self._take()
        return [RunningJob(job, self._where[job.id]) for job in self._tasks.values() if job.id in self._where]

    def waiting(self) -> int:
        return len(self._tasks)

    def ended(self) -> list[Ended]:
        if not self._tasks:
            return []
        done, _ = self._ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=0)
        if done:
            self._take()
        return [*self._ended(done)]

    def _ended(self, done: Sequence[Any]) -> Iterator[Ended]:
        errors = self._ray.exceptions
        for task in done:
            job = self._tasks.pop(task)
            self._where.pop(job.id, None)
            try:
                code, message = self._ray.get(task)
            except errors.TaskCancelledError:
                yield Ended(job, stopped=True)
            except errors.RayTaskError as error:
                yield Ended(job, failed=str(error.cause).strip() or type(error.cause).__name__)
            except errors.RayError as error:  # its worker or node died, or the memory there ran out
                yield Ended(job, lost=type(error).__name__)
            else:
                if was_stopped(code) and not self._stopping:  # its node is shutting down
                    yield Ended(job, lost="its worker was stopped")
                else:
                    yield Ended(job, stopped=True) if was_stopped(code) else Ended(job, failed=message)

    def stop(self, signum: int) -> None:
        self._stopping = True
        for task in self._tasks:
            self._ray.cancel(task)

    def _take(self) -> None:
        """Copy the files that arrived since the last call."""
        jobs = {job.id: job for job in self._tasks.values()}
        for parcel in self._ray.get(self._board.take.remote()):
            if job := jobs.get(parcel.id):
                self._where[job.id] = parcel.where
                if parcel.names is not None:
                    _unpack(parcel.files, parcel.names, job.run.folder)


# --- on a node -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A run for a node to train. files: its existing files, if the node does not see the runs folder."""

    id: str
    name: str
    recipe: str
    runs: str
    options: tuple[str, ...]
    folder: str
    cwd: str
    files: dict[str, bytes] | None
    gpus: bool


def describe_node(marker: str) -> tuple[str, bool]:
    """The version of p2pzoo on this node, and whether it sees the file `marker`."""
    return __version__, Path(marker).exists()


def train_on_node(order: Order, board: Any) -> tuple[int, str | None]:
    """Train or resume a run. Returns its exit code, and the error message if it failed."""
    import ray

    where = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    with contextlib.ExitStack() as stack:
        runs = Path(order.runs)
        if order.files is not None:
            runs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pzoo-")))
            _unpack(order.files, frozenset(order.files), runs / order.folder)
        elif not runs.exists():
            raise UserError(f"node {where} does not see {runs}")
        run = Run(runs / order.folder)
        _wait_for_orphan(run)
        if os.path.isdir(order.cwd):
            os.chdir(order.cwd)
        hidden = {} if order.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        process = Process(order.name, order.recipe, runs, order.options, hidden)
        sent: dict[str, tuple[int, int]] = {}

        def send() -> None:
            files, names = {}, None
            if order.files is not None:
                names = _names(run.folder)
                files = _changed_files(run.folder, names, sent)
            ray.get(board.put.remote(Parcel(order.id, where, files, names)))

        try:
            sent_at = 0.0
            while process.poll() is None:
                if time.monotonic() - sent_at > SEND_SECONDS:
                    send()
                    sent_at = time.monotonic()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # Ray cancelled the task
            process.stop(signal.SIGTERM)
            process.end()
            send()
            raise
        answer = process.end()
        send()
        return answer


def _wait_for_orphan(run: Run) -> None:
    """Wait for a process that still writes this run although its worker died: it is about to end."""
    if run.folder.exists():
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(run.folder / ".lock").acquire(ORPHAN_SECONDS):
            pass


# --- files and nodes -------------------------------------------------------------------------------------------


def _names(folder: Path) -> frozenset[str]:
    """The files of a run's folder, without temporary ones."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return frozenset(str(file.relative_to(folder)) for file in files)


def _changed_files(folder: Path, names: frozenset[str], sent: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    """The files that changed since they were sent. Checkpoints sort first: a log may be ahead of them, never behind."""
    changed = {}
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError):
            status = (folder / name).stat()
            if sent.get(name) != (status.st_mtime_ns, status.st_size):
                changed[name] = (folder / name).read_bytes()
                sent[name] = (status.st_mtime_ns, status.st_size)
    return changed


def _unpack(files: dict[str, bytes], names: frozenset[str], folder: Path) -> None:
    """Make a folder equal to another one. files: its changed files; names: all its files."""
    for name, content in files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{name}: a node sent a file outside the run's folder; it was not written")
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
    for name in _names(folder) - names:
        (folder / name).unlink()


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(f"--on {address} needs Ray: pip install 'p2pzoo[ray]'") from None
    named = os.environ.get("RAY_ADDRESS", "") if address == "ray" else address
    before = signal.getsignal(signal.SIGTERM)
    try:
        _check_address(named.removeprefix("ray://"))
        _init_ray(ray, "auto" if address == "ray" else address)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--on {address}: no Ray cluster there ({reason}); start one with `ray start --head`, "
            "or use --jobs on this machine"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray replaces the handler
    return ray


def _init_ray(ray: Any, address: str) -> None:
    """`ray.init`. A busy head sometimes fails to start the process that serves one client, and can the next time."""
    for attempt in range(CONNECT_ATTEMPTS):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except (ConnectionError, RuntimeError) as error:  # which of them depends on where in Ray's client it is raised
            if attempt == CONNECT_ATTEMPTS - 1 or "Starting Ray client server failed" not in str(error):
                raise
        time.sleep(1)


def _check_address(named: str) -> None:
    """Raises OSError if nothing listens at HOST:PORT."""
    host, _, port = named.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
