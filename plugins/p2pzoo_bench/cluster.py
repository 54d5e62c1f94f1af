"""Runs on a Ray cluster: each a task with its share of CPUs and GPUs, which Ray places.

What the nodes have to have: this version of p2pzoo, with the plugins, and the data. Where they all see the runs folder
(shared storage) runs are made in it. Where they do not, a run is made on its node, and its files are brought here as
they come, so that it can go on elsewhere when its node dies.
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

HEAD = {"node:__internal_head__": 0.001}  # where Ray's own head is: no worker's death takes it along
ANSWER_SECONDS = 120.0  # that a node may take to say what it has
CONNECT_SECONDS = 10.0
POLL_SECONDS, SEND_SECONDS = 0.1, 1.0
ORPHAN_SECONDS = 60.0  # that a run may take to end when its worker has died


@dataclass(frozen=True)
class Parcel:
    """What a run tells while it is made. files: what is new in its folder; names: all that is in it."""

    id: str
    where: str
    files: dict[str, bytes]
    names: frozenset[str] | None = None


class Board:
    """A Ray actor: runs put parcels on it, and the table takes them."""

    def __init__(self) -> None:
        self._parcels: list[Parcel] = []

    def put(self, parcel: Parcel) -> None:
        self._parcels.append(parcel)

    def take(self) -> list[Parcel]:
        taken, self._parcels = self._parcels, []
        return taken


class Cluster:
    """A Ray cluster.

    address  "ray" is the one that RAY_ADDRESS names, else that of this machine; "ray://HOST:10001" one elsewhere
    jobs     at most so many runs at a time [default: as many as there is room for]
    cpus     of each run, which are its threads too [default: the threads of its recipe, else 1]
    gpus     of each run, perhaps a part of one [default: 1 where the cluster has any]

    Raises UserError where there is no such cluster, and where no node has as much; `begin` where that is so of a run.
    """

    def __init__(
        self, address: str, runs: Path, *, jobs: int | None = None, cpus: int | None = None, gpus: float | None = None
    ) -> None:
        self._address, self._runs, self._jobs, self._cpus = address, runs.absolute(), jobs, cpus
        self._ray = _connected(address)
        self._met: dict[str, dict[str, float]] = {}  # what each node has that was there at any time
        there = any("GPU" in node["Resources"] for node in self._nodes())
        self._gpus = gpus if gpus is not None else float(there)
        self._check_room(cpus or 1)
        self._make = self._ray.remote(make)
        self.shared = True
        self._tasks: dict[Any, Job] = {}
        self._where: dict[str, str] = {}
        self._held = contextlib.ExitStack()  # the runs' locks, where only this machine sees their folder
        self._locked: set[str] = set()
        self._stopping = False

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _check_room(self, cpus: int) -> None:
        """Raises UserError where a run with so many CPUs would wait for ever. For a node that died another may come."""
        self._met |= {node["NodeID"]: node["Resources"] for node in self._nodes()}
        if not any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= self._gpus for has in self._met.values()):
            raise UserError(
                f"--on {self._address}: no node has the {cpus} CPUs and {self._gpus:g} GPUs that a run is to have "
                "(--cpus-per-run or its recipe's compute.threads, --gpus-per-run)"
            )

    def _shared(self) -> bool:
        """Whether all nodes see the runs folder. Raises UserError where one has another p2pzoo, or none."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._runs.mkdir(parents=True, exist_ok=True)
        marker = self._runs / f".{uuid.uuid4().hex}"
        marker.touch()
        try:
            asked = {}
            for node in self._nodes():
                on = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = self._ray.remote(has).options(num_cpus=0, scheduling_strategy=on)
                asked[_name(node)] = task.remote(str(marker))
            answers = {}
            for name, answer in asked.items():
                try:
                    answers[name] = self._ray.get(answer, timeout=ANSWER_SECONDS)
                except self._ray.exceptions.RayError as error:
                    if name not in map(_name, self._nodes()):  # it has died meanwhile
                        continue
                    told = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
                    raise UserError(f"--on {self._address}: node {name} cannot make runs: {told}") from None
        finally:
            marker.unlink(missing_ok=True)
        for name, (version, _) in answers.items():
            if version != __version__:
                raise UserError(
                    f"--on {self._address}: node {name} has p2pzoo {version}, this machine has {__version__}"
                )
        return all(seen for _, seen in answers.values())

    def __enter__(self) -> Self:
        self._held.enter_context(contextlib.redirect_stdout(sys.stderr))  # where Ray tells of nodes that died
        self.shared = self._shared()
        self._board = self._ray.remote(Board).options(num_cpus=0, resources=HEAD).remote()
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self.stop(signal.SIGTERM)
            self._ray.wait([*self._tasks], num_returns=len(self._tasks))
            self._take()
        self._ray.shutdown()
        self._held.close()

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
                self._held.enter_context(job.run.lock())
                self._locked.add(job.id)
            files = {name: (job.run.folder / name).read_bytes() for name in _names(job.run.folder)}
        order = Order(
            job.id, job.experiment.recipe.name, job.recipe(threads), str(job.runs.absolute()), job.options,
            str(job.run.folder.relative_to(job.runs)), os.getcwd(), files, bool(self._gpus),
        )  # fmt: skip
        share = {"num_cpus": cpus, "num_gpus": self._gpus, "max_retries": 0}
        self._tasks[self._make.options(name=job.name, **share).remote(order, self._board)] = job

    def doing(self) -> list[RunningJob]:
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
                code, told = self._ray.get(task)
            except errors.TaskCancelledError:
                yield Ended(job, stopped=True)
            except errors.RayTaskError as error:
                yield Ended(job, failed=str(error.cause).strip() or type(error.cause).__name__)
            except errors.RayError as error:  # its worker, its node, or the memory there
                yield Ended(job, lost=type(error).__name__)
            else:
                if was_stopped(code) and not self._stopping:  # its node was told to go
                    yield Ended(job, lost="its worker was stopped")
                else:
                    yield Ended(job, stopped=True) if was_stopped(code) else Ended(job, failed=told)

    def stop(self, signum: int) -> None:
        self._stopping = True
        for task in self._tasks:
            self._ray.cancel(task)

    def _take(self) -> None:
        """Write down what the runs have told since the last time."""
        jobs = {job.id: job for job in self._tasks.values()}
        for parcel in self._ray.get(self._board.take.remote()):
            if job := jobs.get(parcel.id):
                self._where[job.id] = parcel.where
                if parcel.names is not None:
                    _unpack(parcel.files, parcel.names, job.run.folder)


# --- on a node -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A run that a node is to make. files: what there is of it already, where the node does not see the runs folder."""

    id: str
    name: str
    recipe: str
    runs: str
    options: tuple[str, ...]
    folder: str
    cwd: str
    files: dict[str, bytes] | None
    gpus: bool


def has(marker: str) -> tuple[str, bool]:
    """p2pzoo's version here, and whether a file can be seen."""
    return __version__, Path(marker).exists()


def make(order: Order, board: Any) -> tuple[int, str | None]:
    """Make a run, or go on with it: its exit code, and why it failed if it did."""
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
        _left_alone(run)
        if os.path.isdir(order.cwd):
            os.chdir(order.cwd)
        hidden = {} if order.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        process = Process(order.name, order.recipe, runs, order.options, hidden)
        seen: dict[str, tuple[int, int]] = {}

        def tell() -> None:
            files, names = {}, None
            if order.files is not None:
                names = _names(run.folder)
                files = _new(run.folder, names, seen)
            ray.get(board.put.remote(Parcel(order.id, where, files, names)))

        try:
            told = 0.0
            while process.poll() is None:
                if time.monotonic() - told > SEND_SECONDS:
                    tell()
                    told = time.monotonic()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # Ray's way of telling that the task is cancelled
            process.stop(signal.SIGTERM)
            process.end()
            tell()
            raise
        answer = process.end()
        tell()
        return answer


def _left_alone(run: Run) -> None:
    """Wait for a process that still works on this run: its worker has died, and it is about to."""
    if run.folder.exists():
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(run.folder / ".lock").acquire(ORPHAN_SECONDS):
            pass


# --- files and nodes -------------------------------------------------------------------------------------------


def _names(folder: Path) -> frozenset[str]:
    """The files of a run's folder, but for those that are being written."""
    found = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return frozenset(str(file.relative_to(folder)) for file in found)


def _new(folder: Path, names: frozenset[str], seen: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    """What has changed since it was seen. Checkpoints first: a log may be ahead of them, not behind."""
    found = {}
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError):
            told = (folder / name).stat()
            if seen.get(name) != (told.st_mtime_ns, told.st_size):
                found[name] = (folder / name).read_bytes()
                seen[name] = (told.st_mtime_ns, told.st_size)
    return found


def _unpack(files: dict[str, bytes], names: frozenset[str], folder: Path) -> None:
    """Bring a folder to what another is."""
    for name, content in files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{name}: outside the run's folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
    for name in _names(folder) - names:
        (folder / name).unlink()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(f"--on {address} needs Ray: pip install 'p2pzoo[ray]'") from None
    named = os.environ.get("RAY_ADDRESS", "") if address == "ray" else address
    before = signal.getsignal(signal.SIGTERM)
    try:
        _answers(named.removeprefix("ray://"))
        ray.init("auto" if address == "ray" else address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--on {address}: no Ray cluster there ({told}); start one with `ray start --head`, or use --jobs here"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray takes it for itself
    return ray


def _answers(named: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = named.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
